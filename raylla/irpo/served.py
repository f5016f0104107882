"""Served auctions in a run's directory: what the endpoint's users did, in place of phase 1's judge."""

from __future__ import annotations

from collections.abc import Collection

from raylla.irpo.sampling import ServedAnswers
from raylla.online import onlinedata
from raylla.records import Answer, Click
from raylla.reward.rows import auction_of
from raylla.runs.state import Run, load_records, save_records
from raylla.storage import here, within
from raylla.world import World


def take_served(run: Run, simulated: World) -> World:
    """Copy the served auctions of `online` into the run; the world that they make.

    Raises:
        RunError: there are fewer than `online.least_auctions`.
        StoreError: the database cannot be opened.
    """
    data = onlinedata.read_served(run.config, simulated)
    directory = run.fresh(run.records("served"))
    save_records(directory / "answers.parquet", data.answers, Answer)
    save_records(directory / "clicks.parquet", data.clicks, Click)
    return data.world


def served_answers(place: str, wanted: Collection[str]) -> ServedAnswers:
    """What those of the ``wanted`` auctions of the run at ``place`` that were served were answered."""
    clicks: dict[str, dict[str, bool]] = {}
    by_auction: dict[str, tuple[list[Answer], dict[str, dict[str, bool]]]] = {}
    with here(within(place, "records", "served")) as directory:
        for click in load_records(directory / "clicks.parquet", Click):
            if auction_of(click) in wanted:
                clicks.setdefault(click.sample_id, {})[click.ad_id] = click.clicked
        for answer in load_records(directory / "answers.parquet", Answer):
            if answer.auction_id in wanted:
                name = answer.sample_id
                by_auction[answer.auction_id] = [answer], {name: clicks.get(name, {})}
    return by_auction
