"""A run directory: commits, damage, another config."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raylla.config import Config, parse_config
from raylla.errors import RunError
from raylla.records import Answer, Auction, Click
from raylla.runs.state import Run, load_records, save_records


def test_only_committed_stages_survive(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", Config())
    run.commit("world", ["a", "b"], {"wall_seconds": 1.0})
    with run.ledger.open("a") as file:
        file.write(json.dumps({"stage": "epoch-1/sample", "sample_id": "x"}) + "\n")
        file.write('{"stage": "epoch-1/sample", "comm')
    again = Run.open(run.path)
    assert list(again.commits) == ["world"]
    assert len(again.ledger.read_text().splitlines()) == 5
    with again.alone():
        assert list(again.commits) == ["world"]
    ids = [json.loads(line).get("sample_id") for line in again.ledger.read_text().splitlines()]
    assert ids == ["a", "b", None]


def test_a_run_has_one_writer(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", Config())
    with run.alone():
        with pytest.raises(RunError, match="in the hands of another process"), Run.open(run.path).alone():
            pass
        assert Run.open(run.path).config == run.config
    with Run.open(run.path).alone():
        pass


def test_commits_after_a_damaged_line_are_not_thrown_away(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", Config())
    run.commit("world", ["a"], {"wall_seconds": 1.0})
    run.commit("epoch-1/sample", ["b"], {"wall_seconds": 1.0})
    whole = run.ledger.read_bytes()
    run.ledger.write_bytes(whole.replace(b'"sample_id": "b"', b'"sample_id": "b'))
    with pytest.raises(RunError, match="line 3 is damaged and commits follow it"):
        Run.open(run.path)
    assert run.ledger.read_bytes().count(b"commit") == 2


def test_another_config_is_refused(tmp_path: Path) -> None:
    Run.create(tmp_path / "run", Config())
    with pytest.raises(RunError, match="another config"):
        Run.create(tmp_path / "run", parse_config({"seed": 3}, "test"))
    assert Run.create(tmp_path / "run", Config()).config.seed == 0


def test_other_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run directory"):
        Run.open(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        Run.create(tmp_path, Config())


def test_records_round_trip(tmp_path: Path) -> None:
    answers = [Answer("s/0", "s", 0, "v0", "hi @", (1, 2), (3,), None)]
    save_records(tmp_path / "a.parquet", answers, Answer)
    assert load_records(tmp_path / "a.parquet", Answer) == answers
    save_records(tmp_path / "b.parquet", [], Auction)
    assert load_records(tmp_path / "b.parquet", Auction) == []


def test_clicks_keep_their_probability_and_older_ones_have_none(tmp_path: Path) -> None:
    clicks = [Click("s/0", "12", True, 0.75), Click("s/0", "13", False)]
    save_records(tmp_path / "clicks.parquet", clicks, Click)
    assert load_records(tmp_path / "clicks.parquet", Click) == clicks
    table = pq.read_table(tmp_path / "clicks.parquet").drop_columns(["probability"])
    pq.write_table(table, tmp_path / "older.parquet")
    assert load_records(tmp_path / "older.parquet", Click) == [
        Click("s/0", "12", True),
        Click("s/0", "13", False),
    ]


def test_a_stage_is_on_the_disk_before_the_line_that_commits_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(tmp_path / "run", Config())
    directory = run.fresh(run.records("epoch-1/sample"))
    save_records(directory / "auctions.parquet", [], Auction)
    forced: list[str] = []

    def note(held: int) -> None:
        forced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{held}"), run.path))

    monkeypatch.setattr(os, "fsync", note)
    run.commit("epoch-1/sample", [], {})
    stage = "records/epoch-1/sample"
    assert forced == [f"{stage}/auctions.parquet", stage, "records/epoch-1", "records", ".", "ledger.jsonl"]
    run.commit("epoch-1/align", [], {})
    assert forced[6:] == ["records/epoch-1", "records", ".", "ledger.jsonl"]
