"""Iterative Reward-Preference Optimization (paper, Algorithm 1), top to bottom.

    for each epoch t:   sample   π_{t-1} answers; the judge clicks or not      (phases 1 and 2)
                        learn    the pCTR model on the clicks; score phase 2; winners and losers
                        align    π_{t-1} -> π_t by DPO on the preference groups
                        deploy   π_t to every rollout engine
    test                π_T

Each stage is committed before the next begins; a resumed run skips what is committed.
"""

from __future__ import annotations

from typing import Any

from raylla import models
from raylla.actors.placement import check_placement, connect, disconnect
from raylla.irpo import stages, versions
from raylla.irpo.crew import Crew
from raylla.irpo.schedule import auctions
from raylla.irpo.state import Run
from raylla.observe import Observer
from raylla.stop import heeded


def train(run: Run, watch: Observer) -> dict[str, Any]:
    """Run every stage that is not committed yet; returns what `results.json` holds.

    Raises:
        RayllaError: one of its kinds, each naming the field or the wait that is at fault.
    """
    config = run.config
    models.check(config)
    draft = stages.draft_world(run)
    connect(config)
    crew = None
    try:
        check_placement(config)
        version, probe = versions.committed(run)[-1]
        crew = Crew(config, run.path, version)
        with watch.stage("start engines"), heeded("the start of the engines"):
            crew.start()
        world = stages.ask_queries(run, crew, watch, draft)
        if probe is not None:
            with heeded(f"the refresh to {version.name}"):
                crew.refresh(version, probe)
        samples = []
        for epoch in range(1, config.irpo.epochs + 1):
            sampled = stages.sample(run, crew, watch, world, epoch, auctions(config, world, epoch))
            samples.append(sampled.tests())
            if epoch <= version.epoch:
                continue
            groups = stages.learn(run, crew, watch, world, epoch, sampled)
            version, probe = stages.align(run, crew, watch, epoch, version, groups, sampled)
            with heeded(f"the refresh to {version.name}"):
                crew.refresh(version, probe)
        last = config.irpo.epochs + 1
        samples.append(stages.sample(run, crew, watch, world, last, auctions(config, world, last)))
        return stages.conclude(run, crew, watch, world, samples)
    finally:
        if crew is not None:
            crew.stop()
        disconnect(config)
        watch.close()
