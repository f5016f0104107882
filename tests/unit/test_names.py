"""Names and messages are themselves: never markup, a pattern, a sign's name or a format."""

from __future__ import annotations

import io
import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from rich.console import Console
from typer.testing import CliRunner

from raylla import config
from raylla.cli import app
from raylla.config import parse_config
from raylla.errors import ConfigError
from raylla.evaluation.page.console import show_results
from raylla.runs.observe import Observer
from raylla.runs.state import Run, write_json
from raylla.serving.logs import JsonLines
from raylla.serving.store import database, open_store
from raylla.storage import exists, home, making
from raylla.strictjson import dumps
from raylla.terminal import plain_console

ODD = "[red]a[/red] [/b] [link=x] :fire: run[1]*?"
FIGURE = {"mean": 1.0, "low": 0.5, "high": 1.5}


@pytest.mark.parametrize("make", [plain_console, Console])
def test_messages_and_names_are_shown_as_they_are(make: Callable[..., Console]) -> None:
    console = make(file=io.StringIO(), width=200)
    watch = Observer(parse_config({"name": ODD, "wandb": {"mode": "disabled"}}, "test"), None, console)
    watch.say(f"said {ODD}")
    with watch.stage(f"stage {ODD}", answers=1):
        watch.advance("answers", 1, 1)
    watch.lost(f"lost {ODD}")
    watch.close()
    row = dict.fromkeys(("revenue", "reward", "expected_revenue", "expected_reward"), FIGURE)
    rates = {"ads_per_answer": 1.0, "format_error_rate": 0.0, "click_rate": 0.5}
    pctr = {"auc": 0.5, "calibration_error": None, "coverage": math.nan}
    results = {
        "name": f"results {ODD}",
        "clicks": {"counted": f"judge {ODD}", "expected": "click model"},
        "epochs": [{"epoch": 1, "weight_version": "v1", "pctr": pctr, **row, **rates}],
        "examples": [
            {
                "query": f"query {ODD}",
                "profile": f"user {ODD}",
                "bids": {ODD: 1},
                "before": ODD,
                "after": ODD,
            }
        ],
    }
    show_results(console, results)
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    for what in ("said", "stage", "lost", "results", "query"):
        assert f"{what} {ODD}" in said


def test_errors_are_told_as_they_are(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["resume", str(tmp_path / "[red]no[/b]")])
    assert result.exit_code == 2
    assert "[red]no[/b]" in "".join(result.output.split("\n"))
    path = tmp_path / "odd.yaml"
    path.write_text(f"name: {json.dumps(ODD)}\nseed: -1\n")
    result = CliRunner().invoke(app, ["plan", str(path), "--set", "[/b]:fire:"])
    assert result.exit_code == 2
    assert "[/b]:fire:" in result.output
    path.write_text(f"name: {json.dumps(ODD)}\n")
    result = CliRunner().invoke(app, ["plan", str(path)])
    assert result.exit_code == 0
    assert ODD in result.output


@pytest.mark.parametrize("scheme", ["file", "memory"])
@pytest.mark.parametrize("name", ["run*", "run?", "run[12]", "run**", "[run1]", "run[!x]", "run{1,2}"])
def test_a_name_that_looks_like_a_pattern_is_one_name(tmp_path: Path, scheme: str, name: str) -> None:
    folder = f"{scheme}://{tmp_path}" if scheme == "file" else f"memory://{tmp_path.name}"
    others = ["run", "run1", "run2", "runs", "r", name + "1"]
    for one in (*others, name):
        for _ in range(2):  # the second time in place of the first
            with making(f"{folder}/{one}/weights/v1") as fresh:
                (fresh / "config.json").write_text(one)
                (fresh / "part").mkdir()
                (fresh / "part" / "a").write_text("a")
    opened = home(f"{folder}/{name}")
    opened.remove("weights/v1")
    assert not exists(f"{folder}/{name}/weights/v1")
    for one in others:
        assert exists(f"{folder}/{one}/weights/v1/part/a")
        with fsspec.open(f"{folder}/{one}/weights/v1/config.json", "r", expand=False) as file:
            assert file.read() == one


def test_a_run_of_such_a_name_resumes_and_leaves_its_neighbours(tmp_path: Path) -> None:
    chosen = config.Config(name=ODD)
    for place in (tmp_path / "run[1]", tmp_path / "run*", tmp_path / "run1", tmp_path / "100% %(here)s"):
        run = Run.create(str(place), chosen)
        run.commit("epoch-1/learn", ["s"], {"loss": math.nan, "rows": 3})
        again = Run.open(str(place))
        assert again.config.name == ODD
        assert again.committed("epoch-1/learn") == {"loss": None, "rows": 3}


def test_a_percent_sign_in_the_place_of_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "100% %(here)s %s"
    shutil.copytree(Path(database.__file__).parent / "migrations", place / "migrations")
    monkeypatch.setattr(database, "__file__", str(place / "database.py"))
    store = open_store(f"sqlite:///{tmp_path}/50% off/raylla.db")
    store.close()


def test_an_undefined_figure_is_null_wherever_json_is_written(tmp_path: Path) -> None:
    values = {"auc": math.nan, "more": [math.inf, (1.5, -math.inf)], "n": 3, "ok": True, "none": None}
    expected = {"auc": None, "more": [None, [1.5, None]], "n": 3, "ok": True, "none": None}

    def strictly(text: str) -> Any:
        return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    assert strictly(dumps(values)) == expected
    write_json(tmp_path / "a.json", values)
    assert strictly((tmp_path / "a.json").read_text()) == expected
    watch = Observer(parse_config({"wandb": {"mode": "disabled"}}, "test"), tmp_path)
    watch.metrics(1, values)
    watch.close()
    line = strictly((tmp_path / "metrics.jsonl").read_text())
    assert {key: line[key] for key in expected} == expected
    record = logging.makeLogRecord({"msg": "x", "ctr": math.nan})
    assert strictly(JsonLines().format(record))["ctr"] is None


@pytest.mark.parametrize(
    ("text", "name", "lines"),
    [
        ("dpo:\n  beta: 1\nirpo:\n  epochs: 2\ndpo:\n  lr: 0.1\n", "dpo", (1, 5)),
        ("dpo:\n  beta: 1\n  lr: 0.1\n  beta: 2\n", "dpo.beta", (2, 4)),
        (
            "ad_llm:\n  path: x\n  sampling:\n    top_k: 1\n    top_k: 2\n",
            "ad_llm.sampling.top_k",
            (4, 5),
        ),
        ("evaluation: {variants: {a: [], b: [], a: []}}\n", "evaluation.variants.a", (1, 1)),
        ("name: x\n'name': y\n", "name", (1, 2)),
    ],
)
def test_a_key_twice_is_an_error_with_both_lines(
    tmp_path: Path, text: str, name: str, lines: tuple[int, int]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(
        ConfigError, match=rf": {name} is set in line {lines[0]} and again in line {lines[1]};"
    ):
        config.load_config(path)


def test_anchors_and_merges_are_no_repetition(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "rollout: &group\n  workers: 2\n  cpus: 0.5\njudge:\n  <<: *group\n  cpus: 1\n"
        "reward_trainer: {<<: *group}\n"
    )
    found = config.load_config(path, ["judge.workers=3", "judge.workers=4"])
    assert (found.judge.workers, found.judge.cpus, found.rollout.cpus) == (4, 1, 0.5)
    assert found.reward_trainer.workers == 2
    path.write_text("")
    assert config.load_config(path) == config.Config()
    with pytest.raises(ConfigError, match="workers is set in line 1 and again in line 1"):
        config.load_config(path, ["judge={workers: 1, workers: 2}"])
