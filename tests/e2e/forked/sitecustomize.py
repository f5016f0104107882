"""Read by each Python that a test starts: Ray's workers and raylla's commands are born in a nursery.

See `tests.e2e.nursery`.

What stands here begins in their place: it hands over what it was started with, passes signals on, and ends
as they end.  Where there is no nursery, they start as they always do.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys

SCRIPTS = (
    "/ray/_private/workers/setup_worker.py",
    "/ray/_private/workers/default_worker.py",
    "/ray/_private/runtime_env/agent/main.py",
    "/ray/_private/log_monitor.py",
    "/ray/dashboard/agent.py",
)
SPAWNED = "from multiprocessing.spawn import spawn_main"


def _born() -> list[str] | None:
    """The arguments of a process that a fork can be, from the script or the option before it on."""
    words = sys.orig_argv
    for at, word in enumerate(words[:4]):
        after = words[at + 1] if at + 1 < len(words) else ""
        if (
            word.endswith(SCRIPTS)
            or (word == "-m" and after == "raylla")
            or (word == "-c" and after.startswith(SPAWNED))
        ):
            return words[at:]
    return None


def _open() -> list[int]:
    """Files that are open."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            os.fstat(int(name))
        except OSError:
            continue  # it was the listing's own
        found.append(int(name))
    return found


def _hand_over(place: str, arguments: list[str]) -> None:
    files = _open()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as nursery:
        try:
            nursery.connect(place)
        except OSError:
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: nursery.send(bytes([number])))
        told = {"arguments": arguments, "environment": dict(os.environ), "directory": os.getcwd()}
        told |= {"niceness": os.getpriority(os.PRIO_PROCESS, 0), "files": files}
        body = json.dumps(told).encode()
        socket.send_fds(nursery, [len(body).to_bytes(8, "big")], files)
        nursery.sendall(body)
        for file in files:
            os.close(file)
        said = nursery.recv(2)
    ended = int.from_bytes(said, "big", signed=True) if said else -signal.SIGKILL
    if ended < 0:
        if -ended != signal.SIGKILL:
            signal.signal(-ended, signal.SIG_DFL)
        os.kill(os.getpid(), -ended)
    os._exit(ended)


_place, _arguments = os.environ.get("RAYLLA_NURSERY"), _born()
if _place and _arguments:
    _hand_over(_place, _arguments)
