"""Strikes at moments drawn from a seed, and what became of each of them."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from raylla.config import World
from raylla.world import store
from tests.chaos.processes import DPO, hit, workers
from tests.chaos.runs import SETTINGS, Driver, Event, compare
from tests.e2e.nodes import Nodes
from tests.worlds import asked_world

DRIVER, HUNG, SLOW, NODE, CUT = "driver", "hung worker", "slow worker", "node", "cut off node"
POOLS = ("rollout", "judge", "reward-trainer")
WEIGHTS = {
    "rollout": 6,
    "judge": 5,
    "reward-trainer": 5,
    "weight-store": 2,
    DPO: 1,
    DRIVER: 1,
    HUNG: 2,
    SLOW: 2,
}
"""How often each kind is drawn: the dear ones less."""

AT_START = 0.002
"""Chance of a strike, whenever one is due, while a run is still starting its engines."""

PAUSE = 3.0
"""Seconds for which a slow worker stands still."""

RECOVERY = 360.0
"""Seconds without any progress after which a run that was struck counts as hanging: more than a new start
of the driver may take, `deadlines.start` included."""

INFRASTRUCTURE = 3
"""The exit status of a run that lost a part and can be resumed."""


@dataclass
class Strike:
    """One attack on a ``group`` of processes, at a time."""

    kind: str
    group: str
    at: float = field(default_factory=time.time)

    def over(self, events: Sequence[Event]) -> float | None:
        """When the run accepted its first sample after it had got over the strike; None: not yet."""
        since = [event for event in events if event.time > self.at]
        if self.kind not in (DRIVER, SLOW):
            done = next((place for place, event in enumerate(since) if self._ends(event)), None)
            if done is None:
                return None
            since = since[done + 1 :]
        return next((event.time for event in since if event.what == "accepted"), None)

    def _ends(self, event: Event) -> bool:
        if self.group == DPO:
            return event.what == "committed" and event.of.endswith("/align")
        return event.what == "lost" and event.of == self.group


@dataclass
class Tally:
    """What became of the strikes of one kind; ``seconds`` to the first accepted sample afterwards."""

    kills: int = 0
    recovered: int = 0
    typed_errors: int = 0
    hangs: int = 0
    seconds: list[float] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """With the median of the seconds."""
        return vars(self) | {
            "seconds": [round(one, 1) for one in self.seconds],
            "median_seconds": round(median(self.seconds), 1) if self.seconds else None,
        }


class Attack:
    """Runs in directories under ``place``, each compared with one that was (or is now) left ``alone``."""

    def __init__(
        self, place: Path, epochs: int, seed: int, minutes: float, scripted: bool, alone: Path | None
    ) -> None:
        self._place, self._epochs = place, epochs
        self._world = place / "world" if scripted else None
        if self._world is not None:
            drawn = World(profiles=SETTINGS["world.profiles"], queries_per_profile=5)
            store.save_world(asked_world(drawn), self._world)
        self._ends = time.monotonic() + 60 * minutes
        self._rng = random.Random(seed)
        self._open: list[Strike] = []
        self._runs = 0
        self.tallies = {kind: Tally() for kind in (*WEIGHTS, NODE, CUT)}
        self.samples: list[dict[str, Any]] = []
        self._alone = alone or self._left_alone()

    def _left_alone(self) -> Path:
        driver = Driver(self._place / "alone", self._epochs, self._world)
        self._finish(driver)
        return driver.run

    def over(self, kills: int) -> bool:
        """Whether ``kills`` strikes were made or the time is up."""
        return self.kills >= kills or time.monotonic() > self._ends

    @property
    def kills(self) -> int:
        """Strikes so far."""
        return sum(one.kills for one in self.tallies.values())

    def report(self) -> dict[str, Any]:
        """All that was found out so far."""
        return {
            "engines": "scripted" if self._world else "real",
            "runs": self._runs,
            "epochs": self._epochs,
            "kills": self.kills,
            "kinds": {kind: one.row() for kind, one in self.tallies.items() if one.kills},
            "samples": {
                "samples": sum(one["samples"] for one in self.samples),
                "lost": sum(one["lost"] for one in self.samples),
                "duplicated": sum(one["duplicated"] for one in self.samples),
                "same_ids": all(one["same_ids"] for one in self.samples),
                "same_table": all(one["same_table"] for one in self.samples),
            },
        }

    def strike_processes(self, kills: int) -> None:
        """One run whose processes are struck until ``kills`` strikes were made in all or it ends."""
        driver = self._begin()
        try:
            while not self.over(kills) and driver.process.poll() != 0:
                time.sleep(self._rng.uniform(0.3, 2.0))
                self._settle(driver)
                kind = self._rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
                if not driver.at_work() and self._rng.random() > AT_START:
                    continue
                if kind == DRIVER:
                    self._wait_until_settled(driver)
                if driver.process.poll() is None:
                    self._strike(driver, kind)
            self._end(driver)
        finally:
            driver.kill()

    def strike_nodes(self, kinds: Sequence[str]) -> None:
        """One run on a cluster of a head and two nodes, of which one after another is lost."""
        nodes = Nodes()
        try:
            names = ["0", "1"]
            for name in names:
                nodes.add(name)
            spread = {"rollout__workers": 2, "rollout__cpus": 0, "rollout__gpus": 1, "dpo__cpus": 0.6}
            head = dict.fromkeys(("judge__labels", "reward_trainer__labels"), "{raylla/node: head}")
            light = dict.fromkeys(("judge__cpus", "reward_trainer__cpus"), 0)
            driver = self._begin(
                **spread, **head, **light, ray__address=nodes.address, ray__autoscaling="true"
            )
            try:
                for number, kind in enumerate(kinds, start=2):
                    self._wait_until_settled(driver)
                    self._wait_for_work(driver)
                    if driver.process.poll() == 0:
                        break
                    time.sleep(self._rng.uniform(0.0, 3.0))
                    lost = names.pop(self._rng.randrange(2))
                    self._note(Strike(kind, "rollout"))
                    if kind == CUT:
                        nodes.cut(lost)
                    else:
                        nodes.kill(lost)
                    nodes.add(str(number))
                    names.append(str(number))
                self._end(driver)
            finally:
                driver.kill()
        finally:
            nodes.close()

    def _begin(self, **changed: object) -> Driver:
        self._runs += 1
        return Driver(self._place / f"struck-{self._runs}", self._epochs, self._world, **changed)

    def _end(self, driver: Driver) -> None:
        self._finish(driver)
        self.samples.append(compare(self._alone, driver.run))

    def _strike(self, driver: Driver, kind: str) -> None:
        """Hit one process of ``kind``, where there is one whose group is not down already."""
        down = {strike.group for strike in self._open}
        group = kind
        if kind in (HUNG, SLOW):
            up = [one for one in POOLS if one not in down]
            if not up or not driver.at_work():
                return
            group = self._rng.choice(up)
        victims = [driver.process.pid] if kind == DRIVER else workers(driver.process.pid, group)
        if group in down or not victims:
            return
        victim = self._rng.choice(victims)
        self._note(Strike(kind, group))
        if kind == DRIVER:
            driver.kill()
            driver.start()
        elif kind == HUNG:
            hit(victim, signal.SIGSTOP)
        elif kind == SLOW:
            hit(victim, signal.SIGSTOP)
            threading.Timer(PAUSE, hit, (victim, signal.SIGCONT)).start()
        else:
            hit(victim)

    def _note(self, strike: Strike) -> None:
        self.tallies[strike.kind].kills += 1
        self._open.append(strike)

    def _settle(self, driver: Driver) -> None:
        """Close the strikes that the run got over, or all of them where it ended or hangs."""
        status, events = driver.process.poll(), driver.events()
        for strike in list(self._open):
            tally, over = self.tallies[strike.kind], strike.over(events)
            if over is not None or status == 0:
                tally.recovered += 1
                tally.seconds += [over - strike.at] if over is not None else []
                self._open.remove(strike)
        if status not in (None, 0):
            assert status == INFRASTRUCTURE, f"the run ended with status {status}: {driver.log}"
            self._close("typed_errors")
            driver.start()
        elif status is None:
            moved = max([driver.started, *(one.time for one in events), *(one.at for one in self._open)])
            if time.time() - moved > RECOVERY:
                self._close("hangs")
                driver.kill()
                driver.start()

    def _close(self, end: str) -> None:
        for strike in self._open:
            tally = self.tallies[strike.kind]
            setattr(tally, end, getattr(tally, end) + 1)
        self._open.clear()

    def _wait_until_settled(self, driver: Driver) -> None:
        while self._open:
            time.sleep(0.2)
            self._settle(driver)

    def _wait_for_work(self, driver: Driver) -> None:
        while not driver.at_work() and driver.process.poll() != 0:
            time.sleep(0.2)
            self._settle(driver)

    def _finish(self, driver: Driver) -> None:
        """Let a run come to its end; it is begun again where it lost a part."""
        while driver.process.poll() != 0 or self._open:
            time.sleep(0.2)
            self._settle(driver)
