"""The endpoint beside vLLM's own OpenAI server, and MOSAIC served by that: whole auctions ÷ bare answers.

All of it runs on this machine at once and is loaded in turn, at the same concurrency, by the same client.
vLLM's server answers the very prompts (token ids) that the endpoint's auctions had; it retrieves, repairs,
predicts, prices, records and signs nothing. MOSAIC asks it for its 20 candidate answers per auction, of one
auction at a time where `bench.work` is less than 1, and is spared their scoring. Latency is that of whole
answers, time to first token that of streamed ones. The endpoint's own share of a whole answer is the
client's time less what the auction's record calls generation.

The client shares the machine's cores with what it measures. That is why it is aiohttp, which Ray brings,
and not httpx, which asks everywhere else: a whole answer costs it 0.13 ms of CPU and httpx 1.6, one that
comes in 40 pieces 0.5 and 2.3.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp

from raylla import precision
from raylla.bench.measure import Measured, Row, Spread, ratio
from raylla.bench.run import Bench
from raylla.config import Config, parse_config
from raylla.errors import DeadlineError
from raylla.irpo.loop import train_run
from raylla.mechanisms.mosaic import CANDIDATES
from raylla.models import local
from raylla.runs.observe import Observer
from raylla.runs.state import Run
from raylla.serving.deploy import app, cluster
from raylla.serving.deploy.versions import weights
from raylla.serving.money.records import Served
from raylla.serving.security import keyring
from raylla.serving.store import Store, open_store
from raylla.serving.store.importing import list_world
from raylla.world import World
from raylla.world import store as worlds

_REQUESTS = {1: 24, 4: 64, 16: 192}
"""Concurrency -> requests of one measurement."""
MOSAIC_SHARE = 8
"""MOSAIC's measurements have this many times fewer requests: each is `CANDIDATES` answers."""
_LONGEST = 1800.0
"""Seconds of one request."""
_SMALL = {
    "world": {"profiles": 40},
    "irpo": {
        "epochs": 1,
        "queries": 16,
        "reward_answers": 4,
        "preference_answers": 4,
        "delta": 1.0,
        "max_drop_share": 1.0,
    },
    "evaluation": {"answers": 1, "queries": 8},
    "rollout": {"workers": 1, "min_workers": None},
    "online": {"database": None},
    "ray": {"in_process": True},
    "wandb": {"mode": "disabled"},
}
"""The run that is served: its weights are trained as little as their speed needs."""


@dataclass(frozen=True, slots=True)
class LoadFigures:
    """What one measurement gave: per second, and milliseconds in the median.

    ``auctions`` are the ids of the endpoint's whole answers, each with its milliseconds.
    """

    requests: float
    tokens: float
    latency: float
    first: float
    auctions: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Server:
    """Somewhere to send requests: bodies in turn, each to ``url``; answers count tokens in `usage`."""

    name: str
    url: str
    key: str
    bodies: Sequence[dict[str, Any]]


def rows(bench: Bench) -> list[Row]:
    """Ratios to vLLM's server at each concurrency, and of MOSAIC to it."""
    run = _trained(bench)
    database = f"sqlite:///{bench.scratch / 'bench.db'}"
    settings = {"database": database, "port": _free_port(), "run": str(run.path)}
    tree = run.config.model_dump(mode="json")
    tree["serving"] = bench.config.serving.model_dump(mode="json") | settings
    config, target = app.effective(parse_config(tree, "bench"), run.path, None)
    world = worlds.load_world(run.path / "world")
    store = open_store(database)
    list_world(store, world, config.serving, config.world.max_bid, config.seed, datetime.now(UTC), None)
    version, _ = weights(target)
    counts = {at: max(at, bench.share(usual)) for at, usual in _REQUESTS.items()}
    with (
        local(version.path) as model,
        _endpoint(config, app.manifest(config, target)) as url,
        _vllm(config, str(model)) as bare,
    ):
        asked = _questions(world, max(counts.values()))
        ours = Server("endpoint", f"{url}/v1/chat/completions", _key(database), asked)
        asyncio.run(_load(ours, 8, len(ours.bodies), False))
        prompts = _prompts(store)
        plain = Server("vLLM", bare, "", [_completion(config, ids, 1) for ids in prompts])
        many = Server("MOSAIC", bare, "", [_completion(config, ids, CANDIDATES) for ids in prompts])
        most = max(counts) if bench.config.bench.work >= 1 else 1
        measured = _measured((ours, plain, many), counts, bench.repeats, most)
    generation = {served.auction.id: served.auction.latency_ms["generation"] for served in _auctions(store)}
    store.close()
    return [*_rows(measured), *_own(measured, generation)]


async def _load(server: Server, concurrency: int, count: int, stream: bool) -> LoadFigures:
    """``count`` requests, ``concurrency`` at a time."""
    latencies: list[float] = []
    firsts: list[float] = []
    auctions: list[tuple[str, float]] = []
    tokens = 0
    bodies = iter([server.bodies[place % len(server.bodies)] for place in range(count)])
    headers = {"Authorization": f"Bearer {server.key}"} if server.key else {}
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}

    async def worker(session: aiohttp.ClientSession) -> None:
        nonlocal tokens
        for body in bodies:
            started = time.perf_counter()
            async with session.post(server.url, json=body | options, headers=headers) as answer:
                if answer.status != 200:
                    raise RuntimeError(f"{server.name}: {answer.status} {await answer.text()}")
                if stream:
                    first, used = await _read(answer)
                    firsts.append(1000 * (first - started))
                    tokens += used
                else:
                    whole = await answer.json()
                    tokens += whole["usage"]["completion_tokens"]
                    if (id := whole.get("raylla", {}).get("auction_id")) is not None:
                        auctions.append((id, 1000 * (time.perf_counter() - started)))
            latencies.append(1000 * (time.perf_counter() - started))

    connector = aiohttp.TCPConnector(limit=0)
    limit = aiohttp.ClientTimeout(total=_LONGEST)
    async with aiohttp.ClientSession(connector=connector, timeout=limit) as session:
        started = time.perf_counter()
        await asyncio.gather(*(worker(session) for _ in range(concurrency)))
        wall = time.perf_counter() - started
    first = statistics.median(firsts) if firsts else 0.0
    return LoadFigures(count / wall, tokens / wall, statistics.median(latencies), first, tuple(auctions))


async def _read(answer: aiohttp.ClientResponse) -> tuple[float, int]:
    """When the first text of a stream came, and how many tokens it had."""
    first, used = 0.0, 0
    async for line in answer.content:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if event.get("usage"):
            used = event["usage"]["completion_tokens"]
        if not first and event["choices"]:
            choice = event["choices"][0]
            if choice.get("text") or choice.get("delta", {}).get("content"):
                first = time.perf_counter()
    return first or time.perf_counter(), used


_Found = dict[tuple[str, int, bool], list[LoadFigures]]


def _measured(servers: Sequence[Server], counts: Mapping[int, int], repeats: int, most: int) -> _Found:
    """Every server at every concurrency, MOSAIC at ``most`` and less, whole and streamed, in alternating
    order; once unmeasured."""
    loads: _Found = {}
    for repeat in range(repeats + 1):
        for concurrency, count in counts.items():
            for stream in (False, True):
                order = servers if repeat % 2 else tuple(reversed(servers))
                for server in order:
                    mosaic = server.name == "MOSAIC"
                    if mosaic and (stream or concurrency > most):
                        continue  # streamed, it has nothing to show before all candidates are written
                    wanted = max(concurrency, count // MOSAIC_SHARE) if mosaic else count
                    got = asyncio.run(_load(server, concurrency, wanted, stream))
                    if repeat:
                        loads.setdefault((server.name, concurrency, stream), []).append(got)
    return loads


def _rows(measured: _Found) -> list[Row]:
    def side(name: str, concurrency: int, stream: bool, figure: Callable[[LoadFigures], float]) -> Measured:
        loads = measured[name, concurrency, stream]
        return Measured(name, Spread(tuple(figure(load) for load in loads)))

    def row(
        what: str, ours: str, at: int, stream: bool, figure: Callable[[LoadFigures], float], unit: str
    ) -> Row:
        sides = side(ours, at, stream, figure), side("vLLM", at, stream, figure)
        return ratio(f"{ours} ÷ vLLM: {what}, {at} at once", *sides, unit)

    made: list[Row] = []
    for at in _REQUESTS:
        for stream, kind in ((False, "whole"), (True, "streamed")):
            made.append(row(f"requests, {kind}", "endpoint", at, stream, lambda load: load.requests, "1/s"))
            made.append(row(f"tokens, {kind}", "endpoint", at, stream, lambda load: load.tokens, "1/s"))
            made.append(row(f"p50, {kind}", "endpoint", at, stream, lambda load: load.latency, "ms"))
        made.append(row("time to first token", "endpoint", at, True, lambda load: load.first, "ms"))
        if ("MOSAIC", at, False) in measured:
            made.append(row("requests, whole", "MOSAIC", at, False, lambda load: load.requests, "1/s"))
            made.append(row("p50, whole", "MOSAIC", at, False, lambda load: load.latency, "ms"))
    return made


def _own(measured: _Found, generation: Mapping[str, float]) -> list[Row]:
    """Milliseconds of a whole answer of the endpoint but for ``generation`` (by auction), p50 and p99."""
    made = []
    for at in _REQUESTS:
        loads = [
            sorted(took - generation[id] for id, took in load.auctions)
            for load in measured["endpoint", at, False]
            if load.auctions
        ]
        if not loads:
            continue  # no ad competed for any of the questions
        for share in (0.5, 0.99):
            values = tuple(own[min(int(share * len(own)), len(own) - 1)] for own in loads)
            name = f"endpoint but for generation: p{100 * share:.0f}, whole, {at} at once"
            made.append(Row(name, Spread(values), "ms"))
    return made


def _trained(bench: Bench) -> Run:
    """The run of ``serving.run``, or one trained here."""
    if bench.config.serving.run is not None:
        return Run.open(bench.config.serving.run)
    run = Run.create(bench.scratch / "run", small(bench.config))
    train_run(run, Observer(run.config, None))
    return run


def small(config: Config) -> Config:
    """``config`` with as little training as a served run needs."""
    tree = config.model_dump(mode="json")
    for section, changes in _SMALL.items():
        tree[section] |= changes
    return parse_config(tree, "bench")


@contextmanager
def _endpoint(config: Config, manifest: dict[str, Any]) -> Iterator[str]:
    import ray
    from ray import serve

    keyring.ensure(config.serving.database)
    at = cluster.Dashboard(cluster.start_ray())
    try:
        at.apply(manifest, config.deadlines.start)
        yield at.endpoint()
    finally:
        serve.shutdown()
        ray.shutdown()


@contextmanager
def _vllm(config: Config, model: str) -> Iterator[str]:
    """vLLM's OpenAI server with the endpoint's model and engine settings, from its own command line."""
    port = _free_port()
    engine = config.engine
    arguments = {
        "model": model,
        "served-model-name": "bare",
        "port": port,
        "dtype": precision.chosen(engine.dtype, False),
        "max-model-len": engine.max_model_len,
        "max-num-seqs": engine.max_num_seqs,
        "block-size": engine.block_size,
        "kv-cache-memory-bytes": engine.kv_cache_mib * 2**20,
    }
    words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    flags = [*(["--enforce-eager"] if engine.enforce_eager else []), "--disable-uvicorn-access-log"]
    environment = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words, *flags]
    # In a session of its own, so that its engine process ends with it.
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        seconds = config.deadlines.start
        deadline = time.monotonic() + seconds
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise DeadlineError(f"vLLM's server was not up in {seconds:g} s: {' '.join(command)}")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1/completions"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def _questions(world: World, count: int) -> list[dict[str, Any]]:
    profiles = {profile.id: profile for profile in world.profiles}
    queries = list(world.queries)
    random.Random(0).shuffle(queries)
    return [
        {
            "messages": [{"role": "user", "content": query.text}],
            "raylla": {
                "profile": {
                    "id": query.profile_id,
                    "basics": profiles[query.profile_id].basics,
                    "interests": list(profiles[query.profile_id].interests),
                }
            },
        }
        for query in queries[:count]
    ]


def _prompts(store: Store) -> list[list[int]]:
    """The prompts of the auctions so far."""
    return [list(served.auction.prompt_token_ids) for served in _auctions(store)]


def _auctions(store: Store) -> Iterator[Served]:
    now = datetime.now(UTC)
    return store.auctions(now - timedelta(days=1), now)


def _completion(config: Config, prompt: list[int], n: int) -> dict[str, Any]:
    sampling = config.ad_llm.sampling
    return {
        "model": "bare",
        "prompt": prompt,
        "n": n,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
    }


def _key(database: str) -> str:
    return keyring.read_keyring(database).admin_key


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as caller:
        caller.settimeout(1)
        return caller.connect_ex(("127.0.0.1", port)) == 0


__all__ = ["LoadFigures", "Server", "rows"]
