"""The reward trainer: learns click rates from judged answers, and predicts them (Algorithm 1)."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from raylla import config, models
from raylla.records import Prediction
from raylla.reward import calibration, checkpoint, features, intervals
from raylla.reward.cues import Words
from raylla.reward.encoder import Encoder, Encodings
from raylla.reward.network import UNSEEN, Ensemble, PctrNetwork
from raylla.reward.rows import ClickRow

PREDICT_BATCH = 4096
CUE_RATE = 10
"""Learning rate of the cues, as a multiple of ``pctr.lr``."""
KINDRED_DECAY = 10.0
"""Decay of the kindred words: without it they learn each query of an epoch by heart."""


@dataclass(frozen=True)
class _Inputs:
    """Network inputs of N rows."""

    texts: dict[str, Tensor]
    user: Tensor
    ad: Tensor
    structure: Tensor
    words: Words

    def at(self, index: Tensor) -> _Inputs:
        texts = {name: values[index] for name, values in self.texts.items()}
        return _Inputs(texts, self.user[index], self.ad[index], self.structure[index], self.words.at(index))


class RewardTrainer:
    """A pCTR network over a frozen encoder; lives in one process for the whole run.

    Beside it `pctr.members` others each leave out their own share of the queries, in all epochs: how
    they differ, and how far off they are where they did not learn, makes the intervals
    (`raylla.reward.intervals`).  Same seed and same sequence of updates, same weights.
    """

    def __init__(self, encoder: str, settings: config.Pctr, seed: int) -> None:
        """``encoder`` is whatever `models.resolve` knows.

        Raises:
            ConfigError: the encoder cannot be found or loaded.
        """
        self._settings = settings
        self._seed = seed
        self.encoder = Encoder(models.resolve(encoder, "pctr.encoder"))
        self._names = features.texts(settings.features)
        self._moments = {name: features.Moments.empty(self.encoder.dim) for name in self._names}
        self._users: dict[str, int] = {}
        self._ads: dict[str, int] = {}
        self._updates = 0
        self._taken: list[tuple[Sequence[ClickRow], dict[str, Encodings]]] = []
        self._quantile = math.inf
        self._network, *self._members = self._fresh_networks()
        self._ensemble: Ensemble | None = None

    def ready(self) -> bool:
        """True once the encoder is loaded: what a starting actor is waited on for."""
        return True

    def take(self, rows: Sequence[ClickRow]) -> None:
        """Encode judged rows now, for the next `update`: they may come while others are still judged."""
        if rows:
            self._taken.append((rows, features.encode(self.encoder, rows, self._names)))

    def update(self, rows: Sequence[ClickRow] = ()) -> dict[str, float]:
        """Train by BCE on the rows taken since the last update and on ``rows``, from the current weights.

        Returns rows, base_rate, loss of the first and the last pass (nats), seconds.

        Raises:
            ValueError: no rows, or a row that no judge has spoken on.
        """
        started = time.monotonic()
        self.take(rows)
        taken, self._taken = self._taken, []
        rows = [row for some, _ in taken for row in some]
        clicked = torch.from_numpy(_labels(rows).astype(np.float32))
        self._ensemble = None
        self._meet(rows)
        encoded = {name: np.concatenate([vectors[name] for _, vectors in taken]) for name in self._names}
        for name, moments in self._moments.items():
            moments.add(encoded[name])
        self._count_words(rows)
        inputs = self._inputs(rows, encoded)
        self._updates += 1
        losses = self._fit(self._network, inputs, clicked, torch.arange(len(rows)), 0)
        folds = self._folds(rows)
        for fold, network in enumerate(self._members):
            learned = torch.from_numpy(np.flatnonzero(folds != fold))
            self._fit(network, inputs, clicked, learned, 1 + fold)
        by_members = self._rates(inputs)[1:]
        self._quantile = intervals.quantile(
            by_members[folds, np.arange(len(rows))],
            by_members.std(axis=0),
            _labels(rows),
            self._settings.interval,
        )
        return {
            "rows": float(len(rows)),
            "base_rate": float(clicked.mean()),
            "first_loss": losses[0],
            "last_loss": losses[-1],
            "interval_quantile": self._quantile,
            "seconds": time.monotonic() - started,
        }

    def predict_intervals(self, rows: Sequence[ClickRow]) -> list[Prediction]:
        """Click probability of each row with its interval; [0, 1] before there were clicks enough.

        Users and ads never met share one embedding.
        """
        if not rows:
            return []
        inputs = self._inputs(rows, features.encode(self.encoder, rows, self._names))
        mean, *by_members = self._rates(inputs)
        return intervals.around(mean, np.std(by_members, axis=0), self._quantile)

    def evaluate(self, rows: Sequence[ClickRow]) -> dict[str, float]:
        """AUC, log loss, calibration error and its floor, coverage and mean width of the intervals, rows
        and base rate on judged rows; NaN where undefined."""
        clicked = _labels(rows) if rows else np.zeros(0, np.bool_)
        predictions = self.predict_intervals(rows)
        predicted = [prediction.mean for prediction in predictions]
        return {
            "auc": calibration.auc(predicted, clicked),
            "log_loss": calibration.log_loss(predicted, clicked),
            **calibration.calibration(predicted, clicked),
            "base_rate": float(clicked.mean()) if rows else math.nan,
            "rows": float(len(rows)),
            **intervals.coverage(predictions, clicked),
        }

    def save(self, place: str | Path) -> None:
        """Write weights, moments and id tables to ``place`` (safetensors and JSON) in one step."""
        tensors = {
            f"network.{member}.{name}": value
            for member, network in enumerate((self._network, *self._members))
            for name, value in network.state_dict().items()
        }
        for name, moments in self._moments.items():
            tensors[f"moments.{name}.mean"] = torch.from_numpy(moments.mean)
            tensors[f"moments.{name}.squares"] = torch.from_numpy(moments.squares)
        about = {
            "texts": list(self._names),
            "dim": self.encoder.dim,
            "settings": self._settings.model_dump(mode="json"),
            "users": list(self._users),
            "ads": list(self._ads),
            "rows": next(iter(self._moments.values())).count,
            "updates": self._updates,
            "interval_quantile": self._quantile if math.isfinite(self._quantile) else None,
            "members": len(self._members),
        }
        checkpoint.save_checkpoint(place, tensors, about)

    def load(self, place: str | Path) -> None:
        """Go on from what `save` wrote.

        Raises:
            RunError: the directory is missing or partial, or was saved with another encoder
                width, other features or another number of members.
        """
        self.encoder.forget()
        tensors, about = checkpoint.load_checkpoint(place)
        wanted = {"texts": list(self._names), "dim": self.encoder.dim, "members": len(self._members)}
        checkpoint.agree(place, about, wanted)
        self._users = {id: row for row, id in enumerate(about["users"], start=UNSEEN + 1)}
        self._ads = {id: row for row, id in enumerate(about["ads"], start=UNSEEN + 1)}
        self._updates = int(about["updates"])
        for name, moments in self._moments.items():
            moments.count = int(about["rows"])
            moments.mean = tensors[f"moments.{name}.mean"].numpy().copy()
            moments.squares = tensors[f"moments.{name}.squares"].numpy().copy()
        saved = about["interval_quantile"]
        self._quantile = math.inf if saved is None else float(saved)
        self._network, *self._members = self._fresh_networks()
        for member, network in enumerate((self._network, *self._members)):
            prefix = f"network.{member}."
            weights = {
                name.removeprefix(prefix): value
                for name, value in tensors.items()
                if name.startswith(prefix)
            }
            checkpoint.apply(place, network, weights)
        self._ensemble = None

    def _rates(self, inputs: _Inputs) -> NDArray[np.float64]:
        """Click probabilities [1 + members, N], those of the network first."""
        if self._ensemble is None:
            self._ensemble = Ensemble((self._network, *self._members))
        parts = [inputs]
        if len(inputs.user) > PREDICT_BATCH:
            parts = [inputs.at(part) for part in torch.arange(len(inputs.user)).split(PREDICT_BATCH)]
        predicted = torch.cat([torch.sigmoid(_logits(self._ensemble, part)) for part in parts], dim=1)
        rates: NDArray[np.float64] = predicted.double().numpy()
        return rates

    def _fresh_networks(self) -> list[PctrNetwork]:
        sizes = (self.encoder.dim, len(self._users) + 1, len(self._ads) + 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            return [
                PctrNetwork(self._names, *sizes, self._settings) for _ in range(1 + self._settings.members)
            ]

    def _folds(self, rows: Sequence[ClickRow]) -> NDArray[np.int64]:
        """The member [N] that leaves each row out: by its query, so that it is the same in all epochs."""
        names = (f"{row.profile_id}/{row.query_text}" for row in rows)
        return np.array([random.Random(name).randrange(len(self._members)) for name in names])

    def _meet(self, rows: Iterable[ClickRow]) -> None:
        """Give users and ads of ``rows`` their own table rows."""
        for row in rows:
            self._users.setdefault(row.profile_id, len(self._users) + 1)
            self._ads.setdefault(row.ad_id, len(self._ads) + 1)
        for network in (self._network, *self._members):
            network.grow(len(self._users) + 1, len(self._ads) + 1)

    def _inputs(self, rows: Sequence[ClickRow], encoded: dict[str, Encodings]) -> _Inputs:
        scaled = {name: self._moments[name].scale(values) for name, values in encoded.items()}
        return _Inputs(
            texts={name: torch.from_numpy(values) for name, values in scaled.items()},
            user=torch.tensor([self._users.get(row.profile_id, UNSEEN) for row in rows]),
            ad=torch.tensor([self._ads.get(row.ad_id, UNSEEN) for row in rows]),
            structure=torch.from_numpy(features.structure(rows, scaled)),
            words=features.words(self.encoder, rows),
        )

    def _count_words(self, rows: Sequence[ClickRow]) -> None:
        """How rare a word is, is learned from every distinct query and ad of an update."""
        for texts in ({row.query_text for row in rows}, {row.ad_text for row in rows}):
            counted = features.buckets(self.encoder, sorted(texts))
            for network in (self._network, *self._members):
                if network.cues is not None:
                    network.cues.count(counted)

    def _fit(
        self, network: PctrNetwork, inputs: _Inputs, clicked: Tensor, learned: Tensor, place: int
    ) -> list[float]:
        """Train the network at ``place`` on the rows ``learned``, if any; mean loss of each pass."""
        if not len(learned):
            return []
        # moments of the optimizer are not kept over epochs: the policy, and so the rows, have moved
        optimizer = torch.optim.AdamW(self._groups(network), lr=self._settings.lr)
        seed = self._seed * 1_000_003 + self._updates + 1_009 * place
        generator = torch.Generator().manual_seed(seed)
        network.train()
        losses: list[float] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for _ in range(self._settings.passes):
                total = 0.0
                order = learned[torch.randperm(len(learned), generator=generator)]
                for index in order.split(self._settings.batch):
                    batch = inputs.at(index)
                    cold = torch.rand((2, len(index)), generator=generator) < self._settings.cold_share
                    batch.user[cold[0]] = UNSEEN
                    batch.ad[cold[1]] = UNSEEN
                    loss = binary_cross_entropy_with_logits(_logits(network, batch), clicked[index])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    total += loss.item() * len(index)
                losses.append(total / len(learned))
        return losses

    def _groups(self, network: PctrNetwork) -> list[dict[str, Any]]:
        """Rates and decays: cues are few and meet few rows each, so they move faster."""
        named = dict(network.named_parameters())
        kindred = [name for name in named if name.startswith("cues.kindred")]
        cues = [name for name in named if name.startswith("cues.") and name not in kindred]
        mlp = [name for name in named if not name.startswith("cues.")]
        rate, decay = self._settings.lr, self._settings.weight_decay
        settings = (
            (mlp, rate, decay),
            (cues, CUE_RATE * rate, 0.0),
            (kindred, CUE_RATE * rate, KINDRED_DECAY),
        )
        return [
            {"params": [named[name] for name in names], "lr": lr, "weight_decay": decay}
            for names, lr, decay in settings
        ]


def _logits(network: PctrNetwork | Ensemble, inputs: _Inputs) -> Tensor:
    logits: Tensor = network(inputs.texts, inputs.user, inputs.ad, inputs.structure, inputs.words)
    return logits


def _labels(rows: Sequence[ClickRow]) -> NDArray[np.bool_]:
    if not rows:
        raise ValueError("no judged rows to learn from; judge at least one answer that places an ad")
    for row in rows:
        if row.clicked is None:
            raise ValueError(
                f"row {row.sample_id} of ad {row.ad_id} has clicked=None; leave unjudged rows out"
            )
    return np.array([bool(row.clicked) for row in rows])
