"""An endpoint in this process: the real auctioneer, store and HTTP, over a scripted engine and oracle."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

import numpy as np
from fastapi import FastAPI
from transformers import AutoTokenizer

from raylla.config import Config, Sampling
from raylla.engines.live import Finish
from raylla.errors import EndpointError
from raylla.models import POCKET
from raylla.records import Profile
from raylla.reward.rows import ClickRow
from raylla.serving.auction.auctioneer import Auctioneer
from raylla.serving.auction.eligibility import Eligibility
from raylla.serving.auction.exchange import Traffic
from raylla.serving.engine.predictor import Rate
from raylla.serving.engine.wire import Piece
from raylla.serving.http import web
from raylla.serving.http.api import Health, create
from raylla.serving.http.reports import Reports
from raylla.serving.security.keys import Access
from raylla.serving.security.tokens import TokenKeys
from raylla.serving.store import Store
from raylla.serving.tracing import NO_TRACE, Carrier
from raylla.world.retrieval import Retrieval, Vectors
from tests.unit.serving.market import ADMIN_KEY, KEYS

HEADERS = {"Authorization": f"Bearer {ADMIN_KEY}"}


@cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(POCKET / "ad-llm")


@dataclass
class Script:
    """A `Writer` that says ``text``; ``pause`` seconds before each token, ``fail`` after so many.

    ``finish`` "" leaves it without an end.
    """

    text: str = "Nothing to say."
    version: str = "v1"
    pause: float = 0.0
    fail: int | None = None
    finish: str = "stop"
    prompts: list[str] = field(default_factory=list)
    sampling: list[Sampling] = field(default_factory=list)
    closed: int = 0

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, stream: bool, trace: Carrier = NO_TRACE
    ) -> AsyncGenerator[Piece, None]:
        self.prompts.append(tokenizer().decode(prompt))
        self.sampling.append(sampling)
        ids = tokenizer()(self.text, add_special_tokens=False)["input_ids"]
        try:
            for place, one in enumerate(ids):
                await asyncio.sleep(self.pause)
                if place == self.fail:
                    raise EndpointError("the engine was lost")
                yield Piece((one,), None, self.version)
            if self.finish:
                yield Piece((tokenizer().eos_token_id,), cast(Finish, self.finish), self.version)
        finally:
            self.closed += 1


class Fixed:
    """An `Oracle` that knows one rate, and one vector per first word."""

    def __init__(self) -> None:
        self.rows: list[ClickRow] = []

    async def rates(self, rows: Sequence[ClickRow], trace: Carrier = NO_TRACE) -> tuple[str, list[Rate]]:
        self.rows += rows
        return "run/epoch-1", [Rate(0.25, 0.2, 0.3) for _ in rows]

    async def encode(self, texts: Sequence[str], trace: Carrier = NO_TRACE) -> Vectors:
        return vectors(texts)


def vectors(texts: Sequence[str]) -> Vectors:
    return np.array([[len(text), *map(ord, (text + "   ")[:3])] for text in texts], np.float32)


@dataclass
class Endpoint:
    """Everything, and the ASGI application over it."""

    store: Store
    config: Config
    writer: Script
    oracle: Fixed
    traffic: Traffic
    auctioneer: Auctioneer
    app: FastAPI
    eligibility: Eligibility
    health: Health

    def refresh(self) -> None:
        """Take over what was listed since."""
        catalogue = self.eligibility.refresh(dt.datetime.now(dt.UTC))
        retrieval = Retrieval(vectors(["which cup", "what tea"]))
        retrieval.refresh(catalogue.ads, vectors)
        self.auctioneer.retrieval = retrieval


def endpoint(
    store: Store,
    text: str = "Nothing to say.",
    writer: Script | None = None,
    users: Sequence[Profile] = (),
    **serving: object,
) -> Endpoint:
    """An endpoint over ``store`` that answers ``text``, or what ``writer`` says."""
    config = Config.model_validate({"serving": serving})
    writer, oracle = writer or Script(text), Fixed()
    traffic = Traffic(writer)
    eligibility = Eligibility(store, config.serving, config.world.max_bid)
    keys = TokenKeys(KEYS)
    auctioneer = Auctioneer(
        config, traffic, oracle, store, eligibility, keys, tokenizer(), ThreadPoolExecutor(2)
    )
    reports = Reports(lambda: 0, lambda: auctioneer.ongoing)
    access = Access(store.parties, ADMIN_KEY)
    services = web.Services(store, keys, access, config.serving, config.world.max_bid, reports.clicked)
    health = Health(status="ok", versions={"stable": "v1", "canary": None}, problems=[])

    async def check() -> Health:
        return made.health

    app = create(config, auctioneer, services, reports, check, users)
    made = Endpoint(store, config, writer, oracle, traffic, auctioneer, app, eligibility, health)
    made.refresh()
    return made
