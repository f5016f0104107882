"""How a pCTR model's predictions hold when the policy moves on."""

from __future__ import annotations

from typing import Any

import numpy as np

from raylla.auction import parse
from raylla.evaluation.desk import EvaluationDesk
from raylla.irpo import stages
from raylla.reward import calibration, intervals


def drift(desk: EvaluationDesk) -> list[dict[str, Any]]:
    """Every pCTR model on the clicks that each weight version's own test answers had.

    The model after epoch t learned from the answers of v0 to v(t-1).  ``bias`` is mean prediction
    less click rate; ``reliability`` has (mean prediction, click rate, impressions) of ten bins;
    ``coverage`` is the share of groups of impressions whose click rate their interval holds
    (`raylla.reward.intervals`).
    """
    run = desk.run
    found: list[dict[str, Any]] = []
    for version, sampled in enumerate(stages.read_tests(run, desk.world)):
        judged = list(sampled.judged("test"))
        clicked = np.array(
            [hit[ad] for one, answer, hit in judged for ad in parse(answer.text, one.ads).ad_ids], bool
        )
        for epoch in range(1, run.config.irpo.epochs + 1):
            predicted = desk.predict_intervals([(one, answer.text) for one, answer, _ in judged], epoch)
            told = [
                chances[ad]
                for (one, answer, _), chances in zip(judged, predicted, strict=True)
                for ad in parse(answer.text, one.ads).ad_ids
            ]
            p = np.array([one.mean for one in told])
            found.append(
                {
                    "weight_version": f"v{version}",
                    "pctr_epoch": epoch,
                    "impressions": len(p),
                    "bias": float(p.mean() - clicked.mean()) if len(p) else None,
                    "auc": calibration.auc(p, clicked),
                    "calibration_error": calibration.calibration_error(p, clicked),
                    "reliability": calibration.reliability(p, clicked),
                    **intervals.coverage(told, clicked),
                }
            )
    return found
