"""What `raylla evaluate` refuses, which runs it plans, and which of them it trains."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from raylla import config
from raylla.cli import app
from raylla.errors import ConfigError, RayllaError, RunError
from raylla.evaluation import training
from raylla.evaluation.evaluate import evaluate_runs, swept
from raylla.runs.observe import Observer
from raylla.runs.state import Run
from raylla.world import build, store
from raylla.world.synthetic import grammar

TREE: dict[str, Any] = {
    "name": "small",
    "world": {"profiles": 20},
    "irpo": {"epochs": 1},
    "wandb": {"mode": "disabled"},
}
CONFIG = str(Path(__file__).parents[2] / "configs" / "pocket.yaml")
TERM = "reward_terms=[{name: user-welfar, weight: 1}]"
PROBE = {"probe": {"prompt_token_ids": [1], "token_ids": [2], "logprobs": [-1.0]}}


def finished(path: Path, tree: dict[str, Any]) -> Run:
    """A run directory as a finished training of no effort leaves it."""
    run = Run.create(path, config.parse_config(tree, "test"))
    world = build.synthetic(run.config.world, run.config.seed)
    rng = random.Random(0)
    splits = build.split_users(world.profiles, 0.5, 0)
    queries = tuple(
        replace(grammar.query(rng, user), id=f"{user.id}-0", split=splits[user.id])
        for user in world.profiles
    )
    store.save_world(replace(world, queries=queries), run.path / "world")
    run.commit("world", [], {"wall_seconds": 1.0})
    Path(run.weights("v1")).mkdir(parents=True)
    (Path(run.weights("v1")) / "config.json").write_text("{}")
    run.commit("epoch-1/align", [], {"weight_version": "v1", "wall_seconds": 1.0} | PROBE)
    run.commit("conclude", [], {"wall_seconds": 0.0})
    return run


def refused(runs: list[Run], **settings: Any) -> str:
    chosen = config.parse_config({"evaluation": settings}, "test").evaluation
    with pytest.raises(RayllaError) as error:
        evaluate_runs(runs, chosen, Observer(runs[0].config, None))
    return str(error.value)


def test_settings_that_measure_nothing_are_refused(tmp_path: Path) -> None:
    run = finished(tmp_path / "a", TREE)
    assert "no mechanism named 'mosaik'" in refused([run], mechanisms=["mosaik"])
    assert "evaluation.bids goes up to 200" in refused([run], bids=[1, 200])
    assert "evaluation.equilibrium_bids goes up to 120" in refused([run], equilibrium_bids=[1, 120])
    assert "3 test queries are too few for an interval" in refused([run], queries=3)
    assert "'pocket:nobody': no such pocket model" in refused([run], user_llm="pocket:nobody")


def test_runs_that_lack_something_are_refused(tmp_path: Path) -> None:
    run = finished(tmp_path / "a", TREE)
    (Path(run.weights("v1")) / "config.json").unlink()
    assert "v1 is missing although the ledger commits it" in refused([run])
    unfinished = Run.create(tmp_path / "b", config.parse_config(TREE, "test"))
    assert "not finished (last committed: nothing); `raylla resume` it" in refused([unfinished])


def test_runs_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    run = finished(tmp_path / "a", TREE)
    assert "same name and seed" in refused([run, run])
    other = finished(tmp_path / "b", TREE | {"seed": 1, "irpo": {"epochs": 1, "delta": 3}})
    assert "has the name of" in refused([run, other])
    model = finished(tmp_path / "c", TREE | {"name": "v", "engine": {"dtype": "bfloat16"}})
    assert "another engine" in refused([run, model])


def test_a_config_plans_its_seeds_and_variants() -> None:
    tree = TREE | {"evaluation": {"seeds": [4, 5], "variants": {"judged": ["irpo.reward=judge"]}}}
    plan = training.planned(config.parse_config(tree, "test"))
    assert [(name, one.name, one.seed) for name, one in plan.items()] == [
        ("seed-4", "small", 4),
        ("seed-5", "small", 5),
        ("judged", "judged", 4),
    ]
    assert plan["judged"].irpo.reward == "judge"
    # What only the evaluation reads makes no other run.
    assert plan["seed-4"].digest() == config.parse_config(TREE | {"seed": 4}, "test").digest()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seeds": [1, 1]}, "give each seed once"),
        ({"variants": {"small": []}}, r"variants\.small: the name is taken"),
        ({"variants": {"seed-0": []}}, r"variants\.seed-0: the name is taken"),
        ({"variants": {"x": ["irpo.epoch=2"]}}, r"variants\.x: unknown key irpo\.epoch;"),
        ({"variants": {"x": ["irpo.epochs"]}}, r"section\.key=value"),
    ],
)
def test_plans_that_cannot_be_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        training.planned(config.parse_config(TREE | {"evaluation": settings}, "test"))


def watch(one: config.Config, path: Path) -> Observer:
    return Observer(one, None)


def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that training was asked for; it commits them as finished."""
    names: list[str] = []

    def train(run: Run, _: Observer) -> None:
        names.append(run.path.name)
        run.commit("conclude", [], {"wall_seconds": 0.0})

    monkeypatch.setattr(training.loop, "train_run", train)
    return names


def test_only_what_is_missing_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = trained(monkeypatch)
    wanted = config.parse_config(TREE | {"evaluation": {"seeds": [0, 1], "variants": {"x": []}}}, "test")
    finished(tmp_path / "seed-0", TREE)
    found = training.runs(wanted, tmp_path, watch)
    assert names == ["seed-1", "x"]
    assert [run.path.name for run in found] == ["seed-0", "seed-1", "x"]
    assert all(run.committed("conclude") is not None for run in found)
    assert [run.path for run in training.runs(wanted, tmp_path, watch)] == [run.path for run in found]
    assert names == ["seed-1", "x"]


def test_nothing_is_trained_for_an_evaluation_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = trained(monkeypatch)
    with pytest.raises(ConfigError, match="mosaik"):
        training.runs(
            config.parse_config(TREE | {"evaluation": {"mechanisms": ["mosaik"]}}, "t"), tmp_path, watch
        )
    with pytest.raises(RunError, match="up to 300"):
        training.runs(config.parse_config(TREE | {"evaluation": {"bids": [1, 300]}}, "t"), tmp_path, watch)
    variants = {"evaluation": {"variants": {"fair": [TERM]}}}
    with pytest.raises(ConfigError, match="no reward term named 'user-welfar'"):
        training.runs(config.parse_config(TREE | variants, "t"), tmp_path, watch)
    finished(tmp_path / "seed-0", TREE | {"irpo": {"epochs": 1, "delta": 3}})
    with pytest.raises(RunError, match="another config"):
        training.runs(config.parse_config(TREE, "t"), tmp_path, watch)
    assert names == []


@pytest.mark.parametrize(
    ("command", "override"),
    [("check", TERM), ("train", TERM), ("check", f"evaluation.variants={{fair: ['{TERM}']}}")],
)
def test_a_term_that_nobody_has_is_told_before_anything_loads(
    command: str, override: str, tmp_path: Path
) -> None:
    arguments = [command, CONFIG, "--run", str(tmp_path / "run"), "--set", override]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 2
    assert "no reward term named 'user-welfar'; there are credibility, detectability, d" in " ".join(
        found.output.split()
    )


def test_a_sweep_asks_every_version_or_the_ends() -> None:
    every = config.parse_config({}, "test").evaluation
    ends = every.model_copy(update={"sweep_versions": "ends"})
    assert swept(["v0", "v1", "v2"], every) == ["v0", "v1", "v2"]
    assert swept(["v0", "v1", "v2"], ends) == ["v0", "v2"]
    assert swept(["v0"], ends) == ["v0"]
