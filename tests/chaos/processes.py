"""The processes of a run, found by what they do and hit with signals."""

from __future__ import annotations

import os
import signal

import psutil

from raylla.actors.pool import WORKER

DPO = "dpo"


def below(pid: int) -> list[psutil.Process]:
    """Everything that process ``pid`` has started, and what that has started."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def workers(pid: int, kind: str) -> list[int]:
    """Process ids of the workers of one kind (a pool's name, or `DPO`) below process ``pid``."""
    return [one.pid for one in below(pid) if _is(one, kind)]


def hit(pid: int, signum: int = signal.SIGKILL) -> None:
    """Send a signal to a process that may be gone already."""
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return


def kill_tree(pid: int) -> None:
    """End a process and everything below it."""
    family = below(pid)
    hit(pid)
    for one in family:
        hit(one.pid)


def _is(process: psutil.Process, kind: str) -> bool:
    try:
        if kind == DPO:
            return "TrainWorker" in " ".join(process.cmdline())
        started_as = f'"{WORKER}": "{kind}['  # of what hands a worker over (`tests.e2e.nursery`)
        ours = process.environ().get(WORKER, "").startswith(f"{kind}[")
        return ours or started_as in " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return False
