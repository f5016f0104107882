"""What every measurement of finished runs begins with: that they go together, and engines that answer.

The first run and every other of its name are training seeds of one config; runs of another name are
variants of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from raylla.actors.placement import check_placement, connect, disconnect
from raylla.config import Config, Evaluation
from raylla.errors import ConfigError, RunError
from raylla.evaluation import efficiency, kept
from raylla.evaluation.backend import EvaluationBackend
from raylla.irpo.crew import Panel
from raylla.mechanisms.protocol import named_mechanisms
from raylla.models import roles
from raylla.runs.observe import Observer
from raylla.runs.state import Run
from raylla.runs.versions import committed
from raylla.terminal import RAY
from raylla.terms.native import Detector
from raylla.terms.protocol import known_terms, named_terms, weighed_terms
from raylla.terms.sources import detector_for
from raylla.world import store

MAIN = "llm-auction"
LEAST_BIDS = 20
Opened = Callable[[Run], EvaluationBackend]
"""Makes the backend of one of the runs."""


def with_settings(run: Run, settings: Evaluation) -> Config:
    """The run's config with these settings, and with the judge that they name."""
    config = run.config
    judge = config.user_llm.model_copy(update={"path": settings.user_llm or config.user_llm.path})
    return config.model_copy(update={"evaluation": settings, "user_llm": judge})


@contextmanager
def engines(
    runs: Sequence[Run], settings: Evaluation, watch: Observer, detector: Detector | None = None
) -> Iterator[Opened]:
    """Engines, judges and pCTR models for all of ``runs``, which are stopped at the end; without a
    ``detector`` that of the terms that the runs weigh."""
    main = with_settings(runs[0], settings)
    for config in (with_settings(run, settings) for run in runs):
        detector = detector or detector_for(weighed_terms(config), config)
    with watch.stage(RAY):
        connect(main)
    crew: Panel | None = None
    try:
        check_placement(main)
        crew = Panel(main, committed(runs[0])[0][0], watch)
        with watch.stage("start engines"):
            crew.start(most=True)
        started = crew

        def opened(run: Run) -> EvaluationBackend:
            config, world = with_settings(run, settings), store.load_world(run.part("world"))
            return EvaluationBackend(
                run, config, started, world, kept.kept(run, config), watch, main, detector
            )

        yield opened
    finally:
        if crew is not None:
            crew.stop()
        disconnect(main)
        watch.close()


def check_runs(runs: Sequence[Run], settings: Evaluation) -> None:
    """Refuse what cannot be compared, before any model loads.

    Raises:
        RunError: a run is not finished, or does not go with the others.
        ConfigError: a model does not exist or do.
    """
    first = runs[0]
    for run in runs:
        if run.committed("conclude") is None:
            done = list(run.commits)[-1] if run.commits else "nothing"
            raise RunError(
                f"run {run.place} is not finished (last committed: {done}); `raylla resume` it first"
            )
        committed(run)
        for field_name in ("ad_llm", "user_llm", "engine"):
            if getattr(run.config, field_name) != getattr(first.config, field_name):
                raise RunError(
                    f"run {run.place} has another {field_name} than {first.place}; evaluate it by itself"
                )
        if run.config.pctr.encoder != first.config.pctr.encoder:
            raise RunError(
                f"run {run.place} has another pctr.encoder than {first.place}; evaluate it by itself"
            )
        same = first.config.model_copy(update={"seed": run.config.seed})
        if run.config.name == first.config.name and run.config.digest() != same.digest():
            raise RunError(
                f"run {run.place} has the name of {first.place}, {first.config.name!r}, but other "
                "settings; a training seed differs in its seed alone, and a variant has a name of its own"
            )
        check_terms(with_settings(run, settings))
        efficiency.test_auctions(with_settings(run, settings), store.load_world(run.part("world")))
    if len({(run.config.name, run.config.seed) for run in runs}) != len(runs):
        raise RunError("two of the runs have the same name and seed; give each once")
    roles.check_roles(with_settings(first, settings))


def check_terms(config: Config) -> None:
    """Refuse reward terms that the config weighs, or that are installed and would be measured, where one of
    them cannot be had; what needs a detector is measured where there is one.

    Raises:
        ConfigError: names it.
    """
    named_terms(known_terms())
    weighed_terms(config)


def check_settings(config: Config) -> None:
    """Refuse settings that no run can be evaluated with, before there is one.

    Raises:
        ConfigError: a mechanism of ``evaluation.mechanisms`` or the published answers do not exist.
        RunError: a bid grid leaves the range of bids, or that is too coarse.
    """
    named_mechanisms(config.evaluation.mechanisms)
    check_terms(config)
    published = config.evaluation.native_answers
    if published is not None and not published.is_file():
        raise ConfigError(f"evaluation.native_answers={str(published)!r}: no such file; give it, or none")
    for field_name in ("bids", "equilibrium_bids"):
        bids: tuple[float, ...] = getattr(config.evaluation, field_name)
        if max(bids) > config.world.max_bid:
            raise RunError(
                f"evaluation.{field_name} goes up to {max(bids):g}, but the model is trained on bids up to "
                f"world.max_bid={config.world.max_bid}; keep the grid within that"
            )
    if config.world.max_bid < LEAST_BIDS:
        raise RunError(
            f"world.max_bid={config.world.max_bid} is too coarse to look for jumps; train with bids up to "
            f"{LEAST_BIDS} at least"
        )
