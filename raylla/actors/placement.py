"""Joining a cluster, and whether it can ever place what a config asks for."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

import ray

from raylla.config import Config
from raylla.errors import PlacementError

SLOW = "timed out during startup"
"""What Ray says of a node that did not come up in its time."""

PROBE_SECONDS = 10
"""How long a cluster's head node may take to accept a connection."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a group of actors reserves: ``workers`` times ``cpus`` and ``gpus``, on nodes so labelled."""

    group: str
    workers: int
    cpus: float
    gpus: float
    labels: Mapping[str, str]

    def fits(self, cpus: float, gpus: float, labels: Mapping[str, str]) -> bool:
        """Whether a node of this size and with these labels can take one worker."""
        return cpus >= self.cpus and gpus >= self.gpus and self.labels.items() <= labels.items()


def needs(config: Config) -> list[Need]:
    """What every group of the config reserves for the whole run."""
    tensor_parallel = config.engine.tensor_parallel
    groups = (
        ("rollout", config.rollout, tensor_parallel),
        ("judge", config.judge, tensor_parallel),
        ("reward_trainer", config.reward_trainer, 1),
        ("dpo", config.dpo, 1),
    )
    return [
        Need(name, group.workers, group.cpus, group.gpus * width, group.labels)
        for name, group, width in groups
    ]


def connect(config: Config) -> None:
    """Join the configured cluster or the running job's; start one on this machine if there is none.

    Raises:
        PlacementError: nothing answers at ``ray.address``, or it runs another Ray or Python.
    """
    if config.ray.in_process or ray.is_initialized():
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    try:
        if address:
            _probe(address)
            ray.init(address, log_to_driver=False)
        else:
            _start_here(config.deadlines.start)
    except (OSError, ValueError, RuntimeError) as error:
        way_out = "start one with `ray start --head` or leave ray.address out to start one here"
        if "Version mismatch" in str(error):
            way_out = "install the same requirements/*.txt on every node and here"
        raise PlacementError(
            f"ray.address={address or 'local'}: no cluster could be joined ({error}); {way_out}"
        ) from None


def _start_here(deadline: float) -> None:
    """Start Ray on this machine. Ray gives a node 30 s to come up; a busy machine may need another try."""
    end = time.monotonic() + deadline
    while True:
        try:
            ray.init(include_dashboard=False, log_to_driver=False, object_store_memory=512 * 2**20)
        except Exception as error:  # Ray has no type for it
            if SLOW not in str(error):
                raise
            ray.shutdown()
            if time.monotonic() > end:
                raise PlacementError(
                    f"no Ray node came up on this machine within deadlines.start={deadline:g} s; it is too "
                    "busy: end other work, or raise the deadline"
                ) from None
        else:
            return


def _probe(address: str) -> None:
    """Reach the head node's port first: Ray itself waits ten minutes for one that is not there."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=PROBE_SECONDS).close()


def disconnect(config: Config) -> None:
    """Leave the cluster; one that `connect` started ends with it."""
    if not config.ray.in_process and ray.is_initialized():
        ray.shutdown()


def check_placement(config: Config) -> dict[str, float]:
    """Compare the needs with all that the cluster has; returns what is left over.

    Where ``ray.autoscaling`` is on, what is short is added for the actors that wait for it, and
    ``deadlines.start`` bounds their wait; what is left over is then below zero.

    Raises:
        PlacementError: the groups can never be placed together, or one worker on no node.
    """
    if config.ray.in_process:
        return {}
    total = ray.cluster_resources()
    nodes = [(node["Resources"], node["Labels"]) for node in ray.nodes() if node["Alive"]]
    wanted = needs(config)
    grows = config.ray.autoscaling
    for need in wanted:
        found = any(need.fits(has.get("CPU", 0), has.get("GPU", 0), labels) for has, labels in nodes)
        if not found and not grows:
            where = f" with labels {dict(need.labels)}" if need.labels else ""
            raise PlacementError(
                f"{need.group}: one worker needs {need.cpus:g} CPUs and {need.gpus:g} GPUs and no node"
                f"{where} has them; change {need.group}.cpus, .gpus or .labels, add such a node, or set "
                "ray.autoscaling where the cluster adds it by itself"
            )
    spare = {}
    for kind, key in (("cpus", "CPU"), ("gpus", "GPU")):
        asked = sum(need.workers * getattr(need, kind) for need in wanted)
        spare[key] = total.get(key, 0) - asked
        if spare[key] < 0 and not grows:
            parts = ", ".join(f"{n.group} {n.workers} x {getattr(n, kind):g}" for n in wanted)
            raise PlacementError(
                f"the config needs {asked:g} {key}s ({parts}) and the cluster has {total.get(key, 0):g}; "
                f"lower the workers or their {kind}, add nodes, or set ray.autoscaling"
            )
    return spare
