"""One training run under attack: its processes, what it says, what it left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.driver import EVENTS, SCRIPTED
from tests.chaos.processes import kill_tree

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "world.profiles": 12,
    "world.queries_per_profile": 5,
    "irpo.queries": 24,
    "irpo.reward_answers": 4,
    "irpo.preference_answers": 4,
    "irpo.delta": 1,
    "irpo.max_drop_share": 0.3,
    "dpo.batch_groups": 4,
    "dpo.micro_groups": 2,
    "evaluation.answers": 2,
    "wandb.mode": "disabled",
    "rollout.max_restarts": 10_000,
    "judge.max_restarts": 10_000,
    "reward_trainer.max_restarts": 10_000,
    "deadlines.start": 150,
    "deadlines.sample": 25,
    "deadlines.reward": 25,
    "deadlines.sync": 25,
}
"""Short deadlines, so that a stopped worker is found out soon."""


@dataclass(frozen=True)
class Event:
    """What a run has told: ``what`` it did, and ``of`` which phase, group or stage."""

    time: float
    what: str
    of: str


class Driver:
    """A `raylla train` process and everything below it."""

    def __init__(self, run: Path, epochs: int, world: Path | None = None, **changed: object) -> None:
        """``world``: of a run on scripted engines, which cannot ask for one; None: real ones."""
        self._scripted = world is not None
        if world is not None:
            changed = changed | {"world__path": world}
        named = {name.replace("__", "."): value for name, value in changed.items()}
        sets = SETTINGS | {"irpo.epochs": epochs} | named
        self._arguments = [
            *("train", str(ROOT / "configs" / "pocket.yaml"), "--run", str(run)),
            *(part for name, value in sets.items() for part in ("--set", f"{name}={value}")),
        ]
        self.run = run
        self.log = run.with_suffix(".log")
        self._told = run.with_suffix(".events")
        self.start()

    def start(self) -> None:
        """Begin, or go on after the last committed stage."""
        environment = os.environ | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
        environment[EVENTS] = str(self._told)
        environment[SCRIPTED] = "1" if self._scripted else ""
        environment.pop("RAY_ADDRESS", None)
        self.started = time.time()
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.driver", *self._arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=ROOT,
                start_new_session=True,
            )

    def events(self) -> list[Event]:
        """What it has told so far, over all its starts; a line under way is left for later."""
        if not self._told.exists():
            return []
        lines = self._told.read_text().split("\n")[:-1]
        return [Event(**json.loads(line)) for line in lines if line.endswith("}")]

    def at_work(self) -> bool:
        """Whether it has taken anything in since its last start."""
        return any(event.time > self.started for event in self.events())

    def kill(self) -> None:
        """End the driver and all that it started."""
        if self.process.poll() is None:
            kill_tree(self.process.pid)
            self.process.wait(60)


def compare(alone: Path, killed: Path) -> dict[str, Any]:
    """Sample ids lost and duplicated by the kills, and whether ids and tables are the same."""
    expected, found = _ids(alone), _ids(killed)
    return {
        "samples": len(expected),
        "lost": len(set(expected) - set(found)),
        "duplicated": len(found) - len(set(found)),
        "same_ids": expected == found,
        "same_table": _table(alone) == _table(killed),
    }


def _ids(run: Path) -> list[str]:
    lines = (json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines())
    return [f"{line['stage']} {line['sample_id']}" for line in lines if "sample_id" in line]


def _table(run: Path) -> Any:
    return json.loads((run / "results.json").read_text())["epochs"]
