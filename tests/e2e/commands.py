"""Commands of `raylla` as processes of their own, and what a run has written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

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


def begin(arguments: Iterable[str], log: Path) -> subprocess.Popen[bytes]:
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


def finish(arguments: Iterable[str], log: Path) -> None:
    """`begin` a command, which has to end well."""
    assert begin(arguments, log).wait(timeout=400) == 0, log.read_text()[-4000:]


def wait_for_commit(process: subprocess.Popen[bytes], run: Path, stage: str, log: Path) -> None:
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
