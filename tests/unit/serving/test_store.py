"""The database: opened, migrated from empty, opened again, shared by processes; a world imported."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from typer.testing import CliRunner

from raylla.cli import app
from raylla.config import Config, Serving
from raylla.errors import ClashError, StoreError, UnknownError
from raylla.records import Ad, Profile, Query
from raylla.runs.state import Run
from raylla.serving.auction.eligibility import Eligibility
from raylla.serving.billing.audit import audit
from raylla.serving.store import CampaignTerms, Store, models, open_store
from raylla.serving.store.importing import list_world
from raylla.world import World
from raylla.world.build import scattered_id
from raylla.world.store import save_world
from tests.unit.serving.market import UNIT, Market

NOW = dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC)


def world(ads: int = 6) -> World:
    listed = tuple(
        Ad(str(2000 + one), f"Cup {one}", f"category {one % 3}", f"theme {one % 2}") for one in range(ads)
    )
    profiles = (Profile("p0", "", ()), Profile("p1", "", ()))
    queries = (Query("q0", "p0", "what?", "", "", "train"), Query("q1", "p1", "what?", "", "", "test"))
    return World("small", 0, profiles, listed, queries)


def test_migrations_make_exactly_the_models(store: Store) -> None:
    with store.database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), models.Base.metadata) == []


def test_opening_again_keeps_everything(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/deep/er/store.db"
    first = open_store(url)
    id = first.parties.add_advertiser("Lumo", "lumo.example", NOW).id
    first.close()
    again = open_store(url, must_exist=True)
    assert again.parties.advertiser(id).created == NOW
    again.close()


def test_many_may_open_an_empty_database_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    with ThreadPoolExecutor(4) as threads:
        stores = list(threads.map(open_store, [url] * 4))
    id = stores[0].parties.add_advertiser("Lumo", "lumo.example", NOW).id
    assert {one.parties.advertiser(id).name for one in stores} == {"Lumo"}
    for one in stores:
        one.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "no database URL"),
        ("mysql://localhost/x", "mysql is not supported"),
        ("sqlite://", "in memory"),
        ("sqlite:////proc/nowhere/x.db", "nowhere"),
        ("postgresql+psycopg://nobody:secret@127.0.0.1:1/x", "cannot be opened"),
        ("postgresql+nodriver://localhost/x", "nodriver"),
    ],
)
def test_an_unusable_database_is_named_without_its_password(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


def test_something_else_than_a_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    path.write_text("not a database " * 100)
    with pytest.raises(StoreError, match="not a database"):
        open_store(f"sqlite:///{path}")


def test_a_database_of_a_newer_version_is_refused(store: Store) -> None:
    with store.database.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match="another version"):
        open_store(str(store.database))


def test_a_failed_transaction_leaves_nothing(store: Store, market: Market) -> None:
    with pytest.raises(UnknownError):
        store.parties.add_campaign("adv_0", CampaignTerms("c", 1), NOW)
    listing = market.listing(market.seat())
    before = audit(store).counts.copy()

    def half() -> None:
        with store.database.writing() as session:
            session.get_one(models.StoredCampaign, listing.campaign_id).daily_budget_micros = 5
            session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert audit(store).counts == before
    assert audit(store).discrepancies == []


CLICKER = """
import sys, json, datetime as dt
from raylla.serving.store import open_store
from raylla.serving.security.tokens import Claims
store = open_store(sys.argv[1])
now = dt.datetime.fromisoformat(sys.argv[2])
print(json.dumps([store.click(Claims(*one), now).outcome for one in json.loads(sys.argv[3])]))
"""


def test_processes_share_the_store_without_a_double_charge(store: Store, market: Market) -> None:
    seat = market.seat()
    listing = market.listing(seat, bid=10, budget=50 * UNIT)
    claims = [dataclasses.astuple(market.claims(market.served(listing))) for _ in range(8)]
    command = [sys.executable, "-c", CLICKER, str(store.database), NOW.isoformat(), json.dumps(claims)]
    clickers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outcomes = [one for clicker in clickers for one in json.loads(clicker.communicate(timeout=120)[0])]
    assert outcomes.count("charged") == 5
    assert outcomes.count("budget") == 3
    assert outcomes.count("replay") == 16
    assert store.parties.advertiser(seat).balance_micros == -50 * UNIT
    assert audit(store).discrepancies == []


def test_a_world_comes_in_whole_with_bids_fixed_by_the_seed(store: Store, tmp_path: Path) -> None:
    done = list_world(store, world(), Serving(), 100, 7, NOW)
    assert (done.advertisers, done.campaigns, done.ads) == (2, 6, 6)
    other = open_store(f"sqlite:///{tmp_path}/other.db")
    list_world(other, world(), Serving(), 100, 7, NOW)
    found = []
    for one in (store, other):
        catalogue = Eligibility(one, Serving()).refresh(NOW)
        listings = [catalogue.listing(row) for row in range(catalogue.rows)]
        assert {one.ad for one in listings} == set(world().ads)
        assert all(1 <= one.bid_micros // UNIT <= 100 and one.bid_micros % UNIT == 0 for one in listings)
        found.append({one.ad.id: one.bid_micros for one in listings})
    assert found[0] == found[1]
    assert len(set(found[0].values())) > 1
    with pytest.raises(ClashError, match="already"):
        list_world(store, world(), Serving(), 100, 8, NOW)
    assert audit(store).counts["advertisers"] == 2
    other.close()


def test_ids_given_by_the_store_avoid_those_of_the_world(store: Store, market: Market) -> None:
    ads = tuple(Ad(scattered_id(one), f"Cup {one}", "c", "t") for one in range(3))
    list_world(store, World("near", 0, (), ads), Serving(), 100, 0, NOW)
    assert market.listing(market.seat()).ad.id == scattered_id(3)


def test_the_import_command_takes_a_world_or_a_run(tmp_path: Path) -> None:
    save_world(world(), tmp_path / "run" / "world")
    for number, source in enumerate((tmp_path / "run", tmp_path / "run" / "world")):
        url = f"sqlite:///{tmp_path}/{number}.db"
        answer = CliRunner().invoke(app, ["campaigns", "import", str(source), "--database", url])
        assert answer.exit_code == 0, answer.output
        assert "6 ads in 6 campaigns of 2 advertisers" in answer.output
        assert CliRunner().invoke(app, ["audit", "--database", url]).exit_code == 0


def test_a_runs_ads_are_imported_with_the_runs_settings(tmp_path: Path) -> None:
    place = tmp_path / "run"
    tree = {"serving": {"micros_per_unit": 25_000}, "world": {"max_bid": 3}}
    Run.create(place, Config.model_validate(tree))
    save_world(world(12), place / "world")
    for extra, unit in (((), 25_000), (("--set", "serving.micros_per_unit=7"), 7)):
        url = f"sqlite:///{tmp_path}/{unit}.db"
        answer = CliRunner().invoke(app, ["campaigns", "import", str(place), "--database", url, *extra])
        assert answer.exit_code == 0, answer.output
        opened = open_store(url)
        with opened.database.reading() as session:
            bids = {row.bid_micros for row in session.query(models.StoredAd)}
            budgets = {row.daily_budget_micros for row in session.query(models.StoredCampaign)}
        opened.close()
        assert bids <= {unit, 2 * unit, 3 * unit}
        assert len(bids) > 1
        assert budgets == {100_000 * unit}


@pytest.mark.parametrize("url", ["postgresql+psycopg://u:pass@h:word/x", "sqlite:///{}/a.db?timeout=x"])
def test_a_database_url_that_is_none_is_named_without_its_password(tmp_path: Path, url: str) -> None:
    with pytest.raises(StoreError, match=r"serving\.database") as caught:
        open_store(url.format(tmp_path))
    assert "word" not in str(caught.value).replace("password", "")
