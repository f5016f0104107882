"""How good the detector of native ads (`terms.native`) is, and whether an evaluation may rest on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from raylla.config import Evaluation
from raylla.figures.intervals import Figure, made
from raylla.terms.native import LEAST_F1, Detector, Outcomes, f1, outcomes, taught


@dataclass(frozen=True, slots=True)
class Quality:
    """How the detector does on published answers whose query and brand it never saw."""

    f1: Figure
    precision: float
    recall: float
    answers: int
    with_ad: int


@dataclass(frozen=True, slots=True)
class TaughtDetector:
    """The detector of an evaluation, none where there is none, or none that is good enough: ``absent`` then
    says why; and what `evaluation.json` says of it."""

    one: Detector | None
    absent: Mapping[str, str]
    report: Mapping[str, Any] | None


def detector(settings: Evaluation, seed: int) -> TaughtDetector:
    """Teach the detector that ``settings`` asks for.

    Raises:
        ConfigError: as `terms.native.read_answers`.
    """
    if settings.native_answers is None:
        why = "evaluation.native_answers names no published answers to learn from"
        return TaughtDetector(None, {"detected": why}, None)
    detector, tested = taught(settings.native_answers)
    quality = quality_of(tested, settings.bootstrap, seed)
    if quality.f1["mean"] < LEAST_F1:
        why = (
            f"the detector's F1 on held-out published answers is {quality.f1['mean']:.2f}, below {LEAST_F1}"
        )
        return TaughtDetector(None, {"detected": why}, asdict(quality))
    return TaughtDetector(detector, {}, asdict(quality))


def quality_of(tested: tuple[Outcomes, ...], resamples: int, seed: int) -> Quality:
    """How good the detector is on the folds that were held out."""
    table = outcomes(tested)
    rng = np.random.default_rng(seed)
    hits, alarms, misses = table.sum(axis=0)
    return Quality(
        made([table], lambda counted: f1(counted)[..., None], resamples, rng)[0],
        float(hits / max(1, hits + alarms)),
        float(hits / max(1, hits + misses)),
        len(table),
        int(hits + misses),
    )
