"""A run in a bucket: a working copy on the driver's disk, and the way there and back.

A stage's files are uploaded first, then its lines of the ledger as one object (``ledger/00000007``), which
is there whole or not at all. A driver anywhere opens the run from its root's files and its ledger, and
brings a stage's records when it reads them.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from raylla.errors import DeadlineError, RayllaError, RunError, StorageError
from raylla.storage.disk import DEADLINE, LEDGER, LOCK, append
from raylla.storage.places import asked, folder, names, opened, put, remove_exact, scratch

_Result = TypeVar("_Result")
OWNER = "owner.json"
"""The file in a bucket that names the one driver that may add to the run."""
PROBE = "probe-"
BRINGING = ".bringing"
OWN = (LEDGER, LOCK, BRINGING, "trainer")
"""What is never uploaded as it is: the ledger goes by commits, the rest is of this machine."""
LIVE = "wandb"
"""The directory that another process writes to while the run goes on; it is uploaded at the end."""


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
        probe = f"{self._root}/{PROBE}{self._token}"

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

    def foreign(self) -> bool:
        """See `Home`; what a driver leaves that is killed as it makes a run is none."""

        def look() -> bool:
            if not self._files.exists(self._root):
                return False
            names = {
                name.rstrip("/").rpartition("/")[2] for name in self._files.ls(self._root, detail=False)
            }
            return any(name != "config.yaml" and not name.startswith(PROBE) for name in names)

        return self._within("looking at what is there", look)

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

    def append(self, lines: bytes | bytearray) -> None:
        """See `Home`."""
        self._upload((*OWN, LIVE))
        segment = self._segment(self._commits + 1)

        def put_lines() -> None:
            folder(self._files, segment.rpartition("/")[0])
            try:
                self._files.pipe_file(segment, bytes(lines), mode="create")
            except FileExistsError:
                raise self._lost() from None

        self._within("committing", put_lines)
        self._commits += 1
        append(self.path / LEDGER, lines)

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
        self._within(f"removing {name}", lambda: remove_exact(self._files, f"{self._root}/{name}"))

    def _open(self) -> None:
        """The root's files and the ledger, as they are now, into the working copy."""
        if not self._files.exists(f"{self._root}/run.json"):
            return
        for about in self._files.ls(self._root, detail=True):
            name = about["name"].rstrip("/").rpartition("/")[2]
            if about["type"] == "file" and not name.startswith(PROBE) and name != OWNER:
                self._get(name, self.path)
        ledger, whole = f"{self._root}/ledger", []
        segments = sorted(self._files.find(ledger)) if self._files.exists(ledger) else []
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
        root = f"{self._root}/{name}"
        if not self._files.exists(root):
            return
        inside = [path[len(self._root) :].lstrip("/") for path in self._files.find(root)]
        fresh = self.path / BRINGING
        shutil.rmtree(fresh, ignore_errors=True)
        for file in inside:
            self._get(file, fresh)
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(fresh / name, self.path / name)

    def _get(self, name: str, into: Path) -> None:
        target = into / name
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

    def _within(self, what: str, work: Callable[[], _Result]) -> _Result:
        """``work()`` in a thread of its own: not every driver has a deadline."""
        reply: list[_Result] = []
        failed: list[Exception] = []

        def run() -> None:
            try:
                with asked(self.place, what):
                    self._files.invalidate_cache()  # others write there, too
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
                f"{self.place}: {what} was not done within {self.deadline:g} s (deadlines.storage)"
            )
        return reply[0]


def _whole(lines: bytes) -> bool:
    """Whether a ledger object ends with its commit line."""
    try:
        return lines.endswith(b"\n") and "commit" in json.loads(lines.splitlines()[-1])
    except (ValueError, IndexError, TypeError):
        return False
