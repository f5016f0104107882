"""What is compared before a version is promoted; the Serve config; the secrets of a local run."""

from __future__ import annotations

import datetime as dt
import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from raylla.config import Config
from raylla.errors import ConfigError, TokenError
from raylla.serving.deploy import app
from raylla.serving.deploy.deploy import compare_canary
from raylla.serving.deploy.versions import Target
from raylla.serving.money.records import Listing, PriceRule, Served
from raylla.serving.security import keyring
from raylla.serving.security.keys import Access, Role
from raylla.serving.security.tokens import TokenKeys
from raylla.serving.store import Store
from tests.unit.serving.market import MU, UNIT, Market


def served(
    market: Market, canary: bool, clicked: bool, cup: Listing | None = None, **how: object
) -> Served:
    auction = market.auction(cup or market.listing(market.seat(), bid=50), **how)  # type: ignore[arg-type]
    version = "v2" if canary else "v1"
    auction = replace(auction, canary=canary, weight_version=version, violations={"malformed": int(canary)})
    market.store.record(auction)
    if clicked:
        market.store.click(market.claims(auction), market.now)
    return market.store.auction(auction.id)


def test_the_sides_are_compared_with_intervals(market: Market) -> None:
    cup = market.listing(market.seat(), bid=50)
    found = [served(market, place % 4 == 0, place % 2 == 0, cup) for place in range(200)]
    counts, figures = compare_canary(found, "v2", Config())
    assert counts == {"stable": 150, "canary": 50}
    revenue = figures["revenue"]
    assert revenue["canary"]["mean"] == 50
    assert revenue["stable"]["mean"] == pytest.approx(50 / 3)
    difference = revenue["difference"]
    assert 0 < difference["low"] < difference["mean"] == pytest.approx(100 / 3)
    assert figures["format_errors"]["difference"]["mean"] == 1
    assert figures["expected_revenue"]["stable"]["mean"] == pytest.approx(50 * 0.3)
    assert figures["reward"]["canary"] == {"mean": 1.0, "low": 1.0, "high": 1.0}


def test_another_canary_before_counts_as_no_canary(market: Market) -> None:
    counts, figures = compare_canary([served(market, True, False)] * 3, "v3", Config())
    assert counts == {"stable": 3, "canary": 0}
    assert figures == {}


def test_expected_prices_are_revenue_without_a_click(market: Market) -> None:
    rows = [served(market, canary, False, rule=PriceRule.EXPECTED) for canary in (True, False) * 3]
    _, figures = compare_canary(rows, "v2", Config())
    assert figures["revenue"]["stable"]["mean"] == pytest.approx(50 * 0.3 * UNIT / 10_000)


def test_charged_revenue_is_what_the_ledger_holds(market: Market, store: Store) -> None:
    """Clicks beyond the budget are clicks, and no money; what was taken back is none either."""
    seat = market.seat()
    poor = market.listing(seat, bid=64, budget=64 * UNIT)
    rows = [served(market, True, True, poor) for _ in range(4)] + [served(market, False, True)] * 2
    assert [len(one.clicked) for one in rows[:4]] == [1] * 4
    _, figures = compare_canary(rows, "v2", Config())
    assert figures["revenue"]["canary"]["mean"] == 64 / 4
    assert store.revenue(market.now.date()) == (64 + 50) * UNIT
    store.void(seat, 1, market.now)
    again = [store.auction(one.auction.id) for one in rows]
    assert compare_canary(again, "v2", Config())[1]["revenue"]["canary"]["mean"] == 0
    assert store.revenue(market.now.date()) == 50 * UNIT
    assert store.revenue(market.now.date() + dt.timedelta(days=1)) == 0


def test_rebates_count_in_revenue(market: Market, store: Store) -> None:
    found = served(market, True, True, rule=PriceRule.RESAMPLED, resampled=True)
    assert found.charged_micros == store.revenue(market.now.date()) == round(50 * UNIT * (1 - 1 / MU))


def test_the_serve_config_names_what_each_deployment_is_told(tmp_path: Path) -> None:
    target = Target(str(tmp_path), "v3")
    for colocate, names in (
        (True, {"Ingress", "Canary"}),
        (False, {"Ingress", "Canary", "Engine", "Predictor"}),
    ):
        config = Config.model_validate({"serving": {"colocate": colocate, "port": 8123}})
        tree = json.loads(json.dumps(app.manifest(config, target)))
        (application,) = tree["applications"]
        assert tree["http_options"]["port"] == 8123
        assert {one["name"] for one in application["deployments"]} == names
        told = {one["name"]: one["user_config"] for one in application["deployments"]}
        assert told["Ingress"]["stable"] == {"run": str(tmp_path), "version": "v3"}
        assert Config.model_validate(application["args"]) == config


def test_serving_needs_a_run() -> None:
    with pytest.raises(ConfigError, match=r"serving\.run"):
        app.effective(Config(), None, None)


def test_secrets_are_made_once_and_are_the_owners_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (keyring.TOKEN_KEYS, keyring.ADMIN_KEY):
        monkeypatch.delenv(name, raising=False)
    database = f"sqlite:///{tmp_path}/deep/raylla.db"
    with pytest.raises(ConfigError, match="RAYLLA_ADMIN_KEY"):
        keyring.read_keyring(database)
    path = keyring.ensure(database)
    assert path is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    kept = keyring.read_keyring(database)
    TokenKeys.parse(kept.token_keys)
    assert keyring.ensure(database) is None
    assert keyring.read_keyring(database) == kept
    assert kept.admin_key not in repr(kept)
    monkeypatch.setenv(keyring.ADMIN_KEY, "from-the-environment")
    assert keyring.read_keyring(database).admin_key == "from-the-environment"
    with pytest.raises(ConfigError, match="RAYLLA_TOKEN_KEYS"):
        keyring.ensure("postgresql+psycopg://db/raylla")


def test_a_line_break_at_a_secrets_end_is_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    """Files that secrets are mounted from end with one."""
    secret = "an admin-key_for~tests"
    monkeypatch.setenv(keyring.TOKEN_KEYS, TokenKeys.make() + "\r\n")
    monkeypatch.setenv(keyring.ADMIN_KEY, f"{secret}\n")
    found = keyring.read_keyring(f"sqlite:///{tmp_path}/raylla.db")
    assert found.admin_key == secret
    assert keyring.ensure(f"sqlite:///{tmp_path}/raylla.db") is None
    for given in (found.admin_key, f"{secret}\n"):
        principal = Access(store.parties, given).principal(secret)
        assert principal is not None
        assert principal.role is Role.ADMIN
    for odd in ("caf\u00e9" * 9, "a\nb" * 9, "\ufeff" + secret):
        with pytest.raises(TokenError, match="header"):
            Access(store.parties, odd)
    monkeypatch.setenv(keyring.ADMIN_KEY, " \n")
    with pytest.raises(ConfigError, match="RAYLLA_ADMIN_KEY"):
        keyring.read_keyring(f"sqlite:///{tmp_path}/raylla.db")


@pytest.mark.parametrize("content", ["[]", '"a"', "null", "[" * 100_000, "{"])
def test_a_file_of_secrets_that_holds_none_is_refused_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    for name in (keyring.TOKEN_KEYS, keyring.ADMIN_KEY):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "x.keys.json").write_text(content)
    for door in (keyring.read_keyring, keyring.ensure):
        with pytest.raises(ConfigError, match=r"x\.keys\.json"):
            door(f"sqlite:///{tmp_path}/x.db")
    assert (tmp_path / "x.keys.json").read_text() == content
