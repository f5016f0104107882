"""What many ask for while a slow call runs, done in one call when it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Together(Generic[_Item, _Result]):
    """Calls of one function over many items, made in ``pool`` one after the other, for many askers."""

    def __init__(self, call: Callable[[list[_Item]], list[_Result]], pool: Executor) -> None:
        self._call = call
        self._pool = pool
        self._waiting: list[tuple[Sequence[_Item], asyncio.Future[list[_Result]]]] = []
        self._working: asyncio.Task[None] | None = None

    async def ask(self, items: Sequence[_Item]) -> list[_Result]:
        """The result of each item, in order."""
        if not items:
            return []
        answer: asyncio.Future[list[_Result]] = asyncio.get_running_loop().create_future()
        self._waiting.append((items, answer))
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        while self._waiting:
            asked, self._waiting = self._waiting, []
            together = [item for items, _ in asked for item in items]
            try:
                results = await asyncio.get_running_loop().run_in_executor(self._pool, self._call, together)
            except Exception as error:  # it is the askers', whatever it is
                for _, answer in asked:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            place = 0
            for items, answer in asked:
                if not answer.done():
                    answer.set_result(results[place : place + len(items)])
                place += len(items)
