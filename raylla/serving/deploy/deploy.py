"""Zero-downtime weights: a version comes in beside the one that serves, is compared, and stays or goes.

    canary     the deployment Canary loads the version; the ingress sends it its share once it is live
    promote    the engines that serve take the version over in place, between two requests
    roll back  the canary's share is 0 and its replica goes

Where versions are adapters that share an engine (`raylla.serving.deploy.policies`) the engines that serve
hold the canary's beside the stable one's, and the latter two change only which is called what.

Each is a change of the deployed Serve config's `user_config` (`raylla.serving.deploy.versions`): nothing
restarts, and a replica that restarts later finds the same wish.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from raylla.config import Config, parse_config
from raylla.errors import DeployError, RunError, WeightError
from raylla.figures import intervals
from raylla.runs.state import Run
from raylla.serving.deploy.app import canary_scale, told_engine
from raylla.serving.deploy.cluster import POLL_SECONDS, Dashboard
from raylla.serving.deploy.policies import check_shared
from raylla.serving.deploy.versions import Target, find
from raylla.serving.money.money import to_units
from raylla.serving.money.records import Served
from raylla.serving.store import open_store

MEASURES = ("revenue", "expected_revenue", "reward", "clicked_reward", "format_errors")
"""Per auction: what the ledger holds for it, bid x pCTR, R(y) with the pCTR model's rates and with the
clicks that came (all in bid units), broken placements."""


@dataclass(frozen=True)
class Comparison:
    """The versions that serve, and what the auctions of each have brought since the canary came."""

    stable: Target
    canary: Target | None
    share: float
    since: datetime | None
    auctions: dict[str, int]
    figures: dict[str, dict[str, intervals.Figure]]
    """Measure -> "stable", "canary" and "difference" -> mean, low, high; empty with too few auctions."""


def canary(at: Dashboard, run: str, version: str | None, share: float) -> None:
    """Give ``share`` of the requests to a version of ``run``; returns when it answers.

    Raises:
        RunError: no such run or version, or one of another model.
        WeightError: the canary's engine refuses the weights, or the version cannot share the one that
            serves; the stable version goes on alone.
    """
    deployed = at.deployed()
    config, stable, target = compatible(deployed, run, version)
    if config.serving.adapters == "shared":
        check_shared(config, target)
    since = datetime.now(UTC).isoformat()
    if config.serving.adapters == "merged":
        _set(deployed, "Canary", {"version": target.plain()}, canary_scale(config.serving, 1))
    elif not config.serving.colocate:
        _set(deployed, "Engine", told_engine(config.serving, stable, target))
    wish = {"canary": target.plain(), "share": share, "since": since}
    _set(deployed, "Ingress", _told(deployed, "Ingress") | wish)
    at.apply(deployed, config.deadlines.start)
    try:
        _until_live(at, "canary", target, config.deadlines.sync)
    except WeightError:
        roll_back(at)
        raise


def compatible(deployed: dict[str, Any], run: str, version: str | None) -> tuple[Config, Target, Target]:
    """The config of a deployed endpoint, what it serves, and the version of ``run`` that may serve there.

    Raises:
        RunError: no such run or version, or one of another model.
    """
    target = find(run, version)
    config = _config(deployed)
    model = Run.open(run).config.ad_llm
    if (model.path, model.prompt) != (config.ad_llm.path, config.ad_llm.prompt):
        raise RunError(
            f"{run} trained {model.path} with prompt {model.prompt}, the endpoint serves "
            f"{config.ad_llm.path} with prompt {config.ad_llm.prompt}; start another endpoint for it"
        )
    return config, Target(**_told(deployed, "Ingress")["stable"]), target


def promote(at: Dashboard) -> None:
    """Have the engines that serve take over the canary's version, in place; returns when they have.

    Raises:
        DeployError: there is no canary.
        WeightError: an engine refuses the weights; the old version is wished for again.
    """
    deployed = at.deployed()
    config = _config(deployed)
    before = _told(deployed, "Ingress")
    target = Target.of(before["canary"])
    if target is None:
        raise DeployError("there is no canary to promote; begin with `raylla deploy RUN --version V`")
    _serve(at, deployed, config, target)
    try:
        _until_live(at, "stable", target, config.deadlines.sync)
    except WeightError:
        _serve(at, at.deployed(), config, Target(**before["stable"]))
        raise


def roll_back(at: Dashboard) -> None:
    """Send the canary nothing more, and end it.

    Raises:
        DeployError: there is no canary.
    """
    deployed = at.deployed()
    told = _told(deployed, "Ingress")
    if told["canary"] is None:
        raise DeployError("there is no canary to roll back")
    _serve(at, deployed, _config(deployed), Target(**told["stable"]))


def status(at: Dashboard) -> Comparison:
    """What serves, and how the canary compares: from the store's auctions since it came.

    Raises:
        StoreError: the endpoint's database cannot be reached from here.
    """
    deployed = at.deployed()
    config, told = _config(deployed), _told(deployed, "Ingress")
    stable, tried = Target(**told["stable"]), Target.of(told["canary"])
    if tried is None:
        return Comparison(stable, None, 0.0, None, {}, {})
    since = datetime.fromisoformat(told["since"])
    store = open_store(config.serving.database, must_exist=True)
    try:
        counts, figures = compare_canary(store.auctions(since, datetime.now(UTC)), tried.version, config)
    finally:
        store.close()
    return Comparison(stable, tried, float(told["share"]), since, counts, figures)


def compare_canary(
    served: Iterable[Served], version: str, config: Config
) -> tuple[dict[str, int], dict[str, dict[str, intervals.Figure]]]:
    """Auctions on each side, and each measure per auction of canary and stable, with their difference.

    Auctions are the units of the intervals, each side's drawn on their own; a side counts as the
    canary's where it was written by ``version`` as canary.
    """
    unit = config.serving.micros_per_unit
    rows: dict[str, list[list[float]]] = {"stable": [], "canary": []}
    for one in served:
        side = "canary" if one.auction.canary and one.auction.weight_version == version else "stable"
        rows[side].append(measured(one, unit))
    counts = {side: len(found) for side, found in rows.items()}
    if min(counts.values()) < 2:
        return counts, {}
    settings = config.evaluation.bootstrap, np.random.default_rng(config.seed)
    figures = {side: intervals.means([table], *settings) for side, table in rows.items()}
    figures["difference"] = intervals.apart(rows["canary"], rows["stable"], *settings)
    return counts, {
        measure: {side: found[place] for side, found in figures.items()}
        for place, measure in enumerate(MEASURES)
    }


def show_comparison(console: Console, found: Comparison) -> None:
    """Print a comparison."""
    console.print(f"stable  {found.stable.version} of {found.stable.run}", highlight=False, soft_wrap=True)
    if found.canary is None:
        console.print("canary  none", highlight=False)
        return
    console.print(
        f"canary  {found.canary.version} of {found.canary.run}, {found.share:.0%} of the requests "
        f"since {found.since:%Y-%m-%d %H:%M:%S} UTC; auctions: {found.auctions}",
        highlight=False,
        soft_wrap=True,
    )
    if not found.figures:
        console.print("too few auctions to compare", highlight=False)
        return
    table = Table("per auction", "stable", "canary", "canary - stable")
    for measure, sides in found.figures.items():
        cells = [f"{one['mean']:.3f} [{one['low']:.3f}, {one['high']:.3f}]" for one in sides.values()]
        table.add_row(measure.replace("_", " "), *cells)
    console.print(table)


def measured(one: Served, unit: int) -> list[float]:
    """`MEASURES` of a served auction; ``unit`` is what a unit of bids is worth, in micros."""
    auction = one.auction
    entered = {candidate.listing.ad.id: candidate.bid_micros for candidate in auction.candidates}
    clicked = sum(entered[shown.ad_id] for shown in auction.impressions if shown.id in one.clicked)
    return [
        to_units(one.charged_micros, unit),
        to_units(1, unit) * sum(shown.bid_micros * shown.pctr for shown in auction.impressions),
        auction.reward_value - auction.reward_penalty,
        to_units(clicked, unit) - auction.reward_penalty,
        float(sum(auction.violations.values())),
    ]


def _serve(at: Dashboard, deployed: dict[str, Any], config: Config, target: Target) -> None:
    """Have ``target`` answer everything, without a canary.

    The canary's replicas keep the version that they were given until they are gone: one that Serve starts
    meanwhile would else have none, and may still be asked.
    """
    if config.serving.adapters == "merged":
        _set(deployed, "Canary", _told(deployed, "Canary"), canary_scale(config.serving, 0))
    wish = {"stable": target.plain(), "canary": None, "share": 0.0, "since": None}
    _set(deployed, "Ingress", wish)
    if not config.serving.colocate:
        _set(deployed, "Engine", told_engine(config.serving, target, None))
        _set(deployed, "Predictor", {"version": target.plain()})
    at.apply(deployed, config.deadlines.start)


def _until_live(at: Dashboard, side: str, target: Target, seconds: float) -> None:
    """Wait until the endpoint says that ``side`` answers with ``target``.

    Raises:
        WeightError: an engine has refused it, or it is not live in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        health = at.health()
        if health["versions"][side] == target.version and not health["problems"]:
            return
        if any(target.version in problem and target.run in problem for problem in health["problems"]):
            raise WeightError(f"not taken over: {'; '.join(health['problems'])}")
        if time.monotonic() > deadline:
            raise WeightError(
                f"weight version {target.version} is not live after deadlines.sync={seconds:g} s: "
                f"{health['versions']}; {'; '.join(health['problems']) or 'no problem is reported'}"
            )
        time.sleep(POLL_SECONDS)


def _config(deployed: dict[str, Any]) -> Config:
    return parse_config(deployed["applications"][0]["args"], "the deployed Serve config")


def _deployment(deployed: dict[str, Any], name: str) -> dict[str, Any]:
    deployments: Sequence[dict[str, Any]] = deployed["applications"][0]["deployments"]
    return next(one for one in deployments if one["name"] == name)


def _told(deployed: dict[str, Any], name: str) -> dict[str, Any]:
    told: dict[str, Any] = _deployment(deployed, name)["user_config"]
    return told


def _set(
    deployed: dict[str, Any], name: str, told: dict[str, Any], scale: dict[str, Any] | None = None
) -> None:
    one = _deployment(deployed, name)
    one["user_config"] = told
    if scale is not None:
        one["autoscaling_config"] = scale


__all__ = [
    "MEASURES",
    "Comparison",
    "canary",
    "compare_canary",
    "compatible",
    "measured",
    "promote",
    "roll_back",
    "show_comparison",
    "status",
]
