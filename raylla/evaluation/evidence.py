"""`raylla evaluate RUN...`: finished runs against the other mechanisms, with intervals.

The first run and every other of its name are training seeds of one config: together they are the
rows of all mechanisms.  Runs of another name are variants, each a row of its own under LLM-Auction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from raylla.actors.placement import check_placement, connect, disconnect
from raylla.config import Config, Evaluation
from raylla.errors import RunError
from raylla.evaluation import efficiency, incentives, properties
from raylla.evaluation.desk import EvaluationDesk
from raylla.evaluation.drift import drift
from raylla.evaluation.efficiency import Held
from raylla.irpo import stages
from raylla.irpo.crew import Crew
from raylla.irpo.state import Run, package_versions
from raylla.irpo.versions import committed
from raylla.mechanisms.protocol import Choice, Mechanism, named
from raylla.observe import Observer
from raylla.world import store

MAIN = "llm-auction"
LEAST_BIDS = 20


def evaluate(runs: Sequence[Run], settings: Evaluation, watch: Observer) -> dict[str, Any]:
    """Everything that `evaluation.json` holds, measured with ``settings`` on all runs.

    Raises:
        RunError: a run is not finished, or does not go with the others.
        ConfigError: a mechanism of ``evaluation.mechanisms`` does not exist.
    """
    mechanisms = named(settings.mechanisms)
    _check(runs, settings)
    seeds = [run for run in runs if run.config.name == runs[0].config.name]
    rows: dict[str, list[Held]] = {}
    curves: dict[str, Any] = {}
    pctr: list[dict[str, Any]] = []
    variants: dict[str, Any] = {}
    prices: dict[str, Any] = {}
    search: dict[str, list[dict[str, Any]]] = {}
    main, others = seeds[0].config, [run for run in runs if run not in seeds]
    connect(main)
    crew = None
    try:
        check_placement(main)
        crew = Crew(main, seeds[0].path, committed(seeds[0])[0][0], watch)
        with watch.stage("start engines"):
            crew.start(trainer=False)
        for run in seeds:
            desk = EvaluationDesk(run, _with(run, settings), crew, store.load(run.path / "world"))
            for mechanism in mechanisms:
                held, tried = _hold(desk, mechanism, watch)
                if run is seeds[0]:
                    prices[mechanism.name] = _incentives(desk, mechanism, tried["chosen"], watch)
                rows.setdefault(mechanism.name, []).append(held)
                search.setdefault(mechanism.name, []).append(tried)
            if run is seeds[0]:
                curves = _curves(desk, watch)
                pctr = drift(desk)
        for run in others:
            desk = EvaluationDesk(run, _with(run, settings), crew, store.load(run.path / "world"))
            held, _ = _hold(desk, named([MAIN])[0], watch)
            rows.setdefault(f"{MAIN}: {run.config.name}", []).append(held)
            if run.config.name not in variants:
                last = list(desk.versions)[-1:]
                variants[run.config.name] = _monotonicity(desk, watch, last)["versions"][last[0]]
    finally:
        if crew is not None:
            crew.stop()
        disconnect(main)
        watch.close()
    resamples, seed, told = settings.bootstrap, main.seed, recorded(seeds[0])
    return {
        "name": main.name,
        "runs": [{"path": run.path.name, "name": run.config.name, "seed": run.config.seed} for run in runs],
        "efficiency": {name: efficiency.row(found, resamples, seed) for name, found in rows.items()},
        "against": {
            name: efficiency.compare(rows[MAIN], found, resamples, seed)
            for name, found in rows.items()
            if name != MAIN and MAIN in rows and len(found) == len(rows[MAIN])
        },
        "curves": curves | {"monotonicity_of_variants": variants},
        "incentives": prices,
        "pctr": pctr,
        "search": {name: tried for name, tried in search.items() if any(one["tried"] for one in tried)},
        "epochs": told["epochs"],
        "examples": told["examples"],
        "config": _with(seeds[0], settings).model_dump(mode="json"),
        "wall_seconds": dict(watch.wall),
        "versions": package_versions(),
    }


def _with(run: Run, settings: Evaluation) -> Config:
    return run.config.model_copy(update={"evaluation": settings})


def recorded(run: Run) -> dict[str, Any]:
    """Name, table and examples of a finished run as in `results.json`, from its records."""
    world = store.load(run.path / "world")
    sampled = stages.read_tests(run, world)
    return {
        "name": run.config.name,
        "epochs": stages.table(run, world, sampled),
        "examples": stages.examples(world, sampled[0], sampled[-1]),
    }


def _curves(desk: EvaluationDesk, watch: Observer) -> dict[str, Any]:
    config = desk.config.evaluation
    fine = range(1, desk.config.world.max_bid + 1)
    rising = _monotonicity(desk, watch, list(desk.versions))
    with watch.stage(f"{desk.run.path.name}: continuity"):
        tested = efficiency.test_auctions(desk.config, desk.world)
        smooth = properties.continuity(desk, tested, fine, config.curve_answers, config.curve_queries)
    return {"monotonicity": rising, "continuity": smooth}


def _monotonicity(desk: EvaluationDesk, watch: Observer, names: Sequence[str]) -> dict[str, Any]:
    config = desk.config.evaluation
    bids = [bid for bid in config.bids if bid > 0]
    with watch.stage(f"{desk.run.path.name}: monotonicity"):
        tested = efficiency.test_auctions(desk.config, desk.world)
        return properties.monotonicity(desk, tested, bids, config.sweep_answers, names)


def _incentives(
    desk: EvaluationDesk, mechanism: Mechanism, choice: Choice, watch: Observer
) -> dict[str, Any]:
    config = desk.config.evaluation
    tested = [
        replace(one, n=config.incentive_answers)
        for one in efficiency.test_auctions(desk.config, desk.world)
    ]
    where = f"{desk.run.path.name}: {mechanism.name}"
    with watch.stage(f"{where}: regret"):
        some = tested[: config.incentive_queries]
        found = incentives.table(desk, mechanism, choice, some, config.bids)
    with watch.stage(f"{where}: best responses"):
        some = tested[: config.equilibrium_queries]
        if some:
            found["equilibrium"] = incentives.equilibrium(
                desk, mechanism, choice, some, config.equilibrium_bids
            )
    if mechanism.name == MAIN:
        with watch.stage(f"{where}: truthful prices"):
            found["truthful"] = incentives.truthful(desk, mechanism, choice, tested)
    return found


def _hold(desk: EvaluationDesk, mechanism: Mechanism, watch: Observer) -> tuple[Held, dict[str, Any]]:
    where = f"{desk.run.path.name}: {mechanism.name}"
    with watch.stage(f"{where}: tune"):
        choice, tried = efficiency.tune(desk, mechanism)
    with watch.stage(f"{where}: test"):
        held = efficiency.hold(desk, mechanism, efficiency.test_auctions(desk.config, desk.world), choice)
    return held, {"run": desk.run.path.name, "chosen": dict(choice), "tried": tried}


def _check(runs: Sequence[Run], settings: Evaluation) -> None:
    """Refuse what cannot be compared, before any model loads."""
    first = runs[0]
    for run in runs:
        if run.committed("conclude") is None:
            done = list(run.commits)[-1] if run.commits else "nothing"
            raise RunError(
                f"run {run.path} is not finished (last committed: {done}); `raylla resume` it first"
            )
        for field in ("ad_llm", "user_llm", "engine"):
            if getattr(run.config, field) != getattr(first.config, field):
                raise RunError(
                    f"run {run.path} has another {field} than {first.path}; evaluate it by itself"
                )
        _check_bids(run.config, (*settings.bids, *settings.equilibrium_bids))
        efficiency.test_auctions(_with(run, settings), store.load(run.path / "world"))
    if len({(run.config.name, run.config.seed) for run in runs}) != len(runs):
        raise RunError("two of the runs have the same name and seed; give each once")


def _check_bids(config: Config, bids: Sequence[float]) -> None:
    if max(bids) > config.world.max_bid:
        raise RunError(
            f"evaluation.bids goes up to {max(bids):g}, but the model was trained on bids up to "
            f"world.max_bid={config.world.max_bid}; keep the grid within that"
        )
    if config.world.max_bid < LEAST_BIDS:
        raise RunError(
            f"world.max_bid={config.world.max_bid} is too coarse to look for jumps; train with bids up to "
            f"{LEAST_BIDS} at least"
        )
