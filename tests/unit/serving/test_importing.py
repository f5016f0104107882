"""Ads of tables and worlds in the store: bids, landing pages, descriptions, and whose settings hold."""

from __future__ import annotations

import datetime as dt
import sqlite3
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config as Alembic
from sqlalchemy import create_engine
from typer.testing import CliRunner

from raylla.cli import app
from raylla.config import Serving, parse_config
from raylla.errors import WorldError
from raylla.records import Ad
from raylla.runs.state import Run
from raylla.serving.auction.eligibility import Eligibility
from raylla.serving.money.records import Listing
from raylla.serving.store import Store, models, open_store
from raylla.serving.store.importing import import_ads
from raylla.world.build import scattered_id
from raylla.world.store import save_world
from raylla.world.texts import landing
from tests.unit.serving.test_store import world

NOW = dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC)


def _listings(url: str) -> list[Listing]:
    store = open_store(url)
    catalogue = Eligibility(store, Serving()).refresh(NOW)
    found = [catalogue.listing(row) for row in range(catalogue.rows)]
    store.close()
    return found


def test_a_budget_beyond_what_an_account_holds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ads.csv").write_text("name,category\nMug,tea\n")
    url = f"sqlite:///{tmp_path}/store.db"
    arguments = ["campaigns", "import", str(tmp_path / "ads.csv"), "--database", url, "--daily-budget"]
    refused = CliRunner().invoke(app, [*arguments, str(10**15 + 1)])
    assert refused.exit_code == 2
    assert "--daily-budget" in refused.output
    assert CliRunner().invoke(app, [*arguments, str(10**15)]).exit_code == 0


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


def _imported(store: Store, *ads: Ad) -> list[Listing]:
    import_ads(store, "odd", ads, [1] * len(ads), Serving(), 100, 0, NOW)
    catalogue = Eligibility(store, Serving()).refresh(NOW)
    return [catalogue.listing(row) for row in range(catalogue.rows)]


def test_a_landing_page_is_kept_as_it_is_sent_to_browsers(store: Store) -> None:
    url = "https://\u4f8b\u3048.example/\u30ab\u30c3\u30d7"
    (one,) = _imported(store, Ad("7", "Lumo Floral Cup", "cups", "kitchen", "", url))
    assert one.url == landing(url) == "https://xn--r8jz45g.example/%E3%82%AB%E3%83%83%E3%83%97"
    assert one.domain == "xn--r8jz45g.example"
    with pytest.raises(WorldError, match="url='no url'"):
        _imported(store, Ad("8", "Cup", "cups", "kitchen", "", "no url"))


@pytest.mark.parametrize(
    "url",
    [
        "https://my_shop.example/mug",
        "http://203.0.113.5/x",
        "https://[::1]/",
        "https://localhost/",
        f"https://{'a' * 70}.example/",
    ],
)
def test_an_ad_of_a_host_without_a_domain_is_its_themes(store: Store, url: str) -> None:
    found = _imported(
        store, Ad("1", "Mug", "cups", "Kitchen", "", url), Ad("2", "Pan", "pans", "", "", url)
    )
    assert [(one.domain, one.url) for one in found] == [("kitchen.example", url), ("pans.example", url)]


def test_names_that_compare_as_one_are_one_advertiser(store: Store) -> None:
    pages = ("https://lumo.example./mug", "https://www.LUMO.example/m", "https://lumo.example/")
    themes = ("kitchen", "Kitchen ", " KITCHEN", "")
    ads = [Ad(str(number), "Mug", "cups", "t", "", url) for number, url in enumerate(pages)]
    ads += [Ad(str(number), "Mug", "Kitchen", theme) for number, theme in enumerate(themes, 10)]
    ads.append(Ad("20", "Mug", "Cups ", "t", "", pages[0]))
    done = import_ads(store, "odd", ads, [1] * len(ads), Serving(), 100, 0, NOW)
    assert (done.advertisers, done.campaigns, done.ads) == (2, 2, 8)
    assert {(one.name, one.domain) for one in store.parties.advertisers("", 10)} == {
        ("lumo.example", "lumo.example"),
        ("kitchen", "kitchen.example"),
    }
    assert {one.name for one in store.parties.campaigns(None, "", 10)} == {"cups", "Kitchen"}


def test_each_theme_has_a_domain_of_its_own(store: Store) -> None:
    themes = (
        "\u30ab\u30c3\u30d7",
        "\u304a\u8336",
        "caf\u00e9",
        "caf",
        "C++",
        "C",
        "x" * 79,
        "x" * 80,
        "Tea & Coffee",
    )
    found = _imported(store, *(Ad(str(number), "Mug", "c", theme) for number, theme in enumerate(themes)))
    domains = [one.domain for one in found]
    assert len(set(domains)) == len(themes)
    assert (domains[3], domains[5], domains[8]) == ("caf.example", "c.example", "tea-coffee.example")
    assert [one.url for one in found] == [f"https://{domain}/ads/{n}" for n, domain in enumerate(domains)]


def test_a_runs_own_settings_are_those_of_its_import(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    tree = {"world": {"max_bid": 3}, "serving": {"micros_per_unit": 500, "database": url}}
    run = Run.create(tmp_path / "run", parse_config(tree, "test"))
    save_world(world(), run.path / "world")
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
