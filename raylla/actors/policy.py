"""The policy trainer as the driver sees it: start early, ask for one version after another, stop.

One Ray Train run serves all epochs. Its workers take jobs from a hub, an actor that outlives them: where
a worker dies, Ray Train brings the group up anew and the hub hands out the unfinished job again. A node
that is announced to go may finish the job in hand; before it goes the group is brought up elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ObjectLostError

from raylla.actors.spans import unpacked
from raylla.config import Deadlines, Dpo, Lora
from raylla.errors import DeadlineError, LostError, RunError
from raylla.models.libraries import uncollected
from raylla.policy.groups import token_group
from raylla.policy.jobs import AlignJob, Alignment, AlignResult, GroupPart, Told, TuneJob, TuneResult

MAX_FAILURES = 2
"""Times that workers are brought up anew before the run fails, but for nodes that were announced to go."""

AHEAD = 5.0
"""Seconds that such a node has left when its workers are ended; what ends with it may count as failed."""

_POLL = 5.0
"""Seconds after which a waiting worker asks the hub again, so that it notices a dead driver."""

WATCH = 1.0
"""Seconds between two looks of a waiting driver at the run that it waits for."""

LEAVE = 10.0
"""Seconds that `stop` gives the workers to leave; a group that was never placed never does."""

_Turn = tuple[int, list[ray.ObjectRef]]
"""A job's number and a reference to it, unresolved: every worker fetches the job once."""


class Hub:
    """Jobs on their way to the workers and results on their way back; an async Ray actor.

    Workers ask by the number of the job that they did last, so all ranks of a group do the same jobs in
    the same order, and a new group begins with the oldest one that has no result.
    """

    def __init__(self) -> None:
        self._jobs: list[list[ray.ObjectRef]] = []
        self._results: dict[int, AlignResult | TuneResult] = {}
        self._told: tuple[int, int, float] | None = None
        self._ready: dict[int, tuple[str, int]] = {}
        self._stopped = False
        self._changed = asyncio.Condition()

    async def submit(self, job: list[ray.ObjectRef]) -> int:
        """Queue a job; returns its number."""
        async with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()
            return len(self._jobs) - 1

    async def next(self, done: int, rank: int, place: tuple[str, int]) -> _Turn | None:
        """The first job after ``done`` that has no result, for the worker at ``place`` (host, process id).

        Without a reference where no job came for a while; None: stop.
        """
        self._ready[rank] = place
        async with self._changed:
            try:
                await asyncio.wait_for(
                    self._changed.wait_for(lambda: self._stopped or self._open(done) is not None), _POLL
                )
            except TimeoutError:
                return done, []
            number = self._open(done)
            return None if self._stopped or number is None else (number, self._jobs[number])

    async def tell(self, done: int, of: int, loss: float) -> None:
        """Take note of the newest step of the job in hand."""
        self._told = done, of, loss

    async def told(self) -> tuple[int, int, float] | None:
        """The newest step of the job in hand: steps done, steps in all, loss."""
        return self._told

    async def finish(self, number: int, result: AlignResult | TuneResult) -> None:
        """Take a job's result."""
        async with self._changed:
            self._results[number] = result
            self._jobs[number] = []
            self._told = None
            self._changed.notify_all()

    async def result(self, number: int) -> AlignResult | TuneResult:
        """Wait for a job's result."""
        async with self._changed:
            await self._changed.wait_for(lambda: number in self._results)
            return self._results.pop(number)

    async def ready(self) -> dict[int, tuple[str, int]]:
        """Where each rank that ever asked for a job was last."""
        return self._ready

    async def stop(self) -> None:
        """Send every worker home."""
        async with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _open(self, done: int) -> int | None:
        pending = (number for number in range(done + 1, len(self._jobs)) if self._jobs[number])
        return next(pending, None)


class PolicyTrainer:
    """DPO under DeepSpeed on ``dpo.workers`` Ray Train workers, or in this process without Ray.

    ``storage`` is where Ray Train keeps its run; weights go where each job says.
    """

    def __init__(
        self,
        dpo: Dpo,
        seed: int,
        in_process: bool,
        storage: Path,
        deadlines: Deadlines,
        lora: Lora | None = None,
    ) -> None:
        self._dpo = dpo
        self._lora = lora
        self._seed = seed
        self._in_process = in_process
        self._storage = storage
        self._deadlines = deadlines
        self._hub: Any = None
        self._fit: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._started = 0.0
        self._unfinished = 0

    def start(self) -> None:
        """Bring the workers up in the background; returns at once."""
        self._started = time.monotonic()
        if self._in_process or self._fit is not None:
            return
        # Where this driver is, for elsewhere it would go with a node that the run can do without.
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        self._hub = ray.remote(num_cpus=0, label_selector=here)(Hub).remote()
        self._fit = threading.Thread(target=self._run, name="policy-trainer", daemon=True)
        self._fit.start()

    def begin(self, job: AlignJob) -> Alignment:
        """Have one version trained, without waiting for it; in process, it is trained when waited for.

        Groups that come in parts are checked by who made them.

        Raises:
            RunError: nothing to train on, or a malformed group.
        """
        if not job.parts and not any(group.losers for group in job.groups):
            raise RunError(f"weight version {job.version}: no preference pair to train on")
        for group in job.groups:
            token_group(group)
        if self._in_process:
            return Alignment(job, lambda told: self._align_here(job, told))
        wait = self._submit(job)

        def take(told: Told) -> AlignResult:
            result = wait(told)
            assert isinstance(result, AlignResult)
            return result

        return Alignment(job, take)

    def tune(self, job: TuneJob, told: Told) -> TuneResult:
        """Train one version on examples, and wait for it; ``told`` hears of steps done, steps and loss.

        Raises:
            RayllaError: as `Alignment.wait`.
        """
        if self._in_process:
            _prepare_environment(self._dpo)
            with uncollected():
                from raylla.policy import worker

            worker.setup()
            result: AlignResult | TuneResult | None = worker.tune_job(job, self._dpo, told)
        else:
            result = self._submit(job)(told)
        assert isinstance(result, TuneResult)
        return result

    def align(self, job: AlignJob) -> AlignResult:
        """`begin`, then `Alignment.wait`."""
        return self.begin(job).wait()

    def stop(self) -> None:
        """Send the workers home and wait for them; safe to call twice."""
        if self._fit is None:
            return
        try:
            ray.get(self._hub.stop.remote(), timeout=LEAVE)
            # Workers in the midst of a job do not hear of it; they end with this driver.
            self._fit.join(0 if self._unfinished else LEAVE)
            ray.kill(self._hub)
        except ray.exceptions.RayError:
            pass  # The cluster or the hub is gone, and the workers with it.
        self._hub, self._fit = None, None

    def _submit(self, job: AlignJob | TuneJob) -> Callable[[Told], AlignResult | TuneResult]:
        """Send a job to the workers; what waits for its result."""
        if self._hub is None:
            raise RunError(f"weight version {job.version}: the policy trainer was not started")
        begun = time.monotonic()
        self._unfinished += 1
        submitted = self._hub.submit.remote([ray.put(job)])
        return lambda told: self._await(job, submitted, begun, told)

    def _await(
        self,
        job: AlignJob | TuneJob,
        submitted: Any,
        begun: float,
        told: Told,
    ) -> AlignResult | TuneResult:
        last = None
        try:
            number = ray.get(submitted, timeout=self._deadlines.sync)
            result = self._hub.result.remote(number)
            while not ray.wait([result], timeout=WATCH)[0]:
                self._check(job, begun)
                step = ray.get(self._hub.told.remote(), timeout=self._deadlines.sync)
                if step is not None and step != last:
                    told(*step)
                    last = step
            found: AlignResult | TuneResult = ray.get(result)
        except ray.exceptions.RayError as error:
            raise LostError(
                f"weight version {job.version}: the policy trainer's hub is gone: {error}"
            ) from error
        self._unfinished -= 1
        return found

    def _check(self, job: AlignJob | TuneJob, begun: float) -> None:
        """Raise where waiting on for ``job`` is pointless or has taken too long."""
        if self._fit is None or not self._fit.is_alive():
            kind = LostError if _lost(self._failure) else RunError
            raise kind(
                f"weight version {job.version}: the policy trainer failed and was restarted up to "
                f"{MAX_FAILURES} times: {self._failure or 'its workers left without a result'}"
            ) from self._failure
        now = time.monotonic()
        waited, since_start = now - begun, now - self._started
        if since_start > self._deadlines.start:
            ready = len(ray.get(self._hub.ready.remote(), timeout=self._deadlines.sync))
            if ready < self._dpo.workers:
                raise DeadlineError(
                    f"policy trainer: {ready} of {self._dpo.workers} workers (dpo.cpus={self._dpo.cpus}, "
                    f"dpo.gpus={self._dpo.gpus} each) came up within "
                    f"deadlines.start={self._deadlines.start:g} s"
                )
        if waited > self._deadlines.align:
            what = (
                f"{job.count} preference groups"
                if isinstance(job, AlignJob)
                else f"{len(job.lessons)} rows"
            )
            raise DeadlineError(
                f"policy trainer: weight version {job.version} from {what} "
                f"was not done within deadlines.align={self._deadlines.align:g} s"
            )

    def _align_here(self, job: AlignJob, told: Told) -> AlignResult:
        _prepare_environment(self._dpo)
        with uncollected():
            from raylla.policy import worker

        worker.setup()
        result = worker.align_job(with_parts(job), self._dpo, self._lora, told)
        if result is None:
            raise RunError(
                f"weight version {job.version}: this process is not rank 0 of its process group; train in "
                "process only where no other distributed job runs"
            )
        return result

    def _run(self) -> None:
        """The body of the background thread: Ray Train's ``fit`` from first worker to last."""
        from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        dpo = self._dpo
        resources = {"CPU": dpo.cpus} | ({"GPU": dpo.gpus} if dpo.gpus else {})
        self._storage.mkdir(parents=True, exist_ok=True)
        trainer = TorchTrainer(
            _work,
            train_loop_config={
                "dpo": dpo.model_dump(mode="json"),
                "lora": None if self._lora is None else self._lora.model_dump(mode="json"),
                "hub": self._hub,
            },
            scaling_config=ScalingConfig(
                num_workers=dpo.workers,
                use_gpu=dpo.gpus > 0,
                resources_per_worker=resources,
                label_selector=dpo.labels or None,
            ),
            run_config=RunConfig(
                name=f"align-{self._seed}-{os.getpid()}-{time.time_ns()}",
                storage_path=str(self._storage.resolve()),
                failure_config=FailureConfig(max_failures=MAX_FAILURES, preemption_grace_s=-AHEAD),
                worker_runtime_env={"env_vars": _environment(dpo)},
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
            torch_config=TorchConfig(backend="nccl" if dpo.gpus else "gloo"),
        )
        try:
            trainer.fit()
        except (Exception, SystemExit) as error:
            # Whatever ended the run belongs to the caller of align, who is in another thread; a Ray that is
            # shut down raises SystemExit in its waiters.
            self._failure = error


def with_parts(job: AlignJob) -> AlignJob:
    """A job with its groups, from wherever its parts are.

    Raises:
        ObjectLostError: some are gone, and the job does not say how they are made anew.
    """
    if not job.parts:
        return job
    there = any(isinstance(one, ray.ObjectRef) for one in job.parts)
    try:
        found = ray.get([*job.parts]) if there else job.parts
    except ObjectLostError:
        if job.again is None:
            raise
        found = _those_left(job.parts, job.again)
    parts: list[Any] = list(map(unpacked, found))
    return job.whole(parts)


def _those_left(parts: Sequence[Any], again: Callable[[Sequence[int]], list[GroupPart]]) -> list[Any]:
    """What the references ``parts`` refer to; what is lost of it ``again`` makes anew."""
    found: dict[int, Any] = {}
    for place, one in enumerate(parts):
        with suppress(ObjectLostError):
            found[place] = ray.get(one)
    lost = [place for place in range(len(parts)) if place not in found]
    found |= zip(lost, again(lost), strict=True)
    return [found[place] for place in range(len(parts))]


def _lost(failure: BaseException | None) -> bool:
    """Whether it was processes or nodes that failed: Ray's own errors. A worker's error keeps its type."""
    from ray.train import ControllerError, WorkerGroupError

    found = [failure]
    if isinstance(failure, WorkerGroupError):
        # A rank whose peer died fails with an error of the process group.
        found = list(failure.worker_failures.values())
    elif isinstance(failure, ControllerError):
        found = [failure.controller_failure]
    return any(type(one).__module__.startswith("ray.") for one in found)


def _work(config: dict[str, Any]) -> None:
    """One Ray Train worker; imported here, so that the driver loads neither torch nor DeepSpeed."""
    with uncollected():
        from raylla.policy.worker import take_jobs

    lora = config["lora"]
    take_jobs(
        Dpo.model_validate(config["dpo"]),
        None if lora is None else Lora.model_validate(lora),
        config["hub"],
        with_parts,
    )


def _environment(dpo: Dpo) -> dict[str, str]:
    """What has to be set before a trainer process imports torch and DeepSpeed."""
    common = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    # One OpenMP thread per process: with more, ranks on the same cores wait for each other's threads.
    return common if dpo.gpus else common | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def _prepare_environment(dpo: Dpo) -> None:
    for name, value in _environment(dpo).items():
        os.environ.setdefault(name, value)
