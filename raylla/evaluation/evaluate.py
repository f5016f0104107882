"""`raylla evaluate`: finished runs against the other mechanisms, with intervals.

Training seeds (`setup`) are together the rows of all mechanisms, the curves and the prices.  Each variant
is a row of its own under LLM-Auction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raylla.auction import ReadAnswer
from raylla.auction.checks import Array
from raylla.config import Config, Evaluation
from raylla.evaluation import drift, efficiency, history, incentives, properties
from raylla.evaluation.backend import EvaluationBackend
from raylla.evaluation.efficiency import Held
from raylla.evaluation.reader import detect, reading
from raylla.evaluation.setup import MAIN, check_runs, check_settings, engines, with_settings
from raylla.figures import quality
from raylla.irpo import stages
from raylla.judging import about
from raylla.mechanisms.protocol import Choice, Mechanism, named_mechanisms
from raylla.runs.observe import Observer
from raylla.runs.state import Run, package_versions
from raylla.world import store


@dataclass(slots=True)
class Seen:
    """What was measured of one run; by mechanism where there are several."""

    run: Run
    held: dict[str, Held] = field(default_factory=dict)
    search: dict[str, dict[str, Any]] = field(default_factory=dict)
    responses: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    settled: dict[str, dict[str, list[incentives.SettledRound]]] = field(default_factory=dict)
    charged: incentives.Charged | None = None
    sweep: properties.Sweep | None = None
    fine: properties.Fine | None = None
    told: drift.PredictedClicks = field(default_factory=dict)
    reads: quality.Reads = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)


def evaluate_runs(runs: Sequence[Run], settings: Evaluation, watch: Observer) -> dict[str, Any]:
    """Everything that `evaluation.json` holds, measured with ``settings`` on all runs.

    Raises:
        RunError: a run is not finished, or does not go with the others.
        ConfigError: a mechanism of ``evaluation.mechanisms``, or a model, does not exist or do.
    """
    mechanisms = named_mechanisms(settings.mechanisms)
    check_runs(runs, settings)
    for run in runs:
        check_settings(with_settings(run, settings))
    main = with_settings(runs[0], settings)
    detector = detect.detector(settings, main.seed)
    seen: list[Seen] = []
    seeds = sum(run.config.name == main.name for run in runs)
    with engines(runs, settings, watch, detector.one) as opened:
        for run in runs:
            backend = opened(run)
            own = run.config.name == main.name
            measured = _seed(backend, mechanisms, seeds, watch) if own else _variant(backend, watch)
            with watch.stage(f"{run.path.name}: what the reader gets"):
                measured.reads = reading.read_tables(
                    backend, _answers(backend, measured, own), detector.one
                )
            seen.append(measured)
    mains = [measured for measured in seen if measured.run.config.name == main.name]
    return _compared(seen, mains, settings) | {
        "name": main.name,
        "clicks": about.sources(main.user_llm),
        "clicks_of_runs": about.sources(runs[0].config.user_llm),
        "runs": [history.provenance(run) for run in runs],
        "curves": _curves(seen, mains, settings),
        "incentives": _prices(mains, settings),
        "quality": _quality(seen, mains, detector, settings),
        "pctr": drift.drift([measured.told for measured in mains]),
        "search": {
            name: [measured.search[name] for measured in mains]
            for name, first in mains[0].search.items()
            if first["tried"]
        },
        "epochs": history.epochs([measured.run for measured in mains]),
        "examples": mains[0].examples,
        "config": main.model_dump(mode="json"),
        "wall_seconds": dict(watch.wall),
        "versions": package_versions(),
    }


def _seed(backend: EvaluationBackend, mechanisms: Sequence[Mechanism], seeds: int, watch: Observer) -> Seen:
    """Every mechanism on one of the training seeds of the main config, and its curves."""
    seen, config = Seen(backend.run), backend.config.evaluation
    for mechanism in mechanisms:
        _hold(backend, mechanism, seen, watch)
        _respond(backend, mechanism, seen, watch)
    seen.sweep = _sweep(backend, swept(list(backend.versions), config), watch)
    with watch.stage(f"{backend.run.path.name}: continuity"):
        some = efficiency.test_auctions(backend.config, backend.world)[: config.curve_queries]
        each = max(1, round(config.curve_answers / (seeds * len(some))))
        seen.fine = properties.fine(backend, some, _steps(backend.config), config.curve_answers, each)
    seen.told = drift.predicted_clicks(backend)
    seen.examples = history.examples(backend)
    return seen


def _variant(backend: EvaluationBackend, watch: Observer) -> Seen:
    """A run under other settings: its row, its last weights' curve, its pCTR models."""
    seen = Seen(backend.run)
    _hold(backend, named_mechanisms([MAIN])[0], seen, watch)
    seen.sweep = _sweep(backend, list(backend.versions)[-1:], watch)
    seen.told = drift.predicted_clicks(backend)
    return seen


def _answers(
    backend: EvaluationBackend, seen: Seen, versions: bool
) -> dict[str, dict[str, Sequence[ReadAnswer]]]:
    """Every answer to the test queries, by mechanism, and where it is asked for by weight version."""
    answers: dict[str, dict[str, Sequence[ReadAnswer]]] = {
        "mechanisms": {name: held.answers for name, held in seen.held.items()}
    }
    if versions:
        tests = stages.read_tests(backend.run, backend.world)
        answers["versions"] = {
            f"v{epoch}": [sampled.read(answer) for _, answer in sampled.of("test")]
            for epoch, sampled in enumerate(tests)
        }
    return answers


def _hold(backend: EvaluationBackend, mechanism: Mechanism, seen: Seen, watch: Observer) -> None:
    where = f"{backend.run.path.name}: {mechanism.name}"
    with watch.stage(f"{where}: tune"):
        choices = mechanism.choices(backend.config.irpo.epochs)
        choice, tried = efficiency.tune_mechanism(backend, mechanism, choices)
    with watch.stage(f"{where}: test"):
        tested = efficiency.test_auctions(backend.config, backend.world)
        seen.held[mechanism.name] = efficiency.hold(backend, mechanism, tested, choice)
    seen.search[mechanism.name] = {"run": backend.run.path.name, "chosen": dict(choice), "tried": tried}


def _respond(backend: EvaluationBackend, mechanism: Mechanism, seen: Seen, watch: Observer) -> None:
    """How a mechanism answers to other bids."""
    config, name = backend.config.evaluation, mechanism.name
    choice: Choice = seen.search[name]["chosen"]
    where = f"{backend.run.path.name}: {name}"
    tested = [
        replace(auction, n=config.incentive_answers)
        for auction in efficiency.test_auctions(backend.config, backend.world)
    ]
    with watch.stage(f"{where}: regret"):
        some = tested[: config.incentive_queries]
        seen.responses[name] = incentives.responses(backend, mechanism, choice, some, config.bids)
    if config.equilibrium_queries:
        with watch.stage(f"{where}: best responses"):
            some = tested[: config.equilibrium_queries]
            seen.settled[name] = incentives.settle_bids(
                backend, mechanism, choice, some, config.equilibrium_bids
            )
    if name == MAIN:
        with watch.stage(f"{where}: truthful prices"):
            seen.charged = incentives.charge(backend, mechanism, choice, tested)


def _sweep(backend: EvaluationBackend, names: Sequence[str], watch: Observer) -> properties.Sweep:
    config = backend.config.evaluation
    with watch.stage(f"{backend.run.path.name}: monotonicity"):
        tested = efficiency.test_auctions(backend.config, backend.world)
        return properties.sweep(backend, tested, _above_zero(config), config.sweep_answers, names)


def swept(versions: Sequence[str], settings: Evaluation) -> list[str]:
    """Those of a run's weight versions, in their order, that the sweep over bids asks."""
    if settings.sweep_versions == "all":
        return list(versions)
    return list(dict.fromkeys((versions[0], versions[-1])))


def _above_zero(settings: Evaluation) -> list[float]:
    return [bid for bid in settings.bids if bid > 0]


def _steps(config: Config) -> range:
    return range(1, config.world.max_bid + 1)


def _compared(seen: Sequence[Seen], seeds: Sequence[Seen], settings: Evaluation) -> dict[str, Any]:
    """The rows of all mechanisms and variants, each against LLM-Auction on the same queries, and the
    variants against the main config."""
    resamples, seed = settings.bootstrap, seeds[0].run.config.seed
    rows = {name: [measured.held[name] for measured in seeds] for name in seeds[0].held}
    against = {
        name: efficiency.compare_mechanisms(rows[MAIN], held, resamples, seed)
        for name, held in rows.items()
        if name != MAIN and MAIN in rows
    }
    ablations: dict[str, Any] = {}
    for name, variants in _by_name(seen, seeds).items():
        rows[f"{MAIN}: {name}"] = [measured.held[MAIN] for measured in variants]
        pairs = [
            (measured.held[MAIN], base.held[MAIN])
            for measured in variants
            for base in seeds
            if MAIN in base.held and base.run.config.seed == measured.run.config.seed
        ]
        if pairs:
            ours, theirs = zip(*pairs, strict=True)
            ablations[name] = efficiency.compare_mechanisms(ours, theirs, resamples, seed) | {
                "seeds": len(pairs)
            }
        ablations.setdefault(name, {})["pctr"] = drift.drift([measured.told for measured in variants])
    return {
        "efficiency": {
            name: efficiency.mechanism_row(held, resamples, seed) for name, held in rows.items()
        },
        "against": against,
        "ablations": ablations,
    }


def _by_name(seen: Sequence[Seen], seeds: Sequence[Seen]) -> dict[str, list[Seen]]:
    """The variants' runs, by name."""
    named: dict[str, list[Seen]] = {}
    for measured in seen:
        if measured not in seeds:
            named.setdefault(measured.run.config.name, []).append(measured)
    return named


def _curves(seen: Sequence[Seen], seeds: Sequence[Seen], settings: Evaluation) -> dict[str, Any]:
    bids, resamples = _above_zero(settings), settings.bootstrap
    seed = seeds[0].run.config.seed

    def rising(runs: Sequence[Seen]) -> dict[str, Any]:
        sweeps = [measured.sweep for measured in runs if measured.sweep is not None]
        return properties.monotonicity(sweeps, bids, resamples, seed)

    fines = [measured.fine for measured in seeds if measured.fine is not None]
    variants = {name: rising(runs)["versions"] for name, runs in _by_name(seen, seeds).items()}
    return {
        "monotonicity": rising(seeds),
        "continuity": properties.continuity(fines, _steps(seeds[0].run.config), resamples, seed),
        "monotonicity_of_variants": {
            name: next(iter(versions.values())) for name, versions in variants.items()
        },
    }


def _quality(
    seen: Sequence[Seen], seeds: Sequence[Seen], detector: detect.TaughtDetector, settings: Evaluation
) -> dict[str, Any]:
    """What the readers of all rows got; of the variants beside the first weights under the same seed."""
    first = {measured.run.config.seed: measured.reads["versions"][quality.FIRST] for measured in seeds}
    variants = {
        f"{MAIN}: {name}": [
            (measured.reads["mechanisms"][MAIN], first.get(measured.run.config.seed)) for measured in runs
        ]
        for name, runs in _by_name(seen, seeds).items()
    }
    absent = dict(detector.absent)
    if not any(
        ad.description for measured in seeds for ad in store.load_world(measured.run.part("world")).ads
    ):
        absent |= dict.fromkeys(quality.FIDELITY, "no ad of the world has a description")
    reads, seed = [measured.reads for measured in seeds], seeds[0].run.config.seed
    summary = quality.summary(reads, variants, absent, settings.bootstrap, seed)
    return summary | {"detector": detector.report}


def _prices(seeds: Sequence[Seen], settings: Evaluation) -> dict[str, Any]:
    resamples, seed = settings.bootstrap, seeds[0].run.config.seed
    prices: dict[str, Any] = {}
    for name in seeds[0].responses:
        groups = [measured.responses[name] for measured in seeds]
        prices[name] = incentives.regret_table(groups, settings.bids, resamples, seed)
        settled = [measured.settled[name] for measured in seeds if name in measured.settled]
        if settled:
            prices[name]["equilibrium"] = incentives.equilibrium(settled, settings.equilibrium_bids)
    charged = [measured.charged for measured in seeds if measured.charged is not None]
    if charged:
        prices[MAIN]["truthful"] = incentives.truthful(charged, resamples, seed)
    return prices
