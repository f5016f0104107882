"""The reward trainer at work: the pCTR model in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from raylla.config import Pctr
from raylla.models.libraries import uncollected
from raylla.records import Prediction
from raylla.reward.rows import ClickRow, auction_of


class RewardWorker:
    """A worker of a `Pool` of one; see `raylla.reward.trainer.RewardTrainer` for its methods."""

    def __init__(self, encoder: str, settings: Pctr, seed: int) -> None:
        # Imported here, so that the driver, which names this class, loads no torch.
        with uncollected():
            from raylla.reward.trainer import RewardTrainer

        self._make = partial(RewardTrainer, encoder, seed=seed)
        self._settings = settings
        self._trainer = self._make(settings)
        self._kept: list[ClickRow] = []

    def ready(self) -> None:
        """Returns when the encoder is loaded."""

    def take(self, rows: list[ClickRow], held: frozenset[str] = frozenset()) -> None:
        """Encode judged rows for the next update; those of the auctions ``held`` are kept to measure on."""
        self._trainer.take([row for row in rows if auction_of(row) not in held])
        self.keep(rows, held)

    def keep(self, rows: list[ClickRow], auctions: frozenset[str] | None = None) -> None:
        """Keep judged rows for `measure`: those of some ``auctions``, or all."""
        self._kept += [row for row in rows if auctions is None or auction_of(row) in auctions]

    def measure(self) -> dict[str, float]:
        """`evaluate` on what was kept, which is let go."""
        kept, self._kept = self._kept, []
        return self.evaluate(kept)

    def update(self) -> dict[str, float]:
        """Train on all rows taken since the last update."""
        return self._trainer.update()

    def predict_intervals(self, rows: list[ClickRow]) -> list[Prediction]:
        """Click probability of each row, with its interval."""
        return self._trainer.predict_intervals(rows)

    def predict(self, rows: list[ClickRow]) -> Iterator[int | list[Prediction]]:
        """How many rows, once they are predicted; then `predict_intervals`, for whoever it goes to."""
        predictions = self.predict_intervals(rows)
        yield len(predictions)
        yield predictions

    def evaluate(self, rows: list[ClickRow]) -> dict[str, float]:
        """AUC, log loss, calibration error with its floor, and coverage of the intervals on judged rows."""
        return self._trainer.evaluate(rows)

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """The text encoder's vectors, [len(texts), dim]."""
        return self._trainer.encoder.encode(texts)

    def save(self, place: str) -> None:
        """Write the model, on a path or behind a URL."""
        self._trainer.save(place)

    def load(self, place: str, settings: Pctr) -> None:
        """Go on from what `save` wrote under ``settings``; those of a variant may be others."""
        self._kept = []
        if settings != self._settings:
            self._trainer, self._settings = self._make(settings), settings
        self._trainer.load(place)
