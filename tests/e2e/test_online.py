"""The loop closed: the User-LLM uses the endpoint, and an epoch learns from the endpoint's ledger alone."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from raylla.actors import JudgeWorker
from raylla.auction.markup import parse
from raylla.config import Config
from raylla.models import resolve
from raylla.online import simulation
from raylla.runs.state import Run
from raylla.serving.billing.audit import audit
from raylla.serving.deploy.versions import Target, find
from raylla.serving.store import open_store
from raylla.world import store as worlds
from tests.e2e.commands import ROOT, begin, sets
from tests.e2e.endpoint import pocket, served, standing_run, until_listed

pytestmark = pytest.mark.e2e

ASKS = 32
DATED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")
SETTINGS: dict[str, dict[str, Any]] = {
    "world": {"profiles": 10, "queries_per_profile": 4, "test_share": 0.2},
    "irpo": {"epochs": 1, "preference_answers": 4, "delta": 1, "max_drop_share": 0.2},
    "dpo": {"batch_groups": 4, "micro_groups": 2},
    "pctr": {"passes": 2},
    "rollout": {"workers": 1},
    "evaluation": {"answers": 1},
    "engine": {"kv_cache_mib": 128},
    "wandb": {"mode": "disabled"},
    "ray": {"in_process": True},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Run]:
    """A run to serve, and the config that serves it."""
    directory = tmp_path_factory.mktemp("online")
    serving = {"database": f"sqlite:///{directory}/endpoint.db", "refresh": 0.1}
    config = pocket(**SETTINGS, serving=serving)
    return config, standing_run(directory / "served", config)


@pytest.fixture(scope="module")
def traffic(base: tuple[Config, Run]) -> dict[str, float]:
    """What the User-LLM's users did at the endpoint."""
    config, run = base

    async def drive() -> dict[str, float]:
        world = worlds.load_world(run.path / "world")
        users = simulation.users_of(world)
        model = resolve(config.user_llm.path, "user_llm.path")
        reader = JudgeWorker(model, config.user_llm.sampling, config.engine, config.seed)
        asked = simulation.worded_questions(reader, config, list(users.values()), ASKS, 0)
        async with served(config, run) as (_, client):
            await simulation.open_accounts(client, world, config)
            await until_listed(client)
            return (await simulation.converse(client, reader, config, users, asked, 8, 0)).figures()

    return asyncio.run(drive())


def _train(run: Path, log: Path, **changed: object) -> int:
    """The exit status of a training on the settings of `base`, with others where ``changed`` says so."""
    settings = {
        f"{section}.{key}": value for section, values in SETTINGS.items() for key, value in values.items()
    }
    settings |= {key.replace("__", "."): value for key, value in changed.items()}
    told = sets({name: json.dumps(value) for name, value in settings.items()})
    command = ["train", str(ROOT / "configs" / "pocket.yaml"), "--run", str(run), *told]
    return begin(command, log).wait(timeout=500)


def test_an_epoch_from_the_ledger_alone(
    base: tuple[Config, Run], traffic: dict[str, float], tmp_path: Path
) -> None:
    config, run = base
    assert traffic["asked"] == traffic["answered"] > ASKS / 2
    assert 0 < traffic["clicked"] < traffic["shown"]
    database = config.serving.database
    found = {
        "online__database": database,
        "online__least_auctions": 10,
        "pctr__start": str(run.path / "reward" / "epoch-1"),
    }
    fresh, log = tmp_path / "online", tmp_path / "train.log"
    assert _train(fresh, log, **found) == 0, log.read_text()[-3000:]
    lines = log.read_text().splitlines()
    assert "" not in lines
    progress = lines[: next(place for place, line in enumerate(lines) if "95 % intervals" in line)]
    assert [line for line in progress if not DATED.match(line)] == [], "somebody else is on the console"
    opened = open_store(database)
    try:
        served_auctions = list(opened.auctions(*_ever()))
        assert not audit(opened).discrepancies
    finally:
        opened.close()
    learned = Run.open(fresh)
    world = worlds.load_world(fresh / "world")
    names = {one.auction.id for one in served_auctions}
    assert {query.id for query in world.of("train")} == names
    assert len(names) == traffic["answered"]
    entries = [json.loads(line) for line in learned.ledger.read_text().splitlines()]
    consumed = [
        entry["sample_id"]
        for entry in entries
        if entry["stage"] == "epoch-1/sample" and "/reward/" in entry.get("sample_id", "")
    ]
    assert sorted(consumed) == sorted(f"e1/reward/{name}/0" for name in names)
    assert learned.committed("epoch-1/learn")["fit"]["rows"] > 0  # type: ignore[index]
    assert learned.committed("epoch-1/align")["steps"] > 0  # type: ignore[index]
    weights = [
        Path(path) / "model.safetensors" for path in (resolve("pocket:ad-llm", "x"), learned.weights("v1"))
    ]
    assert weights[0].read_bytes() != weights[1].read_bytes()

    again = tmp_path / "again"
    log = tmp_path / "again.log"
    assert _train(again, log, **found, ad_llm__path=str(learned.weights("v1"))) != 0
    assert f"'consumed before': {len(names)}" in " ".join(log.read_text().split())

    asyncio.run(_deploy(config, run, learned))


async def _deploy(config: Config, run: Run, learned: Run) -> None:
    """The new version answers at the endpoint, and is named by what it answered."""
    target = find(learned.path, None)
    assert target == Target(str(learned.path), "v1")
    async with served(config, run) as (ingress, client):
        await ingress.reconfigure({"stable": target.plain(), "canary": None, "share": 0.0, "since": None})
        body = {"messages": [{"role": "user", "content": "which tea would you get?"}]}
        answer = (await client.post("/v1/chat/completions", json=body)).json()
        assert answer["raylla"]["weight_version"] == "v1"
        assert (await client.get("/healthz")).json()["versions"]["stable"] == "v1"
        assert not parse(answer["choices"][0]["message"]["content"], []).placements


def _ever() -> tuple[Any, Any]:
    from datetime import UTC, datetime, timedelta

    return datetime(2020, 1, 1, tzinfo=UTC), datetime.now(UTC) + timedelta(days=1)
