"""A budget as tables on the console."""

from __future__ import annotations

from dataclasses import fields

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raylla.config import Config
from raylla.plan.against import Reckoning
from raylla.plan.architecture import architecture
from raylla.plan.budget import Budget, budget, stored_bytes
from raylla.plan.hardware import Device
from raylla.plan.memory import endpoint_weights
from raylla.plan.work import Counts, Lengths, Yields

_UNITS = {"tokens": "k tokens", "FLOP": "TFLOP", "memory": "GB"}


def show_plan(
    console: Console,
    config: Config,
    device: Device,
    lengths: Lengths,
    yields: Yields,
    node: int,
    cores: int | None = None,
) -> None:
    """Print phases, memory, the epoch and what one more machine of ``node`` GPUs buys; without GPUs all
    groups share ``cores``."""
    counts = Counts.of(config, yields)
    planned = budget(config, device, lengths, cores=cores, counts=counts)
    where = (
        f"{planned.gpus:g} GPUs"
        if planned.cores is None
        else f"{planned.cores} cores that all groups share"
    )
    console.print(
        f"{config.name}: {where}; prompts of {lengths.prompt:g} tokens and answers of "
        f"{lengths.answer:g}, the judge's of {lengths.judge_prompt:g} and {lengths.judgement:g} "
        "(estimates: --prompt-tokens, --answer-tokens); "
        + ", ".join(f"{field.name} {getattr(yields, field.name):g}" for field in fields(yields))
        + " (--estimate)",
        highlight=False,
    )
    console.print(_phases(planned))
    console.print(_memory(planned))
    if planned.cores is not None:
        console.print(f"all processes together: {planned.host_bytes / 1e9:.1f} GB", highlight=False)
    whole = planned.run_seconds
    console.print(
        f"epoch {duration(planned.epoch_seconds)}, {planned.epochs} epochs {duration(whole)}, "
        + (
            f"{whole * planned.gpus / 3600:.1f} GPU hours; engines and trainers wait"
            if planned.cores is None
            else "cores wait"
        )
        + f" {planned.idle:.0%} of it",
        highlight=False,
    )
    size, versions = stored_bytes(config)
    console.print(
        f"storage: {size / 1e9:.3g} GB a weight version, {versions} kept (storage.keep_versions)",
        highlight=False,
    )
    console.print(_endpoint(config), highlight=False)
    for group, grown in more(config, node):
        gain = planned.epoch_seconds / budget(grown, device, lengths, counts=counts).epoch_seconds
        console.print(
            f"one more node of {node} GPUs for {group}: epoch {gain:.2f} times as fast", highlight=False
        )
    for held in planned.memory:
        if not held.fits:
            console.print(
                Text.assemble(
                    (f"{held.group} does not fit", "bold red"),
                    f": {held.used / 1e9:.1f} of {held.limit / 1e9:.1f} GB per device",
                )
            )


def show_reckoning(console: Console, reckoning: Reckoning) -> None:
    """Print a plan beside a run: each figure, how far off it was, and the shares that the run reached."""
    lengths = reckoning.lengths
    console.print(
        f"{reckoning.name}: mean of {reckoning.epochs} epochs; "
        f"prompts of {lengths.prompt:.0f} tokens and answers "
        f"of {lengths.answer:.0f}",
        highlight=False,
    )
    table = Table("phase", "", "planned", "with its texts", "the run", "off", "off with texts", box=None)
    for figure in reckoning.figures:
        shown = [_amount(figure.quantity, value) for value in (figure.planned, figure.informed, figure.had)]
        off = ["" if value is None else f"{value:+.0%}" for value in figure.off]
        table.add_row(figure.phase, _UNITS.get(figure.quantity, figure.quantity), *shown, *off)
    console.print(table)
    shares = ", ".join(f"{name} {share:.2f}" for name, share in reckoning.shares.items())
    console.print(f"share of a device's best that the run reached: {shares}", highlight=False)


def _amount(quantity: str, value: float | None) -> str:
    if value is None:
        return ""
    scale = {"tokens": 1e3, "FLOP": 1e12, "memory": 1e9}.get(quantity, 1)
    return f"{value / scale:,.1f}"


def more(config: Config, node: int) -> list[tuple[str, Config]]:
    """The config with ``node`` more GPUs in each group that can take them."""
    wide = config.engine.tensor_parallel
    found = []
    if config.rollout.gpus:
        workers = config.rollout.workers + int(node / (config.rollout.gpus * wide))
        group = config.rollout.model_copy(update={"workers": workers})
        found.append((f"rollout ({workers} workers)", config.model_copy(update={"rollout": group})))
    if config.dpo.gpus:
        workers = config.dpo.workers + int(node / config.dpo.gpus)
        if config.dpo.batch_groups % workers == 0:
            dpo = config.dpo.model_copy(update={"workers": workers})
            found.append((f"dpo ({workers} workers)", config.model_copy(update={"dpo": dpo})))
    return found


def duration(seconds: float) -> str:
    """Seconds in the largest unit that leaves a number above one."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _endpoint(config: Config) -> str:
    held = endpoint_weights(config, architecture(config.ad_llm.path, "ad_llm.path"))
    parts = " + ".join(f"{part} {size / 1e9:.3g} GB" for part, size in held.items())
    how = f"serving.adapters={config.serving.adapters}"
    return f"weights at the endpoint ({how}): {parts} = {sum(held.values()) / 1e9:.3g} GB"


def _phases(planned: Budget) -> Table:
    table = Table("phase", "devices", "M tokens", "PFLOP", "time", "bound by", "of which", box=None)
    for phase in (*planned.phases, *filter(None, [planned.organic])):
        notes = [f"{name} {value:,.0f}" for name, value in phase.notes.items()]
        table.add_row(
            phase.name,
            str(phase.workers),
            f"{phase.tokens / 1e6:,.1f}",
            f"{phase.flops / 1e15:,.3g}",
            duration(phase.seconds),
            phase.bound,
            ", ".join([*(f"{name} {duration(spent)}" for name, spent in phase.times.items()), *notes]),
        )
    return table


def _memory(planned: Budget) -> Table:
    table = Table("GB per device", "used", "of", "of which", box=None)
    for held in planned.memory:
        parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in held.parts.items())
        table.add_row(held.group, f"{held.used / 1e9:.2f}", f"{held.limit / 1e9:.1f}", parts)
    return table
