"""The whole loop on real vLLM, DeepSpeed and Ray: a run and its files, on Ray and in one process."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raylla.runs.gauges import flat
from tests import recorded
from tests.e2e.commands import begin, commit, finish, ids, results, training
from tests.unit.test_dashboard import metrics

pytestmark = pytest.mark.e2e

STAGES = ("world", "epoch-1/sample", "epoch-1/learn", "epoch-1/test", "epoch-1/align", "epoch-2/test")


def test_run_directory(whole: Path) -> None:
    found = results(whole)
    assert [row["weight_version"] for row in found["epochs"]] == ["v0", "v1"]
    for row in found["epochs"]:
        assert row["revenue"]["low"] <= row["revenue"]["mean"] <= row["revenue"]["high"]
        assert {"auc", "log_loss", "calibration_error", "coverage"} <= row["pctr"].keys()
    assert found["samples"]["reward"] == 8 * 3
    assert found["samples"]["preference"] == 8 * 4
    assert found["peak_memory_bytes"] > 2**28
    assert set(STAGES) <= found["wall_seconds"].keys()
    answers = recorded.table(whole, "epoch-1/sample", "answers")
    assert set(answers["weight_version"].to_pylist()) == {"v0"}
    assert (whole / "weights" / "v1" / "model.safetensors").exists()
    consumed = [name for name in ids(whole) if "/" in name]
    assert len(set(consumed)) > 8 * 7
    reference = commit(whole, "epoch-1/align")["reference"]
    assert reference["used"] == "rollout"
    assert 0 < reference["largest"] < 1e-2
    assert reference["checked"] > 0


def test_the_dashboard_reads_what_a_run_writes(whole: Path) -> None:
    live = {"epoch", "stage_active", "tokens_total"}
    written = {name for line in (whole / "metrics.jsonl").open() for name, _ in flat(json.loads(line))}
    asked = {name.removeprefix("ray_raylla_") for name in metrics("ray_raylla_")}
    assert asked <= live | written


def test_test_profiles_are_never_trained_on(whole: Path) -> None:
    queries = pq.read_table(whole / "world" / "queries.parquet").to_pylist()
    split = {query["id"]: query["split"] for query in queries}
    for name in set(ids(whole)) - set(split):
        _, phase, query, _ = name.split("/")
        assert (phase == "test") == (split[query] == "test")


def test_evaluate_refuses_before_it_loads_a_model(whole: Path, tmp_path: Path) -> None:
    for wrong, named in (
        ("evaluation.mechanisms=[mosaik]", "no mechanism named 'mosaik'"),
        ("evaluation.queries=3", "3 test queries are too few"),
        ("evaluation.bids=[1,200]", "world.max_bid=100"),
        ("evaluation.native_answers=missing.jsonl", "missing.jsonl': no such file"),
        ("dpo.lr=1", "only settings of evaluation"),
    ):
        log = tmp_path / "log"
        process = begin(["evaluate", str(whole), "--set", wrong], log)
        assert process.wait(timeout=60) == 2
        assert named in " ".join(log.read_text().split())
        assert "engines" not in log.read_text()
        log.unlink()


def test_another_config_in_the_same_directory(whole: Path, tmp_path: Path) -> None:
    process = begin(training(whole, seed=5), tmp_path / "log")
    assert process.wait(timeout=60) == 2
    assert "another config" in (tmp_path / "log").read_text()


def test_one_after_another_in_process_gives_the_same_as_overlapped_on_ray(whole: Path, alone: Path) -> None:
    assert ids(alone) == ids(whole)
    for stage in ("sample", "test"):
        for table in ("answers", "clicks", "auctions"):
            found = [recorded.table(run, f"epoch-1/{stage}", table) for run in (alone, whole)]
            assert found[0].equals(found[1]), f"{stage}/{table}"
    assert recorded.groups(alone, 1) == recorded.groups(whole, 1)
    assert results(alone)["epochs"][0] == results(whole)["epochs"][0]


def test_adapters_that_share_a_base_give_the_run_that_merged_weights_give(tmp_path: Path) -> None:
    """The base answers bit for bit alike, so that the same adapter is trained.  What the adapter answers is
    sampled from sums of another order, W x + B A x in place of (W + B A) x: the same texts, to the token,
    but where two tokens are as likely as the numbers are fine."""
    ways = {way: tmp_path / way for way in ("merged", "shared")}
    small = {"ray__in_process": "true", "lora__rank": 4, "dpo__lr": 1e-3}
    for way, run in ways.items():
        finish(training(run, rollout__adapters=way, **small), tmp_path / f"{way}.log")
    merged, shared = ways.values()
    assert ids(merged) == ids(shared)
    for stage, table in product(("sample", "test"), ("answers", "clicks", "auctions")):
        first, second = (recorded.table(run, f"epoch-1/{stage}", table) for run in (merged, shared))
        assert first.equals(second), f"{stage}/{table}"
    assert recorded.groups(merged, 1) == recorded.groups(shared, 1)
    probes = [commit(run, "epoch-1/align")["probe"] for run in (merged, shared)]
    assert probes[0] == probes[1]  # with the digest of the adapter's file
    answers = [recorded.table(run, "epoch-2/test", "answers").to_pylist() for run in (merged, shared)]
    assert {one["weight_version"] for one in answers[1]} == {"v1"}
    alike = [one["token_ids"] == other["token_ids"] for one, other in zip(*answers, strict=True)]
    assert sum(alike) >= 0.9 * len(alike)
    by_base = recorded.table(shared, "epoch-1/test", "answers")["token_ids"].to_pylist()
    assert by_base != [one["token_ids"] for one in answers[1]]


def test_the_timeline_tells_who_worked_when(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "timeline.jsonl").read_text().splitlines()]
    (epoch,) = [line for line in lines if "critical_seconds" in line]
    assert 0 < epoch["critical_seconds"] <= epoch["wall_seconds"]
    assert epoch["idle"].keys() == {"rollout[0]", "judge[0]", "reward-trainer[0]", "policy-trainer[0]"}
    assert all(0 <= share < 1 for share in epoch["idle"].values())
    done = {(line["actor"], line["task"]) for line in lines if "actor" in line}
    assert done >= {("rollout[0]", phase) for phase in ("reward", "preference", "test", "load")}
    assert done >= {("judge[0]", "reward"), ("reward-trainer[0]", "update"), ("policy-trainer[0]", "align")}
    trace = json.loads((whole / "timeline.trace.json").read_text())["traceEvents"]
    spans = [event for event in trace if event["ph"] == "X"]
    assert len(spans) == sum("actor" in line for line in lines)
    assert all(event["dur"] >= 0 for event in spans)
