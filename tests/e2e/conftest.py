"""Runs that many tests read: made once for a test run, whichever of its processes comes first."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.commands import ROOT, finish, training


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
