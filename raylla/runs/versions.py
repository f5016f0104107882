"""The weight versions that a run has committed, the base model first, and which of them it keeps."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from raylla import models
from raylla.engines.protocol import Probe
from raylla.errors import RunError
from raylla.records import WeightVersion
from raylla.runs.state import Run

Version = tuple[WeightVersion, Probe | None]
"""A version, and the trainer's probe that an engine must reproduce; the base model has none."""

COLLECT = "collect/"
SERVED = "served/"
"""Stage of a version's removal, and files that name the versions that were ever served."""


def committed(run: Run) -> list[Version]:
    """Every version that is kept, with its probe, in order of epoch.

    Raises:
        RunError: the ledger commits weights that are not there.
        ConfigError: the base model does not exist.
    """
    warm = run.committed("warmstart") is not None
    first = run.weights("v0") if warm else models.resolve(run.config.ad_llm.path, "ad_llm.path")
    base = WeightVersion("v0", 0, first)
    found: list[Version] = [(base, None)]
    gone, parent = collected(run), base.name
    for epoch in range(1, run.config.irpo.epochs + 1):
        report = run.committed(f"epoch-{epoch}/align")
        if report is None:
            break
        name = report["weight_version"]
        if name not in gone:
            if not any(run.home.holds(f"weights/{name}/{file}") for file in models.CONFIGS):
                raise RunError(
                    f"{run.weights(name)} is missing although the ledger commits it; restore it or start a "
                    "new run"
                )
            version = WeightVersion(name, epoch, run.weights(name), parent)
            found.append((version, read_probe(report)))
        parent = name
    return found


def untouched(run: Run) -> WeightVersion:
    """The model that no training for ads has changed: the base, below all adapters, of what the run starts
    from.

    Raises:
        ConfigError: it does not exist.
    """
    base = committed(run)[0][0]
    place = models.base(run.config.ad_llm.path, "ad_llm.path")
    return base if place == base.path else WeightVersion("untouched", 0, place)


def named(run: Run, name: str) -> Version:
    """The version ``name``.

    Raises:
        RunError: the run never had it, or has collected it; names those that there are.
    """
    kept = committed(run)
    for version, probe in kept:
        if version.name == name:
            return version, probe
    why = f"it was collected (storage.keep_versions={run.config.storage.keep_versions}); " * (
        name in collected(run)
    )
    there = ", ".join(version.name for version, _ in kept)
    raise RunError(f"{run.place} has no weight version {name!r}; {why}there are {there}")


def collected(run: Run) -> list[str]:
    """Names of the versions whose weights the run has let go, in order."""
    return [stage.removeprefix(COLLECT) for stage in run.commits if stage.startswith(COLLECT)]


def collect(run: Run, needed: Collection[str]) -> None:
    """Let go of what `storage.keep_versions` does not keep, once the newest version is live.

    The ledger says so before anything is removed, and what a kill left half removed goes the next time.
    Kept beside the newest: the ``needed``, which a crew may load again, and what was ever served.
    """
    keep = run.config.storage.keep_versions
    if keep is not None:
        trained = [version.name for version, _ in committed(run)[1:]]
        for name in surplus(trained, keep, {*needed, *_served(run, trained)}):
            run.commit(f"{COLLECT}{name}", [], {"wall_seconds": 0.0})
    for name in collected(run):
        run.home.remove(f"weights/{name}")


def surplus(trained: list[str], keep: int, needed: Collection[str]) -> list[str]:
    """The oldest of ``trained``, but for the last ``keep`` and those that are needed."""
    return [name for name in trained[:-keep] if name not in needed]


def note_served(run: Run, name: str) -> None:
    """Note that ``name`` is served, where the run would else let it go one day."""
    if run.config.storage.keep_versions is not None:
        run.home.write(f"{SERVED}{name}", b"")


def _served(run: Run, trained: list[str]) -> set[str]:
    """Those of ``trained`` that were ever served."""
    return {name for name in trained if run.home.holds(f"{SERVED}{name}")}


def read_probe(report: dict[str, Any]) -> Probe:
    """The probe that an align stage committed."""
    return _probe(report["probe"])


def _probe(told: dict[str, Any]) -> Probe:
    brief = told.get("brief")
    return Probe(
        tuple(told["prompt_token_ids"]),
        tuple(told["token_ids"]),
        tuple(told["logprobs"]),
        None if brief is None else _probe(brief),
        told.get("digest", ""),
    )
