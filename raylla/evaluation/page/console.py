"""The results table and the answers before and after, on the console."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raylla.figures.quality import READER
from raylla.figures.table import terms_of
from raylla.judging.about import caption


def show_results(console: Console, results: dict[str, Any]) -> None:
    """Print `results.json`."""
    title = f"{results['name']}: test split, 95 % intervals over queries"
    table = Table(title=Text(title), caption=Text(caption(results["clicks"])))
    for heading in (
        "epoch",
        "weights",
        "revenue / query",
        "reward / query",
        "expected revenue",
        "expected reward",
        "ads / answer",
        "format errors",
        "clicks / ad",
        "pCTR AUC",
        "pCTR ECE, floor",
        "covered",
        *(terms := terms_of(results["epochs"])),
    ):
        table.add_column(heading, justify="right")
    for row in results["epochs"]:
        table.add_row(
            str(row["epoch"]),
            row["weight_version"],
            _figure(row["revenue"]),
            _figure(row["reward"]),
            _figure(row["expected_revenue"]),
            _figure(row["expected_reward"]),
            f"{row['ads_per_answer']:.2f}",
            f"{100 * row['format_error_rate']:.1f} %",
            f"{row['click_rate']:.3f}",
            _number(row["pctr"]["auc"]),
            " ".join(_number(row["pctr"].get(f"calibration_{figure}")) for figure in ("error", "floor")),
            _number(row["pctr"]["coverage"]),
            *(_precise(row.get("terms", {}).get(term)) for term in terms),
        )
    console.print(table)
    for example in results.get("examples", []):
        bids = ", ".join(f"{title} {bid:g}" for title, bid in example["bids"].items())
        asked = Text.assemble("asked:  ", (example["query"], "bold"), f"  ({example['profile']})")
        console.print(asked, soft_wrap=True)
        for line in (f"bids:   {bids}", f"before: {example['before']}", f"after:  {example['after']}"):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if "dropped" in results:
        wall = sum(results["wall_seconds"].values())
        console.print(
            f"stages {wall:.0f} s, peak memory {results['peak_memory_bytes'] / 2**30:.1f} GiB, "
            f"samples {results['samples']}, dropped {results['dropped']}",
            highlight=False,
            soft_wrap=True,
        )


def show_evaluation(console: Console, evaluation: dict[str, Any]) -> None:
    """Print `evaluation.json`."""
    title = f"{evaluation['name']}: test split, 95 % intervals over seeds and queries"
    table = Table(title=Text(title), caption=Text(caption(evaluation["clicks"])))
    headings = ("revenue / query", "reward / query", "welfare / query", "expected revenue")
    terms = terms_of(evaluation["efficiency"].values())
    for heading in (
        "mechanism",
        *headings,
        "ads / answer",
        "format errors",
        *terms,
        "generations",
        "tokens in + out",
        "ms",
        "seeds",
    ):
        table.add_column(heading, justify="right")
    for name, row in evaluation["efficiency"].items():
        costs = row["cost_per_auction"]
        table.add_row(
            name,
            *(_figure(row[key]) for key in ("revenue", "reward", "welfare", "expected_revenue")),
            f"{row['ads_per_answer']['mean']:.2f}",
            f"{100 * row['format_error_rate']['mean']:.1f} %",
            *(_precise(row.get("terms", {}).get(term)) for term in terms),
            f"{costs['generations']['mean']:.0f}",
            f"{costs['prompt_tokens']['mean']:.0f} + {costs['sampled_tokens']['mean']:.0f}",
            _figure({end: 1000 * value for end, value in costs["seconds"].items()}),
            str(row["seeds"]),
        )
    console.print(table)
    for name, against in evaluation["against"].items():
        console.print(
            f"llm-auction against {name}: revenue {_figure(against['revenue_difference'])}, "
            f"x {against['revenue_ratio']['mean']:.2f}, reward {_figure(against['reward_difference'])}; "
            f"expected x {_precise(against['expected_revenue_ratio'])}, "
            f"reward {_figure(against['expected_reward_difference'])}",
            highlight=False,
        )
    _show_quality(console, evaluation["quality"])


def show_conflict(console: Console, evaluation: dict[str, Any]) -> None:
    """Print `conflict.json`."""
    title = f"{evaluation['name']}: {evaluation['pairs']} pairs, answers that place the worse ad alone"
    fit, last = evaluation["fit"], evaluation["ratios"][-1]
    caption = (
        f"95 % intervals; by the bid of the worse ad over the better one's; cosine to the question "
        f"{fit['worse']:.2f} and {fit['better']:.2f}"
    )
    table = Table(title=Text(title), caption=Text(caption))
    for heading in ("mechanism", *(f"x {ratio}" for ratio in evaluation["ratios"])):
        table.add_column(heading, justify="right")
    table.add_column(f"undisclosed of those that name an ad, x {last}", justify="right")
    table.add_column("seeds", justify="right")
    for name, row in evaluation["mechanisms"].items():
        table.add_row(
            name, *map(_precise, row["against"]), _precise(row["undisclosed"][-1]), str(row["seeds"])
        )
    console.print(table)


def show_day(console: Console, evaluation: dict[str, Any]) -> None:
    """Print `day.json`."""
    name, days = evaluation["name"], evaluation["settings"]["days"]
    title = f"{name}: the last of {days} days of {evaluation['periods']} periods"
    caption = f"95 % intervals; clicks as expected by {evaluation['clicks']}; bid units per user"
    table = Table(title=Text(title), caption=Text(caption))
    headings = ("revenue", "welfare", "budget use", "return", "price of anarchy", "moved")
    for heading in ("mechanism", "bidders", *headings, "seeds"):
        table.add_column(heading, justify="right")
    for name, entry in evaluation["mechanisms"].items():
        for market, row in entry["markets"].items():
            figures = [_precise(row[heading.replace(" ", "_")]) for heading in headings]
            table.add_row(name, market, *figures, str(row["seeds"]))
    console.print(table)


def show_regret(console: Console, report: dict[str, Any]) -> None:
    """Print what `raylla regret` found."""
    sides = {name: report[name]["rules"]["own"] for name in ("outside", "inside") if name in report}
    title = f"{report['url']}: {report['price_rule']}, weights {', '.join(report['weight_versions'])}"
    caption = f"bid units per auction, of {report['outside']['queries']} questions; 95 % intervals"
    table = Table(title=Text(title), caption=Text(caption))
    for heading in ("measured", "payment", "least utility", "regret: utility", "regret: value"):
        table.add_column(heading, justify="right")
    for name, side in sides.items():
        figures = (side["payment"], side["least_utility"], *side["regret"].values())
        table.add_row(name, *map(_precise, figures))
    if "difference" in report:
        table.add_row("outside less inside", "", "", *map(_precise, report["difference"].values()))
    console.print(table)


def _show_quality(console: Console, figures: dict[str, Any]) -> None:
    """Print what the reader of the answers gets."""
    table = Table(title="what the reader gets")
    for heading in ("answers of", *READER.values()):
        table.add_column(heading, justify="right")
    for kind in ("organic", "versions", "mechanisms"):
        for name, row in figures[kind].items():
            table.add_row(name, *(_precise(row.get(key)) for key in READER))
    console.print(table)
    for name, why in figures["absent"].items():
        console.print(f"{name.replace('_', ' ')}: not measured, for {why}", highlight=False)
    if figures["detector"]:
        f1 = figures["detector"]["f1"]
        console.print(f"the detector's F1 on held-out published answers: {_precise(f1)}", highlight=False)


def _precise(value: dict[str, float] | None) -> str:
    """Three digits; what was not measured, or is not defined, is a dash."""
    if value is None or math.isnan(value["mean"]):
        return "-"
    mean, low, high = (f"{value[end]:.3g}" for end in ("mean", "low", "high"))
    if math.isnan(value["low"]):
        return mean
    return f"{mean} [{low}, {high}]"


def _figure(value: dict[str, float]) -> str:
    if value["mean"] != value["mean"]:
        return "-"
    return f"{value['mean']:.1f} [{value['low']:.1f}, {value['high']:.1f}]"


def _number(value: float | None) -> str:
    """A figure that one class of clicks leaves undefined is a dash."""
    return "-" if value is None or value != value else f"{value:.3f}"
