"""`python -m tests.chaos`: the attack; prints its table and can write it."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.chaos.attack import CUT, NODE, Attack


def main() -> int:
    """Strike until there were enough; status 1 where a sample was lost or made twice, a run hung or ended
    differently.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of processes")
    parser.add_argument("--nodes", type=int, default=0, help="nodes killed or cut off, in a run of its own")
    parser.add_argument("--epochs", type=int, default=5, help="of each run")
    parser.add_argument("--scripted", action="store_true", help="sleeping engines: many kills in minutes")
    parser.add_argument("--alone", type=Path, help="the run left alone by an earlier attack, if alike")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--minutes", type=float, default=60, help="after which no more processes are struck"
    )
    parser.add_argument("--json", type=Path, help="also write the figures there")
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="raylla-chaos-"))
    sys.stdout.write(f"runs and logs in {place}\n")
    attack = Attack(place, given.epochs, given.seed, given.minutes, given.scripted, given.alone)

    def note() -> dict[str, Any]:
        found = attack.report()
        if given.json:
            given.json.write_text(json.dumps(found, indent=2) + "\n")
        return found

    while not attack.over(given.kills):
        attack.strike_processes(given.kills)
        note()
    if given.nodes:
        attack.strike_nodes([(NODE, CUT)[number % 2] for number in range(given.nodes)])
    found = note()
    show(found)
    samples = found["samples"]
    same = samples["same_ids"] and samples["same_table"] and not samples["duplicated"]
    return int(not same or any(one["hangs"] for one in found["kinds"].values()))


def show(found: dict[str, Any]) -> None:
    """The table, to read."""
    row = "{:<16}{:>7}{:>11}{:>14}{:>7}{:>26}\n"
    head = ("kind", "kills", "recovered", "typed errors", "hangs", "median s to first sample")
    sys.stdout.write(row.format(*head))
    for kind, one in found["kinds"].items():
        counts = (one[name] for name in ("kills", "recovered", "typed_errors", "hangs"))
        sys.stdout.write(row.format(kind, *counts, one["median_seconds"] or "-"))
    sys.stdout.write(f"{found['samples']}\n")


if __name__ == "__main__":
    sys.exit(main())
