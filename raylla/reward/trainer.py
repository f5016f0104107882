"""The reward trainer: learns click rates from judged answers, and predicts them (Algorithm 1)."""

from __future__ import annotations

import math
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
from raylla.reward import calibration, checkpoint, features
from raylla.reward.cues import Words
from raylla.reward.encoder import Encoder, Encodings
from raylla.reward.network import UNSEEN, PctrNetwork
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

    Same seed and same sequence of updates, same weights.
    """

    def __init__(self, encoder: str, settings: config.Pctr, seed: int) -> None:
        """``encoder`` is `pocket:NAME`, a directory or a hub name.

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
        self._network = self._fresh_network()

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
        self._meet(rows)
        encoded = {name: np.concatenate([one[name] for _, one in taken]) for name in self._names}
        for name, moments in self._moments.items():
            moments.add(encoded[name])
        self._count_words(rows)
        inputs = self._inputs(rows, encoded)
        self._updates += 1
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._updates)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.initial_seed())
            losses = self._fit(inputs, clicked, generator)
        return {
            "rows": float(len(rows)),
            "base_rate": float(clicked.mean()),
            "first_loss": losses[0],
            "last_loss": losses[-1],
            "seconds": time.monotonic() - started,
        }

    def predict(self, rows: Sequence[ClickRow]) -> list[float]:
        """Click probability of each row, in [0, 1]; users and ads never met share one embedding."""
        if not rows:
            return []
        inputs = self._inputs(rows, features.encode(self.encoder, rows, self._names))
        self._network.eval()
        predicted: list[float] = []
        with torch.inference_mode():
            for index in torch.arange(len(rows)).split(PREDICT_BATCH):
                predicted += torch.sigmoid(self._logits(inputs.at(index))).tolist()
        return predicted

    def evaluate(self, rows: Sequence[ClickRow]) -> dict[str, float]:
        """AUC, log loss, calibration error, rows and base rate on judged rows; NaN where undefined."""
        if not rows:
            nothing = dict.fromkeys(("auc", "log_loss", "calibration_error", "base_rate"), math.nan)
            return {**nothing, "rows": 0.0}
        clicked = _labels(rows)
        predicted = self.predict(rows)
        return {
            "auc": calibration.auc(predicted, clicked),
            "log_loss": calibration.log_loss(predicted, clicked),
            "calibration_error": calibration.calibration_error(predicted, clicked),
            "base_rate": float(clicked.mean()),
            "rows": float(len(rows)),
        }

    def save(self, directory: Path) -> None:
        """Write weights, moments and id tables to ``directory`` (safetensors and JSON) in one step."""
        tensors = {f"network.{name}": value for name, value in self._network.state_dict().items()}
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
        }
        checkpoint.save(directory, tensors, about)

    def load(self, directory: Path) -> None:
        """Go on from what `save` wrote.

        Raises:
            RunError: the directory is missing or partial, or was saved with another encoder
                width or other features.
        """
        self.encoder.forget()
        tensors, about = checkpoint.load(directory)
        checkpoint.agree(directory, about, {"texts": list(self._names), "dim": self.encoder.dim})
        self._users = {id: row for row, id in enumerate(about["users"], start=UNSEEN + 1)}
        self._ads = {id: row for row, id in enumerate(about["ads"], start=UNSEEN + 1)}
        self._updates = int(about["updates"])
        for name, moments in self._moments.items():
            moments.count = int(about["rows"])
            moments.mean = tensors[f"moments.{name}.mean"].numpy().copy()
            moments.squares = tensors[f"moments.{name}.squares"].numpy().copy()
        self._network = self._fresh_network()
        weights = {
            name.removeprefix("network."): value
            for name, value in tensors.items()
            if name.startswith("network.")
        }
        checkpoint.apply(directory, self._network, weights)

    def _fresh_network(self) -> PctrNetwork:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            return PctrNetwork(
                self._names,
                self.encoder.dim,
                len(self._users) + 1,
                len(self._ads) + 1,
                self._settings,
            )

    def _meet(self, rows: Iterable[ClickRow]) -> None:
        """Give users and ads of ``rows`` their own table rows."""
        for row in rows:
            self._users.setdefault(row.profile_id, len(self._users) + 1)
            self._ads.setdefault(row.ad_id, len(self._ads) + 1)
        self._network.grow(len(self._users) + 1, len(self._ads) + 1)

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
        if self._network.cues is not None:
            for texts in ({row.query_text for row in rows}, {features.ad_text(row) for row in rows}):
                self._network.cues.count(features.buckets(self.encoder, sorted(texts)))

    def _fit(self, inputs: _Inputs, clicked: Tensor, generator: torch.Generator) -> list[float]:
        """Mean loss of each pass over the rows."""
        # moments of the optimizer are not kept over epochs: the policy, and so the rows, have moved
        optimizer = torch.optim.AdamW(self._groups(), lr=self._settings.lr)
        self._network.train()
        losses: list[float] = []
        for _ in range(self._settings.passes):
            total = 0.0
            for index in torch.randperm(len(clicked), generator=generator).split(self._settings.batch):
                batch = inputs.at(index)
                cold = torch.rand((2, len(index)), generator=generator) < self._settings.cold_share
                batch.user[cold[0]] = UNSEEN
                batch.ad[cold[1]] = UNSEEN
                loss = binary_cross_entropy_with_logits(self._logits(batch), clicked[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(index)
            losses.append(total / len(clicked))
        return losses

    def _groups(self) -> list[dict[str, Any]]:
        """Rates and decays: cues are few and meet few rows each, so they move faster."""
        named = dict(self._network.named_parameters())
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

    def _logits(self, inputs: _Inputs) -> Tensor:
        logits: Tensor = self._network(inputs.texts, inputs.user, inputs.ad, inputs.structure, inputs.words)
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
