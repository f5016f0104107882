"""What prices are learned from: a log, a run's records, a store; and what is refused, in which words."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from raylla.auction import markup
from raylla.cli import app
from raylla.config import Config
from raylla.errors import ConfigError, DataError, RunError
from raylla.evaluation.prices import commands
from raylla.evaluation.prices.sources import of_run, of_store
from raylla.irpo.schedule import auctions
from raylla.pricing.curve import traits_of
from raylla.pricing.logs import LoggedAuction, check_log
from raylla.pricing.reserves import Reserves
from raylla.pricing.sheet import written
from raylla.records import Answer, Click
from raylla.runs.state import Run, save_records, write_text
from raylla.serving.store import open_store
from raylla.strictjson import dumps
from raylla.world.store import save_world
from tests.unit.serving.market import SHEET, UNIT
from tests.worlds import asked_world

CONFIG = Config.model_validate(
    {"world": {"profiles": 12, "queries_per_profile": 1, "candidates": 3}, "irpo": {"epochs": 1}}
)
GOOD = LoggedAuction(
    "which tea?",
    (40.0, 60.0),
    ((1, 1, 0), (0, 0, 0)),
    (("tea", "food"), ("cars", "travel")),
    4,
    (1.5, 0.5),
    (1.0, 0.5),
    (1.0, 0.2),
)


def finished(path: Path) -> Run:
    """A run of one epoch: of each auction one judged answer places the first ad, one unread the first two,
    one none."""
    run, world = Run.create(path, CONFIG), asked_world(CONFIG.world)
    save_world(world, run.path / "world")
    directory = run.fresh(run.records("epoch-1/sample"))
    answers, clicks = [], []
    for one in auctions(CONFIG, world, 1):
        first, second = map(markup, one.ads[:2])
        for draw, text in enumerate((f"Try {first}.", f"Try {first} or {second}.", "Nothing.")):
            name = f"{one.auction.id}/{draw}"
            answers.append(Answer(name, one.auction.id, draw, "v1", text, (1,), (2,)))
        clicks.append(Click(f"{one.auction.id}/0", one.ads[0].id, True, 0.25))
    save_records(directory / "answers.parquet", answers, Answer)
    save_records(directory / "clicks.parquet", clicks, Click)
    write_text(directory / "judged.json", dumps([one.sample_id for one in clicks]))
    run.commit("epoch-1/sample", [], {"weight_version": "v1"})
    return run


def test_a_runs_last_epoch_is_a_log(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    with pytest.raises(RunError, match="is not finished"):
        of_run(run)
    run.commit("conclude", [], {})
    found, largest = of_run(Run.open(tmp_path / "run"))
    assert largest == CONFIG.world.max_bid
    check_log(found, largest, "")
    world = asked_world(CONFIG.world)
    planned = [one for one in auctions(CONFIG, world, 1) if one.phase != "test"]
    assert [one.asked for one in found] == [one.query.text for one in planned]
    for one, plan in zip(found, planned, strict=True):
        assert (one.bids, one.answers, one.version) == (plan.auction.bids, 3, "v1")
        assert one.placed == (1.5, 0.5, 0.0)
        assert (one.judged, one.clicks) == ((1.0, 0.0, 0.0), (0.25, 0.0, 0.0))
        assert one.traits == tuple(traits_of(plan.query, plan.profile, ad) for ad in plan.ads)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bids": (40.0, 101.0)}, "bids has 101, no whole bid of 1 to 100"),
        ({"bids": (40.0, float("nan"))}, "bids has nan"),
        ({"bids": (0.0, 60.0)}, "bids has 0,"),
        ({"bids": (40.5, 60.0)}, "bids has 40.5"),
        ({"bids": (40.0,)}, "traits has 2 entries, and bids 1"),
        ({"placed": (1.5,)}, "placed has 1 entries, and bids 2"),
        ({"kinds": ()}, "kinds has 0 entries"),
        ({"traits": ((1, 1), (0, 0))}, r"traits has \(1, 1\), not 3 of 0 or 1"),
        ({"traits": ((1, 1, 2), (0, 0, 0))}, r"traits has \(1, 1, 2\)"),
        ({"placed": (4.0, 0.5)}, r"placed has \(4.0, 0.5\), not counts from 0 of 4"),
        ({"placed": (-1.0, 0.5)}, "placed has"),
        ({"placed": (float("nan"), 0.5)}, "placed has"),
        ({"judged": (2.0, 0.5)}, r"judged has \(2.0, 0.5\), not counts from 0 of 2"),
        ({"clicks": (5.0, 0.0)}, "clicks has"),
        ({"clicks": (-1.0, 0.0)}, "clicks has"),
        ({"answers": -1}, "answers is -1"),
    ],
)
def test_an_edited_auction_is_refused(change: dict[str, Any], words: str) -> None:
    check_log([GOOD], 100, "")
    with pytest.raises(DataError, match=rf"auction 1 \('which tea\?'\): {words}.*; write it"):
        check_log([GOOD, replace(GOOD, **change)], 100, "write it")


@pytest.mark.parametrize("largest", [0, 1, 50.5, float("nan"), float("inf"), 1e9])
def test_an_unusable_largest_bid_is_refused(largest: float) -> None:
    with pytest.raises(DataError, match=r"largest=.*whole bid of 2 to 10000"):
        check_log([GOOD], largest, "")


def refused(source: str, tmp_path: Path) -> str:
    told = CliRunner().invoke(app, ["prices", "learn", source, "--out", str(tmp_path / "sheet.json")])
    assert (told.exit_code, type(told.exception)) == (2, SystemExit), told.output
    return told.output


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree["auctions"][0].update(bids=[40.0, 160.0]),
        lambda tree: tree.update(largest=0),
        lambda tree: tree.update(largest=1e400),
        lambda tree: tree.update(auctions=[{}]),
        lambda tree: tree.update(form="other"),
    ],
)
def test_learn_refuses_an_edited_log(tmp_path: Path, change: Callable[[Any], None]) -> None:
    tree: dict[str, Any] = {"form": "raylla-log-1", "largest": 100, "auctions": [asdict(GOOD)]}
    change(tree)
    path = tmp_path / "log.json"
    path.write_text(json.dumps(tree))
    assert "DataError: " in refused(str(path), tmp_path)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("postgres://u:s3cret@h/db", "postgres:// names neither a run nor a store"),
        ("mysql+pymysql://u:s3cret@h/db", "mysql+pymysql:// names neither"),
        ("postgresql+psycopg://u:s3cret@h:port/db", "StoreError"),
        ("sqlite://", "StoreError"),
        ("postgresql+psycopg://u:s3cret@127.0.0.1:9/db", "StoreError"),
    ],
)
def test_no_password_is_printed(tmp_path: Path, source: str, words: str) -> None:
    said = refused(source, tmp_path)
    assert words in said
    assert "s3cret" not in said


def test_a_place_that_is_none_is_named_without_its_password() -> None:
    with pytest.raises(ConfigError, match=r"nowhere://\*\*\*@h/run") as error:
        Run.open("nowhere://u:s3cret@h/run")
    assert "s3cret" not in str(error.value)


def test_learn_makes_no_database(tmp_path: Path) -> None:
    said = refused(f"sqlite:///{tmp_path}/none.db", tmp_path)
    assert "SOURCE: " in said
    assert "none.db does not exist" in said
    assert not (tmp_path / "none.db").exists()


def test_a_stores_bids_beyond_the_configs_say_which_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raylla.evaluation.prices.sources.of_store", lambda *_: [GOOD])
    config = Config.model_validate({"world": {"max_bid": 50}})
    with pytest.raises(DataError, match="bids has 60, no whole bid of 1 to 50; give --config"):
        commands._logged(f"sqlite:///{tmp_path}/x.db", None, config)


def test_a_store_without_auctions_is_named_without_its_password(tmp_path: Path) -> None:
    open_store(f"sqlite:///{tmp_path}/books.db").close()
    with pytest.raises(DataError, match=r"books\.db: no auction with candidates"):
        of_store(f"sqlite:///{tmp_path}/books.db", None, UNIT)


def test_evaluate_refuses_a_sheet_of_lower_bids_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raylla.evaluation.setup.check_runs", lambda *_: pytest.fail("started"))
    Run.create(tmp_path / "run", CONFIG)
    path, low = tmp_path / "sheet.json", replace(SHEET.curve, largest=50.0)
    path.write_text(written(low, Reserves(), {"": 0.3}, {}).text)
    told = CliRunner().invoke(
        app, ["prices", "evaluate", str(tmp_path / "run"), "--prices", str(path)], env={"COLUMNS": "300"}
    )
    assert told.exit_code == 2
    assert "was learned from bids up to 50, and world.max_bid is 100" in told.output
