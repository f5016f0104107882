"""Estimates, and how well they held, on the console."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raylla.judging.about import caption

_SHOWN = ("naive", "direct", "snips", "doubly_robust")


def show_offpolicy(console: Console, found: Mapping[str, Any]) -> None:
    """Print `offpolicy.json`."""
    level = f"{found['level']:.0%}"
    for measure in found["measures"]:
        table = Table(
            title=Text(
                f"{found['name']}: {measure} per auction, new version less the log's, {level} intervals"
            ),
            caption=Text(caption(found["clicks"])),
        )
        for heading in ("log -> new", "ESS of", "mean weight", "cut at", "shown", "estimated", "holds"):
            table.add_column(heading, justify="right")
        for pair in found["pairs"]:
            one, over = pair["measures"][measure], pair["overlap"]
            made = one["estimates"]["doubly_robust"]
            table.add_row(
                f"{pair['run']}: {pair['log']} -> {pair['new']}",
                f"{over['effective_sample_size']:.1f} of {over['auctions']:.0f}",
                f"{over['mean_weight']:.2f}",
                f"{made['clip']:g}",
                _interval(one["difference_shown"]),
                _interval(made["difference"]),
                "yes" if made["holds"]["difference"] else "no",
            )
        console.print(table)
    table = Table(title=Text(f"differences held within {level} intervals, {found['splits']} splits a pair"))
    for heading in ("measure", "estimate", "pairs held", "coverage", "mean width", "mean error"):
        table.add_column(heading, justify="right")
    summary = found["summary"]
    for measure in found["measures"]:
        for name, row in summary[measure].items():
            held = f"{row['pairs_held']} of {summary['pairs']}"
            numbers = (f"{row['coverage']:.3f}", f"{row['width']:.1f}", f"{row['error']:.1f}")
            table.add_row(measure, name.replace("_", " "), held, *numbers)
    console.print(table)


def show_estimate(console: Console, found: Mapping[str, Any]) -> None:
    """Print what `raylla.serving.deploy.estimate` found, or why it is nothing."""
    if "absent" in found:
        console.print(f"no estimate: {found['absent']}", soft_wrap=True)
        return
    over, level = found["overlap"], f"{found['level']:.0%}"
    console.print(
        f"{found['new']}, from {over['auctions']:.0f} auctions of {found['log']}: effective sample size "
        f"{over['effective_sample_size']:.1f}, mean weight {over['mean_weight']:.2f}; left out: "
        f"{found['left_out'] or 'none'}",
        soft_wrap=True,
    )
    table = Table(title=Text(f"per auction, {level} intervals"))
    for heading in ("", "now", *(name.replace("_", " ") for name in _SHOWN[1:]), "doubly robust - now"):
        table.add_column(heading, justify="right")
    for measure, made in found["estimates"].items():
        cells = [_interval(made[name]["value"]) for name in _SHOWN]
        table.add_row(measure.replace("_", " "), *cells, _interval(made["doubly_robust"]["difference"]))
    console.print(table)


def _interval(one: Mapping[str, float]) -> str:
    return f"{one['mean']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"
