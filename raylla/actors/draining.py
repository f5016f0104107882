"""Nodes that are announced to go: a spot machine's notice, a pod that is evicted, `ray drain-node`.

Ray places nothing new on them; what is there works on until the node is taken.
"""

from __future__ import annotations

import math
import time

import ray
from ray.actor import ActorHandle
from ray.core.generated.gcs_pb2 import ActorTableData


def draining() -> dict[str, float]:
    """Such nodes by id, and the seconds that each has left; endless where nobody said."""
    # Ray's own libraries read it there, as `node_of`; no public function does.
    found = ray._private.state.state.get_draining_nodes()
    return {node: until / 1000 - time.time() if until else math.inf for node, until in found.items()}


def node_of(actor: ActorHandle) -> str | None:
    """Id of the node that an actor is on; none: it is nowhere yet."""
    about = ray._private.state.state.actor_table(actor._actor_id.hex())
    return about.get("Address", {}).get("NodeID") or None


def announced(actor: ActorHandle) -> bool:
    """Whether an actor's node was announced to go while it was there; it is known of a dead one, too.

    The error of a dead actor says so for one order of events alone: not where the node signed off by
    itself, as it does at the end of its time.
    """
    about = ray._private.state.state._connect_and_get_accessor().get_actor_info(actor._actor_id)
    return about is not None and bool(ActorTableData.FromString(about).preempted)
