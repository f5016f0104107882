"""`bash dev.sh test`: which processes run, and what becomes of their exit statuses."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FIRST = "tests --ignore=tests/actors --ignore=tests/chaos --ignore=tests/e2e"
SECOND = "tests/actors tests/chaos tests/e2e"
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
    (tmp_path / ".installed").write_text(f"{hashlib.sha256(wanted).hexdigest()}  -\n")
    return tmp_path


def dev(environment: Path, *arguments: str, **statuses: int) -> tuple[int, list[str]]:
    """Exit status of `dev.sh test`, and what it ran."""
    told = {
        "VIRTUAL_ENV_DIR": str(environment),
        "PYTHON": sys.executable,
        "REQUIREMENTS": "requirements/cpu.txt",
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
