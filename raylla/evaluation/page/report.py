"""`raylla report RUN`: what `evaluation.json` holds as one page, its figures and its tables.

Nothing is computed here that is not in the file, but how it looks.
"""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError

from raylla.auction.markup import MARKUP
from raylla.errors import RunError
from raylla.evaluation.page.days import day_bidders, day_figures, day_totals
from raylla.evaluation.page.figures import FIGURES, Found, frontiers, png
from raylla.figures.quality import READER
from raylla.figures.table import terms_of
from raylla.judging.about import caption as whose
from raylla.strictjson import dumps

SUITES = {
    "conflict": {"mechanisms", "ratios", "pairs", "runs", "tuned_under"},
    "day": {"mechanisms", "periods", "traffic", "settings", "clicks", "runs"},
    "offpolicy": {"pairs", "summary", "measures", "runs", "level", "splits"},
}
"""What else `raylla evaluate --suite` may have measured of the same runs, and what its file holds."""
_Table = tuple[str, list[str], list[list[Any]]]
"""Caption, headings, rows; a figure is a dict of mean, low and high."""


def write_report(evaluation: Path, out: Path) -> Path:
    """Write `index.html`, which stands alone, and the figures (PNG), tables (CSV) and JSON beside it.

    Raises:
        RunError: there is no evaluation, not a whole one, or one of another form.
    """
    measured = _read(evaluation, "raylla evaluate RUN")
    wanted = "clicks clicks_of_runs efficiency ablations curves incentives pctr epochs examples quality"
    _whole(evaluation, measured, {*wanted.split(), "runs"})
    try:
        suites = {
            name: _of_the_same_runs(evaluation.with_name(f"{name}.json"), measured) for name in SUITES
        }
        return _write(measured, suites, out)
    except (AttributeError, LookupError, TypeError, UndefinedError) as error:
        raise RunError(
            f"{evaluation}, or a suite's file beside it, is not of the form of this version "
            f"({type(error).__name__}: {error}); write it anew with `raylla evaluate RUN`"
        ) from error


def _write(evaluation: Found, suites: dict[str, Found | None], out: Path) -> Path:
    """The page, and what lies beside it."""
    alone = dumps(evaluation, indent=2)
    evaluation |= suites
    drawn = {
        name: figure for name, figure in FIGURES.items() if name != "conflict" or evaluation["conflict"]
    }
    drawn |= frontiers(evaluation) | day_figures(evaluation)
    pictures = {name: png(draw, evaluation) for name, (_, draw) in drawn.items()}
    tables = _tables(evaluation)
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(alone + "\n")
    for suite in (name for name, figures in suites.items() if not figures):
        tables = {name: table for name, table in tables.items() if name.split("-")[0] != suite}
        for old in (*out.glob(f"{suite}*.png"), *out.glob(f"{suite}*.csv")):  # of a report before
            old.unlink()
    for name, picture in pictures.items():
        (out / f"{name}.png").write_bytes(picture)
    for name, (_, headings, rows) in tables.items():
        with (out / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_flat(headings, rows[0] if rows else headings))
            writer.writerows(_values(row) for row in rows)
    environment = Environment(
        loader=PackageLoader("raylla.evaluation.page", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"cell": _cell, "pieces": pieces}
    page = environment.get_template("report.html").render(
        found=evaluation,
        tables=tables,
        figures={
            name: (caption, base64.b64encode(pictures[name]).decode())
            for name, (caption, _) in drawn.items()
        },
    )
    (out / "index.html").write_text(page)
    return out / "index.html"


def _read(path: Path, command: str) -> Found:
    try:
        read = json.loads(path.read_text())
    except OSError:
        raise RunError(f"{path} does not exist; write it with `{command}`") from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is not JSON: {error}") from None
    if not isinstance(read, dict):
        raise RunError(f"{path} holds no object; write it with `{command}`")
    return read


def _whole(path: Path, evaluation: Found, wanted: set[str], command: str = "raylla evaluate RUN") -> None:
    missing = wanted - evaluation.keys()
    if missing:
        raise RunError(f"{path} lacks {', '.join(sorted(missing))}; write it with `{command}`")


def _of_the_same_runs(path: Path, evaluation: Found) -> Found | None:
    """What `raylla evaluate --suite` found, where it did, in a file of the suite's name.

    Raises:
        RunError: the file is not whole, or its first run is not the evaluation's.
    """
    if not path.is_file():
        return None
    command = f"raylla evaluate RUN --suite {path.stem}"
    suite = _read(path, command)
    _whole(path, suite, SUITES[path.stem], command)
    for name in ("name", "seed", "digest", "weights"):
        if suite["runs"][0][name] != evaluation["runs"][0][name]:
            raise RunError(
                f"{path} is of a run of another {name}; write it anew with `{command}`, or remove it"
            )
    return suite


def pieces(text: str) -> list[tuple[str, bool]]:
    """``text`` cut at its placements: (piece, whether it is one)."""
    parts: list[tuple[str, bool]] = []
    cursor = 0
    for match in MARKUP.finditer(text):
        parts += [(text[cursor : match.start()], False), (match.group(), True)]
        cursor = match.end()
    return [(piece, placed) for piece, placed in (*parts, (text[cursor:], False)) if piece]


def _tables(evaluation: Found) -> dict[str, _Table]:
    return {
        "efficiency": _efficiency(evaluation),
        "against": _against(evaluation),
        "terms": _terms(evaluation),
        "reader": _reader(evaluation),
        "ablations": _ablations(evaluation),
        "epochs": _epochs(evaluation),
        "incentives": _incentives(evaluation),
        "truthful": _truthful(evaluation),
        "equilibrium": _equilibrium(evaluation),
        "conflict": _conflict(evaluation),
        "offpolicy": _offpolicy(evaluation),
        "day": day_totals(evaluation),
        "day-bidders": day_bidders(evaluation),
        "pctr": _pctr(evaluation),
        "shift": _shift(evaluation),
        "runs": _runs(evaluation),
    }


def _efficiency(evaluation: Found) -> _Table:
    keys = ("revenue", "reward", "welfare", "expected_revenue", "expected_reward")
    costs = ("generations", "prompt_tokens", "sampled_tokens", "seconds")
    rates = ("ads_per_answer", "format_error_rate")
    rows = [
        [
            name,
            *(row[key] for key in (*keys, *rates)),
            *(row["cost_per_auction"][key] for key in costs),
            row["seeds"],
        ]
        for name, row in evaluation["efficiency"].items()
    ]
    caption = (
        f"Mechanisms on the same test auctions, per query; costs per auction; {whose(evaluation['clicks'])}"
    )
    return caption, ["mechanism", *keys, *rates, *costs, "seeds"], rows


def _terms(evaluation: Found) -> _Table:
    terms = terms_of(evaluation["efficiency"].values())
    rows = [
        [name, row["expected_revenue"], *(row.get("terms", {}).get(term) for term in terms)]
        for name, row in evaluation["efficiency"].items()
        if terms
    ]
    caption = (
        f"What readers lose by the ads, mean of all answers, 0: nothing; {whose(evaluation['clicks'])}"
    )
    return caption, ["mechanism", "expected_revenue", *terms], rows


AGAINST = (
    "revenue_difference",
    "revenue_ratio",
    "reward_difference",
    "expected_revenue_difference",
    "expected_revenue_ratio",
    "expected_reward_difference",
)


def _against(evaluation: Found) -> _Table:
    rows = [[name, *(row.get(key) for key in AGAINST)] for name, row in evaluation["against"].items()]
    caption = f"LLM-Auction less the other, same queries in pairs; {_counted(evaluation)}"
    return caption, ["against", *AGAINST], rows


def _reader(evaluation: Found) -> _Table:
    quality = evaluation["quality"]
    keys = [key for key in READER if key not in quality["absent"]]
    rows = [
        [name, *(row[key] for key in keys)]
        for kind in ("organic", "versions", "mechanisms")
        for name, row in quality[kind].items()
    ]
    return "What the reader of an answer gets", ["answers of", *(READER[key] for key in keys)], rows


def _ablations(evaluation: Found) -> _Table:
    trends = evaluation["curves"]["monotonicity_of_variants"]
    rows = [
        [name, row["seeds"], *(row.get(key) for key in AGAINST), trends[name]["trend"]]
        for name, row in evaluation["ablations"].items()
        if "seeds" in row
    ]
    headings = ["variant", "seeds", *AGAINST, "rank correlation with the bid"]
    caption = f"Variants less the main config, same seeds and queries in pairs; {_counted(evaluation)}"
    return caption, headings, rows


def _epochs(evaluation: Found) -> _Table:
    keys = ("revenue", "reward", "expected_revenue", "ads_per_answer", "format_error_rate", "click_rate")
    told = ("auc", "calibration_error", "calibration_floor", "coverage")
    stages = ("sample", "learn", "align", "test")
    rows = [
        [
            row["weight_version"],
            *(row[key] for key in keys),
            *(row["pctr"].get(key) for key in told),
            *(row["seconds"].get(stage) for stage in stages),
        ]
        for row in evaluation["epochs"]
    ]
    headings = [
        "weights",
        *keys,
        *(f"pCTR {key}" for key in told),
        *(f"{stage} seconds" for stage in stages),
    ]
    return f"Epoch by epoch, all training seeds; {whose(evaluation['clicks_of_runs'])}", headings, rows


def _incentives(evaluation: Found) -> _Table:
    headings = ["mechanism", "prices", "payment", "least utility", "regret, utility", "regret, value"]
    rows = [
        [name, rule, row["payment"], row["least_utility"], row["regret"]["utility"], row["regret"]["value"]]
        for name, entry in evaluation["incentives"].items()
        for rule, row in entry["rules"].items()
    ]
    caption = "Payment and regret of truthful bidding, one ad per query, mean over the bid grid"
    return f"{caption}; {_counted(evaluation)}", headings, rows


def _equilibrium(evaluation: Found) -> _Table:
    headings = ["mechanism", "bidders", "revenue", "welfare", "settled"]
    rows = [
        [name, goal, end["revenue"], end["welfare"], end.get("converged", "")]
        for name, entry in evaluation["incentives"].items()
        for goal, end in entry.get("equilibrium", {}).items()
        if isinstance(end, dict)
    ]
    caption = f"Revenue and welfare where best responses end, a few auctions; {_counted(evaluation)}"
    return caption, headings, rows


def _truthful(evaluation: Found) -> _Table:
    headings = ["prices", "revenue", "effective sample size"]
    rows: list[list[Any]] = []
    for prices in (entry["truthful"] for entry in evaluation["incentives"].values() if "truthful" in entry):
        rows.append(["first price, predicted clicks", prices["first_price"], None])
        for closed in prices["closed_form"]:
            price = f"closed form, beta {closed['beta']:g}"
            rows.append([price, closed["revenue"], closed["effective_sample_size"]])
        rows.append(["one self-resampled pass", prices["self_resampling"]["revenue"], None])
    return "LLM-Auction's revenue per query at truthful prices, clicks as predicted", headings, rows


def _conflict(evaluation: Found) -> _Table:
    conflict = evaluation["conflict"] or {"mechanisms": {}, "ratios": [], "pairs": 0, "tuned_under": ""}
    keys = ("against", "for", "both", "neither", "preferred", "undisclosed")
    rows = [
        [name, dumps(row["choices"][0]), ratio, *(row[key][place] for key in keys)]
        for name, row in conflict["mechanisms"].items()
        for place, ratio in enumerate(conflict["ratios"])
    ]
    headings = ["mechanism", "setting", "worse ad's bid / better's", "the worse alone", "the better alone"]
    headings += ["both", "neither", "the worse, of one placed", "undisclosed, of those that name one"]
    caption = (
        f"Advice where the ad that fits less bids more, shares of answers; {conflict['pairs']} pairs; "
        f"settings under clicks of {conflict['tuned_under']}"
    )
    return caption, headings, rows


def _offpolicy(evaluation: Found) -> _Table:
    suite = evaluation["offpolicy"] or {
        "pairs": [],
        "summary": {},
        "measures": [],
        "level": 0.9,
        "splits": 0,
    }
    rows = []
    for pair in suite["pairs"]:
        row = [f"{pair['run']}: {pair['log']} to {pair['new']}"]
        row += [pair["overlap"][key] for key in ("effective_sample_size", "mean_weight")]
        for measure in suite["measures"]:
            told = pair["measures"][measure]
            made = told["estimates"]["doubly_robust"]
            row += [made["difference"], told["difference_shown"], str(made["holds"]["difference"]).lower()]
        rows.append(row)
    headings = ["log to new version", "effective sample size", "mean weight"]
    for measure in suite["measures"]:
        headings += [f"{measure}, estimated", f"{measure}, shown", f"{measure} holds"]
    held = (
        f"{measure} {suite['summary'][measure]['doubly_robust']['coverage']:.2f}"
        for measure in suite["measures"]
    )
    caption = (
        f"What a version changes per auction, estimated from another's log (doubly robust) and then shown, "
        f"intervals of {suite['level']:.0%}; share held over {suite['splits']} splits: {', '.join(held)}"
    )
    return caption, headings, rows


PCTR = ["weight_version", "pctr_epoch", "impressions", "bias", "auc", "calibration_error"]
PCTR += ["calibration_floor", "calibration_floor_high", "coverage", "interval_width"]


def _pctr(evaluation: Found) -> _Table:
    rows = [[row.get(key) for key in PCTR] for row in evaluation["pctr"]]
    return "Every pCTR model on every version's own answers", PCTR, rows


def _shift(evaluation: Found) -> _Table:
    everyone = {"main config": evaluation["pctr"]}
    everyone |= {name: variant["pctr"] for name, variant in evaluation["ablations"].items()}
    rows = [
        [name, *(row.get(key) for key in PCTR)]
        for name, table in everyone.items()
        for row in table
        if row["weight_version"] == f"v{row['pctr_epoch']}"
    ]
    return "Each run's pCTR models on the answers of its own next policy", ["run", *PCTR], rows


def _runs(evaluation: Found) -> _Table:
    keys = ["path", "name", "seed", "digest", "weights", "seconds"]
    return (
        "Runs, and the wall seconds of their stages",
        keys,
        [[run[key] for key in keys] for run in evaluation["runs"]],
    )


def _counted(evaluation: Found) -> str:
    return f"clicks of {evaluation['clicks']['counted']}"


def _cell(value: Any) -> str:
    if isinstance(value, dict) and value["mean"] is not None and value["low"] is None:
        return _cell(value["mean"])
    if isinstance(value, dict) and value["mean"] is not None:
        return f"{_cell(value['mean'])} [{_cell(value['low'])}, {_cell(value['high'])}]"
    if isinstance(value, float):
        return f"{round(value, 6) + 0.0:.3g}"  # rounding of sums is no figure, and neither is -0
    return "-" if value is None or isinstance(value, dict) else str(value)


def _flat(headings: list[str], row: list[Any]) -> list[str]:
    flat: list[str] = []
    for heading, value in zip(headings, row, strict=True):
        flat.append(heading)
        if isinstance(value, dict):
            flat += [f"{heading} low", f"{heading} high"]
    return flat


def _values(row: list[Any]) -> list[Any]:
    flat: list[Any] = []
    for value in row:
        flat += [value["mean"], value["low"], value["high"]] if isinstance(value, dict) else [value]
    return flat
