"""The endpoint in this process, on real pocket models and without Serve, and a run for it to serve."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import torch
import yaml
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from raylla.auction import parse as parse_answer
from raylla.auction.markup import markup
from raylla.config import Config, Lora, parse_config
from raylla.models import POCKET
from raylla.policy import saving
from raylla.policy.adapters import peft_config
from raylla.policy.groups import Packable
from raylla.records import Query
from raylla.reward.rows import ClickRow, click_rows
from raylla.reward.trainer import RewardTrainer
from raylla.runs.state import Run
from raylla.serving.deploy.app import effective
from raylla.serving.security import keyring
from raylla.world import World, build, clicks, store
from raylla.world.synthetic import grammar

ROOT = Path(__file__).parents[2]
BASE = "http://endpoint.test"
POCKET_LORA = Lora(rank=4, alpha=1, targets=("q_proj", "v_proj", "down_proj"))
"""Of `adapter_version`."""


def pocket(**sections: dict[str, Any]) -> Config:
    """`configs/pocket.yaml` with some settings changed."""
    tree = yaml.safe_load((ROOT / "configs" / "pocket.yaml").read_text())
    for name, changed in sections.items():
        tree[name] = tree.get(name, {}) | changed
    return parse_config(tree, "test")


def standing_run(path: Path, config: Config) -> Run:
    """A run with a world and a pCTR model that has learned from the click model, and the base weights."""
    run = Run.create(path, config)
    world = _asked(build.synthetic(config.world, config.seed), config)
    store.save_world(world, run.path / "world")
    run.commit("world", [query.id for query in world.queries], {"wall_seconds": 0.0})
    trainer = RewardTrainer(config.pctr.encoder, config.pctr, config.seed)
    trainer.update(_clicks(world, config))
    trainer.save(run.path / "reward" / "epoch-1")
    return run


def adapter_version(run: Run, name: str, seed: int) -> None:
    """Commit an adapter of random changes as the run's next version."""
    place = Path(run.weights(name))
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(POCKET / "ad-llm", dtype=torch.float32)
    shape = peft_config(POCKET_LORA, "pocket:ad-llm", base.config.num_hidden_layers)
    shape.init_lora_weights = False
    get_peft_model(base, shape).save_pretrained(place)
    group = SimpleNamespace(prompt=tuple(range(30, 90)), answers=(tuple(range(100, 140)),))
    told = asdict(saving.probe(place, cast(Packable, group)))
    run.commit(f"epoch-{name[1:]}/align", [], {"weight_version": name, "probe": told, "wall_seconds": 0.0})


@asynccontextmanager
async def served(
    config: Config, run: Run, version: str | None = None
) -> AsyncIterator[tuple[Any, httpx.AsyncClient]]:
    """The ingress of ``run``'s last version, or another, with engine and pCTR model inside it, and an
    admin's client."""
    from raylla.serving.deploy.replicas import Ingress

    complete, target = effective(config, run.path, version)
    keyring.ensure(complete.serving.database)
    bare = Ingress.__mro__[1]  # the class under Serve's wrapper, which wants a controller
    ingress = bare(complete.model_dump(mode="json"), None)
    await ingress.reconfigure({"stable": target.plain(), "canary": None, "share": 0.0, "since": None})
    key = keyring.read_keyring(complete.serving.database).admin_key
    transport = httpx.ASGITransport(app=ingress.__serve_build_asgi_app__())
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(transport=transport, base_url=BASE, headers=headers, timeout=60) as client:
        yield ingress, client


async def until_listed(client: httpx.AsyncClient) -> None:
    """Wait until the endpoint knows the ads that were listed."""
    body = {"messages": [{"role": "user", "content": "which tea?"}], "raylla": {"test": True}}
    for _ in range(200):
        answer = (await client.post("/v1/chat/completions", json=body)).json()
        if answer["raylla"].get("candidates"):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("listed ads never became candidates")


def _asked(draft: World, config: Config) -> World:
    splits = build.split_users(draft.profiles, config.world.test_share, config.seed)
    rng = random.Random(0)
    asked: list[Query] = []
    for user in draft.profiles:
        for place in range(config.world.queries_per_profile):
            text = grammar.ask_sample(rng).completion
            query = build.query_from_text(user, place, text, splits[user.id])
            asked += [query] if query else []
    return replace(draft, queries=tuple(asked))


def _clicks(world: World, config: Config) -> list[ClickRow]:
    found: list[ClickRow] = []
    rng = random.Random(0)
    for query in world.of("train"):
        for ad in build.candidates(world, query, config.world.candidates, config.seed):
            text = f"Many people like {markup(ad)} for daily use."
            profile = world.profile_by_id[query.profile_id]
            placed = parse_answer(text, [ad]).placements
            chances = clicks.click_probabilities(query, profile, text, placed, world.ad_by_id)
            clicked = {id: rng.random() < p for id, p in chances.items()}
            found += click_rows(
                f"e1/reward/{query.id}/0", query, profile, text, placed, world.ad_by_id, clicked
            )
    return found
