"""Adapters in the trainer: what is loaded, what a saved one says of its base, and how it is known."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from raylla.config import Lora, parse_config
from raylla.engines import AdapterRoom
from raylla.errors import ConfigError
from raylla.irpo.shards import squad
from raylla.models import POCKET, roles
from raylla.policy import adapters, saving
from raylla.policy.groups import Packable
from raylla.records import WeightVersion
from raylla.runs.observe import Observer
from raylla.runs.versions import read_probe

LORA = Lora(rank=2, alpha=4, targets=("q_proj",))


def test_a_new_adapter_names_its_base_as_it_is_told_to(tiny_model: Path, tmp_path: Path) -> None:
    model = adapters.load_trainable(tiny_model, "package:smollm2-135m", LORA, 0, dtype=torch.float32)
    model.save_pretrained(tmp_path / "new")
    about = json.loads((tmp_path / "new" / "adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == "package:smollm2-135m"
    assert (about["r"], about["lora_alpha"], about["target_modules"]) == (2, 4, ["q_proj"])


def test_an_adapter_that_is_trained_further_keeps_the_name_of_its_base(
    tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "base").symlink_to(tiny_model)
    named = str(tmp_path / "base")
    adapters.load_trainable(tiny_model, named, LORA, 0).save_pretrained(tmp_path / "new")
    again = adapters.load_trainable(tmp_path / "new", "another", LORA, 0)
    again.save_pretrained(tmp_path / "again")
    about = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == named


def test_a_brief_probe_is_a_part_of_the_text_by_itself(tiny_model: Path, tmp_path: Path) -> None:
    model = adapters.load_trainable(tiny_model, str(tiny_model), LORA, 0, dtype=torch.float32)
    model.save_pretrained(tmp_path / "v1")
    prompt, answer = tuple(range(20, 90)), tuple(range(30, 60))
    group = cast(Packable, SimpleNamespace(prompt=prompt, answers=(answer,)))
    found = saving.probe(tmp_path / "v1", group)
    assert (found.prompt_token_ids, found.token_ids, len(found.logprobs)) == (prompt, answer, 30)
    assert found.brief is not None
    assert (found.brief.prompt_token_ids, found.brief.token_ids) == (prompt[-24:], answer[:12])
    ids = torch.tensor([[*prompt[-24:], *answer[:12]]])
    with torch.no_grad():
        logs = model(ids).logits[0, 23:-1].log_softmax(-1)
    expected = logs.gather(1, ids[0, 24:, None])[:, 0].tolist()
    assert found.brief.logprobs == pytest.approx(expected, abs=1e-4)
    assert read_probe({"probe": json.loads(json.dumps(asdict(found)))}) == found
    saved = (tmp_path / "v1" / "adapter_model.safetensors").read_bytes()
    assert found.digest == hashlib.sha256(saved).hexdigest()
    whole = saving.probe(tiny_model, group)
    assert (whole.brief, whole.digest) == (None, "")


def test_check_says_how_versions_are_taken() -> None:
    def said(**tree: object) -> str:
        return roles.versions_taken(parse_config(tree, "test"))

    assert said() == "whole models in rollout and endpoint, for lora is not set"
    assert said(lora={}).startswith("in rollout and endpoint merged with the base: whole weights")
    mixed = said(lora={}, serving={"adapters": "shared"})
    assert mixed.startswith("in rollout merged with the base")
    assert "; at the endpoint as adapters over one base" in mixed
    with pytest.raises(ConfigError, match=r"rollout\.adapters: shared needs versions that are adapters"):
        said(rollout={"adapters": "shared"})
    plain, shared = ({"lora": {}, "rollout": {"adapters": one}} for one in ("merged", "shared"))
    assert parse_config(plain, "t").digest() == parse_config({"lora": {}}, "t").digest()
    assert parse_config(plain, "t").digest() != parse_config(shared, "t").digest()


def test_rollout_engines_have_room_for_adapters_where_a_config_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: dict[str, tuple[Any, ...]] = {}
    monkeypatch.setattr(squad, "Pool", lambda name, _, args, *more: made.update({name: args}))
    base = str(POCKET / "ad-llm")
    first = WeightVersion("v0", 0, base)
    watch = cast(Observer, SimpleNamespace(spent=None))
    tree = {"lora": LORA.model_dump(mode="json"), "ray": {"in_process": True}}
    squad.Squad(parse_config(tree, "test"), first, watch)
    assert (len(made["rollout"]), made["weight-store"]) == (5, ())
    squad.Squad(parse_config(tree | {"rollout": {"adapters": "shared"}}, "test"), first, watch)
    *_, version, opens = made["rollout"]
    assert (version, opens.keywords) == ("v0", {"room": AdapterRoom(2, 2, ("q_proj",))})
    assert made["weight-store"] == (base,)
