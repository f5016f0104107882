"""Who joins a pool, who leaves it and when, on workers in this process."""

from __future__ import annotations

from typing import Any

import pytest

from raylla.actors.pool import DONE, Call, Pool, next_item
from raylla.config import Config, Engines
from raylla.errors import DeadlineError, WorkerLostError
from raylla.irpo.dispatch import SPARE, Dispatch
from raylla.runs.observe import Observer


class Worker:
    """Doubles numbers."""

    def ready(self) -> None: ...

    def double(self, numbers: list[int]) -> list[int]:
        return [2 * number for number in numbers]

    def load(self) -> None: ...


def join(pool: Pool, worker: int) -> Call | None:
    """The load of a worker with an odd number; others hold what they need."""
    return pool.call(worker, "load") if worker % 2 else None


def started(deadline: float = 60, **actors: Any) -> tuple[Pool, Dispatch, Observer]:
    pool = Pool(
        "rollout", Worker, (), Engines(**{"workers": 4, "min_workers": 1, **actors}), in_process=True
    )
    pool.start(1)
    watch = Observer(Config(), None)
    return pool, Dispatch(pool, join, watch, deadline), watch


def take_all(dispatch: Dispatch) -> list[int]:
    """Take what comes until nothing more is to; who joined stays free."""
    found = []
    while dispatch.waits:
        call, item = next_item(dispatch.waits, 1, "the next item")
        if dispatch.joined(call, item):
            continue
        if item is DONE:
            dispatch.done(call)
        else:
            found += item  # type: ignore[misc]
    return found


def test_it_grows_to_what_waits_and_no_further_than_its_most() -> None:
    pool, dispatch, _ = started()
    dispatch.give(0, [1, 2], "double", [1, 2])
    dispatch.fit(1.2)
    assert len(dispatch.waits) == 1 + 2
    dispatch.fit(100)
    assert len(dispatch.waits) == 1 + 3
    assert pool.members == (0,)
    assert take_all(dispatch) == [2, 4]
    assert pool.members == (0, 1, 2, 3)
    assert sorted(dispatch.free) == [0, 1, 2, 3]


def test_who_has_nothing_to_do_leaves_down_to_the_least() -> None:
    pool, dispatch, _ = started(idle_seconds=1e-9)
    dispatch.fit(3)
    take_all(dispatch)
    dispatch.give(2, [3], "double", [3])
    assert dispatch.wake() == 0.0
    dispatch.fit(0)
    assert pool.members == (2,)
    assert take_all(dispatch) == [6]
    dispatch.fit(0)
    assert pool.members == (2,)
    # The next to join has the lowest number that is free.
    dispatch.give(2, [4], "double", [4])
    dispatch.fit(1)
    assert take_all(dispatch) == [8]
    assert pool.members == (0, 2)


def test_a_long_rest_is_allowed_while_it_lasts_but_not_beyond_the_work() -> None:
    pool, dispatch, _ = started(idle_seconds=1000)
    dispatch.fit(3)
    take_all(dispatch)
    dispatch.fit(0)
    assert pool.size == 3
    assert 900 < dispatch.wake() <= 1000
    dispatch.close()
    assert pool.size == 1


def test_who_is_not_ready_in_time_is_left_out_and_not_asked_for_again() -> None:
    pool, dispatch, _ = started(deadline=0)
    dispatch.give(0, [1], "double", [1])
    dispatch.fit(3)
    assert len(dispatch.waits) == 1
    dispatch.fit(3)
    assert take_all(dispatch) == [2]
    assert pool.members == (0,)


def test_what_is_no_longer_needed_is_withdrawn() -> None:
    pool, dispatch, watch = started(idle_seconds=1e-9)
    with watch.timeline.epoch(1):
        dispatch.fit(2)
        dispatch.fit(0)
        assert dispatch.waits == []
    assert pool.members == (0,)
    assert watch.timeline.epochs[0]["pools"]["rollout"]["most"] == 1


def test_a_worker_lost_on_its_way_in_counts_as_a_restart() -> None:
    pool, dispatch, _ = started(max_restarts=1)
    dispatch.give(0, [1], "double", [1])
    dispatch.fit(1)
    gone = WorkerLostError("gone", "rollout", 1)
    assert not dispatch.missed(WorkerLostError("gone", "rollout", 0)), (
        "a member's loss is the crew's to mend"
    )
    assert not dispatch.missed(WorkerLostError("gone", "judge", 1))
    assert dispatch.missed(gone)
    assert pool.restarts == 1
    dispatch.fit(1)
    with pytest.raises(WorkerLostError):
        dispatch.missed(gone)


def test_a_pool_of_fixed_size_stays() -> None:
    pool, dispatch, _ = started(min_workers=None)
    dispatch.fit(100)
    dispatch.close()
    assert pool.members == (0, 1, 2, 3)
    assert dispatch.waits == []


def test_bounds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match="min_workers=3 exceeds workers=2"):
        Engines(workers=2, min_workers=3)


def announced(pool: Pool, dispatch: Dispatch, monkeypatch: pytest.MonkeyPatch, **left: float) -> None:
    """Workers whose node goes, and in how many seconds; the next `fit` looks."""
    going = {int(name.removeprefix("w")): seconds for name, seconds in left.items()}
    monkeypatch.setattr(pool, "leaving", lambda: {one: going[one] for one in going if one in pool.members})
    dispatch._looked = -1e9


def test_who_has_nothing_to_do_on_a_node_that_goes_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, dispatch, _ = started(min_workers=None, max_restarts=0)
    announced(pool, dispatch, monkeypatch, w1=60.0)
    dispatch.fit(0)
    assert pool.members == (0, 2, 3)
    assert [call.worker for call in dispatch.waits] == ["rollout[1]"]
    monkeypatch.undo()
    take_all(dispatch)
    assert pool.members == (0, 1, 2, 3)
    assert sorted(dispatch.free) == [0, 1, 2, 3]


def test_what_a_worker_holds_on_a_node_that_goes_is_finished_while_there_is_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool, dispatch, _ = started(min_workers=None)
    dispatch.give(1, [1, 2], "double", [1, 2])
    announced(pool, dispatch, monkeypatch, w1=60.0)
    dispatch.fit(0)
    assert pool.members == (0, 1, 2, 3)
    assert take_all(dispatch) == [2, 4]
    assert pool.members == (0, 2, 3)
    assert 1 not in dispatch.free
    monkeypatch.undo()
    dispatch.fit(0)
    take_all(dispatch)
    assert sorted(dispatch.free) == [0, 1, 2, 3]


def test_what_there_is_no_time_for_is_sent_again_and_counts_as_no_restart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool, dispatch, _ = started(min_workers=None, max_restarts=0)
    dispatch.give(1, [1, 2], "double", [1, 2])
    announced(pool, dispatch, monkeypatch, w1=SPARE - 1)
    with pytest.raises(WorkerLostError, match=r"rollout\[1\]\.double: its node is about to go") as lost:
        dispatch.fit(0)
    pool.count(lost.value)
    assert pool.restarts == 0
    assert dispatch.lost() == [1, 2]
    assert sorted(dispatch.free) == [0, 1, 2, 3]


def test_a_pool_whose_nodes_have_all_gone_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, dispatch, _ = started(deadline=0, workers=1, min_workers=None)
    announced(pool, dispatch, monkeypatch, w0=60.0)
    with pytest.raises(DeadlineError, match=r"no other had room for a worker within deadlines\.start=0 s"):
        dispatch.fit(1)
