"""What actors did and when, by their own clocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Span:
    """``actor`` worked on ``task`` from ``began`` to ``ended``, in seconds since 1970 by its own clock."""

    actor: str
    task: str
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Size:
    """From ``at`` (seconds since 1970) on ``workers`` of a pool took calls, and ``joining`` were to."""

    pool: str
    at: float
    workers: int
    joining: int


@dataclass(frozen=True, slots=True)
class Stamped:
    """An item on its way from a worker: when its call began, and when the item was made."""

    item: Any
    began: float
    made: float


@dataclass(frozen=True, slots=True)
class Batch:
    """Items that travel together, in the order in which they were made."""

    items: tuple[Stamped, ...]


def unpacked(one: Any) -> Any:
    """An argument that is the one item of a call, as the call made it; anything else as it is."""
    return one.items[0].item if isinstance(one, Batch) else one
