"""A run on a path: the driver's working copy is what every node sees."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raylla.errors import RunError
from raylla.storage.places import writing

LEDGER = "ledger.jsonl"
LOCK = ".lock"
DEADLINE = 60.0
"""Seconds for the files of a run's root, by which its config and so its own deadline becomes known."""


class Disk:
    """A run on a file system that every node sees. See `Home`."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()  # actors work in directories of their own
        self.place = str(self.path)
        self.deadline = DEADLINE

    def check(self) -> None:
        """See `Home`."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path) as probe:
                probe.write(b"raylla")
                probe.flush()
        except OSError as error:
            raise RunError(
                f"run directory {self.place} cannot be written: {error.strerror}; choose another --run, or "
                "mend it"
            ) from None

    def foreign(self) -> bool:
        """See `Home`."""
        return self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """See `Home`.

        Raises:
            RunError: another process holds the run, or the file system has no locks.
        """
        self.check()
        with (self.path / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"run {self.place} is in the hands of another process; wait for it or stop it"
                ) from None
            except OSError as error:
                raise RunError(
                    f"run {self.place}: its file system has no locks ({error.strerror}), so two drivers "
                    "could write to it at once; choose a local disk or a shared file system with flock"
                ) from None
            yield

    def append(self, lines: bytes | bytearray) -> None:
        """See `Home`."""
        append(self.path / LEDGER, lines)

    def save(self) -> None:
        """See `Home`."""

    def write(self, name: str, content: bytes) -> None:
        """See `Home`."""
        with writing(self.path / name):
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_bytes(content)

    def bring(self, name: str) -> None:
        """See `Home`."""

    def holds(self, name: str) -> bool:
        """See `Home`."""
        return (self.path / name).exists()

    def remove(self, name: str) -> None:
        """See `Home`."""
        if self.holds(name):
            with writing(self.path / name):
                shutil.rmtree(self.path / name)


def append(ledger: Path, lines: bytes | bytearray) -> None:
    """Add to a ledger and force it to disk; where that fails it is cut back to what it was."""
    with writing(ledger), ledger.open("ab", buffering=0) as file:
        before, left = os.fstat(file.fileno()).st_size, memoryview(lines)
        try:
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError:
            os.truncate(ledger, before)
            raise
