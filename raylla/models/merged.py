"""A whole model as a directory on this machine, for libraries that load it themselves."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import save_file

from raylla.errors import StorageError
from raylla.models.found import found
from raylla.models.packages import MANIFEST, alone, cache, digest, partial
from raylla.models.places import ADAPTER, CONFIG, adapter_settings, is_adapter
from raylla.models.weights import WHOLE, root, stored_tensors

KEPT = 4
"""Merged models that are kept although nobody reads them, the last used."""
NOT_COPIED = (
    ".safetensors", ".bin", ".index.json", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack", MANIFEST
)  # fmt: skip
"""Ends of the names of files that hold weights, or say where they are from."""


@contextmanager
def local(place: str | Path) -> Iterator[Path]:
    """The directory of a whole model on this machine, for as long as it is read.

    Whatever `models.resolve` knows: hub names are downloaded, URLs brought here, and an adapter is merged
    with its base, in float32, into the cache folder; once, whoever asks.

    Raises:
        ConfigError: there is no such model, or the hub does not give it.
        WeightError: an adapter does not fit its base.
        StorageError: it cannot be brought or written here.
    """
    with found(place) as directory:
        if not is_adapter(directory):
            yield directory
            return
        target = cache() / "merged" / _key(directory)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _reading(target, fcntl.LOCK_SH):
            with alone(target):
                if not target.is_dir():
                    _sweep(target.parent)
                    _write(directory, target)
            os.utime(target)
            yield target


def copied(source: Path, target: Path) -> None:
    """Copy what is no weight from one model's directory to another's: configuration, tokenizer."""
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(NOT_COPIED):
            shutil.copyfile(file, target / file.name)


def _write(adapter: Path, target: Path) -> None:
    try:
        with partial(target) as fresh:
            _settle(adapter, fresh)
            save_file(stored_tensors(adapter), fresh / WHOLE, metadata={"format": "pt"})
            about = root(adapter) | {"dtype": "float32"}
            about.pop("torch_dtype", None)
            (fresh / CONFIG).write_text(json.dumps(about, indent=2) + "\n")
            fresh.rename(target)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{target} cannot be written: {error}; make room there, or name another folder in RAYLLA_CACHE"
        ) from error


def _settle(directory: Path, fresh: Path) -> None:
    """The base's files that are no weights, then the adapter's own in their place."""
    if is_adapter(directory):
        with found(adapter_settings(directory)["base_model_name_or_path"]) as base:
            _settle(base, fresh)
    copied(directory, fresh)
    (fresh / ADAPTER).unlink(missing_ok=True)


def _key(directory: Path) -> str:
    """A name for what an adapter and its base come to: the adapter's content, the base's files."""
    files = sorted(file for file in directory.iterdir() if file.is_file())
    seen: list[object] = [(file.name, digest(file)) for file in files]
    with found(adapter_settings(directory)["base_model_name_or_path"]) as base:
        if is_adapter(base):
            seen.append(_key(base))
        else:
            seen += [str(base), *sorted(_stamp(file) for file in base.iterdir() if file.is_file())]
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:24]


def _stamp(file: Path) -> tuple[str, int, int]:
    about = file.stat()
    return file.name, about.st_size, about.st_mtime_ns


@contextmanager
def _reading(target: Path, how: int) -> Iterator[None]:
    with target.with_name(f".{target.name}.reading").open("w") as lock:
        fcntl.flock(lock, how)
        yield


def _sweep(folder: Path) -> None:
    """Remove merged models that nobody reads, but for the last used."""
    merged = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    for old in sorted(merged, key=lambda entry: entry.stat().st_mtime)[: -(KEPT - 1)]:
        try:
            with _reading(old, fcntl.LOCK_EX | fcntl.LOCK_NB):
                shutil.rmtree(old, ignore_errors=True)
        except BlockingIOError:
            continue
