"""The whole loop on real vLLM, DeepSpeed and Ray: a run, its files, SIGKILL and resume, jobs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raylla.runs.gauges import flat
from tests import recorded
from tests.chaos.processes import hit, kill_tree, workers
from tests.e2e.nodes import Nodes
from tests.unit.test_dashboard import metrics

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
TINY = {
    "world.profiles": 8,
    "world.queries_per_profile": 5,
    "world.test_share": 0.375,
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
STAGES = ("world", "epoch-1/sample", "epoch-1/learn", "epoch-1/test", "epoch-1/align", "epoch-2/test")
ON_RAY = ("epoch-1/sample", "epoch-1/align")
"""Stages that are interrupted on Ray; the others in one process, which starts in half the time."""
IN_A_BUCKET = ("epoch-1/align",)
"""Stages of runs behind a URL, of which no process has another's disk."""
ALWAYS = ("world", "epoch-1/align")
"""Stages that every test run interrupts: a stop in one process, kills on Ray."""
BROKEN = ("rollout", "judge", "reward-trainer")
"""Workers that are killed in the epoch of which the last stage on Ray is interrupted, too."""


def _arguments(run: Path | str, **changed: object) -> list[str]:
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


def _ledger(run: Path) -> str:
    """A run's ledger: a file, or in a bucket an object for each commit."""
    files = [run / "ledger.jsonl", *sorted((run / "ledger").glob("*"))]
    return "".join(file.read_text() for file in files if file.exists())


def _ids(run: Path) -> list[str]:
    lines = [json.loads(line) for line in _ledger(run).splitlines()]
    return [line["sample_id"] for line in lines if "sample_id" in line]


def _commit(run: Path, stage: str) -> Any:
    lines = [json.loads(line) for line in _ledger(run).splitlines()]
    return next(line["commit"] for line in lines if line["stage"] == stage and "commit" in line)


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
    """An uninterrupted run without Ray, each step waiting for the one before."""
    run = tmp_path_factory.mktemp("alone") / "run"
    _finish(_arguments(run, ray__in_process="true", irpo__overlap="false"), run.parent / "log")
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
    answers = recorded.table(whole, "epoch-1/sample", "answers")
    assert set(answers["weight_version"].to_pylist()) == {"v0"}
    assert (whole / "weights" / "v1" / "model.safetensors").exists()
    consumed = [name for name in _ids(whole) if "/" in name]
    assert len(set(consumed)) > 8 * 7
    reference = _commit(whole, "epoch-1/align")["reference"]
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
    for name in set(_ids(whole)) - set(split):
        _, phase, query, _ = name.split("/")
        assert (phase == "test") == (split[query] == "test")


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
    assert _commit(run, "epoch-1/learn")["terms"]["user-welfare"] == pytest.approx(mean / 50)
    assert {1 + len(one["losers"]) for one in recorded.groups(run, 1)} == {4}
    aligned = _commit(run, "epoch-1/align")
    assert aligned["losses"][0] == pytest.approx(0, abs=1e-3)
    assert len(aligned["clipped"]) == len(aligned["kl"]) == aligned["steps"]
    assert 0 < aligned["reference"]["difference"] < 1e-2
    for row in _results(run)["epochs"]:
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
    _, config, _, _, *sets = _arguments(alone, **settings)
    _finish(["evaluate", config, "--runs", str(tmp_path), *sets], tmp_path / "evaluate.log")
    assert (tmp_path / "seed-0" / "ledger.jsonl").read_text() == ledger
    assert _results(tmp_path / "judged")["name"] == "judged"
    _other_paths(tmp_path / "judged")
    assert _results(alone)["epochs"][0]["terms"] == {}
    found = json.loads((tmp_path / "seed-0" / "evaluation.json").read_text())
    for row, before in zip(found["epochs"], _results(alone)["epochs"], strict=True):
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
    quick = [part for name, value in small.items() for part in ("--set", f"evaluation.{name}={value}")]
    _finish(["evaluate", *both, "--suite", "conflict", *quick], tmp_path / "conflict.log")
    advice = json.loads((tmp_path / "seed-0" / "conflict.json").read_text())
    assert set(advice["mechanisms"]) == set(rows)
    assert 10 <= advice["pairs"] <= 15  # not every question's best ad has a rival in its category
    for row in advice["mechanisms"].values():
        for shares in zip(*(row[name] for name in ("against", "for", "both", "neither")), strict=True):
            assert sum(one["mean"] for one in shares) == pytest.approx(1)
    days = {"queries": 2, "days": 1, "draws": 1, "markets": "[mixed]"}
    short = [part for name, value in days.items() for part in ("--set", f"evaluation.day.{name}={value}")]
    short += ["--set", "evaluation.mechanisms=[llm-auction,rag-auction]"]
    _finish(["evaluate", str(tmp_path / "seed-0"), "--suite", "day", *quick, *short], tmp_path / "day.log")
    played = json.loads((tmp_path / "seed-0" / "day.json").read_text())
    assert set(played["mechanisms"]) == {"llm-auction", "rag-auction"}
    for one in played["mechanisms"].values():
        mixed = one["markets"]["mixed"]
        assert mixed["price_of_anarchy_any"]["mean"] >= mixed["price_of_anarchy"]["mean"] >= 1 - 1e-6
        assert 0 < mixed["budget_use"]["mean"] <= 1
        assert set(mixed["bidders"]) == {"pacing", "pid", "value", "learned"}
    _prices(tmp_path / "seed-0", quick)
    _finish(["report", str(tmp_path / "seed-0")], tmp_path / "report.log")
    page = (tmp_path / "seed-0" / "report" / "index.html").read_text()
    assert all(f"<td>{name}</td>" in page for name in rows)
    assert "What money does to advice" in page
    assert "A day of bidders" in page
    assert "Revenue against user-welfare" in page
    assert "<mark>@" in page


def _prices(run: Path, quick: list[str]) -> None:
    """Prices are learned from a log of the run's last weights, and held on its test questions."""
    log, sheet = str(run / "log.json"), str(run / "sheet.json")
    _finish(["prices", "log", str(run), "--out", log, "--answers", "2"], run / "log.log")
    _finish(["prices", "learn", log, "--out", sheet, "--folds", "2", "--bidders", "2"], run / "learn.log")
    held = ["--prices", sheet, "--bidders", "2", "--draws", "1", *quick]
    _finish(["prices", "evaluate", str(run), *held], run / "held.log")
    found = json.loads((run / "prices.json").read_text())
    assert found["sheet"]["digest"] in (run / "learn.log").read_text()
    assert set(found["markets"]) == {"all", "2"}
    for market in found["markets"].values():
        first, learned = market["rules"]["first_price"], market["rules"]["reserve"]
        assert first["truthful"]["surplus"]["mean"] == pytest.approx(0)
        assert first["truthful"]["revenue"]["mean"] > 0
        assert learned["truthful"]["surplus"]["low"] >= -1e-9  # nobody ever pays more than it bids
        assert market["regret"]["reserve"]["least_utility"]["mean"] >= -1e-9


def test_evaluate_refuses_before_it_loads_a_model(whole: Path, tmp_path: Path) -> None:
    for wrong, named in (
        ("evaluation.mechanisms=[mosaik]", "no mechanism named 'mosaik'"),
        ("evaluation.queries=3", "3 test queries are too few"),
        ("evaluation.bids=[1,200]", "world.max_bid=100"),
        ("evaluation.native_answers=missing.jsonl", "missing.jsonl': no such file"),
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


def test_one_after_another_in_process_gives_the_same_as_overlapped_on_ray(whole: Path, alone: Path) -> None:
    assert _ids(alone) == _ids(whole)
    for stage in ("sample", "test"):
        for table in ("answers", "clicks", "auctions"):
            found = [recorded.table(run, f"epoch-1/{stage}", table) for run in (alone, whole)]
            assert found[0].equals(found[1]), f"{stage}/{table}"
    assert recorded.groups(alone, 1) == recorded.groups(whole, 1)
    assert _results(alone)["epochs"][0] == _results(whole)["epochs"][0]


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


@pytest.mark.chaos
@pytest.mark.parametrize(
    "stage", [pytest.param(one, marks=[] if one in ALWAYS else pytest.mark.soak) for one in STAGES]
)
def test_killed_or_stopped_after_a_stage_and_resumed(
    request: pytest.FixtureRequest, tmp_path: Path, stage: str
) -> None:
    """Stopped by SIGTERM in the first sampling, killed by SIGKILL elsewhere; where the alignment is the
    last thing that is done, a worker of each kind was killed at work before.
    """
    on_ray = stage in ON_RAY
    uninterrupted: Path = request.getfixturevalue("whole" if on_ray else "alone")
    run, log = tmp_path / "run", tmp_path / "log"
    place = f"file://{run}" if stage in IN_A_BUCKET else str(run)
    process = _raylla(_arguments(place, ray__in_process=str(not on_ray).lower()), log)
    if stage == "epoch-1/align":
        _wait_for_commit(process, run, "world", log)
        for kind in BROKEN:
            (worker,) = workers(process.pid, kind)
            hit(worker)
    _wait_for_commit(process, run, stage, log)
    if stage == "epoch-1/align":
        assert all(f"{kind}: a worker was lost and started anew" in log.read_text() for kind in BROKEN)
    if stage == "world":
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 143
        assert "StoppedError: stopped by SIGTERM at: epoch-1/sample" in " ".join(log.read_text().split())
    else:
        kill_tree(process.pid)
        process.wait(timeout=30)
    _finish(["resume", place], log)
    assert _ids(run) == _ids(uninterrupted)
    assert _results(run)["epochs"] == _results(uninterrupted)["epochs"]


def _wait_for_commit(process: subprocess.Popen[bytes], run: Path, stage: str, log: Path) -> None:
    wanted = f'{{"stage": "{stage}", "commit"'
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if wanted in _ledger(run):
            return
        assert process.poll() is None, log.read_text()[-4000:]
        time.sleep(0.05)
    pytest.fail(f"{stage} was not committed in time: {log.read_text()[-4000:]}")


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A head and two nodes, each with an address of its own."""
    found = Nodes()
    try:
        found.add("a")
        found.add("b")
        yield found
    finally:
        found.close()


def test_a_node_lost_in_the_middle_of_an_epoch(nodes: Nodes, whole: Path, tmp_path: Path) -> None:
    """Each node has room for one engine (its GPU, which nobody looks for on a CPU) and for one DPO rank;
    one is killed, another takes its place.

    Whether the run gets over it by itself or ends by saying that it lost a part and is resumed, it makes
    what a run on one machine makes.
    """
    run, log = tmp_path / "run", tmp_path / "log"
    spread = {"rollout__workers": 2, "rollout__cpus": 0, "rollout__gpus": 1, "dpo__cpus": 0.6}
    head = dict.fromkeys(("judge__labels", "reward_trainer__labels"), "{raylla/node: head}")
    light = dict.fromkeys(("judge__cpus", "reward_trainer__cpus"), 0)
    cluster = {"ray__address": nodes.address, "ray__autoscaling": "true"}
    process = _raylla(_arguments(run, **spread, **head, **light, **cluster), log)
    _wait_for_commit(process, run, "epoch-1/sample", log)
    nodes.kill("b")
    nodes.add("c")
    if process.wait(timeout=400) != 0:
        assert process.returncode == 3, log.read_text()[-4000:]
        _finish(["resume", str(run)], log)
    assert _ids(run) == _ids(whole)
    assert _results(run)["epochs"] == _results(whole)["epochs"]


@pytest.fixture
def dashboard() -> Iterator[str]:
    """A cluster that gives a stopped job the 30 s that `raylla` promises to need at most."""
    import ray

    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_AUTH_MODE", "disabled")
    patch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "30")
    context = ray.init(num_cpus=2, include_dashboard=True, dashboard_port=0)
    try:
        yield f"http://{context.dashboard_url}"
    finally:
        ray.shutdown()
        patch.undo()


def test_submitted_stopped_and_submitted_again(dashboard: str, whole: Path, tmp_path: Path) -> None:
    from ray.job_submission import JobSubmissionClient

    log = tmp_path / "log"
    cluster = [
        "--address",
        dashboard,
        "--storage",
        str(tmp_path),
        "--run-id",
        "r",
        "--python",
        sys.executable,
    ]
    arguments = ["submit", _arguments(whole)[1], *cluster, *_arguments(whole)[4:]]
    process = _raylla(arguments, log)
    _wait_for_commit(process, tmp_path / "r", "epoch-1/sample", log)
    JobSubmissionClient(dashboard).stop_job("train-r-1")
    assert process.wait(timeout=120) == 143
    assert "stopped by SIGTERM at: epoch-1/" in log.read_text(), log.read_text()[-4000:]
    _finish(arguments, log)
    assert "job train-r-2" in log.read_text()
    assert "revenue / query" in log.read_text()
    assert _ids(tmp_path / "r") == _ids(whole)
    assert _results(tmp_path / "r")["epochs"] == _results(whole)["epochs"]
