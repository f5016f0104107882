from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raylla.cli import app
from raylla.config import Config
from raylla.errors import ConfigError
from raylla.models import check_places, packages, places, resolve


def adapter(place: Path, base: object) -> Path:
    place.mkdir(parents=True)
    (place / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    return place


def test_a_package_that_is_not_fetched_names_its_command(cache: Path) -> None:
    with pytest.raises(ConfigError, match=r"x='package:minilm-l6': .* run `raylla models fetch minilm-l6`"):
        resolve("package:minilm-l6", "x")
    with pytest.raises(ConfigError, match=r"x: 'tiny': no such package of a model; there are smollm2"):
        resolve("package:tiny", "x")
    whole = packages.directory("minilm-l6")
    whole.mkdir(parents=True)
    with pytest.raises(ConfigError, match="fetch minilm-l6"):
        resolve("package:minilm-l6", "x")
    (whole / packages.MANIFEST).write_text("{}")
    assert resolve("package:minilm-l6", "x") == str(cache / "models" / "minilm-l6")


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAYLLA_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert packages.cache() == tmp_path / ".cache" / "raylla"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert packages.cache() == tmp_path / "xdg" / "raylla"
    monkeypatch.setenv("RAYLLA_CACHE", "~/own")
    assert packages.cache() == tmp_path / "own"


def test_an_adapter_needs_its_base(tmp_path: Path, tiny_model: Path) -> None:
    good = adapter(tmp_path / "good", str(tiny_model))
    assert resolve(str(good), "x") == str(good)
    assert resolve(str(adapter(tmp_path / "above", str(good))), "x") == str(tmp_path / "above")
    with pytest.raises(
        ConfigError, match=r"^x: base_model_name_or_path of .*raylla models fetch smollm2-135m"
    ):
        resolve(str(adapter(tmp_path / "unfetched", "package:smollm2-135m")), "x")
    with pytest.raises(ConfigError, match="base_model_name_or_path is missing"):
        resolve(str(adapter(tmp_path / "nameless", None)), "x")
    round_trip = tmp_path / "round"
    with pytest.raises(ConfigError, match="is its own base"):
        resolve(str(adapter(round_trip, str(round_trip))), "x")


def test_shipped_adapters_go_by_name(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "ADAPTERS", tmp_path)
    shipped = adapter(tmp_path / "tea", str(tiny_model))
    assert resolve("adapter:tea", "x") == str(shipped)
    with pytest.raises(ConfigError, match=r"x='adapter:milk': raylla ships no such adapter; there are tea"):
        resolve("adapter:milk", "x")


def test_a_check_names_everything_that_is_missing(tmp_path: Path) -> None:
    tree = {
        "ad_llm": {"path": "package:smollm2-135m"},
        "user_llm": {"path": "pocket:user-llm"},
        "pctr": {"encoder": "package:minilm-l6"},
    }
    with pytest.raises(ConfigError, match=r"fetch smollm2-135m`; pctr.encoder=.*fetch minilm-l6`"):
        check_places(Config.model_validate(tree))
    (tmp_path / "c.yaml").write_text(json.dumps(tree))
    told = CliRunner().invoke(app, ["check", str(tmp_path / "c.yaml")])
    assert told.exit_code == 2
    assert "raylla models fetch minilm-l6" in told.stderr


def test_a_check_knows_the_models_of_every_section(cache: Path) -> None:
    judging = {"data": "judged.jsonl", "base": "package:smollm2-135m", "encoder": "package:minilm-l6"}
    tree = {"evaluation": {"user_llm": "adapter:nobody"}, "judging": judging}
    with pytest.raises(ConfigError) as told:
        check_places(Config.model_validate(tree))
    parts = str(told.value).split("; ")
    for field in ("evaluation.user_llm='adapter:nobody'", "judging.base=", "judging.encoder="):
        assert any(one.startswith(field) for one in parts), parts
    tree = {"evaluation": {"user_llm": "pocket:user-llm"}, "judging": judging | {"base": "pocket:user-llm"}}
    tree["judging"]["encoder"] = tree["judging"]["base"]
    found = check_places(Config.model_validate(tree))
    assert {"evaluation.user_llm", "judging.base", "judging.encoder"} <= found.keys()
