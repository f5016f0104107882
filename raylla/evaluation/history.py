"""What finished runs recorded themselves: their epochs, their examples, where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from raylla.evaluation.backend import EvaluationBackend
from raylla.irpo import results, stages
from raylla.runs.state import Run
from raylla.runs.versions import collected, committed
from raylla.world import store


def epochs(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The table of every weight version on the test split, all training seeds together.

    ``pctr`` holds the means over seeds of what each epoch's pCTR model was found to be on the
    version's answers, ``seconds`` those of the stages that made and tested it.
    """
    worlds = [store.load_world(run.part("world")) for run in runs]
    samples = [stages.read_tests(run, world) for run, world in zip(runs, worlds, strict=True)]
    config = runs[0].config
    rows: list[dict[str, Any]] = []
    for epoch in range(config.irpo.epochs + 1):
        tables = [
            results.tested(run.config, world, sampled[epoch])
            for run, world, sampled in zip(runs, worlds, samples, strict=True)
        ]
        settings = config.evaluation.bootstrap, config.seed
        row = results.version_row(tables, *settings, results.least_terms(config))
        reports = [run.commits[f"epoch-{epoch + 1}/test"] for run in runs]
        rows.append(
            {"epoch": epoch, "weight_version": f"v{epoch}"}
            | row
            | {"pctr": _means([report["pctr"] for report in reports])}
            | {"seconds": _means([_seconds(run, epoch) for run in runs])}
        )
    return rows


def examples(backend: EvaluationBackend) -> list[dict[str, Any]]:
    """The same test auctions before the first epoch and after the last, with what the last pCTR model
    predicts of each ad that is placed after."""
    run, world = backend.run, backend.world
    sampled = stages.read_tests(run, world)
    examples = results.before_and_after(world, sampled[0], sampled[-1])
    answers = {(planned.query.text, answer.text): answer for planned, answer in sampled[-1].of("test")}
    after = [sampled[-1].read(answers[example["query"], example["after"]]) for example in examples]
    for example, answer, told in zip(
        examples, after, backend.predict_intervals(after, run.config.irpo.epochs), strict=True
    ):
        titles = {ad.id: ad.title for ad in answer.planned.ads}
        example["pctr"] = {
            titles[ad]: {"mean": told[ad].mean, "low": told[ad].low, "high": told[ad].high}
            for ad in answer.parsed.ad_ids
        }
    return examples


def provenance(run: Run) -> dict[str, Any]:
    """Which run this was, and what it cost."""
    return {
        "path": run.path.name,
        "name": run.config.name,
        "seed": run.config.seed,
        "digest": run.config.digest(),
        "weights": committed(run)[-1][0].name,
        "collected": collected(run),
        "seconds": sum(report.get("wall_seconds", 0.0) for report in run.commits.values()),
    }


def _seconds(run: Run, epoch: int) -> dict[str, float]:
    """Wall seconds of an epoch's stages: those that made v ``epoch``, and the sampling under it."""
    names = {
        "sample": f"epoch-{epoch + 1}/sample",
        "learn": f"epoch-{epoch}/learn",
        "align": f"epoch-{epoch}/align",
        "test": f"epoch-{epoch + 1}/test",
    }
    return {
        name: run.commits[stage]["wall_seconds"] for name, stage in names.items() if stage in run.commits
    }


def _means(reports: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Mean over seeds of each figure that at least one of them has."""
    means: dict[str, float | None] = {}
    for name in dict.fromkeys(name for report in reports for name in report):
        values = [report[name] for report in reports if report.get(name) is not None]
        means[name] = float(np.mean(values)) if values else None
    return means
