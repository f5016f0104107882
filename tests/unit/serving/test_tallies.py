"""Reports add up to the ledger, by whatever they are grouped, and say what the rows say."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import random
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, select, text

from raylla.serving.billing.audit import audit
from raylla.serving.money.records import Filtered, PriceRule, Reason, ServedAuction
from raylla.serving.store import Store, models, open_store
from raylla.serving.store.ledger import earned
from raylla.serving.store.tallies import COUNTS, Group, Line, StoredTally, Wanted
from tests.unit.serving.market import PLAIN, UNIT, Market
from tests.unit.serving.test_ledger import upgrade

DAY = dt.timedelta(days=1)
LONG = 40 * 86_400.0
TIMES = ((), (Group.DAY,), (Group.HOUR,))
REST = [group for group in Group if group not in (Group.DAY, Group.HOUR)]
GROUPINGS = [
    (*time, *chosen)
    for time in TIMES
    for size in range(len(REST) + 1)
    for chosen in itertools.combinations(REST, size)
]


def traded(store: Store, market: Market, seed: int, events: int = 80) -> None:
    """Auctions, clicks, conversions, settlements and lines that are taken back, over three days."""
    rng = random.Random(seed)
    seats = [market.seat("Lumo"), market.seat("Vara")]
    listings = [market.listing(rng.choice(seats), bid=rng.randint(1, 100), budget=10**7) for _ in range(5)]
    held: list[ServedAuction] = []
    for _ in range(events):
        market.now += dt.timedelta(minutes=rng.randint(0, 180))
        act = rng.choices(["auction", "click", "convert", "void", "settle"], [4, 6, 2, 1, 1])[0]
        if act == "auction" or not held:
            rule = rng.choice(PLAIN)
            shown = rng.sample(listings, rng.randint(0, 3))
            lost = tuple(one for one in listings if one not in shown and rng.random() < 0.5)
            held.append(
                market.served(
                    *shown,
                    rule=rule,
                    resampled=rule is PriceRule.RESAMPLED and rng.random() < 0.5,
                    pctr=rng.random(),
                    lost=lost,
                    test=rng.random() < 0.2,
                )
            )
        elif act == "click":
            auction = rng.choice(held)
            if auction.impressions:
                index = rng.randrange(len(auction.impressions))
                store.click(market.claims(auction, index, rng.choice([60.0, LONG, LONG])), market.now)
        elif act == "settle":
            store.settle(market.now)
        else:
            _follow(store, market, rng, act)


def _follow(store: Store, market: Market, rng: random.Random, act: str) -> None:
    with store.database.reading() as session:
        clicks = session.scalars(
            select(models.StoredClick.id).where(models.StoredClick.outcome == "charged")
        ).all()
        taken = models.StoredEntry.kind.in_(("charge", "accrual"))
        lines = session.execute(
            select(models.StoredEntry.advertiser_id, models.StoredEntry.id).where(taken)
        ).all()
    if act == "convert" and clicks:
        store.convert(rng.choice(clicks), f"A-{rng.randrange(9)}", 5 * UNIT, None, market.now)
    elif act == "void" and lines:
        store.void(*rng.choice(lines), market.now)


def whole(market: Market, by: tuple[Group, ...], **of: str) -> Wanted:
    return Wanted(_tomorrow(market) - 41 * DAY, _tomorrow(market), by, **of)


def _tomorrow(market: Market) -> dt.datetime:
    return market.now.replace(hour=0, minute=0, second=0, microsecond=0) + DAY


def added(lines: list[Line]) -> dict[str, int]:
    return {name: sum(line.counts[name] for line in lines) for name in COUNTS}


def ledger(store: Store, since: dt.datetime | None = None, until: dt.datetime | None = None) -> int:
    query = select(earned())
    if since is not None and until is not None:
        query = query.where(models.StoredEntry.at >= since, models.StoredEntry.at < until)
    with store.database.reading() as session:
        return int(session.scalars(query).one())


@pytest.mark.parametrize("seed", range(3))
def test_every_grouping_adds_up_to_the_ledger(store: Store, market: Market, seed: int) -> None:
    traded(store, market, seed)
    assert audit(store).discrepancies == []
    of_all = store.report(whole(market, ()), 0, 1).total.counts
    assert of_all["charged_micros"] == ledger(store) != 0
    for by in GROUPINGS[seed::3]:
        found = store.report(whole(market, by), 0, 10_000)
        assert found.total.counts == of_all
        assert added(found.lines) == (of_all if by else dict.fromkeys(COUNTS, 0))
        assert len({tuple(line.of.values()) for line in found.lines}) == len(found.lines)
    for line in store.report(whole(market, (Group.DAY,)), 0, 100).lines:
        start = line.of[Group.DAY]
        assert line.counts["charged_micros"] == ledger(store, start, start + DAY)
    for line in store.report(whole(market, (Group.ADVERTISER,)), 0, 10).lines:
        own = store.report(whole(market, (), advertiser_id=line.of[Group.ADVERTISER]), 0, 1).total
        assert own.counts == line.counts


def test_a_report_says_what_happened(store: Store, market: Market) -> None:
    seat = market.seat()
    cup, mug = market.listing(seat, bid=40), market.listing(seat, bid=20)
    auction = market.served(cup, lost=(mug,), pctr=0.25)
    market.served(cup, lost=(mug,), test=True)
    claims = market.claims(auction, ttl=LONG)
    first = store.click(claims, market.now + dt.timedelta(hours=1))
    store.click(claims, market.now + dt.timedelta(hours=2))
    store.convert(first.click_id, "A-1", 7, None, market.now + DAY)
    by = (Group.DAY, Group.AD)
    wanted = Wanted(market.now - DAY, market.now + 2 * DAY, by, seat)
    lines = {(one.of[Group.DAY].day, one.of[Group.AD]): one.counts for one in _lines(store, wanted)}
    nothing = dict.fromkeys(COUNTS, 0)
    shown = {"impressions": 1, "clicked": 1, "clicks": 1, "expected_micros": 10 * UNIT}
    assert lines == {
        (25, cup.ad.id): nothing | shown | {"charged_micros": 40 * UNIT},
        (25, mug.ad.id): nothing | {"lost_not_placed": 1},
        (26, cup.ad.id): nothing | {"conversions": 1, "conversion_micros": 7},
    }
    hours = Wanted(market.now - DAY, market.now + DAY, (Group.HOUR,), ad_id=cup.ad.id)
    found = [(one.of[Group.HOUR].hour, one.counts["clicks"]) for one in _lines(store, hours)]
    assert found == [(12, 0), (13, 1)]


def _lines(store: Store, wanted: Wanted) -> list[Line]:
    since, until = wanted.since.replace(hour=0), wanted.until.replace(hour=0)
    whole_days = dataclasses.replace(wanted, since=since, until=until)
    return store.report(whole_days, 0, 100).lines


def test_a_click_whose_charge_is_taken_back_is_an_invalid_one_of_its_own_day(
    store: Store, market: Market
) -> None:
    seat = market.seat()
    cup = market.listing(seat, bid=40)
    store.click(market.claims(market.served(cup)), market.now)
    store.void(seat, 1, market.now + DAY)
    lines = _lines(store, Wanted(market.now, market.now + 2 * DAY, (Group.DAY,)))
    names = ("clicked", "clicks", "invalid_clicks", "charged_micros")
    assert [[line.counts[name] for name in names] for line in lines] == [
        [0, 0, 1, 40 * UNIT],
        [0, 0, 0, -40 * UNIT],
    ]
    assert audit(store).discrepancies == []


def test_losses_are_counted_by_reason_and_pauses_are_none(store: Store, market: Market) -> None:
    listings = [market.listing(market.seat()) for _ in range(4)]
    auction = market.auction(listings[0], lost=(listings[1],))
    filtered = (Filtered(listings[2].ad.id, Reason.BUDGET), Filtered(listings[3].ad.id, Reason.PAUSED))
    store.record(dataclasses.replace(auction, filtered=filtered))
    lines = store.report(whole(market, (Group.AD,)), 0, 10).lines
    names = ("impressions", "lost_not_placed", "lost_budget")
    assert {one.of[Group.AD]: [one.counts[name] for name in names] for one in lines} == {
        listings[0].ad.id: [1, 0, 0],
        listings[1].ad.id: [0, 1, 0],
        listings[2].ad.id: [0, 0, 1],
    }
    assert audit(store).discrepancies == []


@pytest.mark.parametrize("span", ["hour", "day"])
@pytest.mark.parametrize("column", ["impressions", "charged_micros", "lost_not_placed"])
def test_the_audit_names_a_tally_that_was_changed(
    store: Store, market: Market, span: str, column: str
) -> None:
    cup = market.listing(market.seat())
    store.click(market.claims(market.served(cup)), market.now)
    with store.database.writing() as session:
        change = f"UPDATE tallies SET {column} = {column} + 1 WHERE span = '{span}'"
        session.execute(text(change))
    (found,) = audit(store).discrepancies
    assert (found.field, found.found) == (column, found.expected + 1)  # type: ignore[operator]
    assert found.subject.startswith(f"tally of ad {cup.ad.id} under v1, {span} of 2026-11-25 ")


def test_the_audit_names_a_tally_that_is_missing(store: Store, market: Market) -> None:
    store.click(market.claims(market.served(market.listing(market.seat()))), market.now)
    with store.database.writing() as session:
        session.execute(text("DELETE FROM tallies WHERE span = 'hour'"))
    fields = {one.field for one in audit(store).discrepancies}
    assert fields == {"impressions", "clicked", "clicks", "expected_micros", "charged_micros"}


def test_a_store_of_before_gets_its_tallies(store: Store, market: Market, tmp_path: Path) -> None:
    traded(store, market, seed=5)
    url = f"sqlite:///{tmp_path}/old.db"
    engine = create_engine(url)
    upgrade(engine, "0004")
    with engine.begin() as connection:
        tables = [name for name in inspect(engine).get_table_names() if name != "alembic_version"]
        connection.execute(text("DELETE FROM counters"))
        connection.execute(text("DELETE FROM books"))
        connection.execute(text(f"ATTACH DATABASE '{store.database.url.database}' AS filled"))
        for table in tables:
            names = ", ".join(f'"{one["name"]}"' for one in inspect(engine).get_columns(table))
            copy = f'INSERT INTO "{table}" ({names}) SELECT {names} FROM filled."{table}"'
            connection.execute(text(copy))
    engine.dispose()
    opened = open_store(url)
    assert audit(opened).discrepancies == []
    query = select(*(getattr(StoredTally, name) for name in ("span", "start", "ad_id", *COUNTS)))
    with opened.database.reading() as ours, store.database.reading() as theirs:
        assert set(ours.execute(query)) == set(theirs.execute(query)) != set()
    opened.close()
