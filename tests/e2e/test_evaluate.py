"""`raylla evaluate`, `prices` and `report` on runs of real engines, from a config to the page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests import recorded
from tests.e2e.commands import commit, finish, results, sets, training

pytestmark = pytest.mark.e2e

OTHER = (
    "irpo.reward=judge",
    "pctr.features=[]",
    "irpo.align=grpo",
    "dpo.winner_nll=0",
    "reward_terms=[{name: user-welfare, weight: 50}, {name: credibility, weight: 20}]",
)
"""Overrides of a variant, each of which is another path."""
HELD = (
    "pretrained",
    "rag-auction",
    "mosaic",
    "range-vcg",
    "screened-vcg",
    "token-auction",
    "llm-auction",
)
"""Mechanisms of the whole evaluation."""


def _other_paths(run: Path) -> None:
    """A term stands in each reward of a run, in its report and its table; GRPO trains on all answers."""
    rewards = recorded.table(run, "epoch-1/learn", "rewards").to_pylist()
    assert any(row["terms"][0] < 0 for row in rewards)
    assert any(row["terms"][1] < 0 for row in rewards)
    organic = json.loads((run / "records" / "organic" / "answers.json").read_text())
    questions = pq.read_table(run / "world" / "queries.parquet")["id"].to_pylist()
    assert 8 < len(organic) <= len(questions)
    assert all(len(texts) == 2 and not any("@" in text for text in texts) for texts in organic.values())
    mean = sum(row["terms"][0] for row in rewards) / len(rewards)
    assert commit(run, "epoch-1/learn")["terms"]["user-welfare"] == pytest.approx(mean / 50)
    assert {1 + len(one["losers"]) for one in recorded.groups(run, 1)} == {4}
    aligned = commit(run, "epoch-1/align")
    assert aligned["losses"][0] == pytest.approx(0, abs=1e-3)
    assert len(aligned["clipped"]) == len(aligned["kl"]) == aligned["steps"]
    assert 0 < aligned["reference"]["difference"] < 1e-2
    for row in results(run)["epochs"]:
        assert -1 < row["terms"]["user-welfare"]["mean"] < 0


def test_evaluate_of_a_config_trains_what_is_missing_and_holds_every_mechanism(
    alone: Path, tmp_path: Path
) -> None:
    small = {
        "seeds": "[0]",
        "variants": json.dumps({"judged": OTHER}),
        "bids": "[0,50,100]",
        "sweep_answers": 1,
        "curve_answers": 4,
        "curve_queries": 2,
        "incentive_queries": 2,
        "incentive_answers": 2,
        "equilibrium_queries": 1,
        "equilibrium_bids": "[10,90]",
        "validation_queries": 2,
        "mechanisms": json.dumps(HELD),
    }
    shutil.copytree(alone, tmp_path / "seed-0")
    ledger = (alone / "ledger.jsonl").read_text()
    settings = {f"evaluation__{name}": value for name, value in small.items()}
    settings |= {"ray__in_process": "true", "irpo__overlap": "false"}
    _, config, _, _, *changed = training(alone, **settings)
    finish(["evaluate", config, "--runs", str(tmp_path), *changed], tmp_path / "evaluate.log")
    assert (tmp_path / "seed-0" / "ledger.jsonl").read_text() == ledger
    assert results(tmp_path / "judged")["name"] == "judged"
    _other_paths(tmp_path / "judged")
    assert results(alone)["epochs"][0]["terms"] == {}
    found = json.loads((tmp_path / "seed-0" / "evaluation.json").read_text())
    for row, before in zip(found["epochs"], results(alone)["epochs"], strict=True):
        assert row["revenue"] == before["revenue"]
        assert row["pctr"]["auc"] == before["pctr"]["auc"]
    rows = found["efficiency"]
    assert set(rows) == {*HELD, "llm-auction: judged"}
    generations = {name: row["cost_per_auction"]["generations"]["mean"] for name, row in rows.items()}
    assert all(
        row["terms"].keys() == {"credibility", "diversity", "fidelity", "nativeness", "user-welfare"}
        and row["terms"]["user-welfare"]["mean"] < 0 == row["terms"]["fidelity"]["mean"]
        and row["terms"]["credibility"]["mean"] < 0
        for row in rows.values()
    )
    assert generations.pop("mosaic") == 20
    assert generations.pop("range-vcg") in (7, 13)  # each of six ads, and the organic answer
    assert generations.pop("screened-vcg") >= 7
    assert generations.pop("token-auction") in (1, 2, 3)
    assert set(generations.values()) == {1}
    for name in ("pretrained", "llm-auction"):
        assert rows[name]["revenue"] == rows[name]["welfare"]
    for name in ("mosaic", "range-vcg", "screened-vcg", "token-auction"):
        assert rows[name]["revenue"]["mean"] <= rows[name]["welfare"]["mean"]
    tried = found["search"]["mosaic"][0]["tried"]
    assert {one["choice"]["reference"] for one in tried} == {"generator", "organic"}
    assert found["ablations"]["judged"]["seeds"] == 1
    assert {row["weight_version"] for row in found["ablations"]["judged"]["pctr"]} == {"v0", "v1"}
    assert set(found["curves"]["monotonicity"]["versions"]) == {"v0", "v1"}
    assert len(found["curves"]["continuity"]["one"][0]["click_rate"]) == 100
    read = found["quality"]
    assert set(read["mechanisms"]) == set(rows)
    assert set(read["versions"]) == {"v0", "v1"}
    for row in (read["organic"]["organic"], read["versions"]["v1"]):
        assert -1 <= row["similarity"]["low"] < row["similarity"]["high"] <= 1
    assert read["versions"]["v0"]["perplexity_ratio"]["mean"] == 1
    assert set(read["absent"]) == {"detected", "fidelity", "fidelity_chance"}
    for one in found["incentives"].values():
        assert set(one["rules"]) == {"own", "myerson"}
        assert one["equilibrium"]["queries"] == 1
    both = [str(tmp_path / name) for name in ("seed-0", "judged")]
    quick = sets({f"evaluation.{name}": value for name, value in small.items()})
    finish(["evaluate", *both, "--suite", "conflict", *quick], tmp_path / "conflict.log")
    advice = json.loads((tmp_path / "seed-0" / "conflict.json").read_text())
    assert set(advice["mechanisms"]) == set(rows)
    assert 10 <= advice["pairs"] <= 15  # not every question's best ad has a rival in its category
    for row in advice["mechanisms"].values():
        for shares in zip(*(row[name] for name in ("against", "for", "both", "neither")), strict=True):
            assert sum(one["mean"] for one in shares) == pytest.approx(1)
    days = {"queries": 2, "days": 1, "draws": 1, "markets": "[mixed]"}
    short = sets({f"evaluation.day.{name}": value for name, value in days.items()})
    short += sets({"evaluation.mechanisms": "[llm-auction,rag-auction]"})
    finish(["evaluate", str(tmp_path / "seed-0"), "--suite", "day", *quick, *short], tmp_path / "day.log")
    played = json.loads((tmp_path / "seed-0" / "day.json").read_text())
    assert set(played["mechanisms"]) == {"llm-auction", "rag-auction"}
    for one in played["mechanisms"].values():
        mixed = one["markets"]["mixed"]
        assert mixed["price_of_anarchy_any"]["mean"] >= mixed["price_of_anarchy"]["mean"] >= 1 - 1e-6
        assert 0 < mixed["budget_use"]["mean"] <= 1
        assert set(mixed["bidders"]) == {"pacing", "pid", "value", "learned"}
    _prices(tmp_path / "seed-0", quick)
    finish(["report", str(tmp_path / "seed-0")], tmp_path / "report.log")
    page = (tmp_path / "seed-0" / "report" / "index.html").read_text()
    assert all(f"<td>{name}</td>" in page for name in rows)
    assert "What money does to advice" in page
    assert "A day of bidders" in page
    assert "Revenue against user-welfare" in page
    assert "<mark>@" in page


def _prices(run: Path, quick: list[str]) -> None:
    """Prices are learned from a log of the run's last weights, and held on its test questions."""
    log, sheet = str(run / "log.json"), str(run / "sheet.json")
    finish(["prices", "log", str(run), "--out", log, "--answers", "2"], run / "log.log")
    finish(["prices", "learn", log, "--out", sheet, "--folds", "2", "--bidders", "2"], run / "learn.log")
    held = ["--prices", sheet, "--bidders", "2", "--draws", "1", *quick]
    finish(["prices", "evaluate", str(run), *held], run / "held.log")
    found = json.loads((run / "prices.json").read_text())
    assert found["sheet"]["digest"] in (run / "learn.log").read_text()
    assert set(found["markets"]) == {"all", "2"}
    for market in found["markets"].values():
        first, learned = market["rules"]["first_price"], market["rules"]["reserve"]
        assert first["truthful"]["surplus"]["mean"] == pytest.approx(0)
        assert first["truthful"]["revenue"]["mean"] > 0
        assert learned["truthful"]["surplus"]["low"] >= -1e-9  # nobody ever pays more than it bids
        assert market["regret"]["reserve"]["least_utility"]["mean"] >= -1e-9
