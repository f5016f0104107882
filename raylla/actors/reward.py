"""The reward trainer at work: the pCTR model in a process of its own."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from raylla.config import Pctr
from raylla.records import Prediction
from raylla.reward.rows import ClickRow


class RewardWorker:
    """A worker of a `Pool` of one; see `raylla.reward.trainer.RewardTrainer` for its methods."""

    def __init__(self, encoder: str, settings: Pctr, seed: int) -> None:
        # Imported here, so that the driver, which names this class, loads no torch.
        from raylla.reward.trainer import RewardTrainer

        self._make = partial(RewardTrainer, encoder, seed=seed)
        self._settings = settings
        self._trainer = self._make(settings)

    def ready(self) -> None:
        """Returns when the encoder is loaded."""

    def take(self, rows: list[ClickRow]) -> None:
        """Encode judged rows for the next update."""
        self._trainer.take(rows)

    def update(self) -> dict[str, float]:
        """Train on all rows taken since the last update."""
        return self._trainer.update()

    def predict_intervals(self, rows: list[ClickRow]) -> list[Prediction]:
        """Click probability of each row, with its interval."""
        return self._trainer.predict_intervals(rows)

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
        if settings != self._settings:
            self._trainer, self._settings = self._make(settings), settings
        self._trainer.load(place)
