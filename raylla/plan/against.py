"""A plan held to a finished run: what its epochs took beside what their config was planned to take."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from raylla.auction.markup import MARKUP
from raylla.config import Config
from raylla.errors import RunError
from raylla.plan.budget import Budget, PhaseCost, budget
from raylla.plan.hardware import Device, Shares
from raylla.plan.work import AT_MOST, Counts, Lengths
from raylla.policy.schedule import plan_steps
from raylla.runs.state import Run, parts_of

PHASES = ("rollout", "judge", "learn", "align", "deploy")
_PHASE_OF = {"rollout": "rollout", "judge": "judge", "reward-trainer": "learn", "policy-trainer": "align"}
"""Phase by the actors whose spans in a run's timeline are its; an engine's ``load`` is deploy's."""
_ORGANIC = "organic"
"""The stage of the untouched model's answers, once before the first epoch and in no timeline."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One quantity of a phase, or of an epoch as a whole.

    ``planned`` from the config alone, ``informed`` with the run's own texts, how many and how long, ``had``
    by the run (none: it does not say). Tokens, FLOPs, seconds or bytes. A run's FLOPs are those of its
    tokens: nobody measured them.
    """

    phase: str
    quantity: str
    planned: float
    informed: float
    had: float | None

    @property
    def off(self) -> tuple[float | None, float | None]:
        """By what share of the run's figure each plan exceeds it."""
        if not self.had:
            return None, None
        return self.planned / self.had - 1, self.informed / self.had - 1

    def as_json(self) -> dict[str, Any]:
        """By name."""
        planned, informed = self.off
        return {
            "phase": self.phase,
            "quantity": self.quantity,
            "planned": self.planned,
            "planned_with_texts": self.informed,
            "run": self.had,
            "planned_off": planned,
            "planned_with_texts_off": informed,
        }


@dataclass(frozen=True, slots=True)
class Reckoning:
    """A plan beside a run. ``shares`` by phase: of a device's best, what the run reached."""

    name: str
    epochs: int
    lengths: Lengths
    figures: tuple[Compared, ...]
    shares: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return {
            "name": self.name,
            "epochs": self.epochs,
            "lengths": {field.name: getattr(self.lengths, field.name) for field in fields(Lengths)},
            "figures": [figure.as_json() for figure in self.figures],
            "shares": self.shares,
        }


@dataclass(frozen=True, slots=True)
class _Epoch:
    """What one epoch had: mean tokens of prompts and answers, counts, and seconds of each phase."""

    prompt: float
    answer: float
    counts: Counts
    seconds: dict[str, float]
    wall: float


def reckon(run: Run, device: Device, cores: int) -> Reckoning:
    """The plan of ``run``'s config beside what its epochs had, on average.

    Tokens and FLOPs of the run are counted from its records; a judge's prompts are not among them and are
    taken at the plan's length. Seconds come from its timeline: an actor's span counts by the share of a
    core that it can have had, where more actors were at work than the ``cores`` that they share.

    Raises:
        RunError: the run is not finished, or has no timeline of a whole epoch.
    """
    config = run.config
    if run.committed("conclude") is None:
        raise RunError(
            f"{run.place} is not finished, so there is nothing to hold a plan to; finish it with "
            f"`raylla resume {run.place}`"
        )
    planned = budget(config, device, Lengths.of(config), cores=cores)
    epochs = [_epoch(run, number, lines, planned) for number, lines in _timeline(run).items()]
    lengths = Lengths.of(
        config, fmean(epoch.prompt for epoch in epochs), fmean(epoch.answer for epoch in epochs)
    )
    counts = _mean([epoch.counts for epoch in epochs])
    informed = budget(config, device, lengths, cores=cores, counts=counts)
    best = budget(config, device, lengths, Shares(1, 1, 1, 1, 1), cores, counts)
    seconds = {name: fmean(epoch.seconds[name] for epoch in epochs) for name in PHASES}
    wall = fmean(epoch.wall for epoch in epochs)
    found = [*_phases(planned, informed, seconds), *_whole(planned, informed, wall)]
    if planned.organic and informed.organic:
        once = run.committed(_ORGANIC) or {}
        found += _organic(planned.organic, informed.organic, once)
    if planned.cores is not None:
        peak = json.loads(run.part("results.json").read_text())["peak_memory_bytes"]
        found.append(Compared("epoch", "memory", planned.host_bytes, informed.host_bytes, float(peak)))
    shares = {name: _share(best.phase(name), seconds[name]) for name in PHASES if best.phase(name).flops}
    return Reckoning(config.name, len(epochs), lengths, tuple(found), shares)


def core_seconds(spans: Iterable[dict[str, Any]], config: Config, cores: int | None) -> dict[str, float]:
    """Seconds of a device that each phase had, over all its workers.

    On shared ``cores`` those at work at any moment are taken to share them evenly, one core each at most;
    otherwise (none) every worker has its own device.
    """
    # The trainer's one span stands for all its ranks.
    edges: list[tuple[float, str, int]] = []
    for span in spans:
        phase = _phase(span)
        workers = config.dpo.workers if phase == "align" else 1
        edges += [(span["began"], phase, workers), (span["ended"], phase, -workers)]
    found = dict.fromkeys(PHASES, 0.0)
    working = dict.fromkeys(PHASES, 0)
    before = 0.0
    for at, phase, change in sorted(edges):
        total = sum(working.values())
        share = 1.0 if cores is None or total <= cores else cores / total
        for name, workers in working.items():
            found[name] += workers * share * (at - before)
        working[phase] += change
        before = at
    return found


def _phase(span: dict[str, Any]) -> str:
    group = span["actor"].rpartition("[")[0]
    return "deploy" if group == "rollout" and span["task"] in ("load", "start") else _PHASE_OF[group]


def _timeline(run: Run) -> dict[int, list[dict[str, Any]]]:
    """The lines of each epoch that the timeline holds whole, by its number.

    Raises:
        RunError: there is none.
    """
    path = run.part("timeline.jsonl")
    if not path.exists():
        raise RunError(
            f"{run.place} has no timeline.jsonl, so how long its phases took is not known; hold "
            "the plan to a run that has one"
        )
    found: dict[int, list[dict[str, Any]]] = {}
    for line in map(json.loads, path.read_text().splitlines()):
        found.setdefault(line["epoch"], []).append(line)
    sampled = {
        epoch: lines
        for epoch, lines in found.items()
        if {"reward", "preference", "align"} <= {line.get("task") for line in lines}
    }
    if not sampled:
        raise RunError(
            f"{run.place}: timeline.jsonl has no epoch that one process sampled and aligned from end to "
            "end; hold the plan to a run that was not resumed in every epoch"
        )
    return sampled


def _parts(run: Run, epoch: int, stage: str) -> list[Path]:
    return parts_of(run.part(f"records/epoch-{epoch}/{stage}"))


def _epoch(run: Run, epoch: int, lines: Sequence[dict[str, Any]], planned: Budget) -> _Epoch:
    config = run.config
    spans = [line for line in lines if line.get("actor", "").rpartition("[")[0] in _PHASE_OF]
    busy = core_seconds(spans, config, planned.cores)
    seconds = {name: busy[name] / planned.phase(name).workers for name in PHASES}
    wall = next(line["wall_seconds"] for line in lines if "wall_seconds" in line)
    stages = [part for name in ("sample", "test") for part in _parts(run, epoch, name)]
    answers = [answer for stage in stages for answer in _answers(stage)]
    prompts = {answer.auction: answer.prompt for answer in answers}
    lengths = {answer.name: answer.length for answer in answers}
    prompt, answer = fmean(prompts.values()), fmean(lengths.values())
    clicked = [
        name
        for stage in stages
        for name in pq.read_table(stage / "clicks.parquet", columns=["sample_id"])["sample_id"].to_pylist()
    ]
    unread = "/preference/" if config.irpo.reward == "judge" else None
    placed = sum(
        answer.length for answer in answers if answer.places and not (unread and unread in answer.name)
    )
    aligned = run.committed(f"epoch-{epoch}/align") or {}
    trained = [
        group
        for part in _parts(run, epoch, "learn")
        for group in json.loads((part / "groups.json").read_text())
    ]
    rows = [
        _Row(
            prompts[group["auction_id"]]
            + sum(lengths[name] for name in (group["winner"], *group["losers"]))
        )
        for group in trained
    ]
    at_most = Counts.of(config, AT_MOST)
    counts = Counts(
        requests=len(prompts),
        answers=len(answers),
        # One prompt for each ad, or one for each answer that holds any.
        readings=len(clicked) if config.user_llm.reading == "token" else len(set(clicked)),
        encoded=placed / answer,
        queries=at_most.queries,
        ads=at_most.ads,
        groups=len(rows),
        members=(aligned["tokens"] / config.dpo.passes / len(rows) - prompt) / answer,
        steps=aligned["steps"],
        longest=max(row.length for row in rows),
        uneven=_uneven(rows, config),
    )
    return _Epoch(prompt, answer, counts, seconds, wall)


@dataclass(frozen=True, slots=True)
class _Answer:
    """One recorded answer: its sample id and auction, tokens of both, and whether it places an ad."""

    name: str
    auction: str
    prompt: int
    length: int
    places: bool


def _answers(stage: Path) -> Iterator[_Answer]:
    """The answers that a stage recorded, its token ids counted and left on the disk."""
    columns = ["sample_id", "auction_id", "prompt_token_ids", "token_ids", "text"]
    for batch in pq.ParquetFile(stage / "answers.parquet").iter_batches(256, columns=columns):
        for name, auction, prompt, length, text in zip(
            batch["sample_id"].to_pylist(),
            batch["auction_id"].to_pylist(),
            pc.list_value_length(batch["prompt_token_ids"]).to_pylist(),
            pc.list_value_length(batch["token_ids"]).to_pylist(),
            batch["text"].to_pylist(),
            strict=True,
        ):
            yield _Answer(name, auction, prompt, length, bool(MARKUP.search(text)))


@dataclass(frozen=True, slots=True)
class _Row:
    """A packed group by its tokens alone, as `schedule` deals them out."""

    length: int
    prompt: tuple[int, ...] = ()
    answers: tuple[tuple[int, ...], ...] = ()
    pairs: int = 0


def _uneven(rows: Sequence[_Row], config: Config) -> float:
    """Tokens that ranks compute or wait for ÷ tokens of their rows: in each step all wait for the one that
    has most, and rows of one forward pass are as long as its longest."""
    dpo = config.dpo
    steps = plan_steps(rows, dpo.batch_groups, dpo.micro_groups, dpo.workers, 1, config.seed)
    taken = sum(
        max(
            sum(len(some) * max((rows[place].length for place in some), default=0) for some in rank)
            for rank in step.micros
        )
        for step in steps
    )
    return dpo.workers * taken / sum(row.length for row in rows)


def _mean(epochs: Sequence[Counts]) -> Counts:
    """Of each count the mean, of the longest groups the longest."""
    values = {count.name: [getattr(counts, count.name) for counts in epochs] for count in fields(Counts)}
    longest = max(values.pop("longest"))
    return Counts(**{name: fmean(some) for name, some in values.items()}, longest=longest)


def _share(best: PhaseCost, seconds: float) -> float:
    """Of a device's best, what ``seconds`` come to without those that no device could save."""
    fixed = best.times.get("handling", 0.0)
    return (best.seconds - fixed) / (seconds - fixed) if seconds > fixed else float("nan")


def _phases(planned: Budget, informed: Budget, seconds: dict[str, float]) -> Iterable[Compared]:
    for name in PHASES:
        phase, other = planned.phase(name), informed.phase(name)
        if phase.flops:
            yield Compared(name, "tokens", phase.tokens, other.tokens, other.tokens)
            yield Compared(name, "FLOP", phase.flops, other.flops, other.flops)
        yield Compared(name, "seconds", phase.seconds, other.seconds, seconds[name])
        of = {"learn": "reward", "align": "dpo"}.get(name, name)
        for first, second in zip(planned.memory, informed.memory, strict=True):
            if first.group == of:
                yield Compared(name, "memory", first.used, second.used, None)


def _organic(planned: PhaseCost, informed: PhaseCost, once: dict[str, Any]) -> Iterable[Compared]:
    """``once``: what its commit reports."""
    tokens = once.get("tokens")
    yield Compared(planned.name, "tokens", planned.tokens, informed.tokens, tokens)
    yield Compared(planned.name, "seconds", planned.seconds, informed.seconds, once.get("wall_seconds"))


def _whole(planned: Budget, informed: Budget, wall: float) -> Iterable[Compared]:
    tokens, texts = (sum(phase.tokens for phase in plan.phases) for plan in (planned, informed))
    yield Compared("epoch", "tokens", tokens, texts, texts)
    flops, counted = (sum(phase.flops for phase in plan.phases) for plan in (planned, informed))
    yield Compared("epoch", "FLOP", flops, counted, counted)
    yield Compared("epoch", "seconds", planned.epoch_seconds, informed.epoch_seconds, wall)
