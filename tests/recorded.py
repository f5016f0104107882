"""What a run's records hold, all parts of a stage together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raylla.runs.state import parts_of


def table(run: Path, stage: str, name: str) -> pa.Table:
    """A stage's table, in the order of the plan."""
    return pa.concat_tables(
        pq.read_table(part / f"{name}.parquet") for part in parts_of(run / "records" / stage)
    )


def groups(run: Path, epoch: int) -> list[dict[str, Any]]:
    """An epoch's preference groups."""
    parts = parts_of(run / "records" / f"epoch-{epoch}" / "learn")
    return [one for part in parts for one in json.loads((part / "groups.json").read_text())]
