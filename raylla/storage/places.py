"""Places: where a run's directories lie, on a file system that every node sees or in a bucket.

A place is a path or any fsspec URL (``s3://bucket/runs/a/weights/v1``). Whoever reads one does so on a disk
of his own: at a path it is the directory itself, else a copy that all readers of a machine share and that
goes with the last of them. Whoever makes one does so beside it, so that it is whole once it can be seen.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from safetensors import SafetensorError

from raylla.errors import ConfigError, RayllaError, StorageError

FOLDERS = {"file", "local", "memory", "sftp", "ssh", "ftp", "smb", "hdfs", "webhdfs"}
"""File systems where a directory has to be made; a bucket's driver would make the bucket itself."""
DRIVERS = {"s3": ("s3", "s3fs"), "s3a": ("s3", "s3fs"), "gs": ("gcs", "gcsfs"), "gcs": ("gcs", "gcsfs")}
"""What brings the driver of a URL's protocol: an extra of raylla, and the package in it."""
Place = str | Path
FRESH = ".fresh"
"""Suffix of a copy that is not whole yet."""


def remote(place: Place) -> bool:
    """Whether a place is a URL and not a path."""
    return "://" in str(place)


def within(place: Place, *parts: str) -> str:
    """A place inside another."""
    return "/".join((str(place).rstrip("/"), *parts)) if remote(place) else str(Path(place, *parts))


def above(place: Place) -> str:
    """The place that another is in."""
    return str(place).rstrip("/").rpartition("/")[0] if remote(place) else str(Path(place).parent)


def absolute(place: Place) -> str:
    """The same place for processes that work in other directories."""
    return str(place) if remote(place) else str(Path(place).resolve())


def exists(place: Place) -> bool:
    """Whether a file or directory is there.

    Raises:
        StorageError: the bucket does not answer, or refuses.
    """
    if not remote(place):
        return Path(place).exists()
    files, root = opened(place)
    with asked(place, "looking for it"):
        files.invalidate_cache()
        return bool(files.exists(root))


def read_text(place: Place) -> str:
    """A small file.

    Raises:
        StorageError: it is not there, or the bucket does not answer.
    """
    if not remote(place):
        return Path(place).read_text()
    files, path = opened(place)
    with asked(place, "reading it"):
        return bytes(files.cat_file(path)).decode()


def write_whole(place: Place, text: str) -> None:
    """Write a small file whole or not at all, in a directory that is there.

    Raises:
        StorageError: it cannot be written.
    """
    if remote(place):
        files, path = opened(place)
        with asked(place, "writing it"):
            files.pipe_file(path, text.encode())
        return
    target = Path(place)
    fresh = target.with_name(f"{target.name}.new")
    with writing(target):
        fresh.write_text(text)
        fresh.replace(target)
        _flush(target)


@contextmanager
def here(place: Place) -> Iterator[Path]:
    """The directory at ``place`` on this machine's disk, for as long as it is read.

    Raises:
        ConfigError: no driver for such URLs is installed.
        StorageError: there is nothing at the URL, or it cannot be brought here.
    """
    if not remote(place):
        yield Path(place)
        return
    files, root = opened(place)
    with asked(place, "listing it"):
        files.invalidate_cache()
        listed = {name: about for name, about in files.find(root, detail=True).items() if name != root}
    if not listed:
        raise StorageError(f"{place}: nothing is there; was it removed, or collected by keep_versions?")
    # Named by content, too: what a reader that was killed left behind is never taken for something newer.
    seen = repr(
        (str(place), sorted((name, sorted(map(repr, about.items()))) for name, about in listed.items()))
    )
    copy = _copies() / hashlib.sha256(seen.encode()).hexdigest()[:24]
    try:
        with _locked(copy, "reading", fcntl.LOCK_SH):
            with _locked(copy, "making", fcntl.LOCK_EX):
                if not copy.is_dir():
                    _sweep()
                    with asked(place, f"bringing it to {copy.parent}"):
                        _bring(files, root, listed, copy)
            yield copy
    finally:
        _forget(copy)


@contextmanager
def making(place: Place) -> Iterator[Path]:
    """An empty directory to fill; once it is whole it takes ``place``, and whatever was there is gone.

    Raises:
        StorageError: the place cannot be written to; what was there stays.
    """
    if remote(place):
        with scratch() as fresh:
            yield fresh
            files, root = opened(place)
            with asked(place, "writing it"):
                remove_exact(files, root)
                for name in names(fresh):
                    put(files, fresh / name, f"{root}/{name}")
        return
    target = Path(place)
    fresh = target.with_name(f".{target.name}.partial")
    try:
        with writing(target):
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
        yield fresh
        with writing(target):
            old = target.with_name(f".{target.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            if target.exists():
                os.replace(target, old)
            os.replace(fresh, target)
            durable(target, target.parent)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what a full, read-only or vanished disk raises into an error that names ``path``."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{path} cannot be written: {error}; make room or mend it, then `raylla resume` goes on after "
            "the last commit"
        ) from error


def durable(directory: Path, root: Path) -> None:
    """Force a directory's files and their names, where there are any, to the disk, where a loss of power
    leaves them; the names of the directories that lead there from ``root``, too."""
    for folder, _, files in os.walk(directory, topdown=False):
        for name in files:
            _flush(Path(folder, name))
        _flush(Path(folder))
    parents = directory.parents[: len(directory.relative_to(root).parts)]
    for parent in filter(Path.is_dir, parents):
        _flush(parent)


def _flush(path: Path) -> None:
    held = os.open(path, os.O_RDONLY)
    try:
        os.fsync(held)
    finally:
        os.close(held)


@contextmanager
def asked(place: Place, what: str) -> Iterator[None]:
    """Turn whatever a bucket's driver raises into an error that names the place and what was tried."""
    try:
        yield
    except RayllaError:
        raise
    except Exception as error:  # each driver has its own library's errors
        raise StorageError(f"{place}: {what} failed: {type(error).__name__}: {error}") from error


def opened(place: Place) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL, and the path in it.

    Raises:
        ConfigError: no driver for such URLs is installed, or there is none; or it holds "::".
    """
    protocol = str(place).partition("://")[0]
    if "::" in str(place):
        raise ConfigError(
            f"{place}: in a URL the drivers read '::' as two file systems, and would go elsewhere; give a "
            "place without it"
        )
    try:
        files, root = url_to_fs(str(place))
    except ImportError as error:
        way_out = "install it beside raylla on every node"
        if protocol in DRIVERS:
            extra, package = DRIVERS[protocol]
            way_out = f"install raylla's extra {extra} (the package {package}) on every node"
        raise ConfigError(
            f"{place}: {protocol}:// URLs need a package that is not installed here: {error}; {way_out}"
        ) from None
    except ValueError as error:
        shown = re.sub(r"://.*@", "://***@", str(place))
        raise ConfigError(f"{shown}: {error}; give a path, or a URL that fsspec knows") from None
    return files, str(root)


def names(directory: Path) -> list[str]:
    """Every file below ``directory``, relative to it; links are left out."""
    return sorted(
        file.relative_to(directory).as_posix()
        for file in directory.rglob("*")
        if file.is_file() and not file.is_symlink()
    )


def put(files: AbstractFileSystem, source: Path, target: str) -> None:
    """Copy one file to where a URL's ``files`` has it, in place of one that is there."""
    folder(files, target.rpartition("/")[0])
    try:
        files.put_file(str(source), target)
    except FileExistsError:  # Azure's driver replaces nothing unasked
        files.rm_file(target)
        files.put_file(str(source), target)


def remove_exact(files: AbstractFileSystem, root: str) -> None:
    """Remove the file or directory of that very name, if it is there: `rm` of some drivers reads names as
    patterns, and removes whatever matches."""
    if not files.exists(root):
        return
    inside = files.find(root, withdirs=True, detail=True)
    for name in sorted(inside, reverse=True):  # what is in a directory goes before it
        if inside[name]["type"] != "directory":
            files.rm_file(name)
        elif files.exists(name):  # in a bucket it has gone with its last file
            files.rmdir(name)
    if files.exists(root):
        files.rmdir(root)


def folder(files: AbstractFileSystem, path: str) -> None:
    """Make a directory where ``files`` has any."""
    protocols = {files.protocol} if isinstance(files.protocol, str) else {*files.protocol}
    if protocols & FOLDERS:
        files.makedirs(path, exist_ok=True)


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory of this process beside the copies, gone with it even where it is killed."""
    _sweep()
    own = _copies() / uuid.uuid4().hex
    try:
        with _locked(own, "reading", fcntl.LOCK_SH):
            own.mkdir()
            yield own
    finally:
        _forget(own)
        own.with_suffix(".reading").unlink(missing_ok=True)


def _bring(files: AbstractFileSystem, root: str, listed: Mapping[str, Any], copy: Path) -> None:
    fresh = copy.with_suffix(FRESH)
    for name in listed:
        target = fresh / name[len(root) :].lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        files.get_file(name, str(target))
    os.replace(fresh, copy)


def _copies() -> Path:
    """This user's copies on this machine; TMPDIR says on which disk."""
    folder = Path(tempfile.gettempdir()) / f"raylla-copies-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@contextmanager
def _locked(copy: Path, what: str, how: int) -> Iterator[None]:
    with copy.with_suffix(f".{what}").open("w") as lock:
        fcntl.flock(lock, how)
        yield


def _forget(copy: Path) -> None:
    """Remove a copy that nobody reads, or waits for; its locks stay, for they may be asked for."""
    try:
        with _locked(copy, "reading", fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(copy, ignore_errors=True)
            shutil.rmtree(copy.with_suffix(FRESH), ignore_errors=True)
    except (BlockingIOError, FileNotFoundError):  # somebody reads it; or a machine's clean-up took all
        return


def _sweep() -> None:
    """Remove what killed readers left behind."""
    for copy in _copies().iterdir():
        if copy.is_dir():
            _forget(copy.with_suffix(""))
