"""`python -m tests.chaos [--kills N] [--epochs E] [--seed S] [--json FILE]`: the campaign and its table."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import median

from tests.chaos.campaign import campaign


def main() -> int:
    """Run it; status 1 where a sample was lost or made twice, a run hung or ended differently."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=30, help="of the run, which may end earlier")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="raylla-chaos-"))
    sys.stdout.write(f"runs and logs in {place}\n")
    found = campaign(place, given.epochs, given.kills, given.seed)
    row = "{:<16}{:>7}{:>11}{:>14}{:>7}{:>18}\n"
    sys.stdout.write(row.format("kind", "kills", "recovered", "typed errors", "hangs", "median seconds"))
    for kind, one in found["kinds"].items():
        seconds = f"{median(one['seconds']):.1f}" if one["seconds"] else "-"
        sys.stdout.write(
            row.format(kind, one["kills"], one["recovered"], one["typed_errors"], one["hangs"], seconds)
        )
    sys.stdout.write(f"{found['samples']}\n")
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    samples = found["samples"]
    return int(
        any(one["hangs"] for one in found["kinds"].values())
        or not (samples["same_ids"] and samples["same_table"])
    )


if __name__ == "__main__":
    sys.exit(main())
