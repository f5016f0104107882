"""Layers point one way: the mechanism, the store and the driver load no model library."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIGHT = (
    "raylla.records",
    "raylla.config",
    "raylla.auction",
    "raylla.mechanisms",
    "raylla.evaluation.intervals",
    "raylla.plan.show",
    "raylla.retrieval",
    "raylla.serving.audit",
    "raylla.serving.campaigns",
    "raylla.serving.clicks",
    "raylla.serving.eligibility",
    "raylla.serving.importing",
    "raylla.serving.notices",
    "raylla.world.build",
    "raylla.world.importers",
    "raylla.world.meaning",
)
DRIVER = (
    "raylla.cli",
    "raylla.bench",
    "raylla.irpo.loop",
    "raylla.irpo.stages",
    "raylla.evaluation.evidence",
    "raylla.serving.app",
    "raylla.serving.cluster",
    "raylla.serving.deploy",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        (LIGHT, ("ray", "torch", "vllm", "transformers")),
        (DRIVER, ("torch", "vllm", "deepspeed", "trl")),
        (("raylla.serving.records",), ("ray", "torch", "vllm", "sqlalchemy", "fastapi")),
    ],
    ids=["mechanism", "driver", "records"],
)
def test_imports(modules: tuple[str, ...], forbidden: tuple[str, ...]) -> None:
    code = f"import sys, {', '.join(modules)}; print([m for m in {forbidden!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
