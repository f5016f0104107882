"""The alignment step: packed preference groups ÷ TRL's own DPOTrainer on the same pairs.

Each side trains in a process of its own, in which nothing else happens, and both take turns.  Seconds are
those that the process computes, on one thread, so that neighbours on the machine do not count.  The model
is a pocket-sized Qwen3 with random weights.  TRL reads each pair as two rows, computes the reference
itself, and gets rows of one length, so that it pads nothing; gradient checkpointing is off on both sides.
"""

from __future__ import annotations

import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from raylla.bench.measure import Measured, Note, Row, Side, interleave, ratio
from raylla.bench.run import Bench
from raylla.models import resolve

BASE = "pocket:ad-llm"
POSITIONS = 8192
MIB = 2**20


@dataclass(frozen=True)
class Shape:
    """``groups`` of one prompt and ``answers`` answers (one winner), lengths in tokens."""

    name: str
    prompt: int
    answer: int
    answers: int
    groups: int

    @property
    def packed_tokens(self) -> int:
        """Tokens of one group's row."""
        return self.prompt + self.answers * self.answer

    @property
    def pair_tokens(self) -> int:
        """Tokens of one group's pairs, as policy and as reference."""
        return 4 * (self.answers - 1) * (self.prompt + self.answer)


POCKET = Shape("pocket shape", prompt=140, answer=60, answers=5, groups=16)
PAPER = Shape("paper shape", prompt=4000, answer=400, answers=5, groups=1)


@dataclass(frozen=True)
class Trained:
    """Seconds of training, and bytes that the process grew by at most meanwhile."""

    seconds: float
    grown: int


def rows(bench: Bench) -> list[Row]:
    """Groups per second at both shapes, with tokens, peak memory and the gradients' difference."""
    model = make_model(bench.scratch / "model")
    return [_row(bench, model, shape) for shape in (POCKET, PAPER)]


def _row(bench: Bench, model: Path, shape: Shape) -> Row:
    grown = {"packed": 0, "plain": 0}
    apart = get_context("spawn")
    with (
        ProcessPoolExecutor(1, mp_context=apart) as packed,
        ProcessPoolExecutor(1, mp_context=apart) as plain,
    ):

        def ours() -> float:
            found = packed.submit(train_packed, model, shape, True).result()
            grown["packed"] = max(grown["packed"], found.grown)
            return shape.groups / found.seconds

        def theirs() -> float:
            found = plain.submit(train_pairs, model, shape).result()
            grown["plain"] = max(grown["plain"], found.grown)
            return shape.groups / found.seconds

        sides = interleave([Side("packed", ours), Side("TRL", theirs)], bench.repeats)
        difference = plain.submit(gradient_difference, model, shape).result()
    return _ratio(shape, sides, grown, difference)


def _ratio(shape: Shape, sides: list[Measured], grown: dict[str, int], difference: float) -> Row:
    notes: dict[str, Note] = {
        "shape": f"{shape.prompt} + {shape.answers} x {shape.answer} tokens",
        "tokens per group, packed": shape.packed_tokens,
        "tokens per group, TRL": shape.pair_tokens,
        "peak memory, packed (MiB)": round(grown["packed"] / MIB),
        "peak memory, TRL (MiB)": round(grown["plain"] / MIB),
        "largest relative gradient difference": difference,
    }
    ours, theirs = sides
    return ratio(f"packed DPO ÷ TRL DPOTrainer, {shape.name}", ours, theirs, "groups/s", notes)


def make_model(path: Path) -> Path:
    """A float32 model of the pocket Ad-LLM's size for long prompts, with random weights, in ``path``."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    base = resolve(BASE, "model")
    config = AutoConfig.from_pretrained(base, max_position_embeddings=POSITIONS, dtype=torch.float32)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    AutoTokenizer.from_pretrained(base).save_pretrained(path)
    return path


def make_groups(shape: Shape, vocabulary: int = 1000) -> Any:
    """Preference groups of random tokens."""
    from raylla.policy.groups import TokenGroup

    rng = random.Random(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, vocabulary) for _ in range(count))

    return [
        TokenGroup(tokens(shape.prompt), tuple(tokens(shape.answer) for _ in range(shape.answers)))
        for _ in range(shape.groups)
    ]


def train_packed(path: Path, shape: Shape, given: bool, check: int = 0) -> Trained:
    """One optimizer step on all groups; ``given``: their reference log-probabilities come with them.

    The trainer computes those of ``check`` groups again.  0: it checks one before the clock starts, for
    what a job checks once does not grow with its groups.
    """
    from dataclasses import replace
    from tempfile import TemporaryDirectory

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from raylla.config import Dpo
    from raylla.policy import worker, zero
    from raylla.policy.attention import PARTS
    from raylla.policy.trainer import PackedDPOTrainer, arguments

    worker.setup()
    # One row a forward pass where it is long: a mask of the whole micro-batch would outgrow the caches.
    micro = max(1, min(shape.groups, 4 * POCKET.packed_tokens // shape.packed_tokens))
    dpo = Dpo(workers=1, batch_groups=shape.groups, micro_groups=micro, reference_check=max(1, check))
    groups = make_groups(shape)
    with worker.clean_slate(), TemporaryDirectory() as scratch:
        zero.name_ranks()
        args = arguments(dpo, scratch, 0, 1)
        model = AutoModelForCausalLM.from_pretrained(path, attn_implementation=PARTS)
        if given:
            known = _known(path, shape)
            groups = [replace(one, reference=sums) for one, sums in zip(groups, known, strict=True)]
        trainer = PackedDPOTrainer(model, AutoTokenizer.from_pretrained(path), args, dpo, groups)
        found = _timed(trainer, after_check=given and not check)
        if trainer.reference.used != ("rollout" if given else "recomputed"):
            raise RuntimeError(f"the reference is {trainer.reference}, not what was to be measured")
        trainer.model_wrapped.destroy()
    return found


_KNOWN: dict[str, list[tuple[float, ...]]] = {}


def _known(path: Path, shape: Shape) -> list[tuple[float, ...]]:
    """What a rollout would have returned with the answers; computed once a process, unmeasured."""
    import torch
    from transformers import AutoModelForCausalLM

    from raylla.policy import packing
    from raylla.policy.attention import PARTS

    if shape.name not in _KNOWN:
        model = AutoModelForCausalLM.from_pretrained(path, attn_implementation=PARTS)
        forward = packing.PackedForward(model)
        _KNOWN[shape.name] = []
        for group in make_groups(shape):
            packed = packing.pack([group])
            with torch.no_grad():
                tokens = forward(**{name: packed[name] for name in _inputs()})
            sums = packing.sum_per_answer(tokens, packed["owner"], shape.answers)
            _KNOWN[shape.name].append(tuple(sums.tolist()))
    return _KNOWN[shape.name]


def train_pairs(path: Path, shape: Shape) -> Trained:
    """The same step by TRL as it comes, a group's pairs in each forward pass."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as scratch:
        return _timed(_pair_trainer(path, shape, scratch))


def _pair_trainer(path: Path, shape: Shape, scratch: str) -> Any:
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

    from raylla.policy import worker

    worker.quiet()
    pairs = [
        {"prompt_ids": list(one.prompt), "chosen_ids": list(one.answers[0]), "rejected_ids": list(loser)}
        for one in make_groups(shape)
        for loser in one.answers[1:]
    ]

    class Tokenized(trl.DPOTrainer):  # type: ignore[misc]
        """TRL tokenizes text only; here the ids are given, to both sides alike."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    # Two rows a pair; as many pairs at a time as went fastest at each shape.
    each = 4 if shape.name == POCKET.name else 1
    trainer = Tokenized(
        AutoModelForCausalLM.from_pretrained(path, attn_implementation="sdpa"),
        AutoModelForCausalLM.from_pretrained(path, attn_implementation="sdpa"),
        trl.DPOConfig(
            output_dir=scratch,
            use_cpu=True,
            bf16=False,
            beta=0.1,
            learning_rate=1e-6,
            per_device_train_batch_size=each,
            gradient_accumulation_steps=len(pairs) // each,
            num_train_epochs=1,
            gradient_checkpointing=False,
            max_length=None,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(path),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def gradient_difference(path: Path, shape: Shape) -> float:
    """|packed - pairs| / |pairs| of the gradient of one group's loss, over all parameters."""
    from dataclasses import replace
    from tempfile import TemporaryDirectory

    import torch
    from transformers import AutoModelForCausalLM

    from raylla.policy import packing
    from raylla.policy.attention import PARTS

    one = replace(shape, groups=1)
    with TemporaryDirectory() as scratch:
        trainer = _pair_trainer(path, one, scratch)
        # Not the policy itself: at equal weights every pair has the same slope.
        torch.manual_seed(1)
        reference = trainer.ref_model
        with torch.no_grad():
            for parameter in reference.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        pairs = list(trainer.train_dataset)
        inputs = trainer.data_collator(pairs)
        trainer.compute_loss(trainer.model, inputs).backward()
        expected = _gradients(trainer.model)
    packed = packing.pack(make_groups(one))
    policy = AutoModelForCausalLM.from_pretrained(path, attn_implementation=PARTS)
    reference.set_attn_implementation(PARTS)
    sums = []
    for model in (policy, reference):
        with torch.set_grad_enabled(model is policy):
            tokens = packing.PackedForward(model)(**{name: packed[name] for name in _inputs()})
            sums.append(packing.sum_per_answer(tokens, packed["owner"], one.answers))
    margins = packing.pair_margins(sums[0], sums[1], packed["winner"], packed["loser"], 0.1)
    loss: Any = packing.pair_loss(margins) / len(margins)
    loss.backward()
    found = _gradients(policy)
    difference = sum(float((found[name] - expected[name]).square().sum()) for name in expected)
    return float((difference / sum(float(g.square().sum()) for g in expected.values())) ** 0.5)


def _gradients(model: Any) -> dict[str, Any]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _inputs() -> tuple[str, ...]:
    from raylla.policy.trainer import MODEL_INPUTS

    return MODEL_INPUTS


def _timed(trainer: Any, after_check: bool = False) -> Trained:
    """From the moment at which everything is set up to the last step's end."""
    from transformers import TrainerCallback

    marks: dict[str, float] = {}

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            marks["began"], marks["held"] = time.process_time(), _memory("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew

        def on_train_end(self, *_: Any, **__: Any) -> None:
            marks["ended"] = time.process_time()

    callbacks = trainer.callback_handler.callbacks
    callbacks.insert(len(callbacks) if after_check else 0, Clock())
    trainer.train()
    return Trained(marks["ended"] - marks["began"], int(_memory("VmHWM") - marks["held"]))


def _memory(field: str) -> int:
    """Bytes of one field of this process's status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
