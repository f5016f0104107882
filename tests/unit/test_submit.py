"""Submitting: what decides a run id, what is sent again, what is refused before anything is sent."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ray.job_submission import JobStatus
from typer.testing import CliRunner

from raylla import submit
from raylla.cli import app
from raylla.config import Config, parse_config
from raylla.errors import ConfigError, LostError, PlacementError

STORAGE = "/shared"
HERE = ".".join(map(str, sys.version_info[:3]))


class ScriptedCluster(submit.Cluster):
    """Jobs that end as scripted: (status, exit status), one for each that is sent or found running."""

    def __init__(self, *ends: tuple[JobStatus, int | None], found: str | None = None) -> None:
        self.ends = list(ends)
        self.found = found
        self.sent: list[str] = []

    def running(self, planned: submit.Submission) -> str | None:
        found, self.found = self.found, None
        return found

    def send(self, planned: submit.Submission) -> str:
        self.sent.append(planned.entrypoint)
        return f"job-{len(self.sent)}"

    def follow(self, job: str, say: object) -> tuple[JobStatus, int | None, str]:
        return *self.ends.pop(0), "its supervisor died"


def planned(config: Config = Config(), job: str = "train") -> submit.Submission:  # noqa: B008
    return submit.plan_submission(job, config, STORAGE, None, "python")


def test_the_run_id_follows_from_what_decides_the_run() -> None:
    plain = planned()
    assert plain.run == f"{STORAGE}/{plain.run_id}"
    assert planned(parse_config({"wandb": {"mode": "disabled"}}, "x")).run_id == plain.run_id
    assert planned(parse_config({"seed": 1}, "x")).run_id != plain.run_id
    assert planned(parse_config({"name": "a b/c"}, "x")).run_id.startswith("a-b-c-")
    assert planned(job="evaluate").run == plain.run
    assert planned(job="evaluate").entrypoint == f"python jobs/evaluate.py {plain.run}"
    assert planned(job="serve").entrypoint == f"python jobs/serve.py config.yaml --run {plain.run}"
    assert plain.entrypoint == f"python jobs/train.py config.yaml --run {plain.run}"


@pytest.mark.parametrize(
    ("job", "storage", "run_id", "words"),
    [
        ("train", "runs", None, "--storage runs: give an absolute path"),
        ("train", STORAGE, "../x", "--run-id '../x'"),
        ("trian", STORAGE, None, "--job trian: there is train, evaluate, report, serve"),
    ],
)
def test_unusable_requests(job: str, storage: str, run_id: str | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        submit.plan_submission(job, Config(), storage, run_id, "python")


def test_what_is_sent_is_the_code_and_the_resolved_config(tmp_path: Path) -> None:
    config = parse_config({"seed": 4, "ray": {"address": "elsewhere:6379"}}, "x")
    submit.stage(planned(config), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"raylla", "jobs", "config.yaml"}
    assert {path.stem for path in (tmp_path / "jobs").iterdir()} == set(submit.JOBS)
    assert not list(tmp_path.rglob("__pycache__"))
    sent = parse_config(yaml.safe_load((tmp_path / "config.yaml").read_text()), "sent")
    assert sent.digest() == config.digest()
    assert sent.ray.address is None


@pytest.mark.parametrize("job", [job for job in submit.JOBS if job != "serve"])
def test_entry_scripts_take_what_the_commands_take(job: str) -> None:
    script = submit.ROOT / "jobs" / f"{job}.py"
    found = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, check=True
    )
    command = CliRunner().invoke(app, [job, "--help"])
    assert found.stdout.split()[2:] == command.output.split()[2:]


@pytest.mark.parametrize(
    ("ends", "status", "sent"),
    [
        ([(JobStatus.SUCCEEDED, 0)], 0, 1),
        ([(JobStatus.FAILED, 3), (JobStatus.SUCCEEDED, 0)], 0, 2),
        ([(JobStatus.FAILED, -9), (JobStatus.FAILED, 137), (JobStatus.FAILED, 3)], 3, 3),
        ([(JobStatus.FAILED, 2)], 2, 1),
        ([(JobStatus.FAILED, 1)], 1, 1),
        ([(JobStatus.STOPPED, None)], 143, 1),
    ],
)
def test_only_a_lost_job_is_sent_again(
    ends: list[tuple[JobStatus, int | None]], status: int, sent: int
) -> None:
    cluster = ScriptedCluster(*ends)
    assert submit.submit_job(cluster, planned(), 2, lambda text: None) == status
    assert len(cluster.sent) == sent
    assert not cluster.ends


def test_a_running_job_is_followed_and_not_sent_twice() -> None:
    cluster = ScriptedCluster((JobStatus.SUCCEEDED, 0), found="train-x-1")
    said: list[str] = []
    assert submit.submit_job(cluster, planned(), 0, said.append) == 0
    assert (cluster.sent, said) == ([], ["job train-x-1 runs already; following it"])


def test_a_job_without_a_status_is_an_error() -> None:
    with pytest.raises(LostError, match="its supervisor died"):
        submit.submit_job(ScriptedCluster((JobStatus.FAILED, None)), planned(), 0, lambda text: None)


@contextmanager
def _answering(body: str, status: int = 200) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: object) -> None:
            """Nothing on the console."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("ray", "python", "words"),
    [
        ("2.9.0", HERE, f"the cluster runs Ray 2.9.0 and this is Ray {version('ray')}"),
        (version("ray"), "3.10.4", f"the cluster runs Python 3.10.4 and this is Python {HERE}"),
    ],
)
def test_another_version_is_told_before_anything_is_sent(ray: str, python: str, words: str) -> None:
    body = json.dumps({"data": {"rayVersion": ray, "pythonVersion": python}})
    with _answering(body) as address, pytest.raises(PlacementError, match=words):
        submit.Cluster(address)


def test_what_is_no_dashboard() -> None:
    with _answering("<html>") as address, pytest.raises(PlacementError, match="no Ray dashboard"):
        submit.Cluster(address)
    with pytest.raises(PlacementError, match="not a Ray client's"):
        submit.Cluster("ray://head:10001")


class Jobs:
    """A jobs API as far as `Cluster` uses it: what it knows, and what it takes."""

    def __init__(self) -> None:
        self.known: dict[str, dict[str, str]] = {}

    def list_jobs(self) -> list[SimpleNamespace]:
        driver = SimpleNamespace(submission_id=None, metadata=None, status=JobStatus.RUNNING)
        return [
            driver,
            *(
                SimpleNamespace(submission_id=name, metadata=metadata, status=JobStatus.FAILED)
                for name, metadata in self.known.items()
            ),
        ]

    def submit_job(self, *, submission_id: str, metadata: dict[str, str], **_: object) -> str:
        if submission_id in self.known:
            raise RuntimeError(f"Job with submission_id {submission_id} already exists")
        self.known[submission_id] = metadata
        return submission_id


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[submit.Cluster, Jobs]]:
    """A cluster of this version, and the jobs API behind it."""
    found = Jobs()
    monkeypatch.setattr(submit, "JobSubmissionClient", lambda address: found)
    body = json.dumps({"data": {"rayVersion": version("ray"), "pythonVersion": HERE}})
    with _answering(body) as address:
        yield submit.Cluster(address), found


def test_a_job_is_sent_under_an_id_that_is_free(jobs: tuple[submit.Cluster, Jobs]) -> None:
    cluster, known = jobs
    first, other = (
        submit.plan_submission("train", Config(), place, "r", "python") for place in ("/a", "/b")
    )
    assert [cluster.send(one) for one in (first, other, first)] == ["train-r-1", "train-r-2", "train-r-3"]
    del known.known["train-r-1"]
    assert cluster.send(first) == "train-r-4"
    assert cluster.send(submit.plan_submission("report", Config(), "/a", "r", "python")) == "report-r-1"
    known.known["train-r-1-by-hand"] = {}
    assert cluster.send(first) == "train-r-5"


def test_a_cluster_that_wants_a_token_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with (
        _answering("Missing authentication token", 401) as address,
        pytest.raises(PlacementError, match=r"Missing authentication token; RAY_AUTH_MODE=disabled is set"),
    ):
        submit.Cluster(address)


def test_an_address_where_nothing_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlacementError, match=r"asked for its versions: .*refused"):
        submit.Cluster("127.0.0.1:1")
    monkeypatch.setattr(submit, "ANSWER", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        with pytest.raises(PlacementError, match="asked for its versions"):
            submit.Cluster(f"127.0.0.1:{port}")
