"""`bash dev.sh`: what it installs with which Python; which tests run, and what their statuses come to."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FIRST = (
    "-n 3 --dist loadfile --no-loadscope-reorder "
    "tests --ignore=tests/actors --ignore=tests/chaos --ignore=tests/e2e"
)
FAST = "--fast -n 3 --dist loadfile --no-loadscope-reorder tests/unit"
SECOND = "-n 2 --dist loadfile --no-loadscope-reorder tests/actors tests/chaos tests/e2e"
CLIENTS = ROOT / "requirements" / "clients.txt"
CHECKS = ["ruff check .", "ruff format --check .", "mypy "]


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An environment that counts as installed, whose programs only note their arguments."""
    (tmp_path / "bin").mkdir()
    for name in ("python", "ruff", "mypy"):
        program = tmp_path / "bin" / name
        program.write_text(
            f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/noted\n'
            'case "$*" in\n'
            "*tests/actors\\ tests/chaos*) exit ${SECOND:-0} ;;\n"
            "*pytest*) exit ${FIRST:-0} ;;\n"
            "esac\n"
        )
        program.chmod(0o755)
    wanted = (ROOT / "requirements" / "cpu.txt").read_bytes() + (ROOT / "pyproject.toml").read_bytes()
    stamp(tmp_path, wanted)
    (tmp_path / "clients").mkdir()
    stamp(tmp_path / "clients", CLIENTS.read_bytes())
    return tmp_path


def stamp(environment: Path, wanted: bytes) -> None:
    """Have an environment count as installed."""
    (environment / ".installed").write_text(f"{hashlib.sha256(wanted).hexdigest()}  -\n")


def dev(environment: Path, *arguments: str, **statuses: int | str) -> tuple[int, list[str]]:
    """Exit status of `dev.sh test`, and what it ran."""
    told = {
        "VIRTUAL_ENV_DIR": str(environment),
        "PYTHON": sys.executable,
        "REQUIREMENTS": "requirements/cpu.txt",
        "CLIENTS_DIR": str(environment / "clients"),
    }
    told |= {name: str(status) for name, status in statuses.items()}
    done = subprocess.run(["bash", str(ROOT / "dev.sh"), "test", *arguments], env={**os.environ, **told})
    noted = environment / "noted"
    ran = noted.read_text().splitlines()
    noted.unlink()
    return done.returncode, [line.removeprefix("python -m pytest ") for line in ran]


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [(0, 0, 0), (1, 0, 1), (0, 1, 1), (134, 0, 134), (5, 0, 0), (0, 5, 0), (5, 5, 5), (5, 1, 1)],
)
def test_two_processes_and_the_failure_of_either(
    environment: Path, first: int, second: int, status: int
) -> None:
    found = dev(environment, "-k", "some thing", FIRST=first, SECOND=second)
    assert found == (status, [*CHECKS, f"{FIRST} -k some thing", f"{SECOND} -k some thing"])


def test_a_path_is_run_by_one_process(environment: Path) -> None:
    chosen = "tests/unit/test_dev.py::test_x"
    assert dev(environment, "-x", chosen, FIRST=1) == (1, [*CHECKS, f"-x {chosen}"])


def test_fast_takes_arguments_too(environment: Path) -> None:
    assert dev(environment, "fast", "-x") == (0, [*CHECKS, f"{FAST} -x"])
    assert dev(environment) == (0, [*CHECKS, FIRST, SECOND])


@pytest.fixture
def making(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python whose new environments hold one program, which notes its arguments."""
    program = tmp_path_factory.mktemp("python") / "python"
    inner = f'#!/bin/sh\necho "clients $*" >> {environment}/noted\nexit ${{PIP:-0}}\n'
    program.write_text(
        '#!/bin/sh\n[ "$2" = venv ] || exit 0\nmkdir -p "$3/bin"\n'
        f'cat > "$3/bin/python" <<\'E\'\n{inner}E\nchmod +x "$3/bin/python"\n'
    )
    program.chmod(0o755)
    return program


def test_the_clients_are_installed_once_and_not_for_fast_tests(environment: Path, making: Path) -> None:
    stamp(environment / "clients", b"an older list")
    pip = "clients -m pip --quiet --disable-pip-version-check install --no-deps -r requirements/clients.txt"
    assert dev(environment, "fast", PYTHON=str(making)) == (0, [*CHECKS, FAST])
    assert dev(environment, PYTHON=str(making)) == (0, [pip, *CHECKS, FIRST, SECOND])
    assert dev(environment, PYTHON=str(making)) == (0, [*CHECKS, FIRST, SECOND])


def test_clients_that_cannot_be_installed_are_left_out_only_when_told(
    environment: Path, making: Path
) -> None:
    stamp(environment / "clients", b"an older list")
    status, ran = dev(environment, PYTHON=str(making), PIP=1)
    assert (status, len(ran)) == (1, 1)
    assert dev(environment, PYTHON=str(making), PIP=1, CLIENTS_DIR="none")[0] == 0


@pytest.mark.parametrize(
    ("job", "told", "words"),
    [
        (
            "install",
            {"REQUIREMENTS": "requirements/none.txt"},
            "requirements/none.txt is no file",
        ),
        ("install", {"PYTHON": "/none"}, "set PYTHON to one"),
        ("lock", {"PYTHON": "/none"}, "set PYTHON to one"),
        ("clients", {"PYTHON": "/none"}, "set PYTHON to one"),
    ],
)
def test_what_is_not_there_is_named_before_anything_is_made(
    tmp_path: Path, job: str, told: dict[str, str], words: str
) -> None:
    here = {"VIRTUAL_ENV_DIR": str(tmp_path / "made"), "CLIENTS_DIR": str(tmp_path / "clients")}
    told = {**os.environ, "PYTHON": sys.executable, "REQUIREMENTS": "requirements/cpu.txt"} | here | told
    done = subprocess.run(["bash", str(ROOT / "dev.sh"), job], env=told, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert words in done.stderr
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("line", ["version = 3.9.1", "version_info = 3.9.1"])
def test_an_environment_of_another_python_than_the_named_one_is_an_error(
    environment: Path, line: str
) -> None:
    told = {**os.environ, "PYTHON": sys.executable, "VIRTUAL_ENV_DIR": str(environment)}
    told["REQUIREMENTS"] = "requirements/cpu.txt"
    made, command = environment / "pyvenv.cfg", ["bash", str(ROOT / "dev.sh"), "install"]
    made.write_text(f"home = /usr/bin\n{line}\n")
    done = subprocess.run(command, env=told, capture_output=True, text=True)
    named = "{}.{}".format(*sys.version_info)
    assert (done.returncode, done.stderr) == (
        2,
        f"PYTHON={sys.executable} is Python {named}, and {environment} has Python 3.9: leave PYTHON out, "
        f"remove {environment}, or set VIRTUAL_ENV_DIR to another folder\n",
    )
    del told["PYTHON"]
    assert subprocess.run(command, env=told).returncode == 0
    made.write_text(f"version = {named}.9\n")
    assert subprocess.run(command, env={**told, "PYTHON": sys.executable}).returncode == 0


PROGRAM = """#!/bin/sh
[ "$1" = -c ] && exit {unfit}
echo "{name} $*" >> {notes}
[ "$2" = venv ] || [ "$1" = pip ] || case "$*" in *torch==*) exit {torch} ;; *) exit 0 ;; esac
[ "$2" = venv ] && mkdir -p "$3/bin" && cp {folder}/inner "$3/bin/python" && cp {folder}/uv "$3/bin/uv"
exit 0
"""


def installed(
    folder: Path, *fitting: str, torch: int = 0, chosen: str = "cpu"
) -> tuple[int, str, list[str]]:
    """Exit status of `dev.sh install` where these Pythons fit, what it said, and what it ran."""
    notes = folder / "notes"
    notes.touch()
    for name in ("python3.11", "python3.12", "python3.13", "python3", "inner", "uv"):
        unfit = int(name not in fitting)
        program = folder / name
        program.write_text(PROGRAM.format(name=name, unfit=unfit, notes=notes, torch=torch, folder=folder))
        program.chmod(0o755)
    told = {"PATH": f"{folder}:/usr/bin:/bin", "VIRTUAL_ENV_DIR": str(folder / "made")}
    told["REQUIREMENTS"] = f"requirements/{chosen}.txt"
    done = subprocess.run(
        ["bash", str(ROOT / "dev.sh"), "install"], env=told, capture_output=True, text=True
    )
    return done.returncode, done.stderr, notes.read_text().replace(str(folder), "").splitlines()


def test_the_first_python_that_fits_makes_the_environment(tmp_path: Path) -> None:
    status, _, ran = installed(tmp_path, "python3.13", "python3")
    assert (status, ran[0]) == (0, "python3.13 -m venv /made")
    assert (tmp_path / "made" / ".installed").exists()
    assert installed(tmp_path, "python3.13")[2] == ran, "installed once"


def test_without_a_python_that_fits_nothing_is_made(tmp_path: Path) -> None:
    told = "raylla needs Python 3.11, 3.12 or 3.13; set PYTHON to one\n"
    assert installed(tmp_path) == (2, told, [])
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("chosen", "torch", "builds"),
    [
        ("cpu", 0, ["inner TORCH+cpu"]),
        ("cpu", 1, ["inner TORCH+cpu", "uv --torch-backend cpu TORCH"]),
        ("cuda", 1, []),
    ],
)
def test_the_cpu_set_takes_the_cpu_build_of_torch(
    tmp_path: Path, chosen: str, torch: int, builds: list[str]
) -> None:
    """From where pip is told to look, else from the index that uv knows; CUDA as the list has it."""
    status, _, ran = installed(tmp_path, "python3.11", torch=torch, chosen=chosen)
    ran = [re.sub(r" (-m )?pip .*--(no-deps|compile-bytecode)", "", line) for line in ran[1:]]
    listed = (ROOT / "requirements" / f"{chosen}.txt").read_text().splitlines()
    pinned = {line.partition("==")[0]: line for line in listed}
    builds = [build.replace("TORCH", pinned["torch"]) for build in builds]
    whole = f"--build-constraints requirements/{chosen}.txt -r requirements/{chosen}.txt --editable ."
    assert (status, ran) == (0, [f"inner {pinned['uv']}", *builds, f"uv {whole}"])


def test_pins_are_complete_and_exact() -> None:
    pins = [line for line in CLIENTS.read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+]+", pin) for pin in pins)
    named = {pin.partition("==")[0].lower() for pin in pins}
    wanted = {"openai", "langchain-openai", "litellm", "pydantic-ai-slim", "openai-agents", "instructor"}
    assert wanted <= named


def test_a_light_test_loads_nothing_heavy(tmp_path: Path) -> None:
    file = tmp_path / "test_it.py"
    file.write_text(
        "import sys\ndef test_a():\n    import torch\n"
        "def test_b():\n    assert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-m", "pytest", "--fast", "-rs", "-p", "tests.conftest", "-c", os.devnull]
    command += ["--rootdir", str(tmp_path), str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "1 passed, 1 skipped" in done.stdout, done.stdout + done.stderr
    assert "--fast: loads torch" in done.stdout
