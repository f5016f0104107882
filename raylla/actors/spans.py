"""What actors did and when, by their own clocks."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """``actor`` worked on ``task`` from ``began`` to ``ended``, in seconds since 1970 by its own clock."""

    actor: str
    task: str
    began: float
    ended: float


class ActorSpans:
    """Spans by actor and task, two numbers each: an epoch has thousands."""

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._times: dict[tuple[str, str], array[float]] = {}
        for span in spans:
            self.add(span)

    def __iter__(self) -> Iterator[Span]:
        """All of them: an actor's of one task after the other, each as they came."""
        for (actor, task), times in self._times.items():
            for place in range(0, len(times), 2):
                yield Span(actor, task, times[place], times[place + 1])

    def add(self, span: Span) -> None:
        """Take one more."""
        times = self._times.setdefault((span.actor, span.task), array("d"))
        times.extend((span.began, span.ended))

    def of(self, group: str) -> list[ActorSpans]:
        """Those of each actor of a group."""
        found: dict[str, ActorSpans] = {}
        for (actor, task), times in self._times.items():
            if actor.rpartition("[")[0] == group:
                found.setdefault(actor, ActorSpans())._times[actor, task] = times
        return list(found.values())

    def seconds(self, task: str | None = None) -> float:
        """Their length together, of one task or of all."""
        return sum(span.ended - span.began for span in self if task in (None, span.task))


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

    item: object
    began: float
    made: float


@dataclass(frozen=True, slots=True)
class Batch:
    """Items that travel together, in the order in which they were made."""

    items: tuple[Stamped, ...]


def unpacked(argument: object) -> object:
    """An argument that is the one item of a call, as the call made it; anything else as it is."""
    return argument.items[0].item if isinstance(argument, Batch) else argument
