"""Served auctions in a run's directory: what the endpoint's users did, in place of phase 1's judge."""

from __future__ import annotations

from raylla.irpo.sampling import Stream
from raylla.online import onlinedata
from raylla.records import Answer, Click
from raylla.runs.state import Run, load_records, save_records
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


def hand_in(run: Run, stream: Stream) -> None:
    """Give ``stream`` the answers and clicks of those of its auctions that were served."""
    directory = run.part("records/served")
    if not directory.exists():
        return
    clicks: dict[str, dict[str, bool]] = {}
    for click in load_records(directory / "clicks.parquet", Click):
        clicks.setdefault(click.sample_id, {})[click.ad_id] = click.clicked
    for answer in load_records(directory / "answers.parquet", Answer):
        if answer.auction_id in stream.plan:
            judged = {answer.sample_id: clicks.get(answer.sample_id, {})}
            stream.hand_in(answer.auction_id, [answer], judged)
