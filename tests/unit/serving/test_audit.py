"""The audit finds every amount that somebody changed behind raylla's back, and names it."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from typer.testing import CliRunner

from raylla.cli import app
from raylla.serving.billing.audit import audit
from raylla.serving.money.records import PriceRule
from raylla.serving.store import Store, models
from tests.unit.serving.market import PLAIN, Market


@pytest.fixture
def busy(market: Market, store: Store) -> Store:
    """A store in which everything has happened once."""
    seat = market.seat()
    listing = market.listing(seat, bid=40, budget=100 * 40 * 10_000)
    for rule in PLAIN:
        auction = market.served(listing, rule=rule)
        for _ in range(2):
            store.click(market.claims(auction), market.now)
    poor = market.listing(seat, bid=9, budget=10)
    store.click(market.claims(market.served(poor)), market.now)
    market.served(poor, rule=PriceRule.EXPECTED)
    store.settle(market.now)
    store.click(market.claims(market.served(listing, rule=PriceRule.RESAMPLED)), market.now)
    store.parties.pay(seat, 77, "USD", "INV-1", market.now)
    return store


def tamper(store: Store, *statements: str) -> None:
    """Change the books as someone with the database's password could, triggers put back after."""
    with store.database.writing() as session:
        triggers = session.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")).all()
        for name, _ in triggers:
            session.execute(text(f"DROP TRIGGER {name}"))
        for statement in statements:
            assert session.execute(text(statement)).rowcount > 0  # type: ignore[attr-defined]
        for _, sql in triggers:
            session.execute(text(sql))


def test_untouched_books_add_up(busy: Store) -> None:
    found = audit(busy)
    assert found.discrepancies == []
    assert (found.counts["ledger"], found.counts["clicks"], found.counts["auctions"]) == (6, 8, 6)


@pytest.mark.parametrize(
    ("statement", "field"),
    [
        ("UPDATE ledger SET amount_micros = amount_micros + 1 WHERE id = 1", "amount_micros"),
        ("UPDATE ledger SET amount_micros = amount_micros - 1 WHERE kind = 'settlement'", "amount_micros"),
        ("UPDATE ledger SET amount_micros = 78 WHERE kind = 'payment'", "balance_micros"),
        ("UPDATE ledger SET spent_micros = spent_micros + 1 WHERE id = 2", "spent_micros"),
        ("UPDATE ledger SET budget_micros = 1 WHERE id = 1", "budget_micros"),
        ("UPDATE ledger SET day = '2026-11-24' WHERE id = 1", "day"),
        ("UPDATE ledger SET weight_version = 'v9' WHERE id = 1", "weight_version"),
        ("UPDATE ledger SET kind = 'accrual' WHERE id = 1", "kind"),
        ("UPDATE ledger SET click_id = NULL WHERE id = 1", "click_id"),
        ("UPDATE ledger SET price_rule = 'expected' WHERE id = 1", "price_rule"),
        ("UPDATE ledger SET through = 1 WHERE kind = 'settlement'", "amount_micros"),
        ("DELETE FROM ledger WHERE id = 1", "ledger line"),
        ("DELETE FROM ledger WHERE kind = 'payment'", "balance_micros"),
        ("UPDATE advertisers SET balance_micros = balance_micros + 1", "balance_micros"),
        ("UPDATE advertisers SET accrued_micros = accrued_micros + 1", "accrued_micros"),
        ("UPDATE spend SET spent_micros = spent_micros - 1 WHERE spent_micros > 0", "spent_micros"),
        ("UPDATE campaigns SET daily_budget_micros = daily_budget_micros + 1", "daily_budget_micros"),
        ("UPDATE clicks SET outcome = 'test' WHERE outcome = 'charged'", "ledger line"),
        ("UPDATE clicks SET outcome = 'charged' WHERE outcome = 'budget'", "ledger line"),
        ("DELETE FROM clicks WHERE outcome = 'billed_at_impression'", "outcome"),
        ("UPDATE impressions SET price_micros = price_micros + 1", "impressions"),
        ("UPDATE auctions SET record = json_set(record, '$.query', 7)", "record"),
        ("UPDATE auctions SET record = json_remove(record, '$.impressions')", "record"),
        ("UPDATE auctions SET record = 'null'", "record"),
        ("UPDATE auctions SET record = '{'", "record"),
        ("UPDATE auctions SET record = '{' WHERE price_rule = 'expected'", "record"),
        ("UPDATE auctions SET price_rule = 'none'", "price_rule"),
        ("UPDATE impressions SET pctr = 2", "price of its impression"),
        ("UPDATE impressions SET bid_micros = bid_micros + 10000", "amount_micros"),
        ("UPDATE impressions SET billed = 'per_click' WHERE billed = 'charged'", "billed"),
        ("UPDATE impressions SET billed = 'charged' WHERE billed = 'budget'", "ledger line"),
        ("UPDATE auctions SET weight_version = 'v9'", "weight_version"),
        ("UPDATE auctions SET resample_share = 0.5 WHERE price_rule = 'resampled'", "resample_share"),
        ("UPDATE budgets SET daily_budget_micros = 10000000 WHERE daily_budget_micros = 10", "charge"),
    ],
)
def test_a_change_is_found(busy: Store, statement: str, field: str) -> None:
    tamper(busy, statement)
    assert field in {one.field for one in audit(busy).discrepancies}


def test_a_budget_that_was_passed_is_found(busy: Store) -> None:
    tamper(
        busy,
        "UPDATE budgets SET daily_budget_micros = 5 WHERE daily_budget_micros > 10",
        "UPDATE campaigns SET daily_budget_micros = 5 WHERE daily_budget_micros > 10",
        "UPDATE ledger SET budget_micros = 5 WHERE budget_micros > 10",
    )
    assert any(one.field.startswith("spend of cmp_") for one in audit(busy).discrepancies)


def test_a_missing_trigger_is_found(busy: Store) -> None:
    with busy.database.writing() as session:
        session.execute(text("DROP TRIGGER ledger_no_update"))
    assert [str(one) for one in audit(busy).discrepancies] == [
        "trigger ledger_no_update: state is missing, should be in place"
    ]


@pytest.mark.parametrize("table", models.APPEND_ONLY)
@pytest.mark.parametrize("change", ["UPDATE {} SET id = id", "DELETE FROM {}"])
def test_the_books_are_append_only(busy: Store, market: Market, table: str, change: str) -> None:
    click = busy.database.reading()
    with click as session:
        id = session.query(models.StoredClick.id).filter_by(outcome="charged").scalar()
    busy.convert(id, "A-1", 1, None, market.now)
    with pytest.raises(DBAPIError, match="append-only"), busy.database.writing() as session:
        session.execute(text(change.format(table)))
    assert audit(busy).discrepancies == []


def test_the_command_names_what_is_wrong_and_fails(busy: Store) -> None:
    url = str(busy.database)
    runner = CliRunner()
    fine = runner.invoke(app, ["audit", "--database", url])
    assert (fine.exit_code, "everything adds up" in fine.output) == (0, True)
    tamper(busy, "UPDATE ledger SET amount_micros = amount_micros + 1 WHERE id = 1")
    wrong = runner.invoke(app, ["audit", "--database", url])
    assert wrong.exit_code == 1
    assert "ledger 1: amount_micros is 400001, should be 400000" in wrong.output
    missing = runner.invoke(app, ["audit", "--database", "sqlite:////nowhere/at/all.db"])
    assert missing.exit_code == 2
    assert "--database: /nowhere/at/all.db does not exist" in missing.output
