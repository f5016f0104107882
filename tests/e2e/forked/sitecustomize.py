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

WORKERS = ("/ray/_private/workers/setup_worker.py", "/ray/_private/workers/default_worker.py")


def _born() -> list[str] | None:
    """The arguments of a process that a fork can be, from the script or ``-m`` on."""
    for at, word in enumerate(sys.orig_argv):
        if word.endswith(WORKERS) or sys.orig_argv[at : at + 2] == ["-m", "raylla"]:
            return sys.orig_argv[at:]
    return None


def _hand_over(place: str, arguments: list[str]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as nursery:
        try:
            nursery.connect(place)
        except OSError:
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: nursery.send(bytes([number])))
        told = {"arguments": arguments, "environment": dict(os.environ), "directory": os.getcwd()}
        body = json.dumps(told | {"niceness": os.getpriority(os.PRIO_PROCESS, 0)}).encode()
        socket.send_fds(nursery, [len(body).to_bytes(8, "big")], [0, 1, 2])
        nursery.sendall(body)
        status = nursery.recv(1)
    os._exit(status[0] if status else 128 + signal.SIGKILL)


_place, _arguments = os.environ.get("RAYLLA_NURSERY"), _born()
if _place and _arguments:
    _hand_over(_place, _arguments)
