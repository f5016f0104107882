"""Runs that many tests read: made once for a test run, whichever of its processes comes first."""

from __future__ import annotations

import atexit
import faulthandler
import fcntl
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.commands import ROOT, finish, training
from tests.e2e.nursery import nursed

SESSIONS: list[pytest.Session] = []


def pytest_configure(config: pytest.Config) -> None:
    """What these tests start is born in a nursery, one for all processes of a test run."""
    nursed(config)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Know whose exit status it is that this process ends with."""
    SESSIONS.append(session)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Where engines ran in this process it ends at once: vLLM, DeepSpeed and Ray, which are seldom in one,
    take each other down in no order, and that may crash."""
    if SESSIONS and "vllm" in sys.modules and "PYTEST_XDIST_WORKER" not in os.environ:
        faulthandler.enable()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(SESSIONS[-1].exitstatus))


def _once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The run of this name; others that want it wait for the one that makes it."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    run = root / name / "run"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not run.parent.exists():
            run.parent.mkdir()
            make(run)
    assert (run / "results.json").exists(), (run.parent / "log").read_text()[-4000:]
    return run


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run, its directory given as a relative path."""

    def make(run: Path) -> None:
        finish(training(Path(os.path.relpath(run, ROOT))), run.parent / "log")

    return _once(tmp_path_factory, "whole", make)


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run without Ray, each step waiting for the one before."""

    def make(run: Path) -> None:
        finish(training(run, ray__in_process="true", irpo__overlap="false"), run.parent / "log")

    return _once(tmp_path_factory, "alone", make)
