"""Joining a cluster, and whether it can ever place what a config asks for."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from raylla.actors import login
from raylla.config import Actors, Config, Dpo
from raylla.errors import PlacementError

SLOW = "timed out during startup"
"""What Ray says of a node that did not come up in its time."""

AMOUNTS = (("cpus", "CPU"), ("gpus", "GPU"))
"""What is counted: its field in a `Need`, and its name in Ray."""

QUIETLY: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
"""How Ray is started or joined: what it says of that, and what its workers say, is for its own logs."""

PROBE_SECONDS = 10
"""How long a cluster's head node may take to accept a connection."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a group of actors reserves: ``workers`` times ``cpus`` and ``gpus``, on nodes so labelled.

    With work enough and room for them there are ``most``.
    """

    group: str
    workers: int
    most: int
    cpus: float
    gpus: float
    labels: Mapping[str, str]

    def fits(self, cpus: float, gpus: float, labels: Mapping[str, str]) -> bool:
        """Whether a node of this size and with these labels can take one worker."""
        return cpus >= self.cpus and gpus >= self.gpus and self.labels.items() <= labels.items()


@dataclass(frozen=True, slots=True)
class NodeKind:
    """A node that there is, with its labels, or up to ``nodes`` that the autoscaler adds; their labels
    are known to the cluster's operator alone (none)."""

    cpus: float
    gpus: float
    nodes: float
    labels: Mapping[str, str] | None

    def takes(self, need: Need) -> bool:
        """Whether one worker fits."""
        return need.fits(self.cpus, self.gpus, need.labels if self.labels is None else self.labels)


def needs(config: Config) -> list[Need]:
    """What every group of the config reserves for the whole run; of one that grows, its least."""
    tensor_parallel = config.engine.tensor_parallel
    groups: tuple[tuple[str, Actors | Dpo, int, int], ...] = (
        ("rollout", config.rollout, config.rollout.least, tensor_parallel),
        ("judge", config.judge, config.judge.least, tensor_parallel),
        ("reward_trainer", config.reward_trainer, config.reward_trainer.workers, 1),
        ("dpo", config.dpo, config.dpo.workers, 1),
    )
    found = [
        Need(name, least, group.workers, group.cpus, group.gpus * width, group.labels)
        for name, group, least, width in groups
    ]
    shards = config.shards
    if shards.workers > 1:
        found.append(
            Need("shards", shards.workers, shards.workers, shards.cpus, shards.gpus, shards.labels)
        )
    return found


def connect(config: Config) -> None:
    """Join the configured cluster or the running job's; start one on this machine if there is none.

    Whatever else runs or ran on this machine, and left its address in Ray's directory, is not joined.

    Raises:
        PlacementError: nothing answers at ``ray.address``, it wants a token, or it runs another Ray or
            Python; or Ray does not start here.
    """
    if config.ray.in_process or ray.is_initialized():
        return
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    if address:
        _join(address)
    else:
        _start_here(config.deadlines.start)


def _join(address: str) -> None:
    login.log_in()
    try:
        _probe(address)
    except OSError as error:
        raise PlacementError(
            f"ray.address={address}: no cluster could be joined ({error}); start one with `ray start "
            "--head` or leave ray.address out to start one here"
        ) from None
    try:
        ray.init(address, **QUIETLY)
    except (OSError, ValueError, RuntimeError, AuthenticationError) as error:
        way_out = login.missing()
        if "Version mismatch" in str(error):
            way_out = "install the same requirements/*.txt on every node and here"
        raise PlacementError(
            f"ray.address={address}: no cluster could be joined ({error}); {way_out}"
        ) from None


def _start_here(deadline: float) -> None:
    """Start Ray on this machine. Ray gives a node 30 s to come up; a busy machine may need another try."""
    login.need_none()
    end = time.monotonic() + deadline
    while True:
        try:
            # "local": without it Ray joins what an earlier cluster has left the address of, alive or not.
            ray.init("local", include_dashboard=False, object_store_memory=512 * 2**20, **QUIETLY)
        except Exception as error:  # Ray has no type for it
            if SLOW in str(error):
                ray.shutdown()
                if time.monotonic() <= end:
                    continue
                raise PlacementError(
                    f"no Ray node came up on this machine within deadlines.start={deadline:g} s; it is too "
                    "busy: end other work, or raise the deadline"
                ) from None
            if isinstance(error, (OSError, ValueError, RuntimeError)):
                raise PlacementError(
                    f"Ray did not start on this machine ({error}); mend what it names, or name a running "
                    "cluster in ray.address"
                ) from None
            raise
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
    """Compare the needs with what the cluster has or can grow to; returns what it has now and is left.

    How far it grows is known where its autoscaler says so. Where ``ray.autoscaling`` is on and it does
    not, nothing is refused.  What is short now is added for the actors that wait for it, and
    ``deadlines.start`` bounds their wait; what is left is then below zero.

    Raises:
        PlacementError: the groups can never be placed together, or one worker on no node.
    """
    if config.ray.in_process:
        return {}
    has = [NodeKind(*_size(node["Resources"]), 1, node["Labels"]) for node in ray.nodes() if node["Alive"]]
    grown = autoscaled()
    wanted = needs(config)
    if grown is not None or not config.ray.autoscaling:
        _refuse(wanted, has, grown)
    return {
        key: sum(getattr(node, kind) for node in has)
        - sum(need.workers * getattr(need, kind) for need in wanted)
        for kind, key in AMOUNTS
    }


def autoscaled() -> list[NodeKind] | None:
    """The nodes that the cluster's autoscaler can have, those that are there included; none: it does
    not say, or there is no autoscaler."""
    # Managed clusters report it to Ray, and Ray's own libraries read it there; no public function does.
    found = ray._private.state.state.get_cluster_config()
    if found is None or not found.node_group_configs:
        return None
    return [
        NodeKind(*_size(group.resources), math.inf if group.max_count < 0 else group.max_count, None)
        for group in found.node_group_configs
        if group.max_count
    ]


def _size(resources: Mapping[str, float]) -> tuple[float, float]:
    return resources.get("CPU", 0), resources.get("GPU", 0)


def _refuse(wanted: Sequence[Need], has: Sequence[NodeKind], grown: Sequence[NodeKind] | None) -> None:
    """Raise where not all of ``wanted`` can be placed on what there is, or can be."""
    way_out = "set ray.autoscaling where the cluster adds them by itself"
    if grown is not None:
        way_out = "raise the most nodes of the autoscaler's groups"
    for need in wanted:
        if not any(kind.takes(need) for kind in (*has, *(grown or ()))):
            where = f" with labels {dict(need.labels)}" if need.labels else ""
            raise PlacementError(
                f"{need.group}: one worker needs {need.cpus:g} CPUs and {need.gpus:g} GPUs and no node"
                f"{where} has them; change {need.group}.cpus, .gpus or .labels, add such nodes, or "
                f"{way_out}"
            )
    for kind, key in AMOUNTS:
        asked = sum(need.workers * getattr(need, kind) for need in wanted)
        now, then = (
            sum(group.nodes * getattr(group, kind) for group in nodes if getattr(group, kind))
            for nodes in (has, grown or ())
        )
        if asked > max(now, then):
            parts = ", ".join(f"{n.group} {n.workers} x {getattr(n, kind):g}" for n in wanted)
            grows = f" and grows to {then:g}" if grown is not None else ""
            raise PlacementError(
                f"the config needs {asked:g} {key}s ({parts}) and the cluster has {now:g}{grows}; "
                f"lower the workers or their {kind}, add nodes, or {way_out}"
            )
