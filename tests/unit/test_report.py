"""The report: everything of the file is on the page, and nothing that is text acts."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread
from typer.testing import CliRunner

from raylla.cli import app
from raylla.errors import RunError
from raylla.evaluation.page.figures import FIGURES
from raylla.evaluation.page.report import AGAINST, pieces, write_report
from raylla.figures.quality import READER

HOSTILE = "<script>alert(1)</script> {{ 7 * 7 }}"


def figure(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 1, "high": mean + 1}


def evaluation() -> dict[str, Any]:
    figures = ("revenue", "reward", "welfare", "expected_revenue", "expected_reward")
    costs = dict.fromkeys(("generations", "prompt_tokens", "sampled_tokens", "seconds"), figure(1))
    regret = dict.fromkeys(("utility", "value"), figure(2))
    rule = {"payment": figure(3), "least_utility": figure(0), "regret": regret}
    jump = {"jump": 0.1, "at": 3, "low": 0.05, "high": 0.2}
    curve = {"click_rate": [figure(0.1), figure(0.3)], "trend": figure(0.9), "control": figure(0.0)}
    pctr = {
        "weight_version": "v1",
        "pctr_epoch": 1,
        "impressions": 20,
        "bias": 0.01,
        "auc": None,
        "calibration_error": 0.02,
        "calibration_floor": 0.0175,
        "calibration_floor_high": 0.031,
        "coverage": 0.9,
        "interval_width": 0.2,
        "reliability": [[0.1, 0.2, 10], [0.6, 0.5, 10]],
    }
    return {
        "name": HOSTILE,
        "clicks": {"counted": "adapter:judge (taught by a, b)", "expected": "click model"},
        "clicks_of_runs": {"counted": "adapter:own", "expected": "adapter:own"},
        "runs": [
            {"path": "seed-0", "name": "a", "seed": 0, "digest": "f00d", "weights": "v3", "seconds": 99.5}
        ],
        "wall_seconds": {"seed-0: mosaic: test": 12.5},
        "efficiency": {
            name: {
                **{key: figure(10 + place) for key in figures},
                "ads_per_answer": figure(1),
                "format_error_rate": figure(0.1),
                "cost_per_auction": costs,
                "terms": {"user-welfare": figure(-0.25)},
                "seeds": 1,
            }
            for place, name in enumerate(("pretrained", "llm-auction"))
        },
        "against": {"pretrained": {key: figure(2) for key in AGAINST}},
        "ablations": {
            "masked": {
                **{key: figure(2) for key in AGAINST},
                "seeds": 1,
                "pctr": [pctr],
            },
            "unpaired": {"pctr": [pctr | {"bias": -0.25}]},
        },
        "epochs": [
            {"epoch": 0, "weight_version": "v0", **{key: figure(4) for key in figures}}
            | {"pctr": {"auc": None, "coverage": 0.8}, "seconds": {"sample": 10.0}}
            | {"ads_per_answer": 1.0, "format_error_rate": 0.1, "click_rate": 0.2}
        ],
        "examples": [
            {
                "query": HOSTILE,
                "profile": "30 nurse Oslo",
                "bids": {"Lumo Kettle [Ad-12]": 40.0},
                "before": f"Nothing. {HOSTILE}",
                "after": "Try @Lumo Kettle@[Ad-12] here.",
                "pctr": {"Lumo Kettle": {"mean": 0.61, "low": 0.52, "high": 0.7}},
            }
        ],
        "curves": {
            "monotonicity": {
                "bids": [1, 100],
                "versions": {"v0": curve, "v1": curve},
                "auctions_per_second": 100.0,
                "examples": [{"query": "q", "ad": "Lumo Kettle", "answers": {"1": "No.", "100": "Yes."}}],
            },
            "monotonicity_of_variants": {"masked": curve},
            "continuity": {
                "bids": [1, 2, 3],
                "one": [{"click_rate": [0.1, 0.2, 0.3], "jump": jump}] * 2,
                "many": {"click_rate": [0.1, 0.2, 0.3], "jump": jump, "queries": 4},
            },
        },
        "incentives": {
            "llm-auction": {
                "bids": [0, 100],
                "click_rate": [0.1, 0.4],
                "rules": {"own": rule, "myerson": rule},
                "truthful": {
                    "first_price": figure(40),
                    "closed_form": [{"beta": 3.0, "revenue": figure(17), "effective_sample_size": 4.5}],
                    "self_resampling": {"revenue": figure(-1)},
                },
                "equilibrium": {"queries": 1, "truthful": {"revenue": 1.5, "welfare": 2.5}},
            }
        },
        "pctr": [pctr],
        "quality": {
            kind: {
                name: {key: figure(30) for key in READER if key != "detected"} | {"perplexity_ratio": None}
            }
            for kind, name in (("organic", "organic"), ("versions", "v0"), ("mechanisms", "mosaic"))
        }
        | {"absent": {"detected": "want of published answers"}, "detector": None},
        "search": {},
        "config": {"ad_llm": {"path": "pocket:ad-llm"}},
        "versions": {"numpy": "2"},
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation with its report."""
    folder = tmp_path_factory.mktemp("drawn")
    (folder / "evaluation.json").write_text(json.dumps(evaluation()))
    write_report(folder / "evaluation.json", folder / "report")
    return folder


@pytest.fixture
def page(drawn: Path, tmp_path: Path) -> Path:
    """The page of a copy of it."""
    shutil.copytree(drawn, tmp_path, dirs_exist_ok=True)
    return tmp_path / "report" / "index.html"


@pytest.mark.slow
@pytest.mark.parametrize("figure", ["mechanisms", "monotonicity"])
def test_pictures_in_the_docs_are_those_of_their_figures(figure: str, tmp_path: Path) -> None:
    results = Path(__file__).parents[2] / "docs" / "results"
    shown = CliRunner().invoke(
        app, ["report", str(results / "smollm2-seed-0.json"), "--out", str(tmp_path)]
    )
    assert shown.output.strip().endswith("index.html")
    made, kept = (imread(path) for path in (tmp_path / f"{figure}.png", results / f"smollm2-{figure}.png"))
    assert made.shape == kept.shape
    assert (made == kept).all()


def test_text_is_text(page: Path) -> None:
    html = page.read_text()
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; {{ 7 * 7 }}" in html
    assert "<mark>@Lumo Kettle@[Ad-12]</mark>" in html
    assert "http" not in html.replace("data:image", "")


def test_figures_and_tables_lie_beside_it(page: Path) -> None:
    names = {entry.name for entry in page.parent.iterdir()}
    assert {"index.html", "evaluation.json", "mechanisms.png", "efficiency.csv", "pctr.csv"} <= names
    for name in ("mechanisms.png", "frontier-user-welfare.png"):
        assert (page.parent / name).read_bytes().startswith(b"\x89PNG")
    terms = list(csv.DictReader((page.parent / "terms.csv").open()))
    assert [row["user-welfare"] for row in terms] == ["-0.25", "-0.25"]
    rows = list(csv.DictReader((page.parent / "efficiency.csv").open()))
    assert [row["mechanism"] for row in rows] == ["pretrained", "llm-auction"]
    assert (rows[1]["revenue"], rows[1]["revenue low"], rows[1]["revenue high"]) == ("11", "10", "12")


def test_everything_that_was_measured_is_on_the_page(page: Path) -> None:
    html = page.read_text()
    for name in ("efficiency", "against", "reader", "ablations", "epochs", "incentives", "truthful"):
        assert f'<table id="{name}">' in html
    for name in ("equilibrium", "pctr", "shift", "runs"):
        assert f'<table id="{name}">' in html
    assert html.count("data:image/png;base64,") == len(FIGURES)  # one of a term; that of advice is below
    assert "closed form, beta 3" in html
    assert "0.61 [0.52, 0.7]" in html
    assert "f00d" in html
    assert "clicks of adapter:judge (taught by a, b); expected: by the click model</caption>" in html
    assert html.count("clicks of adapter:judge (taught by a, b)") == 6
    assert "all training seeds; clicks of adapter:own; expected: by its probabilities</caption>" in html
    assert "detected: not measured, for want of published answers" in html
    read = list(csv.DictReader((page.parent / "reader.csv").open()))
    assert [row["answers of"] for row in read] == ["organic", "v0", "mosaic"]
    assert (read[0]["perplexity"], read[0]["÷ v0's"], "detected" in read[0]) == ("30", "", False)
    rows = list(csv.DictReader((page.parent / "shift.csv").open()))
    assert [(row["run"], row["bias"]) for row in rows] == [
        ("main config", "0.01"),
        ("masked", "0.01"),
        ("unpaired", "-0.25"),
    ]
    assert [row["variant"] for row in csv.DictReader((page.parent / "ablations.csv").open())] == ["masked"]


def test_advice_against_higher_bids_is_on_it_where_it_was_measured(page: Path, tmp_path: Path) -> None:
    assert "What money does to advice" not in page.read_text()
    shares = ("against", "for", "both", "neither", "preferred", "undisclosed")
    example = {"query": "q", "better": "Lumo", "worse": "Uber", "ratio": 10, "answer": f"Go. {HOSTILE}"}
    row = {key: [figure(0.2), figure(0.4)] for key in shares}
    row |= {"examples": [example], "choices": [{"reserve": 25.0}]}
    row["preferred"] = [dict.fromkeys(("mean", "low", "high"))] * 2
    found = {"mechanisms": {"card": row}, "ratios": [1, 10], "pairs": 24, "tuned_under": "adapter:judge"}
    found["runs"] = evaluation()["runs"]
    (tmp_path / "conflict.json").write_text(json.dumps(found))
    html = write_report(tmp_path / "evaluation.json", tmp_path / "report").read_text()
    assert "What money does to advice" in html
    assert "fits less, bids 10 times as much: Uber" in html
    assert "settings under clicks of adapter:judge" in html
    assert "<script" not in html
    assert html.count("data:image/png;base64,") == len(FIGURES) + 1
    rows = list(csv.DictReader((tmp_path / "report" / "conflict.csv").open()))
    told = [(one["mechanism"], one["setting"], one["the worse alone"]) for one in rows]
    assert told == [("card", '{"reserve": 25.0}', "0.2"), ("card", '{"reserve": 25.0}', "0.4")]
    assert "conflict" not in json.loads((tmp_path / "report" / "evaluation.json").read_text())
    (tmp_path / "conflict.json").unlink()
    write_report(tmp_path / "evaluation.json", tmp_path / "report")
    assert not list((tmp_path / "report").glob("conflict.*"))


def test_estimates_before_a_version_serves_are_on_it_where_they_were_held(
    page: Path, tmp_path: Path
) -> None:
    assert "Estimates before" not in page.read_text()
    made = {"difference": figure(3.5), "holds": {"difference": True}}
    told = {"difference_shown": figure(4.5), "estimates": {"doubly_robust": made}}
    pair = {"run": "seed-0", "log": "v0", "new": "v1", "measures": {"revenue": told}}
    pair["overlap"] = {"effective_sample_size": 41.5, "mean_weight": 0.9}
    found = {"pairs": [pair], "summary": {"revenue": {"doubly_robust": {"coverage": 0.937}}}}
    found |= {"measures": ["revenue"], "level": 0.9, "splits": 50, "runs": evaluation()["runs"]}
    (tmp_path / "offpolicy.json").write_text(json.dumps(found))
    html = write_report(tmp_path / "evaluation.json", tmp_path / "report").read_text()
    assert "share held over 50 splits: revenue 0.94" in html
    (row,) = csv.DictReader((tmp_path / "report" / "offpolicy.csv").open())
    assert (row["log to new version"], row["effective sample size"]) == ("seed-0: v0 to v1", "41.5")
    assert (row["revenue, estimated"], row["revenue, shown"], row["revenue holds"]) == (
        "3.5",
        "4.5",
        "true",
    )
    (tmp_path / "offpolicy.json").unlink()
    write_report(tmp_path / "evaluation.json", tmp_path / "report")
    assert not list((tmp_path / "report").glob("offpolicy.*"))


def days() -> dict[str, Any]:
    lone = {"mean": 1.25, "low": None, "high": None}
    bidder = dict.fromkeys(("budget_use", "used_up", "return"), figure(0.5)) | {"moved": lone}
    bidder |= {"advertisers": 7}
    keys = ("revenue", "welfare", "budget_use", "used_up", "return")
    market = dict.fromkeys(keys, figure(2)) | {"kept_out": {"pacing": 0.125}, "seeds": 1}
    market |= dict.fromkeys(("price_of_anarchy", "price_of_anarchy_any", "moved"), lone)
    market |= {"bidders": {"pid": bidder, "value": bidder}}
    curve = {"spent": [0.25, 0.5], "multiples": [1.0, 0.75, 0.5, 0.25]}
    market["curves"] = {"pid": curve, "value": curve}
    markets = {"truthful": market | {"curves": {"truthful": curve}}, "mixed": market}
    return {
        "mechanisms": {
            "card": {"choices": [{"reserve": 25.0}], "markets": markets},
            "llm-auction: masked": {"choices": [{}], "markets": {"mixed": market}},
        },
        "periods": 2,
        "traffic": [0.5, 0.5],
        "settings": {"days": 2, "queries": 8},
        "clicks": f"click model {HOSTILE}",
        "runs": evaluation()["runs"],
    }


def test_a_day_of_bidders_is_on_it_where_it_was_measured(page: Path, tmp_path: Path) -> None:
    assert "A day of bidders" not in page.read_text()
    (tmp_path / "day.json").write_text(json.dumps(days()))
    html = write_report(tmp_path / "evaluation.json", tmp_path / "report").read_text()
    assert "A day of bidders" in html
    assert "<script" not in html
    drawn = {path.stem for path in (tmp_path / "report").glob("day*.png")}
    kinds = ("day-spend", "day-multiples")
    assert drawn == {
        "day",
        *(f"{kind}-{name}" for kind in kinds for name in ("card", "llm-auction-masked")),
    }
    assert html.count("data:image/png;base64,") == len(FIGURES) + len(drawn)
    rows = list(csv.DictReader((tmp_path / "report" / "day.csv").open()))
    told = [(one["mechanism"], one["bidders"], one["revenue"], one["price_of_anarchy"]) for one in rows]
    assert told == [
        ("card", "truthful", "2", "1.25"),
        ("card", "mixed", "2", "1.25"),
        ("llm-auction: masked", "mixed", "2", "1.25"),
    ]
    assert "<td>1.25</td>" in html
    assert "<td>pacing 0.12</td>" in html
    bidders = list(csv.DictReader((tmp_path / "report" / "day-bidders.csv").open()))
    assert [(one["market"], one["bidder"]) for one in bidders[:4]] == [
        ("truthful", "pid"),
        ("truthful", "value"),
        ("mixed", "pid"),
        ("mixed", "value"),
    ]
    assert "day" not in json.loads((tmp_path / "report" / "evaluation.json").read_text())
    (tmp_path / "day.json").unlink()
    write_report(tmp_path / "evaluation.json", tmp_path / "report")
    assert not list((tmp_path / "report").glob("day*"))


def test_half_a_day_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation()))
    (tmp_path / "day.json").write_text('{"mechanisms": {}}')
    with pytest.raises(RunError, match=r"day\.json lacks clicks, periods, .*--suite day`"):
        write_report(tmp_path / "evaluation.json", tmp_path / "report")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"mecha', "is not JSON"),
        ("[1]", "holds no object"),
        ('{"mechanisms": {}}', "lacks pairs, ratios, runs, tuned_under"),
    ],
)
def test_a_damaged_file_of_advice_is_an_error(text: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation()))
    (tmp_path / "conflict.json").write_text(text)
    with pytest.raises(RunError, match=rf"conflict\.json {fault}"):
        write_report(tmp_path / "evaluation.json", tmp_path / "report")


def test_advice_of_another_run_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation()))
    other = evaluation()["runs"][0] | {"digest": "beef"}
    found = {"mechanisms": {}, "ratios": [], "pairs": 0, "tuned_under": "", "runs": [other]}
    (tmp_path / "conflict.json").write_text(json.dumps(found))
    with pytest.raises(RunError, match="is of a run of another digest"):
        write_report(tmp_path / "evaluation.json", tmp_path / "report")


def test_pieces_of_an_answer() -> None:
    assert pieces("Try @A B@[Ad-1] or @C@[Ad-2]") == [
        ("Try ", False),
        ("@A B@[Ad-1]", True),
        (" or ", False),
        ("@C@[Ad-2]", True),
    ]


def test_no_evaluation_or_half_of_one(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="raylla evaluate"):
        write_report(tmp_path / "evaluation.json", tmp_path / "report")
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(RunError, match="not JSON"):
        write_report(tmp_path / "evaluation.json", tmp_path / "report")
    (tmp_path / "evaluation.json").write_text('{"epochs": []}')
    with pytest.raises(RunError, match="lacks ablations, clicks, clicks_of_runs, curves"):
        write_report(tmp_path / "evaluation.json", tmp_path / "report")
    (tmp_path / "evaluation.json").write_text("[" * 100_000)
    with pytest.raises(RunError, match="not JSON"):
        write_report(tmp_path / "evaluation.json", tmp_path / "report")


@pytest.mark.parametrize(("part", "held"), [("quality", 5), ("curves", [])])
def test_an_evaluation_of_another_form_is_an_error_and_no_page(
    part: str, held: object, tmp_path: Path
) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation() | {part: held}))
    with pytest.raises(RunError, match=r"is not of the form .* write it anew with `raylla evaluate RUN`"):
        write_report(tmp_path / "evaluation.json", tmp_path / "report")
    assert not (tmp_path / "report" / "index.html").exists()


def test_a_browser_shows_it(page: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    shot = tmp_path / "shot.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += [f"--user-data-dir={tmp_path / 'browser'}", "--window-size=1000,3000", f"--screenshot={shot}"]
    subprocess.run([browser, *flags, page.as_uri()], check=True, capture_output=True, timeout=120)
    from matplotlib import image

    pixels = image.imread(shot)
    assert pixels.shape[:2] == (3000, 1000)
    # Text, tables and charts: neither blank nor one colour.
    assert 0.02 < (pixels[..., :3].mean(axis=2) < 0.9).mean() < 0.9
