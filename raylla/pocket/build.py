"""`raylla pocket build`: train the tokenizer, a trunk that copies, and from it the two pocket models.

Copying comes first, by itself (see the grammar): answers mixed in too early leave ids invented.
Each stage is resumable: it saves model, optimizer and step every `SAVE_EVERY` steps, and draws
the samples of step s from a generator seeded with (stage, s).
"""

from __future__ import annotations

import math
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from raylla.pocket import initial, tokenizer
from raylla.strictjson import dumps
from raylla.world.synthetic import grammar

Draw = Callable[[random.Random], grammar.Sample]
_Row = tuple[list[int], list[int], grammar.Sample]
"""Prompt ids, answer ids, and what they were made from."""
SAVE_EVERY = 100
POOL = 8
"""Batches drawn together and cut by length, so that little is padding."""
JUDGED_WEIGHT, CHOICE_WEIGHT = 3, 6
"""Loss weights of a click, and of the word that picks the one right ad: few tokens, most of the worth."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One training stage: what is drawn (weights over samplers), for how long, how fast."""

    name: str
    start_from: str | None
    mix: tuple[tuple[str, float], ...]
    steps: int
    batch: int
    muon_lr: float
    adam_lr: float
    warmup: int = 50
    decay_from: float = 0.5


SAMPLERS: dict[str, Draw] = {
    "repeat": grammar.repeat_sample,
    "list": grammar.list_sample,
    "pick": grammar.pick_sample,
    "copy": grammar.copy_sample,
    "answer": grammar.answer_sample,
    "ask": grammar.ask_sample,
    "judge": grammar.judge_sample,
}
STAGES = (
    Stage("list", None, (("list", 0.9), ("repeat", 0.1)), 2000, 16, 0.04, 0.01, decay_from=0.7),
    Stage("pick", "list", (("pick", 0.8), ("list", 0.2)), 200, 24, 0.03, 0.008, decay_from=1.0),
    Stage("ad-llm", "pick", (("copy", 0.5), ("answer", 0.5)), 2400, 16, 0.03, 0.008, decay_from=0.4),
    Stage("user-llm", "list", (("judge", 0.9), ("ask", 0.1)), 3000, 16, 0.03, 0.008, decay_from=0.4),
)
MODEL = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "initializer_range": 0.06,
    "tie_word_embeddings": True,
}
VOCABULARY = 2048


def build_models(out: Path, stages: tuple[Stage, ...] = STAGES, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Run the stages that are not finished yet; yields one progress record every 10 steps."""
    words = _tokenizer(out / "tokenizer", seed)
    for stage in stages:
        yield from _run(stage, out, words, seed)


def _tokenizer(path: Path, seed: int) -> PreTrainedTokenizerFast:
    if (path / "tokenizer.json").exists():
        return PreTrainedTokenizerFast.from_pretrained(path)
    rng = random.Random(f"{seed}/tokenizer")
    texts = []
    for _ in range(8000):
        for draw in SAMPLERS.values():
            sample = draw(rng)
            texts += [sample.messages[0]["content"], sample.completion]
    words = tokenizer.train_tokenizer(texts, VOCABULARY)
    tokenizer.save_tokenizer(words, path)
    return words


def _run(stage: Stage, out: Path, words: PreTrainedTokenizerFast, seed: int) -> Iterator[dict[str, Any]]:
    directory = out / stage.name
    if (directory / "model.safetensors").exists():
        return
    torch.manual_seed(seed)
    model = _model(words)
    bids = initial.Bids(words.convert_tokens_to_ids(list(tokenizer.BIDS)))
    if not stage.start_from:
        initial.copying(model, seed)
        bids.start(model.model.embed_tokens.weight, seed)
    else:
        model.load_state_dict(load_file(out / stage.start_from / "model.safetensors"), strict=False)
    optimizers = _optimizers(model, stage)
    partial = directory / "partial.pt"
    first = 0
    if partial.exists():
        state = torch.load(partial, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first = state["step"]
    directory.mkdir(parents=True, exist_ok=True)
    # Compiled it is half as fast again; the arithmetic is the same to rounding.
    trunk = torch.compile(model.model, dynamic=True) if shutil.which("c++") else model.model
    started, tokens, recent = time.monotonic(), 0, list[float]()
    pool: list[list[_Row]] = []
    for step in range(first, stage.steps):
        if not pool or step % POOL == 0:
            pool = _pool(stage, words, random.Random(f"{seed}/{stage.name}/{step // POOL}"))
        batch = _batch(pool[step % POOL], words)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * _schedule(step, stage)
        loss = _loss(trunk, model.lm_head, *batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        bids.keep(model.model.embed_tokens.weight)
        tokens += batch[0].numel()
        recent.append(loss.item())
        if (step + 1) % 10 == 0:
            rate = tokens / (time.monotonic() - started)
            yield {
                "stage": stage.name,
                "step": step + 1,
                "of": stage.steps,
                "loss": sum(recent) / len(recent),
                "tokens_per_second": rate,
            }
            recent = []
        if (step + 1) % SAVE_EVERY == 0:
            _save_partial(partial, model, optimizers, step + 1)
    _save(model, words, directory, stage)
    partial.unlink(missing_ok=True)


def _model(words: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=len(words),
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
        bos_token_id=None,
        **MODEL,
    )
    return Qwen3ForCausalLM(config)


def _optimizers(model: Qwen3ForCausalLM, stage: Stage) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, Adam for embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=stage.muon_lr, weight_decay=0.01, momentum=0.95),
        torch.optim.Adam(others, lr=stage.adam_lr, betas=(0.9, 0.98)),
    ]
    for optimizer, peak in zip(optimizers, (stage.muon_lr, stage.adam_lr), strict=True):
        for group in optimizer.param_groups:
            group["peak_lr"] = peak
    return optimizers


def _schedule(step: int, stage: Stage) -> float:
    """Linear warm-up, a plateau, cosine to a twentieth."""
    if step < stage.warmup:
        return (step + 1) / stage.warmup
    done = step / stage.steps
    if done < stage.decay_from:
        return 1.0
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (done - stage.decay_from) / (1 - stage.decay_from)))


def _pool(stage: Stage, words: PreTrainedTokenizerFast, rng: random.Random) -> list[list[_Row]]:
    """`POOL` batches of similar length each, in random order."""
    names, shares = zip(*stage.mix, strict=True)
    samples = [SAMPLERS[name](rng) for name in rng.choices(names, shares, k=stage.batch * POOL)]
    prompts = words(
        [tokenizer.USER + sample.messages[0]["content"] + tokenizer.ASSISTANT for sample in samples]
    ).input_ids
    answers = words([sample.completion + tokenizer.END for sample in samples]).input_ids
    rows = sorted(zip(prompts, answers, samples, strict=True), key=lambda row: len(row[0]) + len(row[1]))
    batches = [rows[place : place + stage.batch] for place in range(0, len(rows), stage.batch)]
    rng.shuffle(batches)
    return batches


def _batch(
    rows: list[_Row], words: PreTrainedTokenizerFast
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, labels, other labels, their chances and weights, all [batch, length], right-padded.

    Labels are -100 off the answer.  Where a judgement says 0 or 1, the other label is the one it
    did not say, with the click model's chance of it: the expectation over draws instead of a draw.
    """
    length = max(len(p) + len(a) for p, a, _ in rows)
    ids = torch.full((len(rows), length), int(words.pad_token_id))
    labels = torch.full((len(rows), length), -100)
    others = torch.zeros_like(ids)
    chances = torch.zeros((len(rows), length))
    weights = torch.ones((len(rows), length))
    no, yes = words("0").input_ids[0], words("1").input_ids[0]
    mark, at = words('":').input_ids[0], words(" @").input_ids[0]
    for row, (p, a, sample) in enumerate(rows):
        ids[row, : len(p) + len(a)] = torch.tensor(p + a)
        labels[row, len(p) : len(p) + len(a)] = torch.tensor(a)
        said = [len(p) + place + 1 for place, token in enumerate(a) if token == mark]
        for place, chance in zip(said, sample.chances, strict=False):
            clicked = int(ids[row, place]) == yes
            others[row, place] = no if clicked else yes
            chances[row, place] = 1 - chance if clicked else chance
            weights[row, place] = JUDGED_WEIGHT
        if sample.decided:
            weights[row, len(p) + len(a) - a[::-1].index(at)] = CHOICE_WEIGHT
    return ids, labels, others, chances, weights


def _loss(
    trunk: Callable[..., Any],
    head: torch.nn.Module,
    ids: torch.Tensor,
    labels: torch.Tensor,
    others: torch.Tensor,
    chances: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Weighted mean cross-entropy over answer tokens; the head runs on those alone.

    Padding is on the right, so causal attention never lets it into an answer.
    """
    hidden = trunk(ids, use_cache=False).last_hidden_state[:, :-1]
    mask = labels[:, 1:] != -100
    logits = head(hidden[mask]).log_softmax(-1)
    chance = chances[:, 1:][mask]
    said = logits.gather(1, labels[:, 1:][mask][:, None])[:, 0]
    other = logits.gather(1, others[:, 1:][mask][:, None])[:, 0]
    weight = weights[:, 1:][mask]
    return -(weight * ((1 - chance) * said + chance * other)).sum() / weight.sum()


def _save_partial(
    path: Path, model: Qwen3ForCausalLM, optimizers: list[torch.optim.Optimizer], step: int
) -> None:
    state = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "step": step,
    }
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def _save(model: Qwen3ForCausalLM, words: PreTrainedTokenizerFast, directory: Path, stage: Stage) -> None:
    """Config, tokenizer, bfloat16 weights (tied head left out), and the stage that made them."""
    model.config.dtype = torch.bfloat16
    model.config.architectures = ["Qwen3ForCausalLM"]
    model.config.save_pretrained(directory)
    tokenizer.save_tokenizer(words, directory)
    (directory / "stage.json").write_text(dumps(asdict(stage), indent=2) + "\n")
    weights = {
        name: value.to(torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    fresh = directory / "model.safetensors.new"
    save_file(weights, fresh, metadata={"format": "pt"})
    fresh.replace(directory / "model.safetensors")
