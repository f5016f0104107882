"""The section of `raylla judge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from raylla.config.sections import Lora, Positive, Share, Tuning


class Judging(Tuning):
    """Supervised training of a judge on published click decisions, and its measure."""

    data: Path = Field(description="judged answers: JSON lines, .gz or not, as GEM-Bench publishes them")
    judges: tuple[str, ...] = Field((), description="whose decisions are learned; none: all of the data's")
    base: str = Field("package:smollm2-135m", description="language model that the adapter is of")
    held_out: Share = Field(0.2, description="share of questions that only the report sees")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of that split, and of the training")
    batch: Positive = Field(16, description="rows of an optimizer step, all ranks")
    micro: Positive = Field(2, description="rows of a forward pass of one rank")
    lora: Lora | None = Lora(rank=8, alpha=16)
    encoder: str = Field(
        "package:minilm-l6", description="encoder of the pCTR network that the report holds it against"
    )
    bootstrap: Positive = Field(1000, description="resamples of the held-out questions")
