"""Running parts: a process each, threads pinned, rows collected and shown."""

from __future__ import annotations

import importlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from raylla.bench.measure import Row, Spread
from raylla.config import Config
from raylla.errors import ConfigError
from raylla.models import resolve
from raylla.runs.state import package_versions, write_json

PARTS = {
    "rollout": "raylla.bench.parts.rollout",
    "dpo": "raylla.bench.parts.dpo",
    "lora": "raylla.bench.parts.lora",
    "reference": "raylla.bench.parts.reference",
    "refresh": "raylla.bench.parts.refresh",
    "adapters": "raylla.bench.adapters",
    "retrieval": "raylla.bench.parts.retrieval",
    "serve": "raylla.bench.parts.serving",
    "epoch": "raylla.bench.parts.epoch",
    "overlap": "raylla.bench.parts.overlap",
    "driver": "raylla.bench.parts.driver",
    "mechanisms": "raylla.bench.parts.mechanisms",
    "growth": "raylla.bench.parts.growth",
}
"""Module of each part, in the order in which they run; its function `rows` makes the rows."""

MODELS = {"lora": "package:smollm2-135m", "adapters": "package:smollm2-135m"}
"""Models of parts that need another than the config's."""

PINNED = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_AUTH_MODE": "disabled",
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


@dataclass(frozen=True)
class Bench:
    """What a part works with: settings, how often to repeat, and an empty directory of its own."""

    config: Config
    repeats: int
    scratch: Path

    def share(self, usual: int) -> int:
        """``bench.work`` of the ``usual`` amount of something, and one at least."""
        return max(1, round(self.config.bench.work * usual))


def run_parts(names: Sequence[str], config: Config, console: Console) -> dict[str, Any]:
    """Run the parts of these names (none: all), show each one's table, and return what is written of each.

    Raises:
        ConfigError: there is no part of that name, or the model that one needs is not there.
    """
    for name in names:
        if name not in PARTS:
            raise ConfigError(f"no benchmark named {name!r}; there are {', '.join(PARTS)}")
    for name in names or PARTS:
        if name in MODELS:
            resolve(MODELS[name], f"raylla bench {name}: its model")
    parts: dict[str, Any] = {}
    machine = {"processor": _processor(), "cores": psutil.cpu_count(), "system": platform.system()}
    for name in names or PARTS:
        started = time.monotonic()
        rows = _in_process(name, config)
        parts[name] = {
            "repeats": config.bench.repeats,
            "seconds": round(time.monotonic() - started, 1),
            "machine": machine,
            "versions": package_versions(),
            "rows": [_plain(row) for row in rows],
        }
        console.print(table(name, rows))
    return parts


def merge(path: Path, parts: dict[str, Any]) -> None:
    """Write ``parts`` to ``path``; figures of other parts that it holds already stay.

    Raises:
        ConfigError: something else is there.
    """
    held: dict[str, Any] = {}
    if path.exists():
        try:
            held = json.loads(path.read_text())
        except ValueError as error:
            raise ConfigError(f"--json {path}: it is there and holds no figures ({error})") from None
        if not isinstance(held, dict) or not held.keys() <= PARTS.keys():
            raise ConfigError(f"--json {path}: it is there and holds something else than figures")
    write_json(path, {name: (held | parts)[name] for name in PARTS if name in held | parts})


def table(title: str, rows: Sequence[Row]) -> Table:
    """Median, spread and sides of each row."""
    drawn = Table("what", "median", "spread", "sides", "notes", title=title, title_justify="left")
    for row in rows:
        sides = [f"{side.name} {figure(side.spread.median)} {row.side_unit}" for side in row.sides]
        notes = [
            f"{name} {value if isinstance(value, str) else figure(value)}"
            for name, value in row.notes.items()
        ]
        unit = "x" if row.unit == "x" else f" {row.unit}"
        drawn.add_row(
            row.name,
            f"{figure(row.value.median)}{unit}",
            f"{figure(row.value.low)} to {figure(row.value.high)}",
            "\n".join(sides),
            "\n".join(notes),
        )
    return drawn


def _in_process(name: str, config: Config) -> list[Row]:
    """The rows of one part, made in a process that was started with pinned threads."""
    before = dict(os.environ)
    os.environ.update(PINNED)
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(_rows, PARTS[name], config).result()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _rows(module: str, config: Config) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="raylla-bench-") as scratch:
        rows: list[Row] = importlib.import_module(module).rows(
            Bench(config, config.bench.repeats, Path(scratch))
        )
        return rows


def _plain(row: Row) -> dict[str, Any]:
    row_tree: dict[str, Any] = {"name": row.name, "unit": row.unit, **_spread(row.value)}
    if row.sides:
        row_tree["sides"] = [
            {"name": side.name, "unit": row.side_unit, **_spread(side.spread)} for side in row.sides
        ]
    return row_tree | ({"notes": dict(row.notes)} if row.notes else {})


def _spread(spread: Spread) -> dict[str, Any]:
    return {
        "median": spread.median,
        "low": spread.low,
        "high": spread.high,
        "values": list(spread.values),
    }


def figure(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
