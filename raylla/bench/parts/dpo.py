"""The alignment step: packed preference groups ÷ TRL's own DPOTrainer on the same pairs.

Each side trains in a process of its own, in which nothing else happens, and both take turns.  Seconds are
those that the process computes, on one thread, so that neighbours on the machine do not count.  The model
is a pocket-sized Qwen3 with random weights (in `raylla.bench.parts.lora` an adapter on a published one).
TRL reads each pair as two rows, computes the reference itself, and gets rows of one length, so that it pads
nothing; gradient checkpointing is off on both sides.
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
from raylla.config import Lora
from raylla.models import local
from raylla.models.quiet import quiet
from raylla.precision import Precision

_BASE = "pocket:ad-llm"
POSITIONS = 8192
MIB = 2**20


@dataclass(frozen=True)
class Shape:
    """``groups`` of one prompt and ``answers`` answers (one winner), lengths in tokens of ``vocabulary``.

    ``pairs`` are those that TRL reads at a time, two rows each: as many as went fastest.
    """

    name: str
    prompt: int
    answer: int
    answers: int
    groups: int
    pairs: int = 1
    vocabulary: int = 1000

    @property
    def packed_tokens(self) -> int:
        """Tokens of one group's row."""
        return self.prompt + self.answers * self.answer

    @property
    def pair_tokens(self) -> int:
        """Tokens of one group's pairs, as policy and as reference."""
        return 4 * (self.answers - 1) * (self.prompt + self.answer)


_POCKET = Shape("pocket shape", prompt=140, answer=60, answers=5, groups=16, pairs=4)
PAPER = Shape("paper shape", prompt=4000, answer=400, answers=5, groups=1)


@dataclass(frozen=True)
class Subject:
    """What is trained, and in which precision: all of the model in a directory, or a new adapter on it."""

    path: Path
    lora: Lora | None = None
    precision: Precision = "float32"


@dataclass(frozen=True)
class Trained:
    """Seconds of training, and bytes that the process grew by at most meanwhile."""

    seconds: float
    grown: int


def rows(bench: Bench) -> list[Row]:
    """Groups per second at both shapes, with tokens, peak memory and the gradients' difference."""
    model = Subject(make_model(bench.scratch / "model"))
    what = "packed DPO ÷ TRL DPOTrainer"
    return [side_by_side(bench, model, shape, f"{what}, {shape.name}") for shape in (_POCKET, PAPER)]


def side_by_side(bench: Bench, subject: Subject, shape: Shape, name: str) -> Row:
    """Groups per second of both, and the difference between their gradients."""
    grown = {"packed": 0, "plain": 0}
    apart = get_context("spawn")
    with (
        ProcessPoolExecutor(1, mp_context=apart) as packed,
        ProcessPoolExecutor(1, mp_context=apart) as plain,
    ):

        def ours() -> float:
            trained = packed.submit(train_packed, subject, shape, True).result()
            grown["packed"] = max(grown["packed"], trained.grown)
            return shape.groups / trained.seconds

        def theirs() -> float:
            trained = plain.submit(train_pairs, subject, shape).result()
            grown["plain"] = max(grown["plain"], trained.grown)
            return shape.groups / trained.seconds

        sides = interleave([Side("packed", ours), Side("TRL", theirs)], bench.repeats)
        difference = plain.submit(gradient_difference, subject, shape).result()
    return _ratio(name, shape, sides, grown, difference)


def _ratio(name: str, shape: Shape, sides: list[Measured], grown: dict[str, int], difference: float) -> Row:
    notes: dict[str, Note] = {
        "shape": f"{shape.prompt} + {shape.answers} x {shape.answer} tokens",
        "tokens per group, packed": shape.packed_tokens,
        "tokens per group, TRL": shape.pair_tokens,
        "peak memory, packed (MiB)": round(grown["packed"] / MIB),
        "peak memory, TRL (MiB)": round(grown["plain"] / MIB),
        "largest relative gradient difference": difference,
    }
    ours, theirs = sides
    return ratio(name, ours, theirs, "groups/s", notes)


def make_model(path: Path, like: str = _BASE) -> Path:
    """A float32 model of the size of ``like`` for long prompts, with random weights, in ``path``."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with local(like) as base:
        config = AutoConfig.from_pretrained(base, max_position_embeddings=POSITIONS, dtype=torch.float32)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(path)
        AutoTokenizer.from_pretrained(base).save_pretrained(path)
    return path


def make_groups(shape: Shape) -> Any:
    """Preference groups of random tokens."""
    from raylla.policy.groups import TokenGroup

    rng = random.Random(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, shape.vocabulary) for _ in range(count))

    return [
        TokenGroup(tokens(shape.prompt), tuple(tokens(shape.answer) for _ in range(shape.answers)))
        for _ in range(shape.groups)
    ]


def train_packed(subject: Subject, shape: Shape, given: bool, check: int = 0) -> Trained:
    """One optimizer step on all groups; ``given``: their reference log-probabilities come with them.

    The trainer computes those of ``check`` groups again.  0: it checks one before the clock starts, for
    what a job checks once does not grow with its groups.
    """
    from dataclasses import replace
    from tempfile import TemporaryDirectory

    from raylla.config import Dpo
    from raylla.policy import adapters, worker, zero
    from raylla.policy.trainers.dpo import PackedDPOTrainer, dpo_arguments

    worker.setup()
    # One row a forward pass where it is long: a mask of the whole micro-batch would outgrow the caches.
    micro = max(1, min(shape.groups, 4 * _POCKET.packed_tokens // shape.packed_tokens))
    dpo = Dpo.model_validate(
        {
            "workers": 1,
            "batch_groups": shape.groups,
            "micro_groups": micro,
            "reference_check": max(1, check),
            "precision": subject.precision,
        }
    )
    groups = make_groups(shape)
    with worker.clean_slate(), TemporaryDirectory() as scratch:
        zero.name_ranks()
        args = dpo_arguments(dpo, scratch, 0, 1)
        model = _packed_model(subject)
        if given:
            known = _known(subject, shape)
            groups = [replace(group, reference=sums) for group, sums in zip(groups, known, strict=True)]
        trainer = PackedDPOTrainer(model, adapters.tokenizer(subject.path), args, dpo, groups)
        timing = _timed(trainer, after_check=given and not check)
        if trainer.reference.used != ("rollout" if given else "recomputed"):
            raise RuntimeError(f"the reference is {trainer.reference}, not what was to be measured")
        trainer.model_wrapped.destroy()
    return timing


def _packed_model(subject: Subject) -> Any:
    """As the policy trainer loads it: a new adapter changes nothing yet."""
    from raylla.policy import adapters
    from raylla.policy.attention import PACKED_PARTS
    from raylla.policy.worker import DTYPES

    how = {"dtype": DTYPES[subject.precision], "attn_implementation": PACKED_PARTS}
    return adapters.load_trainable(subject.path, str(subject.path), subject.lora, 0, **how)


_KNOWN: dict[tuple[Path, Shape], list[tuple[float, ...]]] = {}


def _known(subject: Subject, shape: Shape) -> list[tuple[float, ...]]:
    """What a rollout would have returned with the answers; computed once a process, unmeasured."""
    import torch

    from raylla.policy import packing

    place = subject.path, shape
    if place not in _KNOWN:
        forward = packing.PackedForward(_packed_model(subject))
        _KNOWN[place] = []
        for group in make_groups(shape):
            packed = packing.pack([group])
            with torch.no_grad():
                tokens = forward(**{name: packed[name] for name in packing.MODEL_INPUTS})
            sums = packing.sum_per_answer(tokens, packed["owner"], shape.answers)
            _KNOWN[place].append(tuple(sums.tolist()))
    return _KNOWN[place]


def train_pairs(subject: Subject, shape: Shape) -> Trained:
    """The same step by TRL as it comes, some of a group's pairs in each forward pass."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as scratch:
        return _timed(_pair_trainer(subject, shape, scratch))


def _pair_trainer(subject: Subject, shape: Shape, scratch: str) -> Any:
    """TRL's trainer; with an adapter, the reference is the model without it, as TRL has it."""
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PrinterCallback

    from raylla.policy import adapters, worker

    quiet()
    pairs = [
        {
            "prompt_ids": list(group.prompt),
            "chosen_ids": list(group.answers[0]),
            "rejected_ids": list(loser),
        }
        for group in make_groups(shape)
        for loser in group.answers[1:]
    ]

    class Tokenized(trl.DPOTrainer):  # type: ignore[misc]
        """TRL tokenizes text only; here the ids are given, to both sides alike."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    def load() -> Any:
        how = {"dtype": worker.DTYPES[subject.precision], "attn_implementation": "sdpa"}
        return AutoModelForCausalLM.from_pretrained(subject.path, **how)

    model, lora = load(), subject.lora
    trainer = Tokenized(
        model,
        load() if lora is None else None,
        trl.DPOConfig(
            output_dir=scratch,
            use_cpu=True,
            bf16=subject.precision == "bfloat16",
            beta=0.1,
            learning_rate=1e-6,
            per_device_train_batch_size=shape.pairs,
            gradient_accumulation_steps=len(pairs) // shape.pairs,
            num_train_epochs=1,
            gradient_checkpointing=False,
            max_length=None,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=adapters.tokenizer(subject.path),
        peft_config=lora and adapters.peft_config(lora, str(subject.path), model.config.num_hidden_layers),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def gradient_difference(subject: Subject, shape: Shape) -> float:
    """|packed - pairs| / |pairs| of the gradient of one group's loss in float32, over all that is trained.

    Policy and reference are not the same, for at equal weights every pair has the same slope: where all is
    trained, the reference is moved; the adapter, which changes nothing when it is new, else.
    """
    from dataclasses import replace
    from tempfile import TemporaryDirectory

    import torch

    from raylla.policy import packing
    from raylla.policy.attention import PACKED_PARTS

    alone = replace(shape, groups=1)
    exact = replace(subject, precision="float32")
    with TemporaryDirectory() as scratch:
        trainer = _pair_trainer(exact, alone, scratch)
        torch.manual_seed(1)
        reference = trainer.ref_model
        moved = _trained(trainer.model).values() if reference is None else reference.parameters()
        with torch.no_grad():
            for parameter in moved:
                parameter.add_(0.01 * torch.randn_like(parameter))
        pairs = list(trainer.train_dataset)
        for start in range(0, len(pairs), alone.pairs):
            some = pairs[start : start + alone.pairs]
            loss: Any = trainer.compute_loss(trainer.model, trainer.data_collator(some))
            (loss * (len(some) / len(pairs))).backward()
        trained = _trained(trainer.model)
    policy = _packed_model(exact)
    with torch.no_grad():
        for name, parameter in _trained(policy).items():
            parameter.copy_(trained[name])
    if reference is None:
        reference = _packed_model(replace(exact, lora=None))
    reference.set_attn_implementation(PACKED_PARTS)
    packed = packing.pack(make_groups(alone))
    sums = []
    for model in (policy, reference):
        with torch.set_grad_enabled(model is policy):
            tokens = packing.PackedForward(model)(**{name: packed[name] for name in packing.MODEL_INPUTS})
            sums.append(packing.sum_per_answer(tokens, packed["owner"], alone.answers))
    margins = packing.pair_margins(sums[0], sums[1], packed["winner"], packed["loser"], 0.1)
    loss = packing.pair_loss(margins) / len(margins)
    loss.backward()
    expected = {name: parameter.grad for name, parameter in trained.items()}
    gradients = {name: parameter.grad for name, parameter in _trained(policy).items()}
    difference = sum(float((gradients[name] - expected[name]).square().sum()) for name in expected)
    return float((difference / sum(float(g.square().sum()) for g in expected.values())) ** 0.5)


def _trained(model: Any) -> dict[str, Any]:
    """What of a model is trained, by its name in the model itself."""
    return {
        name.removeprefix("base_model.model."): parameter  # what peft wraps it in
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


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
