"""The engine behind its pipe: streams, aborts, weights between requests, failures nobody waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from raylla.config import Sampling
from raylla.engines.live import Step
from raylla.engines.protocol import Probe, Weights
from raylla.errors import EndpointError, WeightError
from raylla.models import Adapter
from raylla.models.places import adapter_settings
from raylla.records import WeightVersion
from raylla.serving.engine.engine import AsyncEngine
from raylla.serving.engine.stepping import Stepper
from raylla.serving.engine.wire import Ready

SAMPLING = Sampling(max_tokens=5)


class Counting:
    """A `Live` engine: request ``[n]`` is answered by n tokens, each the value of the weights."""

    def __init__(self) -> None:
        self.value = 0
        self.left: dict[str, list[int]] = {}
        self.streams: dict[str, bool] = {}
        self.aborted: list[str] = []
        self.mixed = False
        self.adapters: dict[str, int] = {}
        self.events: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.broken = False

    def submit(
        self, name: str, prompt: Sequence[int], sampling: Sampling, stream: bool, policy: str = ""
    ) -> None:
        if prompt[0] == 0:
            raise ValueError("the prompt has 0 tokens")
        if policy and policy not in self.adapters:
            raise ValueError(f"no adapter {policy} is held")
        value = self.adapters[policy] if policy else self.value
        self.left[name], self.streams[name] = [value] * prompt[0], stream

    def step(self) -> list[Step]:
        self.gate.wait(10)
        if self.broken:
            raise RuntimeError("out of memory")
        found = []
        for name, tokens in list(self.left.items()):
            take = 1 if self.streams[name] else len(tokens)
            self.left[name] = tokens[take:]
            done = not self.left[name]
            if done:
                del self.left[name]
            found.append(Step(name, tuple(tokens[:take]), "stop" if done else None))
        return found

    def abort(self, names: Sequence[str]) -> None:
        self.aborted += names
        for name in names:
            self.left.pop(name, None)

    def load(self, weights: Weights, probe: Probe | None) -> float:
        self.mixed = self.mixed or bool(self.left)
        value = int(weights["w"].sum())
        if probe is not None and value != probe.logprobs[0]:
            self.value = value  # what a failed load leaves behind
            raise WeightError(f"the probe differs by {value - probe.logprobs[0]}")
        self.value = value
        return 0.0

    def hold(self, policy: str, directory: Path, probe: Probe | None) -> float:
        value = adapter_settings(directory)["r"]
        if probe is not None and value != probe.logprobs[0]:
            raise WeightError(f"the probe differs by {value - probe.logprobs[0]}")
        self.adapters[policy] = value
        self.events.append(f"hold {value} beside {len(self.left)}")
        return 0.25

    def drop(self, policy: str) -> None:
        value = self.adapters.pop(policy)
        assert all(value not in tokens for tokens in self.left.values())
        self.events.append(f"drop {value}")


def adapted(path: Path, value: int) -> WeightVersion:
    path.mkdir()
    Adapter({"base_model_name_or_path": "base", "r": value}, b"").write(path)
    return WeightVersion(path.name, value, str(path))


def saved(path: Path, value: int) -> WeightVersion:
    path.mkdir()
    save_file({"w": np.array([value], np.float32)}, path / "w.safetensors")
    return WeightVersion(path.name, value, str(path))


async def tokens(
    engine: AsyncEngine, count: int, stream: bool = True, policy: str = ""
) -> tuple[list[int], set[str]]:
    pieces = [piece async for piece in engine.generate([count], SAMPLING, stream, policy=policy)]
    return [one for piece in pieces for one in piece.token_ids], {piece.version for piece in pieces}


def run(tmp_path: Path, body: Callable[[AsyncEngine, Counting], Awaitable[Any]]) -> None:
    """``body`` beside a stepping thread, which ends once the engine's end of the pipe is closed."""
    live, version = Counting(), saved(tmp_path / "v0", 0)
    ours, theirs = Pipe()
    thread = threading.Thread(target=Stepper(live, version, theirs, most=2).run)
    thread.start()
    try:
        assert ours.recv() == Ready()
        asyncio.run(asyncio.wait_for(body(AsyncEngine(ours, version, thread.is_alive), live), 30))
    finally:
        live.gate.set()
        ours.close()
        thread.join(30)
        theirs.close()
    assert not thread.is_alive()


def test_many_are_answered_together_whole_and_streamed(tmp_path: Path) -> None:
    async def body(engine: AsyncEngine, live: Counting) -> None:
        found = await asyncio.gather(*(tokens(engine, 1 + n, n % 2 == 0) for n in range(20)))
        assert [len(one) for one, _ in found] == list(range(1, 21))
        assert not live.left

    run(tmp_path, body)


def test_closing_aborts(tmp_path: Path) -> None:
    async def body(engine: AsyncEngine, live: Counting) -> None:
        answer = engine.generate([100_000], SAMPLING, True)
        await anext(answer)
        await answer.aclose()
        while not live.aborted:
            await asyncio.sleep(0.01)
        assert await tokens(engine, 2) == ([0, 0], {"v0"})

    run(tmp_path, body)


def test_a_refused_prompt_is_its_own_error(tmp_path: Path) -> None:
    async def body(engine: AsyncEngine, live: Counting) -> None:
        with pytest.raises(EndpointError, match="0 tokens"):
            await tokens(engine, 0)
        assert await tokens(engine, 1) == ([0], {"v0"})

    run(tmp_path, body)


def test_weights_change_between_requests_and_none_is_dropped(tmp_path: Path) -> None:
    async def body(engine: AsyncEngine, live: Counting) -> None:
        versions = [saved(tmp_path / f"v{n}", n) for n in range(1, 6)]
        load = asyncio.ensure_future(_load_all(engine, versions))
        found = await asyncio.gather(*(_later(engine, n) for n in range(200)))
        await load
        assert not live.mixed
        for values, names in found:
            assert len(values) == 4
            (name,) = names
            assert {f"v{value}" for value in values} == {name}
        assert await tokens(engine, 1) == ([5], {"v5"})

    run(tmp_path, body)


async def _later(engine: AsyncEngine, n: int) -> tuple[list[int], set[str]]:
    await asyncio.sleep(n / 1000)
    return await tokens(engine, 4)


async def _load_all(engine: AsyncEngine, versions: Sequence[WeightVersion]) -> None:
    for version in versions:
        await asyncio.sleep(0.03)
        assert await engine.load(version, Probe((1,), (1,), (float(version.epoch),))) == 0.0


def test_a_version_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    async def body(engine: AsyncEngine, live: Counting) -> None:
        await engine.load(saved(tmp_path / "v1", 1), None)
        with pytest.raises(WeightError, match="probe"):
            await engine.load(saved(tmp_path / "v2", 2), Probe((1,), (1,), (7.0,)))
        with pytest.raises(WeightError, match=r"no \*\.safetensors"):
            await engine.load(WeightVersion("v3", 3, str(tmp_path / "absent")), None)
        assert engine.version == "v1"
        assert await tokens(engine, 2) == ([1, 1], {"v1"})

    run(tmp_path, body)


def test_adapters_answer_side_by_side_and_nothing_waits_for_one_more(tmp_path: Path) -> None:
    async def body(engine: AsyncEngine, live: Counting) -> None:
        first, second, third = (adapted(tmp_path / f"v{n}", n) for n in (1, 2, 3))
        base = engine.generate([10**6], SAMPLING, True)
        assert (await anext(base)).version == "v0"
        assert await engine.hold(first, None) == 0.25
        own = engine.generate([10**6], SAMPLING, True, policy=first.path)
        assert (await anext(own)).version == "v1"
        assert await engine.hold(second, Probe((1,), (1,), (2.0,))) == 0.25
        assert live.events == ["hold 1 beside 1", "hold 2 beside 2"]
        assert await tokens(engine, 3, policy=second.path) == ([2] * 3, {"v2"})
        engine.drop(first)
        more = asyncio.ensure_future(engine.hold(third, None))
        assert await tokens(engine, 3) == ([0] * 3, {"v0"})  # what is behind it does not wait
        assert (await anext(own)).token_ids == (1,)  # its adapter is there until it is done
        assert not more.done()
        await own.aclose()
        assert await more == 0.25
        assert live.events[2:] == ["drop 1", "hold 3 beside 1"]
        assert await tokens(engine, 3, policy=third.path) == ([3] * 3, {"v3"})
        assert {(await anext(base)).token_ids for _ in range(9)} == {(0,)}
        await base.aclose()

    run(tmp_path, body)


def test_an_adapter_that_fails_leaves_what_was_live(tmp_path: Path) -> None:
    async def body(engine: AsyncEngine, live: Counting) -> None:
        version = adapted(tmp_path / "v1", 1)
        await engine.hold(version, None)
        with pytest.raises(WeightError, match="probe differs"):
            await engine.hold(adapted(tmp_path / "v2", 2), Probe((1,), (1,), (9.0,)))
        with pytest.raises(WeightError, match="cannot be read as an adapter"):
            await engine.hold(saved(tmp_path / "v3", 3), None)
        assert live.adapters == {version.path: 1}
        assert await tokens(engine, 2, policy=version.path) == ([1, 1], {"v1"})
        with pytest.raises(EndpointError, match="absent"):
            await tokens(engine, 1, policy="absent")

    run(tmp_path, body)


def test_an_adapter_that_was_to_leave_is_kept_where_it_is_asked_for_again(tmp_path: Path) -> None:
    async def body(engine: AsyncEngine, live: Counting) -> None:
        version = adapted(tmp_path / "v1", 1)
        await engine.hold(version, None)
        writing = engine.generate([10**6], SAMPLING, True, policy=version.path)
        await anext(writing)
        engine.drop(version)
        await engine.hold(version, None)
        await writing.aclose()
        assert await tokens(engine, 2, policy=version.path) == ([1, 1], {"v1"})

    run(tmp_path, body)


def test_a_broken_engine_is_everyones_error_at_once(tmp_path: Path) -> None:
    async def body(engine: AsyncEngine, live: Counting) -> None:
        live.gate.clear()
        waiting = [asyncio.ensure_future(tokens(engine, 3)) for _ in range(5)]
        loading = asyncio.ensure_future(engine.load(saved(tmp_path / "v1", 1), None))
        await asyncio.sleep(0.05)
        live.broken = True
        live.gate.set()
        for one in (*waiting, loading):
            with pytest.raises(EndpointError, match="out of memory"):
                await one
        with pytest.raises(EndpointError):
            engine.check()
        with pytest.raises(EndpointError):
            await tokens(engine, 1)

    run(tmp_path, body)


def test_a_process_that_dies_is_everyones_error_at_once(tmp_path: Path) -> None:
    ours, theirs = Pipe()
    living = True

    async def body() -> None:
        nonlocal living
        version = saved(tmp_path / "v0", 0)
        engine = AsyncEngine(ours, version, lambda: living)
        engine.check()
        waiting = [asyncio.ensure_future(tokens(engine, 3)) for _ in range(5)]
        loading = asyncio.ensure_future(engine.load(version, None))
        await asyncio.sleep(0.05)
        living = False
        theirs.close()
        for one in (*waiting, loading):
            with pytest.raises(EndpointError, match="ended"):
                await one
        with pytest.raises(EndpointError, match="ended"):
            engine.check()

    asyncio.run(asyncio.wait_for(body(), 30))
    ours.close()
