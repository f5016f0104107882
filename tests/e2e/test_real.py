"""A pretrained model on real ads: a few steps of everything, where its packages can be had."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.commands import ROOT, finish, sets

pytestmark = [pytest.mark.e2e, pytest.mark.real]

FEW = {
    "irpo.epochs": 1,
    "irpo.queries": 3,
    "irpo.reward_answers": 2,
    "irpo.preference_answers": 3,
    "irpo.delta": 0,
    "irpo.least_placed": 0.01,
    "world.profiles": 4,
    "world.queries_per_profile": 3,
    "world.test_share": 0.25,
    "ad_llm.sampling.max_tokens": 80,
    "rollout.workers": 1,
    "dpo.workers": 1,
    "dpo.passes": 1,
    "dpo.batch_groups": 1,
    "evaluation.queries": 2,
    "evaluation.answers": 1,
    "wandb.mode": "disabled",
    "ray.in_process": "true",
}


@pytest.fixture(scope="session")
def fetched() -> None:
    """The two models of packages, fetched where they are not there yet."""
    done = subprocess.run(
        [sys.executable, "-m", "raylla", "models", "fetch"], capture_output=True, text=True, timeout=600
    )
    if done.returncode:
        pytest.skip(f"the packages of the models cannot be had: {(done.stdout + done.stderr)[-500:]}")


@pytest.mark.usefixtures("fetched")
def test_a_run_of_the_pretrained_model(webis: Path, tmp_path: Path) -> None:
    world, run, log = tmp_path / "world", tmp_path / "run", tmp_path / "log"
    finish(["world", "import", "webis", str(webis), "--out", str(world), "--profiles", "20"], log)
    few = sets(FEW | {"world.path": world})
    finish(["train", str(ROOT / "configs" / "smollm2.yaml"), "--run", str(run), *few], log)
    results = json.loads((run / "results.json").read_text())
    assert [row["weight_version"] for row in results["epochs"]] == ["v0", "v1"]
    about = json.loads((run / "weights" / "v1" / "adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == "package:smollm2-135m"
    assert not (run / "weights" / "v1" / "model.safetensors").exists()
    lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    (aligned,) = (line["commit"] for line in lines if line["stage"] == "epoch-1/align" and "commit" in line)
    assert aligned["steps"] >= 1
