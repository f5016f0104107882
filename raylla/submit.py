"""A run as a job of a Ray cluster: sent through its jobs API, followed, and sent again where that helps.

The run id decides everything: the same config gets the same id, so the same command finds a running job
and follows it, or sends one that goes on after the last committed stage.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from raylla.actors import login
from raylla.config import Config
from raylla.errors import ConfigError, DeadlineError, LostError, PlacementError
from raylla.network import loopback, spare_proxy
from raylla.storage import remote, within

_Answer = TypeVar("_Answer")
JOBS = ("train", "evaluate", "report", "serve")

ROOT = Path(__file__).parents[1]
"""Where the package and `jobs/` lie; what is sent to the cluster."""

ANSWER = 10.0
"""Seconds in which a cluster has to answer a call."""

AGENT = 120.0
"""Seconds that a young cluster's job agent may take to come up."""

OUTAGE = 120.0
"""Seconds without an answer after which a followed job is given up on; it may well go on."""

_POLL = 2.0
"""Seconds between two looks at a job. A look reads the whole log: a run writes a line per stage."""

REFUSALS = (OSError, RuntimeError, ValueError, AuthenticationError, httpx.HTTPError, httpx.InvalidURL)
"""What a call of a cluster that is not there, or will not have it, raises."""

STOPPED = 143
"""Exit status of a job that was stopped; as the job's own, for a job that was killed has none."""


@dataclass(frozen=True, slots=True)
class Submission:
    """One job of one run. ``storage`` is a directory that every node of the cluster sees, or a URL."""

    job: str
    config: Config
    storage: str
    run_id: str
    python: str = "python"

    @property
    def run(self) -> str:
        """The run's place, as the cluster sees it."""
        return within(self.storage, self.run_id)

    @property
    def entrypoint(self) -> str:
        """The job's command line, in the directory that `stage` fills."""
        script = [self.python, f"jobs/{self.job}.py"]
        config = ["config.yaml", "--run"] if self.job in ("train", "serve") else []
        return shlex.join([*script, *config, self.run])


def plan_submission(job: str, config: Config, storage: str, run_id: str | None, python: str) -> Submission:
    """A submission whose run id is the given one, or follows from the config alone.

    Raises:
        ConfigError: no such job, a storage path that depends on where a job runs, an unusable run id.
    """
    if job not in JOBS:
        raise ConfigError(f"--job {job}: there is {', '.join(JOBS)}")
    if not remote(storage) and not Path(storage).is_absolute():
        raise ConfigError(
            f"--storage {storage}: give an absolute path that every node of the cluster sees, or a URL; a "
            "job's working directory is thrown away with the job"
        )
    named = run_id or re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{config.name}-{config.digest()[:8]}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", named):
        raise ConfigError(
            f"--run-id {named!r}: use letters, digits, dot, dash and underscore, 100 at most, and begin "
            "with a letter or digit"
        )
    return Submission(job, config, storage, named, python)


def submit_job(cluster: Cluster, planned: Submission, retries: int, say: Callable[[str], None]) -> int:
    """Have the run's job done; returns its exit status.

    A job that ended by the cluster's fault is sent again, ``retries`` times at most, and resumes.

    Raises:
        LostError: the job ended without a status.
        DeadlineError: the cluster stopped answering.
    """
    for attempt in range(retries + 1):
        job = cluster.running(planned)
        if job is None:
            job = cluster.send(planned)
            say(f"job {job}: {planned.entrypoint}")
        else:
            say(f"job {job} runs already; following it")
        status, code, message = cluster.follow(job, say)
        if status is JobStatus.SUCCEEDED:
            return 0
        if status is JobStatus.STOPPED:
            return STOPPED
        if attempt == retries or not worth_another(code):
            break
        say(f"job {job} was lost (exit status {code}); sending it again: it resumes")
    if code is None:
        raise LostError(f"job {job} ended without an exit status: {message}")
    return code


def worth_another(code: int | None) -> bool:
    """Whether a job that ended so may succeed where it is sent again: lost, killed or timed out.

    None: its supervisor died. A negative code is a signal's, 3 is `errors.LostError` and
    `errors.DeadlineError`; bad input, a bug or a stop would only repeat itself.
    """
    return code is None or code == 3 or code < 0 or code == 137


class Cluster:
    """A cluster's jobs API at ``address``, e.g. ``http://head:8265``; no call waits for ever.

    Raises:
        PlacementError: nothing answers there, or it runs another Ray or Python than this process.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/") if "://" in address else f"http://{address.rstrip('/')}"
        if not self.address.startswith(("http://", "https://")):
            raise PlacementError(
                f"--address {address}: give the dashboard's address, http://HOST:8265, not a Ray client's"
            )
        login.log_in()
        spare_proxy(self.address)
        self._refuse_other_versions()
        self._client = self._ask("to log in", lambda: JobSubmissionClient(self.address))

    def running(self, planned: Submission) -> str | None:
        """The job that already works on the same thing, if one does."""
        for job in self._jobs(planned):
            if not job.status.is_terminal():
                return str(job.submission_id)
        return None

    def send(self, planned: Submission) -> str:
        """Submit; returns the submission id."""
        name = self._free(f"{planned.job}-{planned.run_id}")
        with tempfile.TemporaryDirectory(prefix="raylla-job-") as directory:
            stage(planned, Path(directory))
            end = time.monotonic() + AGENT
            while True:
                try:
                    return str(self._ask("to take the job", lambda: self._submit(planned, name, directory)))
                except PlacementError as error:
                    if "No available agent" not in str(error) or time.monotonic() > end:
                        raise
                time.sleep(1)

    def follow(self, job: str, say: Callable[[str], None]) -> tuple[JobStatus, int | None, str]:
        """Print the job's log as it grows until the job has ended: its status, exit status, message."""
        seen, heard = 0, time.monotonic()
        while True:
            try:
                details = self._ask("for the job's state", lambda: self._client.get_job_info(job))
                log = self._ask("for the job's log", lambda: self._client.get_job_logs(job))
            except PlacementError as error:
                if time.monotonic() - heard > OUTAGE:
                    raise DeadlineError(
                        f"job {job}: the cluster gave no answer for {OUTAGE:g} s ({error}); the job may go "
                        "on; the same command follows it again"
                    ) from None
            else:
                heard = time.monotonic()
                ended = details.status.is_terminal()
                whole = len(log) if ended else log.rfind("\n") + 1
                if whole > seen:
                    say(log[seen:whole].rstrip("\n"))
                    seen = whole
                if ended:
                    return details.status, details.driver_exit_code, details.message or ""
            time.sleep(_POLL)

    def _free(self, name: str) -> str:
        """The first submission id of this name and a number behind every one that the cluster knows: the
        same run id in another storage has jobs here too, and deleted jobs leave gaps."""
        ids = [str(job.submission_id) for job in self._ask("for its jobs", self._client.list_jobs)]
        numbers = [id.removeprefix(f"{name}-") for id in ids if id.startswith(f"{name}-")]
        return f"{name}-{max((int(number) for number in numbers if number.isdecimal()), default=0) + 1}"

    def _jobs(self, planned: Submission) -> list[Any]:
        jobs = self._ask("for its jobs", self._client.list_jobs)
        wanted = _metadata(planned)
        return [job for job in jobs if (job.metadata or {}).items() >= wanted.items()]

    def _submit(self, planned: Submission, name: str, directory: str) -> str:
        return str(
            self._client.submit_job(
                entrypoint=planned.entrypoint,
                submission_id=name,
                runtime_env={"working_dir": directory},
                metadata=_metadata(planned),
            )
        )

    def _refuse_other_versions(self) -> None:
        """Compare Ray and Python with the cluster's; the code that is sent was written for these."""
        url = f"{self.address}/api/v0/cluster_metadata"
        direct = loopback(url)
        reply = self._ask(
            "for its versions",
            lambda: httpx.get(url, headers=login.headers(), timeout=ANSWER, trust_env=not direct),
        )
        if reply.status_code in (401, 403):
            raise PlacementError(f"--address {self.address}: {reply.text[:200]}; {login.missing()}")
        try:
            theirs = reply.json()["data"]
            there = {"Ray": theirs["rayVersion"], "Python": theirs["pythonVersion"]}
        except (ValueError, KeyError, TypeError):
            raise PlacementError(
                f"--address {self.address}: what answers there is no Ray dashboard (status "
                f"{reply.status_code}); give the head node's, http://HOST:8265"
            ) from None
        here = {"Ray": version("ray"), "Python": ".".join(map(str, sys.version_info[:3]))}
        for name, length in (("Ray", 3), ("Python", 2)):
            if there[name].split(".")[:length] != here[name].split(".")[:length]:
                raise PlacementError(
                    f"--address {self.address}: the cluster runs {name} {there[name]} and this is {name} "
                    f"{here[name]}; submit from an environment made of the cluster's requirements/*.txt"
                )

    def _ask(self, what: str, call: Callable[[], _Answer]) -> _Answer:
        """``call()`` in a thread of its own: the jobs client has no deadline."""
        reply: list[_Answer | BaseException] = []

        def run() -> None:
            try:
                reply.append(call())
            except REFUSALS as error:
                reply.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(ANSWER + 1)
        if not reply:
            raise PlacementError(f"--address {self.address}: asked {what}, no answer within {ANSWER:g} s")
        if isinstance(reply[0], BaseException):
            raise PlacementError(
                f"--address {self.address}: asked {what}: {reply[0]}; is it the address of a running "
                "cluster's dashboard (http://HOST:8265)?"
            ) from None
        return reply[0]


def stage(planned: Submission, directory: Path) -> None:
    """Fill a job's working directory: this package, its entry scripts, the resolved config.

    Raises:
        ConfigError: raylla is not installed from its repository, so there are no entry scripts to send.
    """
    if not (ROOT / "jobs").is_dir():
        raise ConfigError(f"{ROOT} holds no jobs/; submit from a checkout of raylla's repository")
    for name in ("raylla", "jobs"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    # A job belongs to the cluster that it runs on, whatever the config says elsewhere.
    tree = planned.config.model_dump(mode="json")
    tree["ray"]["address"] = None
    (directory / "config.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))


def _metadata(planned: Submission) -> dict[str, str]:
    return {"raylla.job": planned.job, "raylla.run": planned.run}
