"""The store's books beside a second ledger, and many at once on a budget of one click."""

from __future__ import annotations

from pathlib import Path

import pytest

from raylla.serving.store import Store
from tests.chaos import races
from tests.chaos.ledger import Trading
from tests.chaos.second import Second


def nothing(_: str) -> None:
    """Say nothing."""


@pytest.mark.slow
def test_two_ledgers_agree_after_the_same_events_and_crashes(store: Store) -> None:
    report = Trading(str(store.database), seed=1).run(2_000, 300, nothing)
    assert report.examples == []
    assert not report.differences
    events = report.events
    assert events["killed before the commit"] + events["killed behind the commit"] >= 5
    assert min(events[kind] for kind in ("settlement", "payment again", "late click", "taken back")) > 10
    assert events["lines of the ledger"] > 500


def test_a_difference_is_seen(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    pay = Second.pay

    def too_much(self: Second, who: str, reference: str, amount: int) -> int:
        return pay(self, who, reference, amount + 1)

    monkeypatch.setattr(Second, "pay", too_much)
    report = Trading(str(store.database), seed=1).run(200, 10**9, nothing)
    assert {"balance", "line", "accounts"} <= set(report.differences)


def test_of_many_at_once_on_a_budget_of_one_click_one_is_charged(store: Store) -> None:
    found = races.run(store, times=2, actors=16)
    assert found == races.Races(races=2, charged=races.Counter({1: 2}))


def test_the_commands_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(races, "ACTORS", 8)
    path = tmp_path / "races.json"
    monkeypatch.setattr("sys.argv", ["races", "--times", "1", "--json", str(path)])
    assert races.main() == 0
    assert '"races": 1' in path.read_text()
