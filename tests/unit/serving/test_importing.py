"""Ads of tables and worlds in the store: bids, landing pages, descriptions, and whose settings hold."""

from __future__ import annotations

import datetime as dt
import sqlite3
from pathlib import Path

from alembic import command
from alembic.config import Config as Alembic
from sqlalchemy import create_engine
from typer.testing import CliRunner

from raylla.cli import app
from raylla.config import Serving, parse
from raylla.records import Ad
from raylla.runs.state import Run
from raylla.serving.auction.eligibility import Eligibility
from raylla.serving.money.records import Listing
from raylla.serving.store import models, open_store
from raylla.world.build import scattered_id
from raylla.world.store import save
from tests.unit.serving.test_store import world

NOW = dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC)


def _listings(url: str) -> list[Listing]:
    store = open_store(url)
    catalogue = Eligibility(store, Serving()).refresh(NOW)
    found = [catalogue.listing(row) for row in range(catalogue.rows)]
    store.close()
    return found


def test_a_table_comes_in_with_its_bids_and_landing_pages(tmp_path: Path) -> None:
    rows = [
        "name,category,url,bid,description",
        "Mug,tea,https://www.lumo.example/mug,7," + "long " * 100,
        "Pot,tea,lumo.example,3,",
        "Tent,camping,,,",
        "Pan,cooking,,2.5,",
        "Lid,cooking,,21,",
        "Jar,cooking,,20,",
    ]
    (tmp_path / "ads.csv").write_text("\n".join(rows))
    url = f"sqlite:///{tmp_path}/store.db"
    arguments = ["campaigns", "import", str(tmp_path / "ads.csv"), "--database", url, "--set"]
    answer = CliRunner().invoke(
        app, [*arguments, "world.max_bid=20", "--set", "serving.micros_per_unit=1000"]
    )
    assert answer.exit_code == 0, answer.output
    assert "line 5: bid=2.5: bids are whole units from 1 to world.max_bid=20" in answer.output
    assert "line 6: bid=21" in answer.output
    assert "4 ads in 3 campaigns of 3 advertisers" in answer.output
    found = {one.ad.title: one for one in _listings(url)}
    assert {title: one.bid_micros for title, one in found.items() if title != "Tent"} == {
        "Mug": 7000,
        "Pot": 3000,
        "Jar": 20_000,
    }
    assert 1000 <= found["Tent"].bid_micros <= 20_000
    assert found["Tent"].bid_micros % 1000 == 0
    assert {title: (one.domain, one.url) for title, one in found.items()} == {
        "Mug": ("lumo.example", "https://www.lumo.example/mug"),
        "Pot": ("lumo.example", "https://lumo.example/"),
        "Tent": ("camping.example", "https://camping.example/ads/tent"),
        "Jar": ("cooking.example", "https://cooking.example/ads/jar"),
    }
    assert found["Mug"].ad.description == ("long " * 60).strip()
    assert [one.ad.id for one in _listings(url)][:2] == [scattered_id(0), scattered_id(1)]
    again = CliRunner().invoke(app, [*arguments, "world.max_bid=20"])
    assert again.exit_code == 0  # the store numbers ads that have no ids of their own


def test_a_runs_own_settings_are_those_of_its_import(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    tree = {"world": {"max_bid": 3}, "serving": {"micros_per_unit": 500, "database": url}}
    run = Run.create(tmp_path / "run", parse(tree, "test"))
    save(world(), run.path / "world")
    answer = CliRunner().invoke(app, ["campaigns", "import", str(tmp_path / "run")])
    assert answer.exit_code == 0, answer.output
    assert {one.bid_micros for one in _listings(url)} <= {500, 1000, 1500}
    config = tmp_path / "endpoint.yaml"
    config.write_text(f"serving: {{micros_per_unit: 7, database: 'sqlite:///{tmp_path}/other.db'}}")
    arguments = ["campaigns", "import", str(tmp_path / "run"), "--config", str(config)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert all(one.bid_micros % 7 == 0 for one in _listings(f"sqlite:///{tmp_path}/other.db"))


def test_a_store_from_before_descriptions_opens(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    config = Alembic()
    config.set_main_option("script_location", str(Path(models.__file__).parent / "migrations"))
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    with sqlite3.connect(path) as old:
        old.execute("INSERT INTO advertisers VALUES ('adv_1', 'Lumo', 'lumo.example', '2026-01-01', 0, 0)")
        old.execute(
            "INSERT INTO campaigns VALUES ('cmp_1', 'adv_1', 'c', 1, 'asap', NULL, NULL, NULL, NULL, 0, "
            "'2026-01-01', 1)"
        )
        old.execute(
            "INSERT INTO ads (id, row, campaign_id, title, category, theme, url, labels, bid_micros, "
            "paused, created, version) "
            "VALUES ('1', 0, 'cmp_1', 'Cup', 'c', 't', 'u', '[]', 1, 0, '2026-01-01', 1)"
        )
        old.execute("UPDATE counters SET value = 1 WHERE name IN ('catalogue', 'row')")
    assert [one.ad for one in _listings(f"sqlite:///{path}")] == [Ad("1", "Cup", "c", "t")]
