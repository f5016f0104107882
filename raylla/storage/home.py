"""Where a run lives, and how it is committed there; one face for a path and a bucket."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from raylla.storage.bucket import Bucket
from raylla.storage.disk import Disk
from raylla.storage.places import remote


class Home(Protocol):
    """One run's storage: at ``place`` every node finds its directories, ``path`` is the driver's copy."""

    place: str
    path: Path
    deadline: float

    def check(self) -> None:
        """Write something, read it, remove it.

        Raises:
            RunError: that is refused; nothing can be committed here.
        """

    def foreign(self) -> bool:
        """Whether something else than a run is there."""

    def alone(self) -> AbstractContextManager[None]:
        """A context in which no other driver adds to the run."""

    def append(self, lines: bytes | bytearray) -> None:
        """Commit: everything else of the working copy first, then these lines of the ledger.

        Raises:
            StorageError: it cannot be written; the last commit stands.
        """

    def save(self) -> None:
        """Everything of the working copy but the ledger, as far as it has changed."""

    def write(self, name: str, content: bytes) -> None:
        """The small file ``name``, at once; whoever reads the run may write one."""

    def bring(self, name: str) -> None:
        """The file or directory ``name`` into the working copy, if it is not there and there is one."""

    def holds(self, name: str) -> bool:
        """Whether the file or directory ``name`` is there."""

    def remove(self, name: str) -> None:
        """Remove the directory ``name``; one that is gone already is no error."""


def home(where: str | Path) -> Home:
    """The storage of the run at a path or URL; nothing is made there yet.

    Raises:
        ConfigError: no driver for such URLs is installed.
        StorageError: the bucket does not answer.
    """
    return Bucket(str(where)) if remote(str(where)) else Disk(Path(where))
