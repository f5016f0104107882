"""What replicas hold, as each says of itself: a version is live where all of them hold it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayError

from raylla.serving.deploy.versions import Target
from raylla.serving.engine.remote import LOST


@dataclass(frozen=True, slots=True)
class State:
    """The version that a replica answers by, the canary beside it, and why not others."""

    held: Target | None = None
    canary: Target | None = None
    problems: tuple[str, ...] = ()


async def states(handle: Any, seconds: float) -> tuple[State, ...]:
    """The state of each replica behind ``handle``; of one that says nothing within ``seconds``, that.

    Replicas that come up meanwhile are not asked.
    """
    try:
        asked = handle.broadcast("state")
        said: Sequence[Any] = await asked.results_async(timeout_s=seconds, return_exceptions=True)
    except (*LOST, RayError, TimeoutError) as error:
        said = [error]
    silent = f"a replica of {handle.deployment_name} does not say what it holds"
    return tuple(
        one if isinstance(one, State) else State(problems=(f"{silent}: {str(one) or type(one).__name__}",))
        for one in said
    )


def common(said: Sequence[Target | None]) -> Target | None:
    """What all of them hold; none where they differ."""
    return said[0] if said and len(set(said)) == 1 else None
