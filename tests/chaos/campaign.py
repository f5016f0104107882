"""One run, twice: left alone, and with SIGKILL sent to its processes at moments drawn from a seed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from raylla.actors.pool import WORKER

ROOT = Path(__file__).parents[2]
DRIVER, DPO = "driver", "dpo"
KINDS = ("rollout", "judge", "reward-trainer", "weight-store", DPO, DRIVER)
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
}
RECOVERY = 180.0
"""Seconds after which a run that has neither recovered nor ended counts as hanging."""
TYPED = (2, 3)


@dataclass
class Tally:
    """What became of the kills of one kind."""

    kills: int = 0
    recovered: int = 0
    typed_errors: int = 0
    hangs: int = 0
    seconds: list[float] = field(default_factory=list)


class Driver:
    """A `raylla train` process and everything below it."""

    def __init__(self, run: Path, epochs: int, log: Path) -> None:
        sets = SETTINGS | {"irpo.epochs": epochs}
        self._arguments = [
            *("train", str(ROOT / "configs" / "pocket.yaml"), "--run", str(run)),
            *(part for name, value in sets.items() for part in ("--set", f"{name}={value}")),
        ]
        self._run, self._log = run, log
        self.start()

    def start(self) -> None:
        """Begin, or go on after the last committed stage."""
        environment = os.environ | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
        environment.pop("RAY_ADDRESS", None)
        with self._log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "raylla", *self._arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=ROOT,
                start_new_session=True,
            )

    def restarts(self) -> int:
        """Workers that the run says it has started anew."""
        return self._log.read_text(errors="replace").count("a worker was lost and started anew")

    def commits(self) -> int:
        """Stages committed so far."""
        ledger = self._run / "ledger.jsonl"
        return ledger.read_bytes().count(b'"commit"') if ledger.exists() else 0

    def pids(self, kind: str) -> list[int]:
        """Processes of one kind that are at work under this driver."""
        if kind == DRIVER:
            return [self.process.pid]
        try:
            family = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [one.pid for one in family if _is(one, kind)]

    def kill_all(self) -> None:
        """End the driver and all that it started."""
        try:
            family = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            family = []
        self.process.kill()
        for one in family:
            kill(one.pid)
        self.process.wait(30)


def kill(pid: int) -> None:
    """SIGKILL to a process that may be gone already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _is(process: psutil.Process, kind: str) -> bool:
    try:
        if kind == DPO:
            return "TrainWorker" in " ".join(process.cmdline())
        return process.environ().get(WORKER, "").startswith(f"{kind}[")
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return False


def finish(driver: Driver, deadline: float) -> None:
    """Wait for a driver that nothing is done to any more; sends it again after a typed error."""
    end = time.monotonic() + deadline
    while (status := driver.process.wait(max(1.0, end - time.monotonic()))) != 0:
        assert status in TYPED, f"the run ended with status {status}; see its log"
        driver.start()


def campaign(
    place: Path, epochs: int, kills: int, seed: int, kinds: Sequence[str] = KINDS
) -> dict[str, Any]:
    """Both runs in directories under ``place``; the tally by kind, and what differs in the end."""
    alone = Driver(place / "alone", epochs, place / "alone.log")
    finish(alone, 120.0 * (epochs + 2))
    rng = random.Random(seed)
    tallies = {kind: Tally() for kind in kinds}
    driver = Driver(place / "killed", epochs, place / "killed.log")
    try:
        while sum(one.kills for one in tallies.values()) < kills:
            if driver.process.poll() == 0:
                break
            time.sleep(rng.uniform(0.5, 8.0))
            kind = rng.choice(kinds)
            victims = driver.pids(kind)
            if driver.process.poll() is None and victims:
                _strike(driver, kind, rng.choice(victims), tallies[kind])
        finish(driver, RECOVERY * (epochs + 2))
    finally:
        driver.kill_all()
    return {
        "kinds": {kind: vars(one) for kind, one in tallies.items()},
        "samples": compare(place / "alone", place / "killed"),
    }


def _strike(driver: Driver, kind: str, victim: int, tally: Tally) -> None:
    """Kill one process and wait until the run is at work again, has ended, or hangs."""
    before, commits, began = driver.restarts(), driver.commits(), time.monotonic()
    tally.kills += 1
    if kind == DRIVER:
        driver.kill_all()
        driver.start()
    else:
        kill(victim)
    while time.monotonic() - began < RECOVERY:
        status = driver.process.poll()
        if status is not None and status in TYPED:
            tally.typed_errors += 1
            driver.start()
            return
        assert status in (None, 0), f"{kind} killed: the run ended with status {status}; see its log"
        if status == 0 or driver.restarts() > before or driver.commits() > commits:
            tally.recovered += 1
            tally.seconds.append(time.monotonic() - began)
            return
        time.sleep(0.1)
    tally.hangs += 1
    driver.kill_all()
    driver.start()


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
