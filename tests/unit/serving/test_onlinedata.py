"""Served auctions as an epoch's phase 1: same ids, nothing twice, nobody who is tested on."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from raylla.actors import Pool
from raylla.auction.markup import markup
from raylla.config import Config, parse_config
from raylla.errors import RunError, StoreError
from raylla.irpo import schedule, served
from raylla.irpo.sampling import Sampled, Stream
from raylla.irpo.scoring import rows_of
from raylla.online import onlinedata
from raylla.records import Ad, Turn
from raylla.runs.observe import Observer
from raylla.runs.state import Run
from raylla.serving.money.records import Listing, ServedAuction
from raylla.world import World, build, store
from tests.unit.serving.market import UNIT, Market

MINUTE = dt.timedelta(minutes=1)


def _config(market: Market, **online: object) -> Config:
    return parse_config(
        {
            "world": {"profiles": 10, "candidates": 2},
            "irpo": {"epochs": 2, "preference_answers": 3, "pctr_holdout": 0},
            "serving": {"micros_per_unit": UNIT},
            "online": {
                "database": str(market.store.database.url),
                "until": "2026-11-26T00:00:00Z",
                "least_auctions": 1,
            }
            | online,
        },
        "test",
    )


def _simulated(config: Config) -> World:
    return build.synthetic(config.world, config.seed)


def _serve(market: Market, listings: Sequence[Listing], number: int, **changed: object) -> ServedAuction:
    """A recorded auction, ``number`` minutes after noon, whose answer places the first listing."""
    auction = market.auction(listings[0], lost=tuple(listings[1:]), now=market.now + number * MINUTE)
    how = {
        "query": f"which cup suits me number {number}?",
        "raw_text": f"A {markup(listings[0].ad)} suits you.",
        "user_id": f"reader{number % 2}",
        "basics": "40 cook Oslo",
        "interests": ("cups",),
    }
    auction = replace(auction, **how | changed)
    market.store.record(auction)
    return auction


@pytest.fixture
def listings(market: Market) -> list[Listing]:
    seat = market.seat()
    return [market.listing(seat, bid=64), market.listing(seat, bid=30)]


def test_a_served_conversation_is_learned_as_one(market: Market, listings: list[Listing]) -> None:
    turns = (Turn("user", "which mug keeps tea warm?"), Turn("assistant", "One of steel."))
    _serve(market, listings, 0, query="and a cheaper one?", turns=turns, turns_cut=3)
    config = _config(market)
    (query,) = onlinedata.read_served(config, _simulated(config)).world.of("train")
    assert (query.text, query.turns) == ("and a cheaper one?", turns)


def test_served_auctions_become_phase_1_in_time_order(market: Market, listings: list[Listing]) -> None:
    auctions = [_serve(market, listings, number) for number in range(4)]
    market.store.click(market.claims(auctions[2]), market.now + 5 * MINUTE)
    config = _config(market)
    data = onlinedata.read_served(config, _simulated(config))
    names = [auction.id for auction in auctions]
    epochs = [1, 1, 2, 2]
    assert [one.id for one in data.world.auctions] == [
        f"e{epoch}/reward/{name}" for epoch, name in zip(epochs, names, strict=True)
    ]
    assert [query.id for query in data.world.of("train")] == names
    assert data.world.auctions[0].bids == (64, 30)
    assert data.world.auctions[0].ad_ids == tuple(one.ad.id for one in listings)
    assert [answer.sample_id for answer in data.answers] == [f"{one.id}/0" for one in data.world.auctions]
    assert {answer.weight_version for answer in data.answers} == {"v1"}
    assert [click.clicked for click in data.clicks] == [False, False, True, False]
    tested = {user.id for user in data.world.profiles} - {"reader0", "reader1"}
    splits = build.split_users(_simulated(config).profiles, config.world.test_share, config.seed)
    assert tested == {user for user, split in splits.items() if split == "test"}
    assert dict(data.world.notes) == {}


def test_what_is_left_out_is_counted(market: Market, listings: list[Listing]) -> None:
    config = _config(market, since="2026-11-25T12:01:00Z", until="2026-11-25T12:09:00Z")
    held_out = onlinedata.held_out_users(config, _simulated(config))[0].id
    for number in (0, 1, 9):
        _serve(market, listings, number)
    _serve(market, listings, 2, user_id=held_out)
    _serve(market, listings, 3, query="???")
    _serve(market, listings, 4, raw_text="Nothing suits you.")
    _serve(market, listings, 5, test=True)
    anonymous = _serve(market, listings, 6, user_id=None, basics="new\nuser", interests=("<|x|>",))
    data = onlinedata.read_served(config, _simulated(config))
    assert len(data.answers) == 2
    assert data.world.query_by_id[anonymous.id].profile_id.startswith("anonymous-")
    assert dict(data.world.notes) == {
        "of held-out users": 1,
        "without query or candidates": 1,
        "shown otherwise than placed": 1,
    }
    unmatched = [
        *data.world.queries,
        replace(data.world.queries[0], id="t", profile_id=held_out, split="test"),
    ]
    store.check_world(replace(data.world, queries=tuple(unmatched)))


def test_ads_that_no_prompt_may_hold_any_more_are_not_learned_from(
    market: Market, listings: list[Listing]
) -> None:
    for number in range(2):
        _serve(market, listings, number)
    seat = market.seat()
    offer = Ad("77", "Cup \u00a4100", "cups", "kitchen")
    older = [listings[0], replace(market.listing(seat, bid=9), ad=offer)]
    _serve(market, older, 2)
    data = onlinedata.read_served(_config(market), _simulated(_config(market)))
    assert len(data.answers) == 2
    assert dict(data.world.notes) == {"with ads that a prompt cannot hold": 1}


def test_too_few_auctions_are_refused(market: Market, listings: list[Listing], tmp_path: Path) -> None:
    _serve(market, listings, 0)
    config = _config(market, least_auctions=2)
    with pytest.raises(RunError, match=r"1 auctions to learn from, fewer than online\.least_auctions=2"):
        onlinedata.read_served(config, _simulated(config))
    wrong = _config(market, database="mysql://host/x")
    with pytest.raises(StoreError, match=r"^online\.database: mysql"):
        onlinedata.read_served(wrong, _simulated(config))
    gone = _config(market, database=f"sqlite:///{tmp_path}/gone.db")
    with pytest.raises(StoreError, match=r"^online\.database: .*gone\.db does not exist"):
        onlinedata.read_served(gone, _simulated(config))
    assert not (tmp_path / "gone.db").exists()


def _begun(run: Run, world: World, epoch: int) -> Sampled:
    """What an epoch holds before anything was sampled."""
    nobody = Pool("nobody", object, (), run.config.rollout, in_process=True)
    squad = SimpleNamespace(
        version=SimpleNamespace(name="v0"), rollouts=nobody, judges=nobody, bring_up=lambda *_: None
    )
    begun, watch = Sampled({}, "v0"), Observer(run.config, None)
    stream = Stream(run.config, world, squad, watch, lambda _, found: begun.add(found))  # type: ignore[arg-type]
    chunks = [one for one in schedule.chunks(run.config, world, epoch) if one.phase == "reward"]
    names = {name for chunk in chunks for name in chunk.auction_ids}
    stream.add(chunks, served.served_answers(run.place, names) if names else {})
    stream.work(1)
    assert not stream.busy
    return begun


def _taken(run: Run) -> World:
    """The run's world as the world stage commits it, with a test query that the User-LLM would ask."""
    world = served.take_served(run, _simulated(run.config))
    tested = onlinedata.held_out_users(run.config, _simulated(run.config))[0]
    asked = build.query_from_text(tested, 0, "best mugs?", "test")
    assert asked is not None
    store.save_world(replace(world, queries=(*world.queries, asked)), run.path / "world")
    return store.load_world(run.path / "world")


def test_an_epoch_holds_them_answered_and_asks_again_with_fresh_bids(
    market: Market, listings: list[Listing], tmp_path: Path
) -> None:
    for number in range(4):
        _serve(market, listings, number)
    run = Run.create(tmp_path / "run", _config(market))
    world = _taken(run)
    planned = schedule.auctions(run.config, world, 1)
    by_phase = {
        name: [one for one in planned if one.phase == name] for name in ("reward", "preference", "test")
    }
    assert [one.n for one in by_phase["reward"]] == [0, 0]
    assert [one.n for one in by_phase["preference"]] == [3, 3]
    assert len(by_phase["test"]) == 1
    for judged, again in zip(by_phase["reward"], by_phase["preference"], strict=True):
        assert (judged.query, judged.profile, judged.ads) == (again.query, again.profile, again.ads)
        assert judged.auction.bids == (64, 30)
        assert again.auction.bids != judged.auction.bids
    rows = rows_of(world, _begun(run, world, 1), "reward")
    assert [row.sample_id for row in rows] == [f"{one.auction.id}/0" for one in by_phase["reward"]]
    assert {row.clicked for row in rows} == {False}
    second = schedule.auctions(run.config, world, 2)
    assert not {one.auction.id for one in planned if one.phase != "test"} & {
        one.auction.id for one in second if one.phase != "test"
    }
    assert {one.phase for one in schedule.auctions(run.config, world, 3)} == {"test"}


def test_an_auction_is_consumed_once_along_a_line_of_weights(
    market: Market, listings: list[Listing], tmp_path: Path
) -> None:
    first = [_serve(market, listings, number) for number in range(2)]
    run = Run.create(tmp_path / "first", _config(market))
    world = _taken(run)
    run.commit("world", [], {})
    for epoch in (1, 2):
        begun = _begun(run, world, epoch)
        run.commit(f"epoch-{epoch}/sample", [one.sample_id for one in begun.answers], {})
    later = _serve(market, listings, 2)
    on_top = _config(market)
    on_top = on_top.model_copy(
        update={"ad_llm": on_top.ad_llm.model_copy(update={"path": str(run.weights("v2"))})}
    )
    assert onlinedata.consumed(on_top) == {auction.id for auction in first}
    data = onlinedata.read_served(on_top, _simulated(on_top))
    assert [query.id for query in data.world.queries] == [later.id]
    assert dict(data.world.notes) == {"consumed before": 2}
    assert onlinedata.consumed(_config(market)) == set()
    half = Run.create(tmp_path / "half", _config(market))
    _taken(half)
    half.commit("world", [], {})
    half.commit("epoch-1/sample", [], {})
    on_half = on_top.model_copy(
        update={"ad_llm": on_top.ad_llm.model_copy(update={"path": str(half.weights("v1"))})}
    )
    assert onlinedata.consumed(on_half) == {one.id for one in first}, "the later one was not sampled"


def test_a_run_without_served_auctions_begins_with_no_answers(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", parse_config({}, "test"))
    world = replace(_simulated(run.config), queries=())
    assert _begun(run, world, 1).answers == []
