"""A model fits its role, or `raylla check` and every start say so before any loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from raylla import config
from raylla.cli import app
from raylla.errors import ConfigError
from raylla.irpo.loop import train_run
from raylla.models import POCKET, roles
from raylla.runs.observe import Observer
from raylla.runs.state import Run

CONFIG = str(Path(__file__).parents[2] / "configs" / "pocket.yaml")
JUDGING = [
    *("--set", "judging.data=judged.jsonl"),
    *("--set", "judging.base=pocket:ad-llm"),
    *("--set", "judging.encoder=pocket:ad-llm"),
]


@pytest.fixture
def mute(tmp_path: Path) -> Path:
    """A pocket model whose tokenizer has no chat template."""
    path = Path(shutil.copytree(POCKET / "ad-llm", tmp_path / "mute"))
    (path / "chat_template.jinja").unlink()
    return path


@pytest.mark.parametrize("field", ["ad_llm.path", "user_llm.path", "evaluation.user_llm", "judging.base"])
def test_a_model_that_cannot_chat_is_refused_by_name(mute: Path, field: str) -> None:
    result = CliRunner().invoke(app, ["check", CONFIG, *JUDGING, "--set", f"{field}={mute}"])
    assert result.exit_code == 2
    said = " ".join(result.output.split())
    assert f"{field}='{mute}' has no chat template" in said.replace("/ ", "/")


def test_every_start_says_it_too(mute: Path, tmp_path: Path) -> None:
    chosen = config.changed(config.Config(), None, [f"ad_llm.path={mute}", "wandb.mode=disabled"])
    run = Run.create(str(tmp_path / "run"), chosen)
    watch = Observer(chosen, None)
    with pytest.raises(ConfigError, match=r"ad_llm\.path=.* has no chat template"):
        train_run(run, watch)
    watch.close()


@pytest.mark.parametrize(
    "template", ["{{ messages }}", [{"name": "default", "template": "{{ messages }}"}]]
)
def test_a_template_may_be_in_the_tokenizers_settings(mute: Path, template: Any) -> None:
    file = mute / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": template}))
    roles.check_chat(str(mute), "ad_llm.path")


def test_an_adapter_chats_as_its_base_does(mute: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    named = adapter / "adapter_config.json"
    named.write_text(json.dumps({"base_model_name_or_path": "pocket:ad-llm"}))
    roles.check_chat(str(adapter), "ad_llm.path")
    named.write_text(json.dumps({"base_model_name_or_path": str(mute)}))
    with pytest.raises(ConfigError, match="has no chat template"):
        roles.check_chat(str(adapter), "ad_llm.path")


@pytest.mark.parametrize("field", ["pctr.encoder", "judging.encoder"])
def test_an_encoder_that_reads_no_text_is_refused_by_name(tmp_path: Path, field: str) -> None:
    path = tmp_path / "sees"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    result = CliRunner().invoke(app, ["check", CONFIG, *JUDGING, "--set", f"{field}={path}"])
    assert result.exit_code == 2
    assert f"{field}=" in result.output
    assert "cannot be used" in " ".join(result.output.split())
