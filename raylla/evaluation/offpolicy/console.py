"""How well estimates held, on the console."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raylla.figures.intervals import with_ends
from raylla.judging.about import caption


def show_offpolicy(console: Console, evaluation: Mapping[str, Any]) -> None:
    """Print `offpolicy.json`."""
    level = f"{evaluation['level']:.0%}"
    for measure in evaluation["measures"]:
        table = Table(
            title=Text(
                f"{evaluation['name']}: {measure} per auction, new version less the log's, "
                f"{level} intervals"
            ),
            caption=Text(caption(evaluation["clicks"])),
        )
        for heading in ("log -> new", "ESS of", "mean weight", "cut at", "shown", "estimated", "holds"):
            table.add_column(heading, justify="right")
        for pair in evaluation["pairs"]:
            figures, over = pair["measures"][measure], pair["overlap"]
            made = figures["estimates"]["doubly_robust"]
            table.add_row(
                f"{pair['run']}: {pair['log']} -> {pair['new']}",
                f"{over['effective_sample_size']:.1f} of {over['auctions']:.0f}",
                f"{over['mean_weight']:.2f}",
                "-" if made["clip"] is None else f"{made['clip']:g}",
                with_ends(figures["difference_shown"]),
                with_ends(made["difference"]),
                "yes" if made["holds"]["difference"] else "no",
            )
        console.print(table)
    table = Table(
        title=Text(f"differences held within {level} intervals, {evaluation['splits']} splits a pair")
    )
    for heading in ("measure", "estimate", "pairs held", "coverage", "mean width", "mean error"):
        table.add_column(heading, justify="right")
    summary = evaluation["summary"]
    for measure in evaluation["measures"]:
        for name, row in summary[measure].items():
            held = f"{row['pairs_held']} of {summary['pairs']}"
            numbers = (f"{row['coverage']:.3f}", f"{row['width']:.1f}", f"{row['error']:.1f}")
            table.add_row(measure, name.replace("_", " "), held, *numbers)
    console.print(table)
