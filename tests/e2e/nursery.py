"""A process that has loaded the model libraries, and forks the workers of Ray and the commands of raylla.

    python -m tests.e2e.nursery NUMBER    # of an open socket that listens

A process that holds an engine loads for five seconds of a core, and a run on Ray has a dozen.  `forked/` is
on the path of all that tests start: a process begins as always, and what a fork can be hands its arguments,
environment, directory and open files over to here.  From there on the fork is it.  They end together: the
fork is killed where the process is that was started, and that ends as the fork has ended.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import importlib
import json
import os
import random
import runpy
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest

from raylla.engines.vllmparams import ENVIRONMENT
from raylla.models.libraries import uncollected
from raylla.models.quiet import quiet_native

ROOT = Path(__file__).parents[2]
FORKED = Path(__file__).with_name("forked")
VARIABLE = "RAYLLA_NURSERY"
HIGH = 500
"""Open files have numbers below it."""
LIBRARIES = (
    "vllm",
    "vllm.entrypoints.llm",
    "vllm.v1.engine.llm_engine",
    "vllm.v1.worker.cpu_worker",
    "deepspeed",
    "raylla.policy.trainers.dpo",
    "raylla.policy.trainers.grpo",
    "raylla.policy.trainers.supervised",
    "raylla.reward.trainer",
    "raylla.serving.store",
    "pandas",
    "pyarrow.dataset",
    "fastapi",
    "uvicorn",
    "grpc",
)
"""What no fork has to load. Ray is not among it, which reads the environment once, as it is loaded; nor the
command line, whose console looks at the streams that it finds."""


@contextmanager
def nursery() -> Iterator[None]:
    """What is started meanwhile is born in a nursery: in one that is there, if there is one."""
    if VARIABLE in os.environ:
        yield
        return
    # Sockets have short names: not in pytest's deep directories.
    with tempfile.TemporaryDirectory(prefix="rf", dir="/tmp") as directory:
        place = f"{directory}/nursery"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(place)
        listener.listen(128)  # who comes while it loads waits
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.nursery", str(listener.fileno())],
            cwd=ROOT,
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,  # it ends with whoever holds the other end
            start_new_session=True,
        )
        listener.close()
        before = {name: os.environ.get(name) for name in (VARIABLE, "PYTHONPATH")}
        path = [str(FORKED), *(part for part in (before["PYTHONPATH"] or "").split(os.pathsep) if part)]
        os.environ |= {VARIABLE: place, "PYTHONPATH": os.pathsep.join(path)}
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value
            process.communicate(timeout=30)


def nursed(config: pytest.Config) -> None:
    """`nursery`, to the end of a test run."""
    stack = ExitStack()
    stack.enter_context(nursery())
    config.add_cleanup(stack.close)


class _Rayless(MetaPathFinder):
    """Keeps Ray out of a process."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == "ray":
            raise ModuleNotFoundError("not in the nursery", name=fullname)


def _load() -> None:
    """Load `LIBRARIES`."""
    quiet_native()
    os.environ.update(ENVIRONMENT | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"})
    sys.meta_path.insert(0, _Rayless())
    for name in LIBRARIES:
        with uncollected():
            importlib.import_module(name)
    del sys.meta_path[0]


def main() -> None:
    """Fork a process for each that comes to the socket, until the standard input ends."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    _load()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a fork
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        started, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _bear(started)
        started.close()
    os._exit(0)  # not at leisure: libraries would tell what they leave behind


def _bear(started: socket.socket) -> NoReturn:
    """Fork the process that ``started`` hands over, wait for its end, and say how that was."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _enter(struct.unpack("3i", started.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
    child = os.fork()
    if child == 0:
        _live(started)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(OSError):
        started.send(ended.to_bytes(2, "big", signed=True))
    os._exit(0)


def _enter(pid: int) -> None:
    """Be on the machine of process ``pid`` (`tests.e2e.machines`)."""
    apart = [f"/proc/{pid}/ns/{kind}" for kind in ("net", "uts", "pid", "mnt")]
    apart = [name for name in apart if os.readlink(name) != os.readlink(name.replace(str(pid), "self"))]
    libc = ctypes.CDLL(None, use_errno=True)
    for space in [os.open(name, os.O_RDONLY) for name in apart]:
        if libc.setns(space, 0):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        os.close(space)


def _live(started: socket.socket) -> NoReturn:
    """Be the process that ``started`` hands over."""
    length, files, _, _ = socket.recv_fds(started, 8, 250)
    body = b""
    while len(body) < int.from_bytes(length, "big"):
        body += started.recv(2**16)
    told = json.loads(body)
    os.setsid()
    started = socket.socket(fileno=fcntl.fcntl(started.detach(), fcntl.F_DUPFD_CLOEXEC, HIGH))
    moved = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, HIGH) for file in files]
    for file in files:
        os.close(file)
    for file, number in zip(moved, told["files"], strict=True):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(told["environment"])
    os.chdir(told["directory"])
    os.nice(told["niceness"] - os.getpriority(os.PRIO_PROCESS, 0))
    random.seed()
    threading.Thread(target=_obey, args=(started,), daemon=True).start()

    def instead(file: str, args: Sequence[str]) -> NoReturn:
        """`setup_worker.py` would become `bash -c "cd DIRECTORY && exec PYTHON SCRIPT ARGUMENTS"`."""
        words = shlex.split(args[-1])
        if words[:1] == ["cd"] and words[2] == "&&":
            os.chdir(words[1])
            words = words[3:]
        if words[:2] != ["exec", sys.executable]:
            os.execv("/bin/bash", list(args))
        _run(words[2:])

    os.execvp = instead  # type: ignore[assignment]
    _run(told["arguments"])


def _obey(started: socket.socket) -> None:
    """Take the signals that ``started`` gets; where it is gone, die."""
    while number := started.recv(1):
        os.kill(os.getpid(), number[0])
    os.kill(os.getpid(), signal.SIGKILL)


def _run(arguments: list[str]) -> NoReturn:
    """Be the Python process of these arguments, to its end."""
    status = 0
    try:
        if arguments[0] == "-m":
            sys.argv, sys.path[0] = arguments[1:], os.getcwd()
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[0] == "-c":
            sys.argv, sys.path[0] = ["-c", *arguments[2:]], os.getcwd()
            sys.modules["__main__"] = ModuleType("__main__")
            exec(arguments[1], vars(sys.modules["__main__"]))
        else:
            sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).parent)
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        status = 1
        sys.excepthook(*sys.exc_info())
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
