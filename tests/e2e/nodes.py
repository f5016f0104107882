"""A cluster of several Ray nodes on one machine: each has its own processes, address and directory.

On a network each is a machine, too (`tests/e2e/machines.py`), whose disks no other sees.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from raylla.actors.placement import PROBE_SECONDS
from tests.e2e.machines import Network

ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "GLOO_SOCKET_IFNAME": "lo",
    # A dead node is noticed after some refused connections, a slow one only after a minute.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "6",
    "RAY_health_check_timeout_ms": "10000",
}
Inside = Callable[[list[str]], list[str]]
"""Makes a command one that works on some machine."""


class Nodes:
    """Nodes by name; the first is the head, which takes work that needs a CPU only where it has some."""

    def __init__(
        self,
        environment: Mapping[str, str] | None = None,
        network: Network | None = None,
        dashboard: bool = False,
        cpus: int = 0,
    ) -> None:
        """``environment`` of the nodes' processes; none: this one's, without tokens and quick to judge.
        ``cpus`` are the head's."""
        self._environment = os.environ | ENVIRONMENT if environment is None else environment
        self._network = network
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._cut: set[str] = set()
        # Sockets have short names: not in pytest's deep directories.
        self._directory = tempfile.TemporaryDirectory(prefix="rn", dir="/tmp", ignore_cleanup_errors=True)
        port, shown = (6379, 8265) if network else (_free_port(), _free_port())
        head = ["--head", f"--port={port}", f"--num-cpus={cpus}", "--num-gpus=0"]
        if dashboard:
            head += ["--include-dashboard=true", "--dashboard-host=0.0.0.0", f"--dashboard-port={shown}"]
        else:
            head += ["--include-dashboard=false"]
        host = self._start("head", head)
        self.address, self.dashboard = f"{host}:{port}", f"http://{host}:{shown}"
        try:
            wait_for_head(self._running["head"], self.address, self._log("head"), self.inside("head"))
        except BaseException:
            self.close()
            raise

    def add(self, name: str) -> None:
        """Start one more node of a CPU and, so Ray is told, a GPU; it joins by itself."""
        self._start(name, [f"--address={self.address}", "--num-cpus=1", "--num-gpus=1"])

    def wait(self, name: str) -> None:
        """Until a node is up; a driver that comes to its machine earlier is refused."""
        end = time.monotonic() + 120
        while "Ray runtime started" not in self.log(name):
            if time.monotonic() > end or self._running[name].poll() is not None:
                raise AssertionError(self.log(name))
            time.sleep(0.2)

    def inside(self, name: str) -> Inside:
        """What makes a command one that works on a node's machine."""
        return list if self._network is None else self._network.machines[name].inside

    def cut(self, name: str) -> None:
        """Let no packet through to a node any more: the network is gone, its processes live on.

        Where all nodes are on one machine it needs a network namespace of its own, with the right to change
        its routes.
        """
        if self._network is not None:
            self._network.cut(name)
            return
        self._route("add", name)
        self._cut.add(name)

    def announce(self, name: str) -> None:
        """Tell a node to end, as Kubernetes tells a pod: it is announced to go, and goes when what is on it
        has gone, or after RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S seconds."""
        process = psutil.Process(self._running[name].pid)
        if self._network is not None:  # the other is nsenter, which waits for it
            (process,) = process.children()
        process.terminate()

    def end(self, name: str, signal: int) -> None:
        """Send a node's raylet a signal, past what started it and would announce it to go."""
        below = psutil.Process(self._running[name].pid).children(recursive=True)
        next(one for one in below if one.name() == "raylet").send_signal(signal)

    def kill(self, name: str) -> None:
        """End a node with everything on it, at once."""
        process = self._running[name]
        if self._network is not None:
            self._network.machines[name].kill()
        if process.poll() is None:
            tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            for one in tree:
                try:
                    one.kill()
                except psutil.NoSuchProcess:
                    continue
        process.wait(timeout=30)

    def close(self) -> None:
        """End them all."""
        for name in reversed(self._running):
            self.kill(name)
        for name in self._cut:
            self._route("del", name)
        self._directory.cleanup()

    def log(self, name: str) -> str:
        """What a node has said."""
        return self._log(name).read_text()

    def _log(self, name: str) -> Path:
        return Path(self._directory.name) / f"{name}.log"

    def _start(self, name: str, arguments: list[str]) -> str:
        """Start a node; returns its address."""
        number = len(self._running) + 1
        host = f"127.0.0.{number}" if self._network is None else self._network.add(name).address
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        command += [f"--node-ip-address={host}", f"--labels=raylla/node={name}"]
        command += ["--object-store-memory=200000000", "--dashboard-agent-listen-port=0", *arguments]
        command += [f"--temp-dir={self._directory.name}/{number}"]
        with self._log(name).open("wb") as log:
            self._running[name] = subprocess.Popen(
                self.inside(name)(command),
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        return host

    def _route(self, change: str, name: str) -> None:
        address = f"127.0.0.{list(self._running).index(name) + 1}/32"
        subprocess.run(["ip", "route", change, "blackhole", address, "table", "local"], check=True)


def wait_for_head(head: subprocess.Popen[bytes], address: str, log: Path, inside: Inside = list) -> None:
    """Until the head listens; where it ended or never does, fail with its log."""
    end = time.monotonic() + 60 + PROBE_SECONDS
    reach = inside(
        ["timeout", str(PROBE_SECONDS), "bash", "-c", f": > /dev/tcp/{address.replace(':', '/')}"]
    )
    while subprocess.run(reach, stderr=subprocess.DEVNULL).returncode:
        if time.monotonic() > end or head.poll() is not None:
            raise AssertionError(log.read_text())
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
