"""`raylla`, which also writes what it accepts, loses and commits to the file that `EVENTS` names.

With `SCRIPTED` set its engines and trainers are the sleeping ones of `raylla bench overlap`, which start in
a second: loop, pools, supervision, Ray, ledger and records are the real ones.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raylla.bench.scripted import Latencies, ScriptedCrew
from raylla.cli import main
from raylla.config import Config
from raylla.irpo import loop
from raylla.records import WeightVersion
from raylla.runs.observe import Observer
from raylla.runs.state import Run

EVENTS = "RAYLLA_CHAOS_EVENTS"
SCRIPTED = "RAYLLA_CHAOS_SCRIPTED"
LATENCIES = Latencies(
    answer=0.02, judgement=0.01, take=0.002, update=0.005, predict=0.002, group=0.05, load=0.3
)


def _told(act: Callable[..., Any], what: str) -> Callable[..., Any]:
    """``act``, a method whose first argument says of what it is; tells when it is done."""

    def tell(self: object, of: str, *rest: Any) -> Any:
        found = act(self, of, *rest)
        with open(os.environ[EVENTS], "a") as file:
            file.write(json.dumps({"time": time.time(), "what": what, "of": of}) + "\n")
        return found

    return tell


def _sleepers(config: Config, storage: Path, version: WeightVersion, watch: Observer) -> ScriptedCrew:
    """In place of the crew of ``loop``."""
    return ScriptedCrew(config, version, LATENCIES, watch)


if __name__ == "__main__":
    Observer.advance = _told(Observer.advance, "accepted")  # type: ignore[method-assign]
    Observer.lost = _told(Observer.lost, "lost")  # type: ignore[method-assign]
    Run.commit = _told(Run.commit, "committed")  # type: ignore[method-assign]
    if os.environ.get(SCRIPTED):
        loop.Crew = _sleepers  # type: ignore[assignment,misc]
    main()
