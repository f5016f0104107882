"""`raylla evaluate --suite offpolicy`: do estimates made before a version serves hold once it does?

Every weight version of a run answers the same test auctions, and the User-LLM clicks.  For each ordered
pair of versions half of the queries is the log: answers of the one and their clicks, from which
`raylla.figures.offpolicy` says what the other will earn.  The other half is what is then shown: both
versions' own answers, and their clicks.  The pCTR model is the one that there was when the later of the two
versions was made.  Which queries are the log is drawn `SPLITS` times; no split asks an engine anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from raylla.auction import ReadAnswer
from raylla.auction.checks import Array
from raylla.config import Evaluation
from raylla.engines.sampled import likeliest
from raylla.errors import RunError
from raylla.evaluation import efficiency, history
from raylla.evaluation.backend import EvaluationBackend
from raylla.evaluation.setup import check_runs, engines, with_settings
from raylla.figures.intervals import Figure, means
from raylla.figures.offpolicy import (
    ESTIMATORS,
    LEVEL,
    Estimate,
    Log,
    Predicted,
    estimates,
    held_against,
    log_ratios,
    overlap,
)
from raylla.judging import about
from raylla.mechanisms.protocol import Prompt
from raylla.runs.observe import Observer
from raylla.runs.state import Run, package_versions
from raylla.runs.versions import committed
from raylla.world.bids import seed_of

SUITE_MEASURES = ("revenue", "reward")
"""Per auction, in bid units: bid x click, and that less the penalty and with the config's terms."""
SPLITS = 50
"""Times that the queries are parted into a log and what is then shown."""
RESAMPLES = 500
"""Of each interval at most: there are thousands of them."""


@dataclass(frozen=True, slots=True)
class Written:
    """What the version after ``epoch`` wrote, n answers: their queries; gains and what is known without
    clicks [n, k]; the predictions of the pCTR model after each epoch; the log-probability [n] of each under
    every version, as sampled, -inf where that one cannot write it; and the share of them with a token that
    rounding pushed over the edge of the version's own cuts."""

    epoch: int
    queries: Sequence[str]
    gains: Array
    known: Array
    predicted: Mapping[int, Predicted]
    logprobs: Mapping[str, Array]
    on_the_edge: float = 0.0


def offpolicy_runs(runs: Sequence[Run], settings: Evaluation, watch: Observer) -> dict[str, Any]:
    """Everything that `offpolicy.json` holds, of all ordered pairs of weight versions of each run.

    Raises:
        RunError: as `setup.check_runs`, or a run has kept fewer than two versions.
        ConfigError: a model does not exist or do, or sampling's probabilities cannot be told.
    """
    check_runs(runs, settings)
    main = with_settings(runs[0], settings)
    likeliest(main.ad_llm.sampling)
    for run in runs:
        if len(committed(run)) < 2:
            raise RunError(f"run {run.place} has kept one weight version; a pair needs two")
    pairs: list[dict[str, Any]] = []
    with engines(runs, settings, watch) as opened:
        for run in runs:
            backend = opened(run)
            with watch.stage(f"{run.path.name}: answers, clicks and scores"):
                written = answered(backend)
            with watch.stage(f"{run.path.name}: estimates"):
                pairs += hold_pairs(written, run.path.name, settings.bootstrap, backend.config.seed)
    return {
        "name": main.name,
        "suite": "offpolicy",
        "clicks": about.sources(main.user_llm),
        "runs": [history.provenance(run) for run in runs],
        "measures": list(SUITE_MEASURES),
        "level": LEVEL,
        "splits": SPLITS,
        "pairs": pairs,
        "summary": summed(pairs),
        "config": main.model_dump(mode="json"),
        "wall_seconds": dict(watch.wall),
        "versions": package_versions(),
    }


def answered(backend: EvaluationBackend) -> dict[str, Written]:
    """Every version's answers to the test auctions, in the versions' order, each scored under all."""
    asked = efficiency.test_auctions(backend.config, backend.world)
    prompts = [Prompt(planned, planned.ads, planned.auction.bids, planned.n) for planned in asked]
    names, epochs = list(backend.versions), range(1, backend.config.irpo.epochs + 1)
    drawn: dict[str, list[tuple[Prompt, Sequence[int], str]]] = {}
    for name in names:
        written = backend.write(name, prompts)
        backend.bound(
            f"auctions of {name}", sum(generated.error is not None for generated in written), len(written)
        )
        drawn[name] = [
            (prompt, draw.token_ids, draw.text)
            for prompt, generated in zip(prompts, written, strict=True)
            for draw in generated.completions
        ]
    scored = {name: _scores(backend, name, drawn) for name in names}  # each version is loaded once more
    return {
        name: _written(
            backend,
            name,
            [ReadAnswer.of(prompt.planned, text) for prompt, _, text in drawn[name]],
            epochs,
            {other: scored[other][name] for other in names},
        )
        for name in names
    }


def _scores(
    backend: EvaluationBackend,
    version: str,
    drawn: Mapping[str, Sequence[tuple[Prompt, Sequence[int], str]]],
) -> dict[str, tuple[Array, float]]:
    """Whose answers -> their log-probabilities under ``version``, and the share that its cuts leave out; of
    its own that is rounding's."""
    by_writer = {}
    for writer, answers in drawn.items():
        scores = backend.score_sampled(version, [(prompt, ids) for prompt, ids, _ in answers])
        outside = np.array([score.outside > 0 for score in scores])
        logprobs = np.array([score.logprob for score in scores])
        by_writer[writer] = (
            logprobs if writer == version else np.where(outside, -np.inf, logprobs),
            float(outside.mean()),
        )
    return by_writer


def _written(
    backend: EvaluationBackend,
    name: str,
    answers: Sequence[ReadAnswer],
    epochs: Sequence[int],
    scored: Mapping[str, tuple[Array, float]],
) -> Written:
    """Outcomes and predictions of the answers of one version whose clicks could be read."""
    judged = backend.judgements(answers)
    read = [place for place, judgement in enumerate(judged) if judgement.clicks is not None]
    backend.bound(f"judgements of {name}", len(judged) - len(read), len(judged))
    kept = [answers[place] for place in read]
    clicked = [judged[place].clicks or {} for place in read]
    gained = [
        [sum(answer.planned.bids[ad] for ad, hit in clicks.items() if hit)] * len(SUITE_MEASURES)
        for answer, clicks in zip(kept, clicked, strict=True)
    ]
    return Written(
        backend.versions[name][0].epoch,
        [answer.planned.query.id for answer in kept],
        np.array(gained, float),
        np.array([[0.0, -cost] for cost in backend.costs(kept)]),
        {epoch: _predicted(backend, kept, epoch) for epoch in epochs},
        {version: logprobs[read] for version, (logprobs, _) in scored.items()},
        scored[name][1],
    )


def _predicted(backend: EvaluationBackend, answers: Sequence[ReadAnswer], epoch: int) -> Predicted:
    """Gains that the pCTR model after ``epoch`` predicts; each measure has the same."""
    rows = []
    for answer, chances in zip(answers, backend.predict_intervals(answers, epoch), strict=True):
        bids = [(answer.planned.bids[ad], chances[ad]) for ad in answer.parsed.ad_ids]
        ends = [sum(bid * getattr(chance, end) for bid, chance in bids) for end in Predicted.__slots__]
        rows.append([[end] * len(SUITE_MEASURES) for end in ends])
    return Predicted.of(rows)


def hold_pairs(
    written: Mapping[str, Written], run: str, resamples: int, seed: int, splits: int = SPLITS
) -> list[dict[str, Any]]:
    """Each ordered pair of versions, a row of `offpolicy.json`: the figures of the first split, and how the
    estimators did in all of them."""
    queries = sorted(set.intersection(*(set(version.queries) for version in written.values())))
    halves = []
    for split in range(splits):
        order = _generator(seed, f"split/{split}").permutation(len(queries))
        halves.append({queries[place] for place in order[: len(queries) // 2]})
    names, pairs = list(written), []
    for old in names:
        for new in (name for name in names if name != old):
            sides = written[old], written[new]
            epoch = max(1, *(side.epoch for side in sides))
            rng = _generator(seed, f"{old}/{new}")
            held = [
                _held(*sides, (old, new, epoch), half, min(resamples, RESAMPLES), rng) for half in halves
            ]
            pairs.append(
                {
                    "run": run,
                    "log": old,
                    "new": new,
                    "pctr_epoch": epoch,
                    "on_the_edge": sides[0].on_the_edge,
                    **held[0],
                    "over_splits": _over_splits([row["measures"] for row in held]),
                }
            )
    return pairs


def logged(old: Written, new: Written, names: tuple[str, str, int], queries: set[str]) -> Log:
    """The log of ``queries`` that ``old`` wrote, with what is known of ``new`` without its clicks;
    ``names`` are those of both and the epoch of the pCTR model."""
    rows = np.array([query in queries for query in old.queries])
    places = [at for at, kept in enumerate(rows) if kept]
    groups = [old.queries[at] for at in places]
    theirs: dict[str, list[int]] = {}
    for at, query in enumerate(new.queries):
        theirs.setdefault(query, []).append(at)

    def own(table: Array) -> Array:
        return np.array([table[theirs[query]].mean(axis=0) for query in groups])

    said, ours = old.predicted[names[2]], new.predicted[names[2]]
    return Log(
        log_ratios(old.logprobs[names[1]][rows], old.logprobs[names[0]][rows]),
        old.gains[rows],
        old.known[rows],
        Predicted(said.mean[rows], said.low[rows], said.high[rows]),
        Predicted(own(ours.mean), own(ours.low), own(ours.high)),
        own(new.known),
        groups,
    )


def _held(
    old: Written,
    new: Written,
    names: tuple[str, str, int],
    half: set[str],
    resamples: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Estimates from the queries of ``half``, and what the others then show."""
    log = logged(old, new, names, half)
    made = estimates(log, resamples, rng, LEVEL)
    theirs, ours = _by_query(new, half), _by_query(old, half)
    table = np.array(
        [[*theirs[query], *(theirs[query] - ours[query])] for query in theirs if query in ours]
    )
    shown = means([table], resamples, rng, LEVEL)
    count = len(SUITE_MEASURES)
    return {
        "overlap": overlap(log),
        "measures": {
            measure: {
                "value_shown": shown[at],
                "difference_shown": shown[count + at],
                "estimates": {
                    name: _compared(made[name][at], shown[at], shown[count + at]) for name in ESTIMATORS
                },
            }
            for at, measure in enumerate(SUITE_MEASURES)
        },
    }


def _generator(seed: int, what: str) -> np.random.Generator:
    return np.random.default_rng(seed_of(seed, f"offpolicy/{what}"))


def _by_query(written: Written, without: set[str]) -> dict[str, Array]:
    """Query -> mean outcome [k] of its answers, of the queries that are not ``without``."""
    rows: dict[str, list[Array]] = {}
    for query, outcome in zip(written.queries, written.gains + written.known, strict=True):
        if query not in without:
            rows.setdefault(query, []).append(outcome)
    return {query: np.mean(some, axis=0) for query, some in rows.items()}


def _compared(made: Estimate, value: Figure, difference: Figure) -> dict[str, Any]:
    """An estimate beside what was shown: ``off`` is the difference's, with both sides' noise."""
    off = {
        "value": held_against(made.value, made.slack, value),
        "difference": held_against(made.difference, made.slack, difference),
    }
    holds = {name: figure["low"] <= 0 <= figure["high"] for name, figure in off.items()}
    return asdict(made) | {"off": off["difference"], "holds": holds}


def _over_splits(held: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For each measure and estimator: the share of splits in which its interval of the difference held
    what was shown, its mean width and its mean error, which has the noise of what was shown, too."""

    def column(measure: str, name: str) -> dict[str, float]:
        rows = [measures[measure]["estimates"][name] for measures in held]
        return {
            "coverage": float(np.mean([row["holds"]["difference"] for row in rows])),
            "value_coverage": float(np.mean([row["holds"]["value"] for row in rows])),
            "width": float(np.mean([row["difference"]["high"] - row["difference"]["low"] for row in rows])),
            "error": float(np.mean([abs(row["off"]["mean"]) for row in rows])),
        }

    return {measure: {name: column(measure, name) for name in ESTIMATORS} for measure in SUITE_MEASURES}


def summed(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For each measure and estimator: ``pairs_held`` of ``pairs`` in the first split, and the means over
    pairs of what was found over splits."""
    sums: dict[str, Any] = {"pairs": len(pairs)}
    for measure in SUITE_MEASURES:
        sums[measure] = {}
        for name in ESTIMATORS:
            first = [pair["measures"][measure]["estimates"][name]["holds"]["difference"] for pair in pairs]
            over = [pair["over_splits"][measure][name] for pair in pairs]
            sums[measure][name] = {"pairs_held": sum(first)} | {
                key: float(np.mean([row[key] for row in over])) for key in over[0]
            }
    return sums
