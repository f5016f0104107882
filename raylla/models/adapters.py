"""Adapters as they are, for engines that keep one base and compute each row with the one that it names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylla.errors import ConfigError, WeightError
from raylla.models.found import found
from raylla.models.places import ADAPTER, adapter_settings, is_adapter, resolve
from raylla.models.weights import ADAPTER_WEIGHTS, UNMERGED

_RANKS = "rank_pattern"


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's settings (peft's LoraConfig) and the content of its weights' file."""

    settings: Mapping[str, Any]
    weights: bytes

    def write(self, directory: Path) -> None:
        """Put it into ``directory`` as peft does."""
        (directory / ADAPTER).write_text(json.dumps(dict(self.settings)))
        (directory / ADAPTER_WEIGHTS).write_bytes(self.weights)


def read_adapter(place: str | Path) -> Adapter:
    """The adapter at ``place``, not merged.

    Args:
        place: whatever `models.resolve` knows.

    Raises:
        WeightError: there is none, or its files cannot be read.
        StorageError: they cannot be brought here.
    """
    try:
        with found(place) as directory:
            if not is_adapter(directory):
                raise WeightError(
                    f"weight version at {place} is a whole model and no adapter; engines that share a base "
                    "take adapters alone: load it merged"
                )
            return Adapter(adapter_settings(directory), (directory / ADAPTER_WEIGHTS).read_bytes())
    except (OSError, ConfigError) as error:
        raise WeightError(f"the adapter at {place} cannot be read: {error}") from error


def unshareable(settings: Mapping[str, Any], rank: int, targets: tuple[str, ...]) -> str | None:
    """Why an engine with room for adapters of ``rank`` on the layers ``targets`` cannot compute with this
    one; None where it can."""
    kind = settings.get("peft_type", "LORA")
    strange = [name for name in (*UNMERGED, "modules_to_save") if settings.get(name)]
    if kind != "LORA" or strange:
        return f"it is of peft_type={kind} {' '.join(strange)}".rstrip()
    ranks = [settings.get("r", 8), *dict(settings.get(_RANKS) or {}).values()]
    if not all(isinstance(one, int) for one in ranks):
        return f"its ranks are {ranks}, not whole numbers"
    if (largest := max(ranks)) > rank:
        return f"its rank is {largest}, the engine has room for {rank}"
    own = settings.get("target_modules")
    if not isinstance(own, list | tuple | set):
        return f"its target_modules={own!r} are no list of layers"
    others = sorted({*own} - {*targets})
    if others:
        return f"it changes {', '.join(others)}, the engine has room on {', '.join(targets)}"
    return None


def base_of(settings: Mapping[str, Any]) -> str:
    """The place of what an adapter of these ``settings`` changes: a whole model, or an adapter, which no
    engine computes with it.

    Raises:
        ConfigError: it does not exist.
    """
    return resolve(settings["base_model_name_or_path"], "base_model_name_or_path")


def adapter_over(base: str, place: str | Path) -> Adapter:
    """The adapter at ``place``, which is over ``base``.

    Raises:
        WeightError: as `read_adapter`, or it is over another model.
    """
    adapter = read_adapter(place)
    try:
        own = base_of(adapter.settings)
    except ConfigError as error:
        raise WeightError(f"the adapter at {place}: {error}") from error
    if own != base:
        raise WeightError(f"the adapter at {place} is over {own}, and the engine's base is {base}")
    return adapter


__all__ = ["Adapter", "adapter_over", "base_of", "read_adapter", "unshareable"]
