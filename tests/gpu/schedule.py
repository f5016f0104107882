"""Which parts there are, how long each may take, and what they come to together. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

SECONDS = 480.0
"""Of the whole run, what came before it included."""
LEAST = 15.0
"""Seconds under which a part is not begun: so long takes a process to import and to make a model."""
Kind = Literal["flex", "parts", "pairs", "compiled", "gradients", "kernels"]
AIMS = {"packed_to_pairs": 7.0, "mfu": 0.45}
BATCH = 16
"""Groups of an optimizer step (`dpo.batch_groups`)."""


@dataclass(frozen=True, slots=True)
class Part:
    """One process: what it does with a model of ``size``, in at most so many ``seconds``."""

    kind: Kind
    size: str
    seconds: float
    lora: bool = False

    @property
    def name(self) -> str:
        """As in the JSON."""
        return f"{self.size}/{'lora' if self.lora else 'full'}/{self.kind}"


PARTS = (
    Part("flex", "0.6B", 120),  # the first: what is imported comes from a cold disk
    Part("pairs", "0.6B", 45),
    Part("flex", "4B", 100),
    Part("pairs", "4B", 60),
    Part("parts", "4B", 45),
    Part("gradients", "4B", 75),
    Part("flex", "4B", 60, lora=True),
    Part("pairs", "4B", 60, lora=True),
    Part("kernels", "4B", 60),
    Part("parts", "0.6B", 45),
    Part("gradients", "0.6B", 45),
    Part("kernels", "0.6B", 45),
    Part("flex", "0.6B", 45, lora=True),
    Part("pairs", "0.6B", 45, lora=True),
    Part("compiled", "4B", 90),
)
"""In the order in which they are worth most."""


def allowed(part: Part, left: float) -> float | None:
    """Seconds that ``part`` gets of those that are ``left``; none: it is left out."""
    return min(part.seconds, left) if left >= LEAST else None


def summary(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Ratios of what the parts measured, by name; a ratio of which a side is not there is left out."""
    found: dict[str, float] = {}
    best = {name: _best(part["figures"]) for name, part in parts.items()}
    for size in ("0.6B", "4B"):
        for mode in ("full", "lora"):
            pairs = best.get(f"{size}/{mode}/pairs")
            for kind in ("flex", "parts", "compiled"):
                packed = best.get(f"{size}/{mode}/{kind}")
                if packed:
                    found[f"{size}/{mode}/{kind}: mfu"] = packed["mfu"]
                if packed and pairs:
                    ratio = packed["groups_per_second"] / pairs["groups_per_second"]
                    found[f"{size}/{mode}: packed {kind} ÷ padded pairs, groups/s"] = ratio
            # Both sides take the same optimizer step for a batch.
            step = _optimizer(parts, f"{size}/{mode}/flex")
            packed = best.get(f"{size}/{mode}/flex")
            if step is not None and packed and pairs:
                taken = [BATCH / one["groups_per_second"] + step for one in (packed, pairs)]
                found[f"{size}/{mode}: the same with the optimizer's step of {BATCH} groups"] = (
                    taken[1] / taken[0]
                )
        lora, full = best.get(f"{size}/lora/flex"), best.get(f"{size}/full/flex")
        if lora and full:
            found[f"{size}: lora ÷ full, groups/s"] = lora["groups_per_second"] / full["groups_per_second"]
    return found


def _best(figures: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The variant that was fastest."""
    done = [one for one in figures.get("variants", {}).values() if "groups_per_second" in one]
    return max(done, key=lambda one: float(one["groups_per_second"]), default=None)


def _optimizer(parts: Mapping[str, Mapping[str, Any]], name: str) -> float | None:
    found = parts.get(name, {}).get("figures", {}).get("optimizer", {})
    return float(found["seconds"]) if "seconds" in found else None
