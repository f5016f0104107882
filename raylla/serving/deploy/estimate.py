"""What a version would earn at a deployed endpoint, from the auctions that the stable one has held there.

The newest auctions of the stable version, under the pCTR model that serves now, are held once more by the
new one in a process of its own (`raylla.serving.deploy.rewriting`); `raylla.figures.offpolicy` has the
arithmetic.  The measures are those that `raylla deploy --status` compares.
"""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raylla.config import Config
from raylla.engines.sampled import likeliest
from raylla.errors import EndpointError, RayllaError
from raylla.figures.intervals import with_ends
from raylla.figures.offpolicy import LEVEL, Log, Predicted, estimates, log_ratios, overlap
from raylla.progress import Steps
from raylla.records import Prediction
from raylla.serving.deploy.cluster import Dashboard
from raylla.serving.deploy.deploy import MEASURES, compatible, measured
from raylla.serving.deploy.rewriting import Rewriting, Rewritten, RewrittenPart, outcome, rewrite
from raylla.serving.deploy.versions import Target, pctr_of, weights
from raylla.serving.money.records import Served
from raylla.serving.store import open_store

LEAST_AUCTIONS = 20
"""Fewer make no estimate."""
OF_ANOTHER_PCTR = "under another pCTR model"
_SHOWN = ("naive", "direct", "snips", "doubly_robust")
_LOOKED_AT = 4
"""Auctions that are looked at for each that is wanted."""
_END_SECONDS = 10.0


def estimate(
    at: Dashboard, run: str, version: str | None, most: int, seconds: float, watch: Steps
) -> dict[str, Any]:
    """Estimates of `deploy.MEASURES` of a version of ``run`` at the endpoint behind ``at``, as JSON; where
    there are too few auctions, ``absent`` says so in their place.

    Args:
        most: auctions to read.
        seconds: longest time for reading; what is done by then counts.

    Raises:
        RunError: no such run or version, or one of another model.
        ConfigError: sampling's probabilities cannot be told.
        StoreError: the endpoint's database cannot be reached from here.
        WeightError: the new version cannot be loaded, or does not reproduce its probe.
        EndpointError: the process that reads has ended.
    """
    config, stable, target = compatible(at.deployed(), run, version)
    found = {"log": _named(stable), "new": _named(target), "level": LEVEL}
    if target == stable:
        return found | {"absent": f"{found['new']} is what serves"}
    likeliest(config.ad_llm.sampling)
    pctr, pctr_name = pctr_of(stable)
    log, left_out = written_by(config, stable, pctr_name, most)
    if len(log) < LEAST_AUCTIONS:
        return found | {"absent": _too_few(len(log), left_out), "left_out": dict(left_out)}
    job = Rewriting(config, weights(stable), weights(target), pctr, tuple(served.auction for served in log))
    with watch.stage("estimate what the version will show", auctions=len(log)):
        parts = list(_within(seconds, job, lambda done: watch.advance("auctions", done)))
    for part in parts:
        left_out.update(part.left_out)
    anew = {rewritten.auction_id: rewritten for part in parts for rewritten in part.rewritten}
    unread = len(log) - len(anew) - sum(sum(part.left_out.values()) for part in parts)
    left_out.update({f"not read within {seconds:g} s": unread} if unread else {})
    log = [served for served in log if served.auction.id in anew]
    found["left_out"] = dict(left_out)
    if len(log) < LEAST_AUCTIONS:
        return found | {"absent": _too_few(len(log), left_out)}
    return found | estimated(log, anew, config)


def written_by(
    config: Config, stable: Target, pctr_name: str, most: int
) -> tuple[list[Served], Counter[str]]:
    """The newest auctions of the stable version under this pCTR model, and how many others stood between
    them: auctions name no run, but their pCTR model does."""
    store = open_store(config.serving.database, must_exist=True)
    kept: list[Served] = []
    left_out: Counter[str] = Counter()
    try:
        for served in itertools.islice(store.newest(stable.version), _LOOKED_AT * most):
            if served.auction.pctr_version != pctr_name:
                left_out[OF_ANOTHER_PCTR] += 1
            else:
                kept.append(served)
            if len(kept) == most:
                break
    finally:
        store.close()
    return kept, left_out


def estimated(log: Sequence[Served], anew: Mapping[str, Rewritten], config: Config) -> dict[str, Any]:
    """Estimates from logged auctions and what the new version makes of each, by auction id."""
    unit = config.serving.micros_per_unit
    ours = [anew[served.auction.id] for served in log]
    told = [_told(served, unit) for served in log]
    known = np.array([row for _, row in told])
    made = Log(
        log_ratios(
            [rewritten.new_logprob for rewritten in ours], [rewritten.old_logprob for rewritten in ours]
        ),
        np.array([measured(served, unit) for served in log]) - known,
        known,
        Predicted.of([rows for rows, _ in told]),
        Predicted.of([rewritten.gains for rewritten in ours]),
        np.array([rewritten.known for rewritten in ours]),
    )
    found = estimates(made, config.evaluation.bootstrap, np.random.default_rng(config.seed), LEVEL)
    return {
        "overlap": overlap(made),
        "on_the_edge": sum(rewritten.on_the_edge for rewritten in ours) / len(ours),
        "estimates": {
            measure: {name: asdict(every[place]) for name, every in found.items()}
            for place, measure in enumerate(MEASURES)
        },
    }


def show_estimate(console: Console, found: Mapping[str, Any]) -> None:
    """Print what `estimate` found, or why it is nothing."""
    if "absent" in found:
        console.print(f"no estimate: {found['absent']}", soft_wrap=True)
        return
    over, level = found["overlap"], f"{found['level']:.0%}"
    console.print(
        f"{found['new']}, from {over['auctions']:.0f} auctions of {found['log']}: effective sample size "
        f"{over['effective_sample_size']:.1f}, mean weight {over['mean_weight']:.2f}; left out: "
        f"{found['left_out'] or 'none'}",
        soft_wrap=True,
    )
    table = Table(title=Text(f"per auction, {level} intervals"))
    for heading in ("", "now", *(name.replace("_", " ") for name in _SHOWN[1:]), "doubly robust - now"):
        table.add_column(heading, justify="right")
    for measure, made in found["estimates"].items():
        cells = [with_ends(made[name]["value"]) for name in _SHOWN]
        table.add_row(measure.replace("_", " "), *cells, with_ends(made["doubly_robust"]["difference"]))
    console.print(table)


def _told(served: Served, unit: int) -> tuple[list[list[float]], list[float]]:
    """What the record of an auction predicts of its own answer, and knows of it without clicks."""
    auction = served.auction
    candidates = {candidate.listing.ad.id: candidate for candidate in auction.candidates}
    shown = [
        (candidates[ad.ad_id], Prediction(ad.pctr, ad.pctr_low, ad.pctr_high)) for ad in auction.impressions
    ]
    broken = sum(auction.violations.values())
    share = auction.resample_share or 0.0
    return outcome(auction.price_rule, share, unit, shown, auction.reward_penalty, broken)


def _within(seconds: float, job: Rewriting, done: Callable[[int], None]) -> Iterator[RewrittenPart]:
    """The parts of ``job`` that are there within ``seconds``; the process that makes them has ended, and
    what it held is free, when this returns.

    Raises:
        RayllaError: what the process met.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=rewrite, args=(theirs, job), name="estimate")
    process.start()
    theirs.close()
    until = time.monotonic() + seconds
    try:
        while ours.poll(max(0.0, until - time.monotonic())):
            if (part := _heard(ours)) is None:
                return
            done(len(part.rewritten))
            yield part
    finally:
        ours.close()
        if time.monotonic() >= until:
            process.terminate()
        process.join(_END_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def _heard(pipe: Connection) -> RewrittenPart | None:
    try:
        heard: RewrittenPart | RayllaError | None = pipe.recv()
    except EOFError:
        raise EndpointError("the process that reads logged auctions has ended; see its output") from None
    if isinstance(heard, RayllaError):
        raise heard
    return heard


def _named(target: Target) -> str:
    return f"{target.version} of {target.run}"


def _too_few(count: int, left_out: Mapping[str, int]) -> str:
    return f"{count} logged auctions, fewer than {LEAST_AUCTIONS} (left out: {dict(left_out) or 'none'})"
