"""The whole loop on real vLLM, DeepSpeed and Ray: a run, its files, SIGKILL and resume, jobs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
TINY = {
    "world.profiles": 8,
    "world.queries_per_profile": 5,
    "world.test_share": 0.25,
    "irpo.epochs": 1,
    "irpo.queries": 8,
    "irpo.reward_answers": 3,
    "irpo.preference_answers": 4,
    "irpo.delta": 1,
    "irpo.max_drop_share": 0.2,
    "dpo.batch_groups": 4,
    "dpo.micro_groups": 2,
    "rollout.workers": 1,
    "evaluation.answers": 2,
    "wandb.mode": "disabled",
}
STAGES = ("world", "epoch-1/sample", "epoch-1/learn", "epoch-1/align", "epoch-2/sample")
ON_RAY = ("epoch-1/sample", "epoch-1/align")
"""Stages that are interrupted on Ray; the others in one process, which starts in half the time."""


def _arguments(run: Path, **changed: object) -> list[str]:
    settings = TINY | {name.replace("__", "."): value for name, value in changed.items()}
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    return ["train", str(ROOT / "configs" / "pocket.yaml"), "--run", str(run), *sets]


def _raylla(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "raylla", *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=ROOT,
            start_new_session=True,
        )


def _finish(arguments: list[str], log: Path) -> None:
    process = _raylla(arguments, log)
    assert process.wait(timeout=400) == 0, log.read_text()[-4000:]


def _ids(run: Path) -> list[str]:
    lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    return [line["sample_id"] for line in lines if "sample_id" in line]


def _results(run: Path) -> Any:
    return json.loads((run / "results.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run, its directory given as a relative path."""
    run = tmp_path_factory.mktemp("whole") / "run"
    _finish(_arguments(Path(os.path.relpath(run, ROOT))), run.parent / "log")
    return run


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run without Ray."""
    run = tmp_path_factory.mktemp("alone") / "run"
    _finish(_arguments(run, ray__in_process="true"), run.parent / "log")
    return run


def test_run_directory(whole: Path) -> None:
    results = _results(whole)
    assert [row["weight_version"] for row in results["epochs"]] == ["v0", "v1"]
    for row in results["epochs"]:
        assert row["revenue"]["low"] <= row["revenue"]["mean"] <= row["revenue"]["high"]
        assert {"auc", "log_loss", "calibration_error", "coverage"} <= row["pctr"].keys()
    assert results["samples"]["reward"] == 8 * 3
    assert results["samples"]["preference"] == 8 * 4
    assert results["peak_memory_bytes"] > 2**28
    assert set(STAGES) <= results["wall_seconds"].keys()
    answers = pq.read_table(whole / "records" / "epoch-1" / "sample" / "answers.parquet")
    assert set(answers["weight_version"].to_pylist()) == {"v0"}
    assert (whole / "weights" / "v1" / "model.safetensors").exists()
    consumed = [name for name in _ids(whole) if "/" in name]
    assert len(set(consumed)) > 8 * 7


def test_test_profiles_are_never_trained_on(whole: Path) -> None:
    queries = pq.read_table(whole / "world" / "queries.parquet").to_pylist()
    split = {query["id"]: query["split"] for query in queries}
    for name in set(_ids(whole)) - set(split):
        _, phase, query, _ = name.split("/")
        assert (phase == "test") == (split[query] == "test")


def test_evaluate_of_a_config_trains_what_is_missing_and_holds_every_mechanism(
    alone: Path, tmp_path: Path
) -> None:
    small = {
        "seeds": "[0]",
        "variants": "{judged: [irpo.reward=judge]}",
        "bids": "[0,50,100]",
        "sweep_answers": 1,
        "curve_answers": 4,
        "curve_queries": 2,
        "incentive_queries": 2,
        "incentive_answers": 2,
        "equilibrium_queries": 1,
        "equilibrium_bids": "[10,90]",
        "validation_queries": 2,
    }
    shutil.copytree(alone, tmp_path / "seed-0")
    ledger = (alone / "ledger.jsonl").read_text()
    settings = {f"evaluation__{name}": value for name, value in small.items()}
    _, config, _, _, *sets = _arguments(alone, ray__in_process="true", **settings)
    _finish(["evaluate", config, "--runs", str(tmp_path), *sets], tmp_path / "evaluate.log")
    assert (tmp_path / "seed-0" / "ledger.jsonl").read_text() == ledger
    assert _results(tmp_path / "judged")["name"] == "judged"
    found = json.loads((tmp_path / "seed-0" / "evaluation.json").read_text())
    for row, recorded in zip(found["epochs"], _results(alone)["epochs"], strict=True):
        assert row["revenue"] == recorded["revenue"]
        assert row["pctr"]["auc"] == recorded["pctr"]["auc"]
    rows = found["efficiency"]
    assert set(rows) == {"pretrained", "rag-auction", "mosaic", "llm-auction", "llm-auction: judged"}
    generations = {name: row["cost_per_auction"]["generations"]["mean"] for name, row in rows.items()}
    assert generations.pop("mosaic") == 20
    assert set(generations.values()) == {1}
    for name in ("pretrained", "llm-auction"):
        assert rows[name]["revenue"] == rows[name]["welfare"]
    assert rows["mosaic"]["revenue"]["mean"] <= rows["mosaic"]["welfare"]["mean"]
    tried = found["search"]["mosaic"][0]["tried"]
    assert {one["choice"]["reference"] for one in tried} == {"generator", "organic"}
    assert found["ablations"]["judged"]["seeds"] == 1
    assert {row["weight_version"] for row in found["ablations"]["judged"]["pctr"]} == {"v0", "v1"}
    assert set(found["curves"]["monotonicity"]["versions"]) == {"v0", "v1"}
    assert len(found["curves"]["continuity"]["one"][0]["click_rate"]) == 100
    for one in found["incentives"].values():
        assert set(one["rules"]) == {"own", "myerson"}
        assert one["equilibrium"]["queries"] == 1
    _finish(["report", str(tmp_path / "seed-0")], tmp_path / "report.log")
    page = (tmp_path / "seed-0" / "report" / "index.html").read_text()
    assert all(f"<td>{name}</td>" in page for name in rows)
    assert "<mark>@" in page


def test_evaluate_refuses_before_it_loads_a_model(whole: Path, tmp_path: Path) -> None:
    for wrong, named in (
        ("evaluation.mechanisms=[mosaik]", "no mechanism named 'mosaik'"),
        ("evaluation.queries=3", "3 test queries are too few"),
        ("evaluation.bids=[1,200]", "world.max_bid=100"),
        ("dpo.lr=1", "only settings of evaluation"),
    ):
        log = tmp_path / "log"
        process = _raylla(["evaluate", str(whole), "--set", wrong], log)
        assert process.wait(timeout=60) == 2
        assert named in " ".join(log.read_text().split())
        assert "engines" not in log.read_text()
        log.unlink()


def test_another_config_in_the_same_directory(whole: Path) -> None:
    process = _raylla(_arguments(whole, seed=5), whole.parent / "other.log")
    assert process.wait(timeout=60) == 2
    assert "another config" in (whole.parent / "other.log").read_text()


def test_in_process_gives_the_same_samples(whole: Path, alone: Path) -> None:
    assert _ids(alone) == _ids(whole)
    first, again = _results(whole)["epochs"][0], _results(alone)["epochs"][0]
    assert again["revenue_click_model"] == first["revenue_click_model"]


@pytest.mark.parametrize("stage", STAGES)
def test_killed_after_a_stage_and_resumed(
    request: pytest.FixtureRequest, tmp_path: Path, stage: str
) -> None:
    on_ray = stage in ON_RAY
    uninterrupted: Path = request.getfixturevalue("whole" if on_ray else "alone")
    run, log = tmp_path / "run", tmp_path / "log"
    process = _raylla(_arguments(run, ray__in_process=str(not on_ray).lower()), log)
    _wait_for_commit(process, run, stage, log)
    tree = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    for child in tree:
        _kill(child)
    _finish(["resume", str(run)], log)
    assert _ids(run) == _ids(uninterrupted)
    assert _results(run)["epochs"] == _results(uninterrupted)["epochs"]


def _kill(process: psutil.Process) -> None:
    """End a process that may be gone already."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def _wait_for_commit(process: subprocess.Popen[bytes], run: Path, stage: str, log: Path) -> None:
    wanted = f'{{"stage": "{stage}", "commit"'
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        ledger = run / "ledger.jsonl"
        if ledger.exists() and wanted in ledger.read_text():
            return
        assert process.poll() is None, log.read_text()[-4000:]
        time.sleep(0.05)
    pytest.fail(f"{stage} was not committed in time: {log.read_text()[-4000:]}")


def test_job_submitted_through_the_jobs_api(tmp_path: Path) -> None:
    import ray
    from ray.job_submission import JobStatus, JobSubmissionClient

    os.environ["RAY_AUTH_MODE"] = "disabled"
    context = ray.init(num_cpus=2, include_dashboard=True, dashboard_port=0)
    try:
        client = JobSubmissionClient(f"http://{context.dashboard_url}")
        sets = " ".join(_arguments(tmp_path / "run")[2:])
        deadline = time.monotonic() + 400
        job = None
        while job is None:
            try:
                job = client.submit_job(
                    entrypoint=f"{sys.executable} jobs/train.py configs/pocket.yaml {sets}",
                    runtime_env={
                        "working_dir": str(ROOT),
                        "excludes": [".venv", ".git", "runs", "__pycache__"],
                    },
                )
            except RuntimeError as error:
                # The cluster answers before its job agent has come up.
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(1)
        while not client.get_job_status(job).is_terminal() and time.monotonic() < deadline:
            time.sleep(1)
        logs = client.get_job_logs(job)
        assert client.get_job_status(job) == JobStatus.SUCCEEDED, logs[-4000:]
        assert "revenue / query" in logs
        assert (tmp_path / "run" / "results.json").exists()
    finally:
        ray.shutdown()
