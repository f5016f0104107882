"""What an auction costs under each mechanism: generations and tokens, from the evaluation's account."""

from __future__ import annotations

from rich.console import Console

from raylla.actors.placement import connect, disconnect
from raylla.bench.measure import Measured, Row, Spread, ratio
from raylla.bench.parts.epoch import SMALL
from raylla.bench.run import Bench
from raylla.config import changed
from raylla.evaluation.backend import EvaluationBackend
from raylla.evaluation.efficiency import COSTS, hold, test_auctions
from raylla.evaluation.kept import Kept
from raylla.evaluation.setup import MAIN
from raylla.irpo.crew import Panel
from raylla.irpo.loop import train_run
from raylla.mechanisms.protocol import named_mechanisms
from raylla.runs.observe import Observer
from raylla.runs.state import Run
from raylla.runs.versions import committed
from raylla.terms.protocol import weighed_terms
from raylla.terms.sources import detector_for
from raylla.world import store

_TRAINED = ("irpo.epochs=1", "irpo.queries=48", "evaluation.queries=20")


def rows(bench: Bench) -> list[Row]:
    """Sampled tokens per auction ÷ LLM-Auction's, after one short epoch; counts, so no repeats."""
    config = changed(bench.config, None, [*SMALL, *_TRAINED])
    run = Run.create(bench.scratch / "run", config)
    watch = Observer(config, run.path, Console(quiet=True))
    train_run(run, watch)
    costs = {}
    detector = detector_for(weighed_terms(config), config)
    connect(config)
    crew = Panel(config, committed(run)[0][0], watch)
    try:
        crew.start(most=True)
        world = store.load_world(run.path / "world")
        for mechanism in named_mechanisms(config.evaluation.mechanisms):
            # kept anew, so that all is paid for
            backend = EvaluationBackend(run, config, crew, world, Kept(), watch, detector=detector)
            choice = mechanism.choices(config.irpo.epochs)[0]
            held = hold(backend, mechanism, test_auctions(config, world), choice)
            costs[mechanism.name] = dict(zip(COSTS, held.costs.mean(0).tolist(), strict=True))
    finally:
        crew.stop()
        disconnect(config)
    return [
        ratio(
            f"{name} ÷ {MAIN}",
            Measured(name, Spread((cost["sampled_tokens"],))),
            Measured(MAIN, Spread((costs[MAIN]["sampled_tokens"],))),
            "sampled tokens/auction",
            {
                "generations": cost["generations"],
                "prompt tokens": cost["prompt_tokens"],
                "seconds": cost["seconds"],
            },
        )
        for name, cost in costs.items()
    ]
