"""A cluster of several Ray nodes on one machine: each has its own processes, address and directory."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from raylla.actors.placement import PROBE_SECONDS

ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "GLOO_SOCKET_IFNAME": "lo",
    # A dead node is noticed after some refused connections, a slow one only after a minute.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "6",
    "RAY_health_check_timeout_ms": "10000",
}


class Nodes:
    """Nodes by name; the first is the head, which takes no work that needs a CPU."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """``environment`` of the nodes' processes; none: this one's, without tokens and quick to judge."""
        self._environment = os.environ | ENVIRONMENT if environment is None else environment
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._cut: set[str] = set()
        # Sockets have short names: not in pytest's deep directories.
        self._directory = tempfile.TemporaryDirectory(prefix="rn", dir="/tmp", ignore_cleanup_errors=True)
        self._start(
            "head",
            1,
            ["--head", f"--port={port}", "--num-cpus=0", "--num-gpus=0", "--include-dashboard=false"],
        )
        try:
            wait_for_head(self._running["head"], port, Path(self._directory.name) / "head.log")
        except BaseException:
            self.close()
            raise

    def add(self, name: str) -> None:
        """Start one more node of a CPU and, so Ray is told, a GPU; it joins by itself."""
        number = len(self._running) + 1
        self._start(name, number, [f"--address={self.address}", "--num-cpus=1", "--num-gpus=1"])

    def cut(self, name: str) -> None:
        """Let no packet through to a node any more: the network is gone, its processes live on.

        Needs a network namespace of its own, with the right to change its routes.
        """
        self._route("add", name)
        self._cut.add(name)

    def announce(self, name: str) -> None:
        """Tell a node to end, as Kubernetes tells a pod: it is announced to go, and goes when what is on it
        has gone, or after RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S seconds."""
        self._running[name].terminate()

    def kill(self, name: str) -> None:
        """End a node with everything on it, at once."""
        process = self._running[name]
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
        return (Path(self._directory.name) / f"{name}.log").read_text()

    def _start(self, name: str, number: int, arguments: list[str]) -> None:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        command += [f"--node-ip-address=127.0.0.{number}", f"--labels=raylla/node={name}"]
        command += ["--object-store-memory=200000000", "--dashboard-agent-listen-port=0", *arguments]
        command += [f"--temp-dir={self._directory.name}/{number}"]
        with (Path(self._directory.name) / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                command, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )

    def _route(self, change: str, name: str) -> None:
        address = f"127.0.0.{list(self._running).index(name) + 1}/32"
        subprocess.run(["ip", "route", change, "blackhole", address, "table", "local"], check=True)


def wait_for_head(head: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Until the head listens on this machine; where it ended or never does, fail with its log."""
    end = time.monotonic() + 60 + PROBE_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=PROBE_SECONDS).close()
            return
        except OSError:
            if time.monotonic() > end or head.poll() is not None:
                raise AssertionError(log.read_text()) from None
            time.sleep(0.2)
