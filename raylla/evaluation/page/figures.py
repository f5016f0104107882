"""The figures of a report: matplotlib charts of what `evaluation.json` holds, as PNG."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raylla.figures.table import terms_of

mpl.use("Agg")

Found = dict[str, Any]
_BESIDE: dict[str, Any] = {
    "frameon": False,
    "fontsize": "small",
    "loc": "center left",
    "bbox_to_anchor": (1.01, 0.5),
}
"""Where a legend of many stands: beside the chart."""


def png(draw: Callable[[Axes, Found], None], evaluation: Found) -> bytes:
    """One chart as the bytes of a PNG file."""
    figure = Figure(figsize=(7.2, 3.6), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes, evaluation)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": ""})
    return buffer.getvalue()


def _mechanisms(axes: Axes, evaluation: Found) -> None:
    """Revenue and reward per query of every mechanism."""
    rows = evaluation["efficiency"]
    for place, (key, colour) in enumerate((("revenue", "C0"), ("reward", "C2"))):
        figures = [row[key] for row in rows.values()]
        at = [index + 0.38 * (place - 0.5) for index in range(len(rows))]
        axes.barh(
            at, [figure["mean"] for figure in figures], 0.36, xerr=_bars(figures), color=colour, label=key
        )
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.axvline(0, color="0.3", lw=0.8)
    axes.set_xlabel("bid units per query, 95 % intervals")
    axes.legend(frameon=False)


def _epochs(axes: Axes, evaluation: Found) -> None:
    """Learning curve over all training seeds."""
    rows = evaluation["epochs"]
    at = [row["epoch"] for row in rows]
    for key, colour in (("revenue", "C0"), ("reward", "C2")):
        figures = [row[key] for row in rows]
        axes.errorbar(
            at, [figure["mean"] for figure in figures], _bars(figures), color=colour, marker="o", label=key
        )
    axes.set_xticks(at)
    axes.set_xlabel("epoch")
    axes.set_ylabel("bid units per query")
    axes.legend(frameon=False)


def _monotonicity(axes: Axes, evaluation: Found) -> None:
    """Click rate of one ad against its bid, for the weights of every epoch."""
    curve = evaluation["curves"]["monotonicity"]
    names = list(curve["versions"])
    for index, name in enumerate(names):
        figures = curve["versions"][name]["click_rate"]
        shade = mpl.colormaps["viridis"](0.9 - 0.8 * index / max(1, len(names) - 1))
        axes.plot(
            curve["bids"], [figure["mean"] for figure in figures], color=shade, marker=".", label=name
        )
        if index in (0, len(names) - 1):
            low, high = ([figure[end] for figure in figures] for end in ("low", "high"))
            axes.fill_between(curve["bids"], low, high, color=shade, alpha=0.15)
    axes.set_xlabel("bid of the ad")
    axes.set_ylabel("shown and clicked")
    axes.legend(frameon=False, title="weights")


def _continuity(axes: Axes, evaluation: Found) -> None:
    """Click rate on the fine grid of bids."""
    curve = evaluation["curves"]["continuity"]
    for query in curve["one"]:
        axes.plot(curve["bids"], query["click_rate"], lw=0.8, alpha=0.7, label="one query")
    many = curve["many"]
    axes.plot(curve["bids"], many["click_rate"], lw=1.5, color="k", label=f"{many['queries']} queries")
    axes.set_xlabel("bid of the ad")
    axes.set_ylabel("shown and clicked")
    axes.legend(frameon=False)


def _reliability(axes: Axes, evaluation: Found) -> None:
    """Predicted against observed click rates: each pCTR model on the policy that it scores next."""
    axes.plot([0, 1], [0, 1], color="0.6", lw=0.8)
    for row in evaluation["pctr"]:
        if row["weight_version"] == f"v{row['pctr_epoch']}":
            predicted, observed, _ = zip(*row["reliability"], strict=True)
            label = f"model {row['pctr_epoch']} on {row['weight_version']}, bias {row['bias']:+.3f}"
            axes.plot(predicted, observed, marker="o", ms=3, label=label)
    axes.set_xlabel("predicted click rate")
    axes.set_ylabel("observed")
    axes.legend(frameon=False)


def _responses(axes: Axes, evaluation: Found) -> None:
    """Click rate against the bid in every mechanism, its random numbers held fixed."""
    for name, curve in evaluation["incentives"].items():
        axes.plot(curve["bids"], curve["click_rate"], marker=".", label=name)
    axes.set_xlabel("bid of the ad")
    axes.set_ylabel("clicks per auction")
    axes.legend(frameon=False)


def shift(axes: Axes, evaluation: Found) -> None:
    """Bias of each epoch's pCTR model on the policy that it scores next, main config and variants."""
    everyone = {"main config": evaluation["pctr"]}
    everyone |= {name: variant["pctr"] for name, variant in evaluation["ablations"].items()}
    for name, table in everyone.items():
        rows = [row for row in table if row["weight_version"] == f"v{row['pctr_epoch']}"]
        at = [row["pctr_epoch"] for row in rows]
        axes.plot(at, [row["bias"] for row in rows], marker="o", label=name)
        axes.set_xticks(at)
    axes.axhline(0, color="0.6", lw=0.8)
    axes.set_xlabel("epoch")
    axes.set_ylabel("pCTR bias on the next policy")
    axes.legend(frameon=False)


def _conflict(axes: Axes, evaluation: Found) -> None:
    """How often the ad that fits less is placed alone, against what it bids more."""
    conflict = evaluation["conflict"]
    for name, row in conflict["mechanisms"].items():
        figures = row["against"]
        means = [figure["mean"] for figure in figures]
        axes.errorbar(conflict["ratios"], means, _bars(figures), marker="o", ms=3, capsize=2, label=name)
    axes.set_xscale("log")
    axes.set_xticks(conflict["ratios"], [f"{ratio}" for ratio in conflict["ratios"]])
    axes.minorticks_off()
    axes.set_ylim(0, 1)
    axes.set_xlabel("bid of the ad that fits less / bid of the one that fits best")
    axes.set_ylabel("answers that place it alone")
    axes.legend(**_BESIDE)


def frontiers(evaluation: Found) -> dict[str, tuple[str, Callable[[Axes, Found], None]]]:
    """A figure for each reward term: what every mechanism earns against what its reader loses."""
    return {
        f"frontier-{term}": (
            f"Revenue against {term}: at 0 the ads cost the reader nothing",
            partial(_frontier, term=term),
        )
        for term in terms_of(evaluation["efficiency"].values())
    }


def _frontier(axes: Axes, evaluation: Found, term: str) -> None:
    """Expected revenue and a reward term of every mechanism and variant."""
    rows = {name: row for name, row in evaluation["efficiency"].items() if term in row.get("terms", {})}
    for place, (name, row) in enumerate(rows.items()):
        revenue, value = row["expected_revenue"], row["terms"][term]
        axes.errorbar(
            revenue["mean"],
            value["mean"],
            xerr=_bars([revenue]),
            yerr=_bars([value]),
            marker="os^Dv"[place % 5],
            ms=5,
            elinewidth=0.7,
            label=name,
        )
    axes.set_xlabel("expected revenue per query, bid units, 95 % intervals")
    axes.set_ylabel(term)
    axes.legend(**_BESIDE)


FIGURES: dict[str, tuple[str, Callable[[Axes, Found], None]]] = {
    "mechanisms": ("Revenue and reward of every mechanism", _mechanisms),
    "epochs": ("Learning curve, test split, all training seeds", _epochs),
    "monotonicity": ("Monotonicity: clicks against the bid, by epoch", _monotonicity),
    "continuity": ("Continuity: clicks along bids in steps of 1, last weights", _continuity),
    "responses": ("Clicks against the bid in every mechanism", _responses),
    "conflict": ("Advice where the ad that fits less bids more", _conflict),
    "shift": ("pCTR: mean prediction less click rate on the next policy, by run", shift),
    "reliability": ("pCTR: predicted and observed click rates on the next policy", _reliability),
}


def _bars(figures: Sequence[dict[str, float]]) -> list[list[float]]:
    return [
        [max(0.0, figure["mean"] - figure["low"]) for figure in figures],
        [max(0.0, figure["high"] - figure["mean"]) for figure in figures],
    ]
