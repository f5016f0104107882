"""The pool: streams in order, deadlines, dead workers; alike on Ray and in this process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from raylla.actors import DONE, Call, Pool, next_item, next_reference
from raylla.actors.host import Host
from raylla.actors.pool import HOLD, MESSAGE, SHARE
from raylla.config import Actors
from raylla.errors import (
    ConfigError,
    DeadlineError,
    InputLostError,
    RunError,
    WeightError,
    WorkerHungError,
    WorkerLostError,
)
from tests.actors.lost import lost


class Scripted:
    """A worker that does as it is told."""

    def __init__(self, mode: str = "good") -> None:
        if mode == "bad config":
            raise ConfigError("engine.dtype='int1' is unknown; use float32")
        if mode == "bug":
            raise KeyError("weights")
        if mode.startswith("/") and Path(mode).exists():
            Path(mode).unlink()
            os._exit(1)
        self.mode = mode

    def ready(self) -> None:
        if self.mode == "slow":
            time.sleep(30)
        if self.mode == "dies":
            os._exit(1)

    def count(self, start: int, n: int, pause: float = 0.0) -> Iterator[int]:
        for number in range(start, start + n):
            time.sleep(pause)
            yield number

    def add(self, left: int, right: int) -> int:
        return left + right

    def total(self, numbers: list[int]) -> int:
        return sum(numbers)

    def numbers(self, n: int) -> list[int]:
        return list(range(n))

    def threads(self) -> str | None:
        return os.environ.get("OMP_NUM_THREADS")

    def fails_after(self, n: int) -> Iterator[int]:
        yield from range(n)
        raise WeightError("holds v1, not v2")

    def dies_after(self, n: int) -> Iterator[int]:
        yield from range(n)
        time.sleep(0.5)
        os._exit(1)

    def hangs_after(self, n: int) -> Iterator[int]:
        yield from range(n)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGSTOP)
        yield n

    def pid(self) -> int:
        return os.getpid()

    def bug(self) -> None:
        raise KeyError("weights")


def pool(in_process: bool, workers: int = 2, mode: str = "good", cpus: float = 0.5) -> Pool:
    return Pool("scripted", Scripted, (mode,), Actors(workers=workers, cpus=cpus), in_process)


def drain(calls: list[Call]) -> dict[Call, list[Any]]:
    found: dict[Call, list[Any]] = {call: [] for call in calls}
    waiting = list(calls)
    while waiting:
        call, item = next_item(waiting, 20, "the next number")
        if item is DONE:
            waiting.remove(call)
        else:
            found[call].append(item)
    return found


@pytest.fixture(scope="module", params=["ray", "in_process"])
def both(request: pytest.FixtureRequest, cluster: None) -> Iterator[Pool]:
    """Two good workers, on Ray and in this process."""
    workers = pool(request.param == "in_process")
    workers.start(60)
    yield workers
    workers.stop()


def test_streams_come_whole_and_in_order(both: Pool) -> None:
    calls = [both.call(worker, "count", 100 * worker, 20) for worker in range(both.size)]
    calls.append(both.call(0, "add", 3, 4))
    assert list(drain(calls).values()) == [list(range(20)), list(range(100, 120)), [7]]


def test_items_of_a_slow_worker_do_not_hold_up_a_quick_one(cluster: None) -> None:
    workers = pool(False)
    workers.start(60)
    slow, quick = workers.call(0, "count", 0, 3, 0.5), workers.call(1, "count", 0, 3)
    order = []
    waiting = [slow, quick]
    while waiting:
        call, item = next_item(waiting, 20, "the next number")
        if item is DONE:
            waiting.remove(call)
        order.append((call is quick, item))
    assert order.index((True, 2)) < order.index((False, 2))
    workers.stop()


def test_a_worker_runs_its_calls_in_order_whichever_is_asked_for_first(both: Pool) -> None:
    first, second = both.call(0, "count", 0, 3), both.call(0, "count", 10, 2)
    assert drain([second])[second] == [10, 11]
    assert drain([first])[first] == [0, 1, 2]


def test_broadcast_answers_in_order_of_worker(both: Pool) -> None:
    assert both.broadcast("add", 1, 2, deadline=20, what="sums") == [3, 3]


def test_a_result_can_be_handed_on_without_being_fetched(both: Pool) -> None:
    reference = next_reference(both.call(0, "numbers", 5), 20, "numbers")
    assert both.broadcast("total", reference, deadline=20, what="totals") == [10, 10]


def test_errors_of_our_own_keep_their_type_and_name_the_worker(both: Pool) -> None:
    call = both.call(1, "fails_after", 2)
    assert [next_item([call], 20, "numbers")[1] for _ in range(2)] == [0, 1]
    with pytest.raises(WeightError, match=r"^scripted\[1\]: holds v1, not v2$"):
        next_item([call], 20, "numbers")
    assert both.broadcast("add", 1, 2, deadline=20, what="the worker to live on") == [3, 3]


def test_waiting_for_nothing_is_a_bug(both: Pool) -> None:
    call = both.call(0, "add", 1, 2)
    assert drain([call]) == {call: [3]}
    for calls in ([], [call]):
        with pytest.raises(RuntimeError, match="none is left"):
            next_item(calls, 1, "nothing")


def test_any_other_error_names_worker_method_and_cause(cluster: None) -> None:
    workers = pool(False, 1)
    workers.start(60)
    with pytest.raises(RunError, match=r"scripted\[0\]\.bug failed with KeyError: 'weights'(.|\n)*in bug"):
        workers.broadcast("bug", deadline=20, what="bug")
    assert workers.broadcast("threads", deadline=20, what="threads") == ["1"]
    workers.stop()


def test_a_deadline_names_what_was_waited_for_and_of_whom(cluster: None) -> None:
    workers = pool(False, 1)
    workers.start(60)
    call = workers.call(0, "count", 0, 1, 30.0)
    started = time.monotonic()
    with pytest.raises(
        DeadlineError, match=r"the next sample: nothing came from scripted\[0\]\.count in time"
    ):
        next_item([call], 0.5, "the next sample")
    assert time.monotonic() - started < 5
    workers.stop()


def test_a_dead_worker_is_a_typed_error(cluster: None) -> None:
    workers = pool(False, 2)
    workers.start(60)
    doomed, alive = workers.call(0, "dies_after", 2), workers.call(1, "count", 0, 3)
    assert drain([alive])[alive] == [0, 1, 2]
    with pytest.raises(
        RunError, match=r"scripted\[0\]\.dies_after was lost with its worker \(ActorDiedError\)"
    ):
        drain([doomed])
    workers.stop()
    workers.stop()


def test_what_never_came_is_not_passed_on(cluster: None) -> None:
    workers = pool(False, workers=1)
    workers.start(60)
    call = workers.call(0, "count", 7, 1)
    assert next_item([call], 20, "the number")[1] == 7
    with pytest.raises(RunError, match=r"scripted\[0\]\.count ended before its item 2"):
        next_reference(call, 20, "another number")
    call = workers.call(0, "dies_after", 1)
    assert next_item([call], 20, "the number")[1] == 0
    with pytest.raises(WorkerLostError, match=r"scripted\[0\]\.dies_after was lost with its") as lost:
        next_reference(call, 20, "another number")
    assert (lost.value.pool, lost.value.worker) == ("scripted", 0)
    workers.stop()


def test_a_worker_whose_input_is_gone_is_not_said_to_have_died(cluster: None) -> None:
    workers = pool(False, workers=1)
    workers.start(60)
    call = workers.call(0, "add", 1, lost())
    with pytest.raises(InputLostError, match=r"scripted\[0\]\.add: what it was given cannot be had"):
        next_item([call], 20, "the sum")
    assert next_item([workers.call(0, "add", 1, 2)], 20, "the sum")[1] == 3
    workers.stop()


def test_a_dead_worker_is_started_anew_a_bounded_number_of_times(cluster: None) -> None:
    workers = Pool("scripted", Scripted, ("good",), Actors(workers=2, cpus=0.5, max_restarts=2))
    workers.start(60)
    for _ in range(2):
        with pytest.raises(WorkerLostError) as lost:
            drain([workers.call(1, "dies_after", 1)])
        assert (lost.value.pool, lost.value.worker) == ("scripted", 1)
        workers.restart(lost.value, 60)
        assert workers.broadcast("add", 1, 2, deadline=20, what="sums") == [3, 3]
    with pytest.raises(WorkerLostError) as last:
        drain([workers.call(0, "dies_after", 0)])
    with pytest.raises(WorkerLostError, match=r"scripted\[0\]"):
        workers.restart(last.value, 60)
    assert workers.restarts == 2
    workers.stop()


def test_a_worker_that_dies_while_it_is_started_anew_is_started_once_more(
    cluster: None, tmp_path: Path
) -> None:
    dies_once = tmp_path / "dies once"
    workers = Pool("scripted", Scripted, (str(dies_once),), Actors(workers=1, cpus=0.5, max_restarts=2))
    workers.start(60)
    with pytest.raises(WorkerLostError) as lost:
        drain([workers.call(0, "dies_after", 0)])
    dies_once.touch()
    workers.restart(lost.value, 60)
    assert workers.restarts == 2
    assert workers.broadcast("add", 1, 2, deadline=20, what="sums") == [3]
    workers.stop()


def test_a_worker_that_dies_at_its_first_start_is_started_once_more(cluster: None, tmp_path: Path) -> None:
    dies_once = tmp_path / "dies once"
    dies_once.touch()
    workers = Pool("scripted", Scripted, (str(dies_once),), Actors(workers=1, cpus=0.5, max_restarts=1))
    workers.start(60)
    assert workers.restarts == 1
    assert workers.broadcast("add", 1, 2, deadline=20, what="sums") == [3]
    workers.stop()


def test_a_hung_worker_is_a_lost_worker_after_its_deadline(cluster: None) -> None:
    workers = Pool("scripted", Scripted, ("good",), Actors(workers=2, cpus=0.5, max_restarts=1))
    workers.start(60)
    before = workers.broadcast("pid", deadline=20, what="process ids")
    call = workers.call(1, "hangs_after", 1)
    assert next_item([call], 20, "numbers")[1] == 0
    with pytest.raises(WorkerHungError, match=r"numbers: nothing came from scripted\[1\]") as hung:
        next_item([call], 2, "numbers")
    assert call.done
    workers.restart(hung.value, 60)
    after = workers.broadcast("pid", deadline=20, what="process ids")
    assert after[0] == before[0]
    assert after[1] != before[1]
    if psutil.pid_exists(before[1]):
        psutil.Process(before[1]).wait(60)
    with pytest.raises(DeadlineError):
        workers.restart(hung.value, 60)
    workers.stop()


@pytest.mark.parametrize("in_process", [False, True])
def test_a_constructor_s_error_comes_out_readable(cluster: None, in_process: bool) -> None:
    with pytest.raises(ConfigError, match=r"^scripted\[0\]: engine.dtype='int1' is unknown; use float32$"):
        pool(in_process, 1, "bad config").start(60)


def test_starts_that_fail_are_typed(cluster: None) -> None:
    with pytest.raises(RunError, match=r"scripted\[0\]\.start failed with KeyError: 'weights'"):
        pool(False, 1, "bug").start(60)
    with pytest.raises(RunError, match=r"scripted\[0\]\.start was lost with its worker"):
        pool(False, 1, "dies").start(60)
    with pytest.raises(
        DeadlineError, match=r"pool scripted: 1 x Scripted to be ready(.|\n)*scripted\[0\]\.start"
    ):
        pool(False, 1, "slow").start(2)
    with pytest.raises(DeadlineError, match=r"99 CPUs"):
        pool(False, 1, cpus=99).start(1)


def test_the_messages_of_a_larger_pool_wait_longer() -> None:
    def held(workers: int) -> float:
        made = Pool("scripted", Scripted, (), Actors(workers=workers), in_process=True)
        made.create()
        return made._hold

    assert held(2) == held(10) == HOLD
    assert held(256) * SHARE == pytest.approx(256 * MESSAGE)


def test_items_travel_together_and_before_the_error_that_ends_them() -> None:
    host = Host()
    host.start(Scripted, ())
    sent = [[one.item for one in batch.items] for batch in host.stream(0.1, "count", 0, 500)]
    assert [item for batch in sent for item in batch] == list(range(500))
    assert len(sent) < 250
    failing = host.stream(0.1, "fails_after", 3)
    assert [one.item for one in next(failing).items] == [0]
    assert [one.item for one in next(failing).items] == [1, 2]
    with pytest.raises(WeightError, match="holds v1"):
        next(failing)
