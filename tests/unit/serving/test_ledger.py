"""Double entry: legs that sum to zero, a chain in which no line can be changed or lost, one currency."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config as Alembic
from sqlalchemy import Engine, create_engine, inspect, select, text
from starlette.testclient import TestClient
from typer.testing import CliRunner

from raylla.cli import app
from raylla.errors import StoreError, UnknownError
from raylla.serving.billing.audit import audit
from raylla.serving.money.records import PriceRule
from raylla.serving.store import Store, database, models, open_store
from raylla.serving.store.ledger import Account, legs
from tests.unit.serving.market import ADMIN_KEY, MU, PLAIN, UNIT, Market
from tests.unit.serving.test_audit import busy, tamper

__all__ = ["busy"]
HEADERS = {"Authorization": f"Bearer {ADMIN_KEY}"}


def lines(store: Store) -> list[models.StoredEntry]:
    with store.database.reading() as session:
        return list(session.scalars(select(models.StoredEntry).order_by(models.StoredEntry.id)))


def named(store: Store, known: dict[int, str] | None = None) -> set[tuple[str, str]]:
    return {(one.subject, one.field) for one in audit(store, known).discrepancies}


def test_every_event_moves_one_amount_between_two_accounts(market: Market, store: Store) -> None:
    seat = market.seat()
    listing = market.listing(seat, bid=10)
    for rule in PLAIN:
        auction = market.served(listing, rule=rule, pctr=0.5)
        store.click(market.claims(auction), market.now)
    store.settle(market.now)
    store.parties.pay(seat, 77, "USD", "INV-1", market.now)
    store.void(seat, 1, market.now)
    rebate = market.served(listing, rule=PriceRule.RESAMPLED, resampled=True)
    store.click(market.claims(rebate), market.now)
    bid = 10 * UNIT
    wanted = [
        ("charge", "advertiser", "revenue", bid),
        ("charge", "advertiser", "revenue", bid // 2),
        ("accrual", "accrued", "revenue", bid),
        ("settlement", "advertiser", "accrued", bid),
        ("payment", "cash", "advertiser", 77),
        ("invalid", "invalid", "advertiser", bid),
        ("accrual", "accrued", "revenue", round(bid * (1 - 1 / MU))),
    ]
    found = lines(store)
    assert [(one.kind, one.debit, one.credit, one.amount_micros) for one in found] == wanted
    assert [sum(amount for _, amount in legs(one)) for one in found] == [0] * 7
    advertiser = store.parties.advertiser(seat)
    report = audit(store)
    assert report.discrepancies == []
    assert report.accounts[Account.ADVERTISER] == advertiser.balance_micros == 77 - bid - bid // 2
    assert report.accounts[Account.ACCRUED] == -advertiser.accrued_micros == 9 * bid
    assert report.accounts[Account.INVALID] == -bid
    assert sum(report.accounts.values()) == 0


def test_what_invalid_traffic_was_charged_is_given_back_once(market: Market, store: Store) -> None:
    seat, other = market.seat(), market.seat("Vara")
    store.click(market.claims(market.served(market.listing(seat, bid=10))), market.now)
    first = store.void(seat, 1, market.now)
    assert store.void(seat, 1, market.now).id == first.id
    assert store.parties.advertiser(seat).balance_micros == 0
    for whose, line in ((other, 1), (seat, first.id), (seat, 99)):
        with pytest.raises(UnknownError, match="no charge or accrual"):
            store.void(whose, line, market.now)
    assert named(store) == set()


@pytest.mark.parametrize("settled", [False, True])
def test_an_accrual_is_taken_back_from_the_next_settlement(
    market: Market, store: Store, settled: bool
) -> None:
    seat = market.seat()
    listing = market.listing(seat, bid=10)

    def click() -> None:
        store.click(market.claims(market.served(listing, rule=PriceRule.RESAMPLED)), market.now)

    click()
    if settled:
        store.settle(market.now)
    store.void(seat, 1, market.now)
    for _ in range(3):
        click()
    assert [one.billed_micros for one in store.settle(market.now)] == [(2 if settled else 3) * 10 * UNIT]
    assert store.settle(market.now) == []
    assert named(store) == set()


def test_the_api_takes_back_for_admins_only(client: TestClient, market: Market, store: Store) -> None:
    seat = market.seat()
    store.click(market.claims(market.served(market.listing(seat, bid=10))), market.now)
    path = f"/v1/advertisers/{seat}/invalid"
    made = client.post(path, json={"line": 1}, headers=HEADERS)
    assert (made.status_code, made.json()["voids"], made.json()["credit"]) == (201, 1, "advertiser")
    assert client.post(path, json={"line": 9}, headers=HEADERS).status_code == 404
    key = {"role": "advertiser", "advertiser_id": seat, "name": "agency"}
    own = client.post("/v1/keys", json=key, headers=HEADERS).json()["key"]
    refused = client.post(path, json={"line": 1}, headers={"Authorization": f"Bearer {own}"})
    assert refused.status_code == 403


CHANGES = {
    "amount_micros": "amount_micros + 1",
    "at": "'2026-11-25 12:00:00.000001'",
    "weight_version": "'v9'",
    "reference": "'INV-2'",
    "debit": "'cash'",
    "currency": "'EUR'",
    "previous": "0",
    "seal": "'00'",
}


@pytest.mark.parametrize("column", CHANGES)
def test_a_changed_line_is_named_and_no_other(busy: Store, column: str) -> None:
    id = lines(busy)[-1].id if column == "reference" else 3
    tamper(busy, f"UPDATE ledger SET {column} = {CHANGES[column]} WHERE id = {id}")
    found = {subject for subject, field in named(busy) if field in ("seal", "previous")}
    assert found == {f"ledger {id}"} | ({"ledger 4"} if column == "seal" else set())


@pytest.mark.parametrize("gone", [[1], [3], [2, 3], [6], [5, 6]])
def test_a_missing_line_is_named_and_no_other(busy: Store, gone: list[int]) -> None:
    assert len(lines(busy)) == 6
    tamper(busy, f"DELETE FROM ledger WHERE id IN ({', '.join(map(str, gone))})")
    found = {subject for subject, field in named(busy) if field in ("line", "seal", "previous")}
    assert found == {f"ledger {id}" for id in gone}


def test_a_line_that_was_sealed_anew_is_found_by_a_seal_noted_elsewhere(busy: Store) -> None:
    noted = {one.id: one.seal for one in lines(busy)}
    payment = lines(busy)[-1]
    payment.reference = "INV-9"
    seal = database_seal(busy, payment)
    tamper(
        busy,
        f"UPDATE ledger SET reference = 'INV-9', seal = '{seal}' WHERE id = {payment.id}",
        f"UPDATE books SET seal = '{seal}'",
    )
    assert named(busy) == set()
    assert named(busy, {payment.id: noted[payment.id]}) == {(f"ledger {payment.id}", "seal")}
    assert named(busy, {99: "00"}) == {("ledger 99", "line")}


def database_seal(store: Store, line: models.StoredEntry) -> str:
    from raylla.serving.store.ledger import sealed

    return sealed(next(one.seal for one in lines(store) if one.id == line.previous), line)


def test_the_command_prints_the_seal_and_holds_the_books_against_it(busy: Store) -> None:
    runner, url = CliRunner(), str(busy.database)
    printed = runner.invoke(app, ["audit", "--database", url])
    assert "accounts: " in printed.output
    seal = next(line for line in printed.output.splitlines() if line.startswith("sealed ")).split()[1]
    assert seal == f"6:{lines(busy)[-1].seal}"
    assert runner.invoke(app, ["audit", "--database", url, "--sealed", seal]).exit_code == 0
    assert runner.invoke(app, ["audit", "--database", url, "--sealed", "6:00"]).exit_code == 1
    assert runner.invoke(app, ["audit", "--database", url, "--sealed", "six"]).exit_code == 2


def test_a_store_has_one_currency(market: Market, store: Store) -> None:
    seat = market.seat()
    listing = market.listing(seat)
    auction = market.served(listing)
    store.click(market.claims(auction), market.now)
    yen = dataclasses.replace(market.auction(listing), currency="JPY")
    with pytest.raises(StoreError, match=r"serving\.currency=JPY.*is in USD"):
        store.record(yen)
    assert [type(one) for one in store.record_together([yen, market.auction(listing)])] == [
        StoreError,
        type(None),
    ]
    with pytest.raises(StoreError, match=r"serving\.currency=EUR"):
        store.parties.pay(seat, 5, "EUR", "INV-1", market.now)
    again = open_store(str(store.database))
    with pytest.raises(StoreError, match="one currency"):
        again.denominate("EUR")
    again.denominate("USD")
    again.close()
    assert named(store) == set()


def test_the_audit_names_what_is_in_another_currency(busy: Store) -> None:
    tamper(busy, "UPDATE books SET currency = 'EUR'")
    found = named(busy)
    assert {(f"ledger {id}", "currency") for id in range(1, 7)} <= found
    assert sum(field == "currency" and subject.startswith("auction ") for subject, field in found) == 6


def upgrade(engine: Engine, revision: str) -> None:
    """Bring an empty database to the tables of ``revision``."""
    config = Alembic()
    config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def old_store(path: Path, busy: Store) -> str:
    """A store of the first tables with what ``busy`` holds."""
    url = f"sqlite:///{path}"
    engine = create_engine(url)
    upgrade(engine, "0001")
    columns = {
        table: [column["name"] for column in inspect(engine).get_columns(table)]
        for table in models.Base.metadata.tables
        if inspect(engine).has_table(table)
    }
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM counters"))
        connection.execute(text(f"ATTACH DATABASE '{busy.database.url.database}' AS filled"))
        for table, names in columns.items():
            listed = ", ".join(names)
            copy = f'INSERT INTO {table} ({listed}) SELECT {listed} FROM filled."{table}"'
            connection.execute(text(copy.replace(", row,", ', "row",')))
    engine.dispose()
    return url


def test_a_store_of_before_gets_accounts_and_a_chain(busy: Store, tmp_path: Path) -> None:
    opened = open_store(old_store(tmp_path / "old.db", busy))
    assert named(opened) == set()
    found = lines(opened)
    assert [(one.id, one.previous, one.seal) for one in found] == [
        (one.id, one.previous, one.seal) for one in lines(busy)
    ]
    with pytest.raises(StoreError, match="is in USD"):
        opened.denominate("JPY")
    paid = opened.parties.pay(found[0].advertiser_id, 5, "USD", "INV-2", found[0].at)
    assert (paid.id, paid.previous) == (7, 6)
    assert named(opened) == set()
    with pytest.raises(Exception, match="append-only"), opened.database.writing() as session:
        session.execute(text("UPDATE ledger SET kind = 'payment'"))
    opened.close()
