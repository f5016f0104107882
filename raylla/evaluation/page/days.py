"""What `day.json` adds to a report: tables and figures of the days of bidders with budgets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from raylla.strictjson import dumps

Drawn = dict[str, tuple[str, Callable[[Axes, dict[str, Any]], None]]]
_COLOURS = {"truthful": "0.4", "pacing": "C0", "pid": "C1", "value": "C2", "learned": "C3"}
TOTALS = ("revenue", "welfare", "budget_use", "used_up", "return")
ANARCHY = ("price_of_anarchy", "price_of_anarchy_any", "moved")


def day_totals(evaluation: dict[str, Any]) -> tuple[str, list[str], list[list[Any]]]:
    """A row for each mechanism and market: caption, headings, rows."""
    rows = [
        [name, dumps(entry["choices"][0]), market, *(row[key] for key in (*TOTALS, *ANARCHY)), _out(row)]
        for name, entry in _mechanisms(evaluation).items()
        for market, row in entry["markets"].items()
    ]
    day = evaluation["day"] or {"settings": {"days": 0, "queries": 0}, "clicks": ""}
    caption = (
        f"Last of {day['settings']['days']} days, {day['settings']['queries']} queries in every period, "
        f"bid units per user; clicks as expected by {day['clicks']}"
    )
    kept_out = "kept out of auctions, share of candidates"
    return caption, ["mechanism", "setting", "bidders", *TOTALS, *ANARCHY, kept_out], rows


def day_bidders(evaluation: dict[str, Any]) -> tuple[str, list[str], list[list[Any]]]:
    """A row for each mechanism, market and kind of bidder in it: caption, headings, rows."""
    keys = ("budget_use", "used_up", "return", "moved", "advertisers")
    rows = [
        [name, market, kind, *(bidder[key] for key in keys)]
        for name, market, row in _markets(evaluation)
        for kind, bidder in row["bidders"].items()
    ]
    return "The last day, by kind of bidder", ["mechanism", "market", "bidder", *keys], rows


def day_figures(evaluation: dict[str, Any]) -> Drawn:
    """The price of anarchy, and for each mechanism spend over the last day and multiples over all days."""
    if not evaluation["day"]:
        return {}
    drawn: Drawn = {
        "day": ("Price of anarchy: the best mix of its own answers over what was had", _anarchy)
    }
    for name, entry in _mechanisms(evaluation).items():
        which = "mixed market" if "mixed" in entry["markets"] else "each kind by itself"
        short = name.replace(": ", "-")
        drawn[f"day-spend-{short}"] = (
            f"{name}: budget gone over the last day, {which}",
            partial(_spend, name=name),
        )
        drawn[f"day-multiples-{short}"] = (
            f"{name}: mean bid per value over all days, {which}",
            partial(_multiples, name=name),
        )
    return drawn


def _anarchy(axes: Axes, evaluation: dict[str, Any]) -> None:
    """Bars for each mechanism, a colour for each market."""
    mechanisms = _mechanisms(evaluation)
    markets = list(dict.fromkeys(market for _, market, _ in _markets(evaluation)))
    width = 0.8 / len(markets)
    for place, market in enumerate(markets):
        means = [
            mechanism["markets"].get(market, {}).get("price_of_anarchy", {}).get("mean") or np.nan
            for mechanism in mechanisms.values()
        ]
        at = np.arange(len(means)) + width * (place - (len(markets) - 1) / 2)
        axes.bar(at, means, width, color=_COLOURS.get(market, "C4"), label=market)
    axes.set_xticks(range(len(mechanisms)), list(mechanisms))
    axes.axhline(1, color="0.3", lw=0.8)
    axes.set_ylabel("optimum / liquid welfare")
    axes.legend(frameon=False, ncols=3, fontsize="small")


def _spend(axes: Axes, evaluation: dict[str, Any], name: str) -> None:
    """The share of budgets that is gone after each period, beside the share of the day's traffic."""
    hours = np.arange(1, evaluation["day"]["periods"] + 1) * 24 / evaluation["day"]["periods"]
    for kind, curve in _curves(evaluation, name):
        axes.plot(hours, curve["spent"], color=_COLOURS[kind], label=kind)
    axes.plot(hours, np.cumsum(evaluation["day"]["traffic"]), color="k", ls=":", lw=1, label="traffic")
    axes.set_ylim(0, 1.02)
    axes.set_xticks(range(0, 25, 4))
    axes.set_xlabel("hour of the day")
    axes.set_ylabel("share of budgets spent")
    axes.legend(frameon=False, fontsize="small")


def _multiples(axes: Axes, evaluation: dict[str, Any], name: str) -> None:
    """What a kind of bidder bids per unit of value, mean over its advertisers."""
    periods = evaluation["day"]["periods"]
    for kind, curve in _curves(evaluation, name):
        days = np.arange(len(curve["multiples"])) / periods
        axes.plot(days, curve["multiples"], color=_COLOURS[kind], label=kind)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("day")
    axes.set_ylabel("bid / value")
    axes.legend(frameon=False, fontsize="small")


def _curves(evaluation: dict[str, Any], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of the mixed market, or of each market of one kind where there is none."""
    markets = _mechanisms(evaluation)[name]["markets"]
    for row in [markets["mixed"]] if "mixed" in markets else markets.values():
        yield from row["curves"].items()


def _out(row: dict[str, Any]) -> str:
    return ", ".join(f"{reason} {share:.2g}" for reason, share in row["kept_out"].items()) or "-"


def _mechanisms(evaluation: dict[str, Any]) -> dict[str, Any]:
    mechanisms: dict[str, Any] = evaluation["day"]["mechanisms"] if evaluation["day"] else {}
    return mechanisms


def _markets(evaluation: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (name, market, row)
        for name, entry in _mechanisms(evaluation).items()
        for market, row in entry["markets"].items()
    ]
