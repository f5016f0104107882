"""`bash dev.sh test`: which processes run, and what becomes of their exit statuses."""

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
    "-n auto --maxprocesses 4 --dist loadfile "
    "tests --ignore=tests/actors --ignore=tests/chaos --ignore=tests/e2e"
)
SECOND = "tests/actors tests/chaos tests/e2e"
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
    assert dev(environment, "fast", "-x") == (0, [*CHECKS, "--fast tests/unit -x"])
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
    assert dev(environment, "fast", PYTHON=str(making)) == (0, [*CHECKS, "--fast tests/unit"])
    assert dev(environment, PYTHON=str(making)) == (0, [pip, *CHECKS, FIRST, SECOND])
    assert dev(environment, PYTHON=str(making)) == (0, [*CHECKS, FIRST, SECOND])


def test_clients_that_cannot_be_installed_are_left_out_only_when_told(
    environment: Path, making: Path
) -> None:
    stamp(environment / "clients", b"an older list")
    status, ran = dev(environment, PYTHON=str(making), PIP=1)
    assert (status, len(ran)) == (1, 1)
    assert dev(environment, PYTHON=str(making), PIP=1, CLIENTS_DIR="none")[0] == 0


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
