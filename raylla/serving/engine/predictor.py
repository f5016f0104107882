"""Click predictions and text vectors: the pCTR model behind asyncio.

What is asked while the model works waits and is answered together: a pass over many rows costs little
more than over one.

`Oracle` is what the auctioneer asks; it is a `Predictor` in the same process or a handle to a Serve
deployment of it (`raylla.serving.deploy.app`).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from raylla import models
from raylla.config import Config
from raylla.reward.rows import ClickRow
from raylla.reward.trainer import RewardTrainer
from raylla.serving.engine.together import Together
from raylla.serving.tracing import NO_TRACE, Carrier, traced
from raylla.world.retrieval import Vectors


@dataclass(frozen=True, slots=True)
class Rate:
    """A click probability with its interval, all in [0, 1]."""

    mean: float
    low: float
    high: float


class Oracle(Protocol):
    """What the auctioneer asks about texts."""

    async def rates(self, rows: Sequence[ClickRow], trace: Carrier = NO_TRACE) -> tuple[str, list[Rate]]:
        """Name of the pCTR version, and the click probability of each row."""

    async def encode(self, texts: Sequence[str], trace: Carrier = NO_TRACE) -> Vectors:
        """The text encoder's vectors, [texts, dim]."""


class Predictor:
    """An `Oracle` over one reward model; threads of its own keep the event loop free."""

    def __init__(self, config: Config) -> None:
        """The encoder of ``config`` without a trained model: `load` comes first.

        Raises:
            ConfigError: the encoder cannot be found.
        """
        self._config = config
        self._encoder = models.resolve(config.pctr.encoder, "pctr.encoder")
        self._model = RewardTrainer(self._encoder, config.pctr, config.seed)
        self._version = ""
        self._lock = threading.Lock()
        # A thread for each: a query's vector is waited for before the first token, and would otherwise
        # stand behind the predictions for everybody whose answer has just ended.
        rating, encoding = (ThreadPoolExecutor(1, thread_name_prefix=name) for name in ("pctr", "vectors"))
        self._rates = Together[ClickRow, tuple[str, Rate]](self._rate, rating)
        self._vectors = Together[str, Vectors](self._encode, encoding)

    @property
    def version(self) -> str:
        """Name of the model that predicts; empty before the first `load`."""
        return self._version

    def load(self, place: str | Path, version: str) -> None:
        """Predict with the model that `RewardTrainer.save` wrote to ``place`` from now on.

        Raises:
            RunError: it is missing, partial or of other settings; the old one stands.
        """
        model = RewardTrainer(self._encoder, self._config.pctr, self._config.seed)
        model.load(place)
        with self._lock:
            self._model, self._version = model, version

    async def rates(self, rows: Sequence[ClickRow], trace: Carrier = NO_TRACE) -> tuple[str, list[Rate]]:
        """See `Oracle`."""
        with traced("predictor.rates", trace) as told:
            rated = await self._rates.ask(rows)
            version = rated[0][0] if rated else self._version
            told.note({"raylla.rows": len(rows), "raylla.pctr_version": version})
        return version, [rate for _, rate in rated]

    async def encode(self, texts: Sequence[str], trace: Carrier = NO_TRACE) -> Vectors:
        """See `Oracle`."""
        with traced("predictor.encode", trace):
            return np.stack(await self._vectors.ask(texts))

    def _rate(self, rows: Sequence[ClickRow]) -> list[tuple[str, Rate]]:
        with self._lock:
            model, version = self._model, self._version
        return [
            (version, Rate(prediction.mean, prediction.low, prediction.high))
            for prediction in model.predict_intervals(rows)
        ]

    def _encode(self, texts: Sequence[str]) -> list[Vectors]:
        return list(self._model.encoder.encode(texts))
