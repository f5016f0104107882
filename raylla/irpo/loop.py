"""Iterative Reward-Preference Optimization (paper, Algorithm 1), top to bottom.

    before the first:   warm     π_0 learns to place ads, where `warmstart` says from what
                        organic  the untouched model answers without ads, where a reward term reads that
    for each epoch t:   sample   π_{t-1} answers; the judge clicks or not      (phases 1 and 2)
                        learn    the pCTR model on the clicks; score phase 2; winners and losers
                        align    π_{t-1} -> π_t by DPO (or GRPO) on the preference groups
                        test     π_{t-1}, while π_t is trained
                        deploy   π_t to every rollout engine; old versions go, where a policy says so
    test                π_T

Phase 1 of a run that learns online (`online`) is what users of the endpoint were answered and clicked.
Shards do the work on answers (`raylla.irpo.shards`): each owns a slice of the engines and of an epoch's
auctions, in chunks. This process deals the chunks out, hears which are whole, passes rows, predictions and
groups on by reference, and commits.
Work begins when its inputs are there, in whatever stage that is (`irpo.overlap`); the records of the
stages are committed in order, and a resumed run skips what is committed.
"""

from __future__ import annotations

from typing import Any

from raylla.actors.placement import check_placement, connect, disconnect
from raylla.irpo import organic, queries, stages
from raylla.irpo.crew import Crew
from raylla.irpo.learning import Learner
from raylla.irpo.shards.dealing import Dealing
from raylla.models import roles
from raylla.runs import versions
from raylla.runs.observe import Observer
from raylla.runs.state import Run
from raylla.stop import heeded
from raylla.terminal import RAY
from raylla.terms.protocol import weighed_terms
from raylla.terms.sources import detector_for
from raylla.warmstart.stage import warm
from raylla.world import World


def train_run(run: Run, watch: Observer) -> dict[str, Any]:
    """Run every stage that is not committed yet; returns what `results.json` holds.

    Raises:
        RayllaError: one of its kinds, each naming the field or the wait that is at fault.
    """
    config = run.config
    roles.check_roles(config)
    detector_for(weighed_terms(config), config)
    draft = queries.draft_world(run)
    with watch.stage(RAY):
        connect(config)
    crew = None
    try:
        check_placement(config)
        warm(run, watch)
        version, probe = versions.committed(run)[-1]
        crew = Crew(config, run.path, version, watch)
        with watch.stage("start engines"), heeded("the start of the engines"):
            crew.start()
        world = queries.ask_queries(run, crew, watch, draft)
        organic.write_organic(run, crew, watch, world)
        if probe is not None:
            with watch.stage("deploy"), heeded(f"the refresh to {version.name}"):
                crew.refresh(version, probe)
            versions.collect(run, crew.needs)
        for epoch in range(version.epoch + 1, config.irpo.epochs + 1):
            run_epoch(run, crew, watch, world, epoch)
        tested = Dealing(run, crew, world, config.irpo.epochs + 1)
        stages.test(run, crew, watch, tested)
        return stages.conclude(run, watch, world)
    finally:
        if crew is not None:
            crew.stop()
        disconnect(config)
        watch.close()


def run_epoch(run: Run, crew: Crew, watch: Observer, world: World, epoch: int) -> None:
    """π_{t-1} -> π_t, live on every rollout engine of ``crew``."""
    with watch.epoch(epoch):
        dealing = Dealing(run, crew, world, epoch)
        learner = Learner(run, crew, dealing)
        stages.sample(run, watch, dealing, learner)
        groups = stages.learn(run, crew, watch, dealing, learner)
        alignment = stages.begin_align(run, crew, dealing, groups)
        stages.test(run, crew, watch, dealing)
        version, probe = stages.align(run, watch, epoch, crew.version, alignment)
        with watch.stage(f"epoch {epoch}: deploy"), heeded(f"the refresh to {version.name}"):
            crew.refresh(version, probe)
        versions.collect(run, crew.needs)
