"""Iterative Reward-Preference Optimization (paper, Algorithm 1), top to bottom.

    for each epoch t:   sample   π_{t-1} answers; the judge clicks or not      (phases 1 and 2)
                        learn    the pCTR model on the clicks; score phase 2; winners and losers
                        align    π_{t-1} -> π_t by DPO on the preference groups
                        deploy   π_t to every rollout engine
    test                π_T

Each stage is committed before the next begins; a resumed run skips what is committed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raylla import models
from raylla.actors.placement import check_placement, connect, disconnect
from raylla.engines.protocol import Probe
from raylla.errors import RunError
from raylla.irpo import stages
from raylla.irpo.crew import Crew
from raylla.irpo.schedule import auctions
from raylla.irpo.state import Run
from raylla.observe import Observer
from raylla.records import WeightVersion


def train(run: Run, watch: Observer) -> dict[str, Any]:
    """Run every stage that is not committed yet; returns what `results.json` holds.

    Raises:
        RayllaError: one of its kinds, each naming the field or the wait that is at fault.
    """
    config = run.config
    base = WeightVersion("v0", 0, models.check(config)["ad_llm.path"])
    draft = stages.draft_world(run)
    connect(config)
    crew = None
    try:
        check_placement(config)
        version, probe = _latest(run, base)
        crew = Crew(config, run.path, version)
        with watch.stage("start engines"):
            crew.start()
        world = stages.ask_queries(run, crew, watch, draft)
        if probe is not None:
            crew.refresh(version, probe)
        samples = []
        for epoch in range(1, config.irpo.epochs + 1):
            sampled = stages.sample(run, crew, watch, world, epoch, auctions(config, world, epoch))
            samples.append(sampled.tests())
            if epoch <= version.epoch:
                continue
            groups = stages.learn(run, crew, watch, world, epoch, sampled)
            version, probe = stages.align(run, crew, watch, epoch, version, groups)
            crew.refresh(version, probe)
        last = config.irpo.epochs + 1
        samples.append(stages.sample(run, crew, watch, world, last, auctions(config, world, last)))
        return stages.conclude(run, crew, watch, world, samples)
    finally:
        if crew is not None:
            crew.stop()
        disconnect(config)
        watch.close()


def _latest(run: Run, base: WeightVersion) -> tuple[WeightVersion, Probe | None]:
    """The newest committed weight version and its probe; the base model if there is none."""
    version, probe = base, None
    for epoch in range(1, run.config.irpo.epochs + 1):
        report = run.committed(f"epoch-{epoch}/align")
        if report is None:
            break
        path = run.weights(report["weight_version"])
        if not (Path(path) / "config.json").exists():
            raise RunError(
                f"{path} is missing although the ledger commits it; restore it or start a new run"
            )
        version = WeightVersion(report["weight_version"], epoch, str(path), version.name)
        probe = stages.read_probe(report)
    return version, probe
