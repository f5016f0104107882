"""Commands of `raylla` as processes of their own, and what a run has written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import pytest

ROOT = Path(__file__).parents[2]
TINY = {
    "world.profiles": 8,
    "world.queries_per_profile": 5,
    "world.test_share": 0.375,
    "irpo.epochs": 1,
    "irpo.queries": 8,
    "irpo.reward_answers": 3,
    "irpo.preference_answers": 4,
    "irpo.delta": 1,
    "irpo.max_drop_share": 0.2,
    "dpo.batch_groups": 4,
    "dpo.micro_groups": 2,
    "rollout.workers": 1,
    "evaluation.answers": 2,
    "wandb.mode": "disabled",
}
FORKS = "forkserver"
"""How `multiprocessing` calls processes that are forked from one that has loaded the model libraries."""
get_context(FORKS).set_forkserver_preload(["tests.e2e.preloaded"])


class Process(Protocol):
    """A command under way."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None:
        """Its exit status, if it has ended."""

    def wait(self, timeout: float) -> int:
        """Its exit status; `subprocess.TimeoutExpired` where it has not ended in ``timeout`` seconds."""

    def send_signal(self, number: int) -> None: ...


class _Forked:
    """A `Process` of a fork."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        process.start()
        assert process.pid is not None
        self.pid: int = process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return status

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def sets(values: Mapping[str, Any]) -> list[str]:
    """The options that set ``values`` in a config."""
    return [part for name, value in values.items() for part in ("--set", f"{name}={value}")]


def training(run: Path | str, **changed: object) -> list[str]:
    """Arguments that train a tiny run, with other settings where ``changed`` says so: ``dpo__lr=1``."""
    settings = TINY | {name.replace("__", "."): value for name, value in changed.items()}
    return ["train", str(ROOT / "configs" / "pocket.yaml"), "--run", str(run), *sets(settings)]


def environment() -> dict[str, str]:
    """Of a command that joins no cluster but its own."""
    known = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return known | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}


def begin(arguments: Iterable[str], log: Path) -> Process:
    """Begin a command; what it says is appended to ``log``."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "raylla", *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment(),
            cwd=ROOT,
            start_new_session=True,
        )


def fork(arguments: Iterable[str], log: Path) -> Process:
    """`begin`, in a fork of a process that has loaded the model libraries, which takes eight seconds of a
    core: for commands that hold engines themselves, without Ray."""
    return _Forked(get_context(FORKS).Process(target=_command, args=(list(arguments), log, environment())))


def finish(arguments: Iterable[str], log: Path) -> None:
    """`begin` a command, which has to end well."""
    assert begin(arguments, log).wait(timeout=400) == 0, log.read_text()[-4000:]


def finish_fork(arguments: Iterable[str], log: Path) -> None:
    """`fork` a command, which has to end well."""
    assert fork(arguments, log).wait(timeout=400) == 0, log.read_text()[-4000:]


def _command(arguments: list[str], log: Path, known: dict[str, str]) -> None:
    os.setsid()
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.clear()
    os.environ.update(known)
    os.chdir(ROOT)
    sys.argv = ["raylla", *arguments]
    from raylla.cli import main

    main()


def wait_for_commit(process: Process, run: Path, stage: str, log: Path) -> None:
    """Until the stage of the run that ``process`` trains is in its ledger."""
    wanted = f'{{"stage": "{stage}", "commit"'
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if wanted in ledger(run):
            return
        assert process.poll() is None, log.read_text()[-4000:]
        time.sleep(0.05)
    pytest.fail(f"{stage} was not committed in time: {log.read_text()[-4000:]}")


def ledger(run: Path) -> str:
    """A run's ledger: a file, or in a bucket an object for each commit."""
    files = [run / "ledger.jsonl", *sorted((run / "ledger").glob("*"))]
    return "".join(file.read_text() for file in files if file.exists())


def ids(run: Path) -> list[str]:
    """The samples of a run, in the order of its ledger."""
    lines = [json.loads(line) for line in ledger(run).splitlines()]
    return [line["sample_id"] for line in lines if "sample_id" in line]


def commit(run: Path, stage: str) -> Any:
    """What a run committed a stage with."""
    lines = [json.loads(line) for line in ledger(run).splitlines()]
    return next(line["commit"] for line in lines if line["stage"] == stage and "commit" in line)


def results(run: Path) -> Any:
    """A run's results."""
    return json.loads((run / "results.json").read_text())
