"""Reward models on disk: one safetensors file and one JSON file, replaced together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raylla.errors import RunError
from raylla.storage import here, making, writing
from raylla.strictjson import dumps


def save_checkpoint(place: str | Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write both files to ``place``: readers see the old pair or the new one.

    Raises:
        StorageError: the place cannot be written.
    """
    with making(place) as fresh, writing(fresh):
        save_file({name: value.contiguous() for name, value in tensors.items()}, fresh / "pctr.safetensors")
        (fresh / "pctr.json").write_text(dumps(about, indent=2) + "\n")


def load_checkpoint(place: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_checkpoint` wrote.

    Raises:
        RunError: a file is missing or unreadable.
    """
    try:
        with here(place) as directory:
            about = json.loads((directory / "pctr.json").read_text())
            return load_file(directory / "pctr.safetensors"), about
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(f"{place} holds no whole reward model: {error}; use an earlier epoch's") from None


def agree(place: str | Path, about: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse a reward model that was saved under other settings.

    Raises:
        RunError: an entry of ``wanted`` differs.
    """
    for name, value in wanted.items():
        if about.get(name) != value:
            raise RunError(
                f"{place}: {name}={about.get(name)!r}, this config makes it {value!r}; "
                "use the pctr section of the run that saved it"
            )


def apply(place: str | Path, network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load ``weights`` into ``network``.

    Raises:
        RunError: names or shapes differ.
    """
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(f"{place} does not fit this config's network: {error}") from None
