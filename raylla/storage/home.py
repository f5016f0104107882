"""Where a run lives: its working copy on the driver's disk, and for a bucket the way there and back.

On a path the working copy is the run. In a bucket a stage's files are uploaded first, then its lines of the
ledger as one object (``ledger/00000007``), which is there whole or not at all. A driver anywhere opens the
run from its root's files and its ledger, and brings a stage's records when it reads them.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import tempfile
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from raylla.errors import DeadlineError, RayllaError, RunError, StorageError
from raylla.storage.places import asked, folder, names, opened, put, remote, scratch, writing

Result = TypeVar("Result")
LEDGER = "ledger.jsonl"
LOCK = ".lock"
OWNER = "owner.json"
"""The file in a bucket that names the one driver that may add to the run."""
BRINGING = ".bringing"
OWN = (LEDGER, LOCK, BRINGING, "trainer")
"""What is never uploaded as it is: the ledger goes by commits, the rest is of this machine."""
LIVE = "wandb"
"""The directory that another process writes to while the run goes on; it is uploaded at the end."""
DEADLINE = 60.0
"""Seconds for the files of a run's root, by which its config and so its own deadline becomes known."""


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

    def alone(self) -> AbstractContextManager[None]:
        """A context in which no other driver adds to the run."""

    def append(self, lines: bytes) -> None:
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

    def append(self, lines: bytes) -> None:
        """See `Home`."""
        _append(self.path / LEDGER, lines)

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


class Bucket:
    """A run behind a URL. See `Home`."""

    def __init__(self, url: str) -> None:
        self.place = url.rstrip("/")
        self.deadline = DEADLINE
        self._files, self._root = opened(self.place)
        self._token = uuid.uuid4().hex
        self._sent: dict[str, tuple[int, int]] = {}
        self._commits = 0
        self._claimed = False
        held = ExitStack()
        weakref.finalize(self, held.close)
        self.path = held.enter_context(scratch()).resolve() / (self.place.rpartition("/")[2] or "run")
        self.path.mkdir()
        self._within("opening the run", self._open)

    def check(self) -> None:
        """See `Home`."""
        probe = f"{self._root}/probe-{self._token}"

        def write() -> None:
            folder(self._files, self._root)
            self._files.pipe_file(probe, b"raylla")
            if self._files.cat_file(probe) != b"raylla":
                raise OSError("what was written comes back as something else")
            self._files.rm_file(probe)

        try:
            self._within("writing a probe", write)
        except StorageError as error:
            raise RunError(f"{error}; choose another --run, or grant the right to write") from None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """See `Home`: whoever comes last has the run, for a driver that died cannot let it go."""
        self.check()
        about = {"token": self._token, "host": socket.gethostname(), "pid": os.getpid()}

        def claim() -> None:
            self._files.pipe_file(f"{self._root}/{OWNER}", json.dumps(about).encode())
            self._open()
            # What the driver before was killed in; it is no commit, and its number is needed.
            torn = self._segment(self._commits + 1)
            if self._files.exists(torn):
                self._files.rm_file(torn)

        self._within("taking the run over", claim)
        self._claimed = True
        yield
        self.save()

    def append(self, lines: bytes) -> None:
        """See `Home`."""
        self._upload((*OWN, LIVE))
        segment = self._segment(self._commits + 1)

        def put_lines() -> None:
            folder(self._files, segment.rpartition("/")[0])
            try:
                self._files.pipe_file(segment, lines, mode="create")
            except FileExistsError:
                raise self._lost() from None

        self._within("committing", put_lines)
        self._commits += 1
        _append(self.path / LEDGER, lines)

    def save(self) -> None:
        """See `Home`."""
        self._upload(OWN)

    def write(self, name: str, content: bytes) -> None:
        """See `Home`."""
        target = f"{self._root}/{name}"

        def write() -> None:
            folder(self._files, target.rpartition("/")[0])
            self._files.pipe_file(target, content)

        self._within(f"writing {name}", write)

    def bring(self, name: str) -> None:
        """See `Home`."""
        if not (self.path / name).exists():
            self._within(f"bringing {name}", lambda: self._bring(name))

    def holds(self, name: str) -> bool:
        """See `Home`."""
        return self._within(f"looking for {name}", lambda: bool(self._files.exists(f"{self._root}/{name}")))

    def remove(self, name: str) -> None:
        """See `Home`."""

        def remove() -> None:
            if self._files.exists(f"{self._root}/{name}"):
                self._files.rm(f"{self._root}/{name}", recursive=True)

        self._within(f"removing {name}", remove)

    def _open(self) -> None:
        """The root's files and the ledger, as they are now, into the working copy."""
        self._files.invalidate_cache()
        if not self._files.exists(f"{self._root}/run.json"):
            return
        for about in self._files.ls(self._root, detail=True):
            name = about["name"].rstrip("/").rpartition("/")[2]
            if about["type"] == "file" and not name.startswith("probe-") and name != OWNER:
                self._get(name, self.path)
        segments = sorted(self._files.find(f"{self._root}/ledger"))
        whole = []
        for number, segment in enumerate(segments, start=1):
            lines = self._files.cat_file(segment)
            in_turn = segment.rpartition("/")[2] == f"{number:08}"
            if in_turn and not _whole(lines) and number == len(segments):
                break  # a commit that its driver was killed in
            if not in_turn or not _whole(lines):
                raise RunError(
                    f"{self.place}/ledger/{number:08} is missing or damaged and commits follow it; restore "
                    "it, or remove it and those after it to do the stages from there again"
                )
            whole.append(lines)
        self._commits = len(whole)
        (self.path / LEDGER).write_bytes(b"".join(whole))

    def _upload(self, left_out: tuple[str, ...]) -> None:
        changed = {}
        for name in names(self.path):
            if name.partition("/")[0] not in left_out:
                now = (self.path / name).stat()
                if self._sent.get(name) != (now.st_size, now.st_mtime_ns):
                    changed[name] = (now.st_size, now.st_mtime_ns)

        def upload() -> None:
            self._still_mine()
            for name, stamp in changed.items():
                put(self._files, self.path / name, f"{self._root}/{name}")
                self._sent[name] = stamp

        self._within("uploading what is new", upload)

    def _still_mine(self) -> None:
        if not self._claimed:
            return
        owner = f"{self._root}/{OWNER}"
        if not self._files.exists(owner):
            raise StorageError(f"run {self.place} is gone from its bucket; nothing more is committed")
        if json.loads(self._files.cat_file(owner))["token"] != self._token:
            raise self._lost()

    def _bring(self, name: str) -> None:
        self._files.invalidate_cache()
        root = f"{self._root}/{name}"
        inside = [found[len(self._root) :].lstrip("/") for found in self._files.find(root)]
        fresh = self.path / BRINGING
        shutil.rmtree(fresh, ignore_errors=True)
        for one in inside:
            self._get(one, fresh)
        if inside:
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(fresh / name, self.path / name)

    def _get(self, name: str, folder: Path) -> None:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        self._files.get_file(f"{self._root}/{name}", str(target))
        now = target.stat()
        self._sent[name] = (now.st_size, now.st_mtime_ns)

    def _segment(self, number: int) -> str:
        return f"{self._root}/ledger/{number:08}"

    def _lost(self) -> RunError:
        return RunError(
            f"run {self.place} was taken over by another driver, which goes on with it; this one stops"
        )

    def _within(self, what: str, work: Callable[[], Result]) -> Result:
        """``work()`` in a thread of its own: not every driver has a deadline."""
        reply: list[Result] = []
        failed: list[Exception] = []

        def run() -> None:
            try:
                with asked(self.place, what):
                    reply.append(work())
            except RayllaError as error:
                failed.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(self.deadline)
        if failed:
            raise failed[0]
        if not reply:
            raise DeadlineError(
                f"{self.place}: {what} was not done within deadlines.storage={self.deadline:g} s"
            )
        return reply[0]


def _append(ledger: Path, lines: bytes) -> None:
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


def _whole(lines: bytes) -> bool:
    """Whether a ledger object ends with its commit line."""
    try:
        return lines.endswith(b"\n") and "commit" in json.loads(lines.splitlines()[-1])
    except (ValueError, IndexError, TypeError):
        return False
