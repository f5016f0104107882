"""Machines in one: each a namespace of network, processes, host name and disks, joined by a bridge.

What a process of a machine writes is seen by that machine alone and is gone with it: its temporary, home
and run directories and its shared memory are its own, and the rest of the disk is read-only, as an image's.
Nothing of the network of whoever starts them is touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.e2e import nursery

ROOT = Path(__file__).parents[2]
BRIDGE = "10.77.0.1"
"""Where a machine finds what runs beside the bridge."""
KEPT = "/mnt"
"""Where a machine's disk keeps in sight what it needs of a directory that is made private."""
LOOKED_UP = Path.home() / ".cache" / "vllm"
"""What vLLM has found out about kinds of models: on an empty disk an engine takes nine seconds of a core to
find it out again."""
_PRIVATE = ("/tmp", "/var/tmp", "/run", "/dev/shm")
_NAMESPACES = ("--net", "--mount", "--uts", "--pid")
_FIRST = r"""
set -e
name=$1 address=$2 home=$3; shift 3
mount -t tmpfs tmpfs {kept}
printf '127.0.0.1 localhost\n%s %s\n' "$address" "$name" > {kept}/hosts
mount --bind {kept}/hosts /etc/hosts
number=0
for place in "$@"; do
    number=$((number + 1)); mkdir {kept}/$number; mount --rbind "$place" {kept}/$number
done
mount -o remount,bind,ro /
for place in {private} "$home"; do
    [ ! -d "$place" ] || mount -t tmpfs tmpfs "$place"
done
number=0
for place in "$@"; do
    number=$((number + 1)); [ -d "$place" ] || mkdir -p "$place"
    mount --rbind {kept}/$number "$place"; mount -o remount,bind,ro "$place"
done
hostname "$name"; ip link set lo up
echo ready
sleep infinity & wait
""".format(kept=KEPT, private=" ".join(_PRIVATE))
"""A machine's first process: arguments are its name, address, home, and what of the disk it has to see."""


def lacking() -> str | None:
    """Why no machine can be made here; none: they can."""
    absent = [tool for tool in ("ip", "unshare", "nsenter") if shutil.which(tool) is None]
    if absent:
        return f"{', '.join(absent)}, which makes machines of namespaces: bash dev.sh tools"
    tried = subprocess.run(
        [
            "unshare",
            *_NAMESPACES,
            "--fork",
            "sh",
            "-c",
            "mount -t tmpfs tmpfs /mnt && ip link add type veth",
        ],
        capture_output=True,
        text=True,
    )
    if tried.returncode:
        return (
            f"no mount namespace or no network namespace can be made here ({tried.stderr.strip()}): be root"
        )
    return None


class Machine:
    """One machine; it ends with everything on it, at once, when `kill` ends its first process."""

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address = name, address
        seen = dict.fromkeys([str(ROOT), sys.prefix, sys.base_prefix])
        if nursery.VARIABLE in os.environ:
            seen[str(Path(os.environ[nursery.VARIABLE]).parent)] = None
        if LOOKED_UP.is_dir():
            seen[str(LOOKED_UP)] = None
        first = ["sh", "-c", _FIRST, "sh", name, address, os.environ.get("HOME", "/root"), *seen]
        self._holder = _held([*_NAMESPACES, "--fork", "--kill-child", "--mount-proc", *first])
        (one,) = psutil.Process(self._holder.pid).children()
        self.pid = one.pid

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command as one that works on this machine, in the directory where it is started."""
        entering = [f"--target={self.pid}", *_NAMESPACES, f"--wdns={ROOT}"]
        return ["nsenter", *entering, *command]

    def kill(self) -> None:
        """Switch it off."""
        self._holder.kill()
        self._holder.wait(timeout=30)


class Network:
    """A bridge, and the machines that are plugged into it."""

    def __init__(self) -> None:
        first = ["sh", "-c", "ip link set lo up && echo ready && exec sleep infinity"]
        self._holder = _held(["--net", *first])
        self.machines: dict[str, Machine] = {}
        self._ip("link", "add", "name", "bridge", "type", "bridge")
        self._ip("addr", "add", f"{BRIDGE}/24", "dev", "bridge")
        self._ip("link", "set", "bridge", "up")

    def add(self, name: str) -> Machine:
        """One more machine, with empty disks."""
        number = len(self.machines) + 2
        machine = Machine(name, f"{BRIDGE.rpartition('.')[0]}.{number}")
        self.machines[name] = machine
        cable = ("type", "veth", "peer", "name", "eth0", "netns", str(machine.pid))
        self._ip("link", "add", "name", name, *cable)
        self._ip("link", "set", "dev", name, "master", "bridge", "up")
        for order in (
            ("addr", "add", f"{machine.address}/24", "dev", "eth0"),
            ("link", "set", "dev", "eth0", "up"),
        ):
            subprocess.run(machine.inside(["ip", *order]), check=True)
        return machine

    def cut(self, name: str) -> None:
        """Pull a machine's cable: its processes live on."""
        self._ip("link", "set", "dev", name, "down")

    def beside(self, command: Sequence[str]) -> list[str]:
        """The command as one that works at `BRIDGE`, on the disk of whoever started all this."""
        return ["nsenter", f"--target={self._holder.pid}", "--net", *command]

    def close(self) -> None:
        """End it with everything on it."""
        for machine in self.machines.values():
            machine.kill()
        self._holder.kill()
        self._holder.wait(timeout=30)

    def _ip(self, *order: str) -> None:
        subprocess.run(self.beside(["ip", *order]), check=True)


def _held(options: Sequence[str]) -> subprocess.Popen[str]:
    """Namespaces, with a process in them that says when they are ready."""
    process = subprocess.Popen(
        ["unshare", *options], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", f"no namespaces came up: unshare {options}"
    return process
