"""The config tree: strict, one home of defaults, shipped files valid."""

from __future__ import annotations

from pathlib import Path

import pytest

from raylla import config
from raylla.errors import ConfigError
from raylla.runs.state import Run

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_load(path: Path) -> None:
    assert config.load_config(path).name == path.stem


def test_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("dpo:\n  zero_stag: 3\n")
    with pytest.raises(
        ConfigError, match=r"unknown key dpo\.zero_stag; the nearest valid key is dpo\.zero_stage"
    ):
        config.load_config(path)


def test_override_wins_and_is_validated(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("irpo:\n  epochs: 2\n")
    assert config.load_config(path, ["irpo.epochs=5", "engine.dtype=bfloat16"]).irpo.epochs == 5
    with pytest.raises(ConfigError, match=r"irpo\.epochs"):
        config.load_config(path, ["irpo.epochs=0"])
    with pytest.raises(ConfigError, match=r"nearest valid key is irpo\.epochs"):
        config.load_config(path, ["irpo.epoch=2"])
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        config.load_config(path, ["irpo.epochs"])


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("penalty.per_ad=-1", "penalty.per_ad"),
        ("penalty.per_ad=.inf", "penalty.per_ad"),
        ("irpo.delta=.nan", "irpo.delta"),
        ("dpo.batch_groups=7", "dpo.batch_groups"),
        ("world.candidates=101", "world.candidates"),
        ("ad_llm.sampling.temperature=-1", "ad_llm.sampling.temperature"),
        ("ad_llm.sampling.temperature=2.5", "ad_llm.sampling.temperature"),  # the engine takes up to 2
        ("user_llm.reading=words", "user_llm.reading"),
        ("ad_llm.reading=token", "ad_llm.reading"),
        ("evaluation.bids=[50,1]", "evaluation.bids"),
        ("irpo.risk=2", "irpo.risk"),
        ("seed=4294967296", "seed"),
        ("seed=-1", "seed"),
        ("evaluation.seeds=[0,4294967296]", "evaluation.seeds"),
        ("pctr.members=1", "pctr.members"),
    ],
)
def test_unusable_values_name_their_field(tmp_path: Path, override: str, field: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("name: x\n")
    with pytest.raises(ConfigError, match=field.replace(".", r"\.")):
        config.load_config(path, [override])


def test_risk_needs_predictions() -> None:
    with pytest.raises(ConfigError, match=r"irpo\.risk=0\.5 .* irpo\.reward=pctr"):
        config.parse_config({"irpo": {"risk": 0.5, "reward": "judge"}}, "x")


def test_missing_or_broken_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        config.load_config(tmp_path / "none.yaml")
    path = tmp_path / "c.yaml"
    path.write_text("a: [")
    with pytest.raises(ConfigError, match="not YAML"):
        config.load_config(path)
    path.write_text("- 1\n")
    with pytest.raises(ConfigError, match="not a mapping"):
        config.load_config(path)


def test_one_section_is_changed_and_no_other() -> None:
    plain = config.Config(seed=3)
    changed = config.changed(plain, "evaluation", ["evaluation.answers=9", "evaluation.bids=[1,5]"])
    assert (changed.evaluation.answers, changed.evaluation.bids) == (9, (1, 5))
    assert changed.model_copy(update={"evaluation": plain.evaluation}) == plain
    with pytest.raises(ConfigError, match=r"only settings of evaluation"):
        config.changed(plain, "evaluation", ["seed=4"])
    with pytest.raises(ConfigError, match=r"evaluation\.answers"):
        config.changed(plain, "evaluation", ["evaluation.answer=4"])


def test_digest_ignores_what_decides_no_result() -> None:
    plain = config.Config()
    assert plain.digest() == config.parse_config({"wandb": {"mode": "disabled"}}, "x").digest()
    assert plain.digest() != config.parse_config({"seed": 1}, "x").digest()
    assert (
        plain.digest() == config.parse_config({"rollout": {"workers": 9, "min_workers": 2}}, "x").digest()
    )
    assert plain.digest() != config.parse_config({"rollout": {"gpus": 1}}, "x").digest()


def test_every_key_is_described_once() -> None:
    names = config.keys()
    assert len(names) == len(set(names))
    assert "ad_llm.sampling.top_k" in names


def test_an_override_changes_what_it_names_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("rollout: &e {workers: 2}\njudge: *e\nirpo:\n")
    found = config.load_config(path, ["rollout.workers=3", "irpo.epochs=7"])
    assert (found.rollout.workers, found.judge.workers, found.irpo.epochs) == (3, 2, 7)


@pytest.mark.parametrize(
    "text",
    [
        "serving: {floor_micros: 9223372036854775808}",
        "serving: {notice_deadline: 1.0e+14}",
        "serving: {token_ttl: 6.4e+10}",
        "deadlines: {start: 1.0e+300}",
        "serving: {disclosure: '   '}",
        'serving: {disclosure: "a\\nb"}',
        "serving: {public_url: lumo.example}",
        "serving: {public_url: not a url}",
        "serving: {public_url: 'https://'}",
    ],
)
def test_what_could_not_be_served_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=text.partition("{")[2].partition(":")[0]):
        config.load_config(path)


def test_a_run_whose_config_is_damaged_is_named(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", config.Config())
    for damage in (b"\xff\xfe\x00", b"a: ["):
        (run.path / "config.yaml").write_bytes(damage)
        with pytest.raises(ConfigError, match=r"config\.yaml"):
            Run.open(run.path)
