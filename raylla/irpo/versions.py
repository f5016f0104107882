"""The weight versions that a run has committed, the base model first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raylla import models
from raylla.engines.protocol import Probe
from raylla.errors import RunError
from raylla.irpo.state import Run
from raylla.records import WeightVersion

Version = tuple[WeightVersion, Probe | None]
"""A version, and the trainer's probe that an engine must reproduce; the base model has none."""


def committed(run: Run) -> list[Version]:
    """Every version with its probe, in order of epoch.

    Raises:
        RunError: the ledger commits weights that are not on disk.
        ConfigError: the base model does not exist.
    """
    base = WeightVersion("v0", 0, models.resolve(run.config.ad_llm.path, "ad_llm.path"))
    found: list[Version] = [(base, None)]
    for epoch in range(1, run.config.irpo.epochs + 1):
        report = run.committed(f"epoch-{epoch}/align")
        if report is None:
            break
        name = report["weight_version"]
        path = run.weights(name)
        if not (Path(path) / "config.json").exists():
            raise RunError(
                f"{path} is missing although the ledger commits it; restore it or start a new run"
            )
        found.append((WeightVersion(name, epoch, str(path), found[-1][0].name), read_probe(report)))
    return found


def read_probe(report: dict[str, Any]) -> Probe:
    """The probe that an align stage committed."""
    probe = report["probe"]
    return Probe(tuple(probe["prompt_token_ids"]), tuple(probe["token_ids"]), tuple(probe["logprobs"]))
