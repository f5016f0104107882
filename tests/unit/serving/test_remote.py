"""Engine and pCTR model by handle: what a dead replica left undone is asked again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from raylla.config import Sampling
from raylla.errors import BusyError, EndpointError
from raylla.serving.engine.remote import RemoteOracle, RemoteWriter
from raylla.serving.engine.wire import Piece

DEAD = ActorUnavailableError("gone", None)
PIECES = [Piece((1,), None, "v1"), Piece((2,), "stop", "v1")]


class Answer:
    """What a call of a handle gives: items in turn; an exception among them is raised."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    async def __aiter__(self) -> AsyncIterator[Any]:
        for item in self.items:
            if isinstance(item, Exception):
                raise item
            yield item

    def __await__(self) -> Any:
        return self._one().__await__()

    async def _one(self) -> Any:
        (item,) = self.items
        if isinstance(item, Exception):
            raise item
        return item


class Handle:
    """A handle whose calls give ``answers`` in turn."""

    def __init__(self, *answers: list[Any]) -> None:
        self.answers = [Answer(items) for items in answers]
        self.calls = 0

    def options(self, **_: Any) -> Handle:
        return self

    def __getattr__(self, name: str) -> Handle:
        return self

    def remote(self, *_: Any) -> Answer:
        self.calls += 1
        return self.answers[self.calls - 1]


async def _all(handle: Handle) -> list[Piece]:
    return [piece async for piece in RemoteWriter(handle).generate([1], Sampling(), True)]


@pytest.mark.parametrize("error", [DEAD, DeploymentUnavailableError("d")])
def test_what_a_dead_replica_did_not_begin_is_asked_again(error: Exception) -> None:
    handle = Handle([error], [error], list(PIECES))
    assert asyncio.run(_all(handle)) == PIECES
    assert handle.calls == 3
    assert all(answer.cancelled for answer in handle.answers)
    oracle = Handle([error], ["rates"])
    assert asyncio.run(RemoteOracle(oracle).rates([])) == "rates"
    assert oracle.calls == 2


def test_what_it_had_begun_is_lost_and_says_so() -> None:
    handle = Handle([PIECES[0], DEAD])
    with pytest.raises(EndpointError, match="lost in the middle"):
        asyncio.run(_all(handle))
    assert handle.calls == 1


def test_a_full_queue_is_busy() -> None:
    full = BackPressureError(num_queued_requests=3, max_queued_requests=3)
    with pytest.raises(BusyError):
        asyncio.run(_all(Handle([full])))
    with pytest.raises(BusyError):
        asyncio.run(RemoteOracle(Handle([full])).encode(["a"]))


def test_leaving_cancels_the_call() -> None:
    handle = Handle(list(PIECES))

    async def leave() -> None:
        answer = RemoteWriter(handle).generate([1], Sampling(), True)
        await anext(answer)
        await answer.aclose()

    asyncio.run(leave())
    assert handle.answers[0].cancelled
