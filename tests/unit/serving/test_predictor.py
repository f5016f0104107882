"""Asking together: one call for all who wait, each gets its own, and an error is everyone's who asked."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from raylla.serving.engine.together import Together


def test_who_waits_is_answered_together() -> None:
    calls: list[list[int]] = []
    gate = threading.Event()

    def double(items: list[int]) -> list[int]:
        calls.append(items)
        gate.wait(10)
        if 13 in items:
            raise ValueError("unlucky")
        return [2 * item for item in items]

    async def body() -> None:
        together = Together(double, ThreadPoolExecutor(1))
        first = asyncio.ensure_future(together.ask([1]))
        await asyncio.sleep(0.05)
        rest = [asyncio.ensure_future(together.ask(list(range(n)))) for n in range(5)]
        gone = asyncio.ensure_future(together.ask([7]))
        await asyncio.sleep(0.05)
        gone.cancel()
        gate.set()
        assert await first == [2]
        assert [await one for one in rest] == [[2 * item for item in range(n)] for n in range(5)]
        assert calls == [[1], [0, 0, 1, 0, 1, 2, 0, 1, 2, 3, 7]]
        with pytest.raises(ValueError, match="unlucky"):
            await together.ask([13])
        assert await together.ask([4]) == [8]

    asyncio.run(asyncio.wait_for(body(), 30))
