"""Served auctions in a run's directory: what the endpoint's users did, in place of phase 1's judge."""

from __future__ import annotations

from collections.abc import Sequence

from raylla.irpo.sampling import Sampled
from raylla.irpo.state import Run, load_records, save_records
from raylla.records import Answer, Click, Planned
from raylla.serving import onlinedata
from raylla.world import World


def take(run: Run, simulated: World) -> World:
    """Copy the served auctions of `online` into the run; the world that they make.

    Raises:
        RunError: there are fewer than `online.least_auctions`.
        StoreError: the database cannot be opened.
    """
    data = onlinedata.read(run.config, simulated)
    directory = run.fresh(run.records("served"))
    save_records(directory / "answers.parquet", data.answers, Answer)
    save_records(directory / "clicks.parquet", data.clicks, Click)
    return data.world


def answered(run: Run, planned: Sequence[Planned]) -> Sampled:
    """``planned``, with the answers and clicks of those of its auctions that were served."""
    found = Sampled({item.auction.id: item for item in planned})
    directory = run.records("served")
    if directory.exists():
        answers = load_records(directory / "answers.parquet", Answer)
        found.answers = [answer for answer in answers if answer.auction_id in found.plan]
        found.clicks = {answer.sample_id: {} for answer in found.answers}
        for click in load_records(directory / "clicks.parquet", Click):
            if click.sample_id in found.clicks:
                found.clicks[click.sample_id][click.ad_id] = click.clicked
    return found
