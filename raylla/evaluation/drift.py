"""How a pCTR model's predictions hold when the policy moves on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raylla.evaluation.backend import EvaluationBackend
from raylla.irpo import stages
from raylla.records import Prediction
from raylla.reward import calibration, intervals

PredictedClicks = Mapping[tuple[int, int], Sequence[tuple[Prediction, bool]]]
"""(weight version, epoch of the pCTR model) -> predictions and clicks."""


def predicted_clicks(backend: EvaluationBackend) -> PredictedClicks:
    """What every pCTR model of a run predicts of every version's own test answers, and their clicks."""
    run = backend.run
    clicks: dict[tuple[int, int], list[tuple[Prediction, bool]]] = {}
    for version, sampled in enumerate(stages.read_tests(run, backend.world)):
        judged = [(sampled.read(answer), clicked) for _, answer, clicked in sampled.judged("test")]
        for epoch in range(1, run.config.irpo.epochs + 1):
            predicted = backend.predict_intervals([answer for answer, _ in judged], epoch)
            clicks[version, epoch] = [
                (chances[ad], clicked[ad])
                for (answer, clicked), chances in zip(judged, predicted, strict=True)
                for ad in answer.parsed.ad_ids
            ]
    return clicks


def drift(runs: Sequence[PredictedClicks]) -> list[dict[str, Any]]:
    """Every epoch's pCTR model on the clicks of every version's answers, all training seeds together.

    The model after epoch t learned from the answers of v0 to v(t-1).  ``bias`` is mean prediction
    less click rate; ``calibration_floor`` the error that a perfect model of these rows would have, and
    ``calibration_floor_high`` the end of its 95 % interval; ``reliability`` has (mean prediction, click
    rate, impressions) of ten bins; ``coverage`` is the share of groups of impressions whose click rate
    their interval holds (`raylla.reward.intervals`).
    """
    epochs: list[dict[str, Any]] = []
    for version, epoch in runs[0]:
        rows = [row for run in runs for row in run[version, epoch]]
        predictions = [prediction for prediction, _ in rows]
        p = np.array([prediction.mean for prediction in predictions])
        clicked = np.array([hit for _, hit in rows], bool)
        epochs.append(
            {
                "weight_version": f"v{version}",
                "pctr_epoch": epoch,
                "impressions": len(p),
                "bias": float(p.mean() - clicked.mean()) if len(p) else None,
                "auc": calibration.auc(p, clicked),
                **calibration.calibration(p, clicked),
                "reliability": calibration.reliability(p, clicked),
                **intervals.coverage(predictions, clicked),
            }
        )
    return epochs
