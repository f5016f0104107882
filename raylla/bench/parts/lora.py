"""The alignment step of an adapter on a published model: packed groups ÷ TRL's own trainer, as in `dpo`.

Both train a new adapter of the same shape (the config's ``lora``, or the defaults) in the same precision
(``dpo.precision``) on the same pairs, of about a plain prompt's length. TRL is given the adapter as its
`peft_config` and computes the reference with it switched off; packed groups bring theirs along.
"""

from __future__ import annotations

from pathlib import Path

from raylla import precision
from raylla.bench.measure import Row
from raylla.bench.parts.dpo import Shape, Subject, side_by_side
from raylla.bench.run import MODELS, Bench
from raylla.config import Lora
from raylla.models import resolve

_SHAPE = Shape("SmolLM2-135M", prompt=300, answer=70, answers=5, groups=2, pairs=2)


def rows(bench: Bench) -> list[Row]:
    """Groups per second, with tokens, peak memory and the difference of the adapter's gradients."""
    config = bench.config
    path = Path(resolve(MODELS["lora"], "model"))
    # On the CPU, as TRL is told to train; without an accelerator "auto" is the processor's.
    subject = Subject(path, config.lora or Lora(), precision.chosen(config.dpo.precision, gpu=False))
    return [side_by_side(bench, subject, _SHAPE, f"packed LoRA DPO ÷ TRL DPOTrainer, {_SHAPE.name}")]
