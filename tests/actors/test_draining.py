"""Nodes that are announced to go: what their workers hold is finished or sent elsewhere, once."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

import pytest
import ray
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION
from ray.core.generated.common_pb2 import NodeDeathInfo

from raylla.actors import DONE, Pool, policy
from raylla.actors.calls import gather, soon
from raylla.actors.draining import node_of
from raylla.config import Actors, Config, Deadlines, Dpo, Tuning
from raylla.engines import Probe
from raylla.errors import WorkerLostError
from raylla.irpo.dispatch import LOOK, SPARE, Dispatch
from raylla.policy.jobs import TuneJob, TuneResult
from raylla.runs.observe import Observer
from tests.e2e.nodes import ENVIRONMENT, Nodes

LEFT = SPARE + 3 * LOOK
"""Seconds that a node has left when it is announced to go."""
QUICK, LONG = [0.3] * 10, [0.1] * 1000
"""Seconds that each of a call's items takes."""


class Sleeper:
    """A worker that sleeps, and says each time that it did."""

    def ready(self) -> None: ...

    def sleep(self, each: list[float]) -> Iterator[int]:
        for number, seconds in enumerate(each):
            time.sleep(seconds)
            yield number


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head, which takes none of the workers, and a node for them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", str(LEFT))
        found = Nodes(dict(os.environ))
        try:
            found.add("a")
            ray.init(found.address, log_to_driver=False)
            yield found
        finally:
            ray.shutdown()
            found.close()


def pool(name: str, node: str = "") -> Pool:
    """A worker, of a pool that makes none anew; on ``node`` if one is named."""
    labels = {"raylla/node": node} if node else {}
    found = Pool(name, Sleeper, (), Actors(workers=1, cpus=0.2, max_restarts=0, labels=labels))
    found.start(60)
    return found


def named(actor: Any) -> str:
    """The node that an actor is on."""
    at = node_of(actor)
    return str(next(one["Labels"]["raylla/node"] for one in ray.nodes() if one["NodeID"] == at))


@dataclass
class Driven:
    """A pool at work, as the sampling drives it."""

    pool: Pool
    dispatch: Dispatch
    items: list[int] = field(default_factory=list)
    """Of the call that ended."""
    again: int = 0
    """Calls that were sent again."""

    def give(self, each: list[float]) -> None:
        """Have the one worker sleep."""
        self.items = []
        self.dispatch.give(0, [each], "sleep", each)

    @property
    def whole(self) -> bool:
        """Whether all is done, and there is a worker."""
        return not self.dispatch.waits and self.pool.size == 1

    def step(self) -> None:
        """Take what comes next, if it comes soon."""
        try:
            self.dispatch.fit(0)
            came = soon(self.dispatch.waits, 0.1) if self.dispatch.waits else None
        except WorkerLostError as lost:
            self.pool.restart(lost, 60)
            for _ in self.dispatch.lost():
                self.again += 1
                self.give(QUICK)
            return
        if came is None or self.dispatch.joined(*came):
            return
        if came[1] is DONE:
            self.dispatch.done(came[0])
        else:
            self.items.append(int(str(came[1])))


def test_a_node_that_is_announced_to_go_hands_its_work_over(nodes: Nodes) -> None:
    """One worker is done in time, one is not, and of one nobody looks whether its node is to go."""
    pools = [pool(name) for name in ("quick", "slow", "still")]
    assert [named(one._hosts[0]) for one in pools] == ["a", "a", "a"]
    watch = Observer(Config(), None)
    quick, slow = [Driven(one, Dispatch(one, lambda *_: None, watch, 60)) for one in pools[:2]]
    still = pools[2]
    nodes.add("b")
    quick.give(QUICK)
    slow.give(LONG)
    nodes.announce("a")
    lost = still.call(0, "sleep", LONG)
    end = time.monotonic() + 90
    while not (quick.whole and slow.whole):
        assert time.monotonic() < end, (quick, slow)
        quick.step()
        slow.step()
    assert (quick.items, quick.again) == ([*range(len(QUICK))], 0)
    assert (slow.items, slow.again) == ([*range(len(QUICK))], 1)
    with pytest.raises(WorkerLostError) as gone:
        gather([lost], 60, "the end of the node")
    assert gone.value.announced
    still.restart(gone.value, 60)
    assert [named(one._hosts[0]) for one in pools] == ["b", "b", "b"]
    assert [one.restarts for one in pools] == [0, 0, 0]
    for one in pools:
        one.stop()


@pytest.mark.parametrize(
    ("left", "signal", "reason"),
    [
        (60, SIGTERM, "EXPECTED_TERMINATION"),
        (0, SIGKILL, "AUTOSCALER_DRAIN_PREEMPTED"),
        (None, SIGTERM, "EXPECTED_TERMINATION"),
    ],
)
def test_what_ends_a_node_that_was_announced_to_go_does_not_matter(
    nodes: Nodes, left: int | None, signal: int, reason: str
) -> None:
    """It signs off by itself, or is gone after its time; one that was not announced counts as lost."""
    name = f"left-{left}"
    nodes.add(name)
    held = pool("held", name)
    call = held.call(0, "sleep", LONG)
    here = node_of(held._hosts[0])
    if left is not None:
        accepted, why = ray._private.worker.global_worker.gcs_client.drain_node(
            here, DRAIN_NODE_REASON_PREEMPTION, "spot", int((time.time() + left) * 1000)
        )
        assert accepted, why
    nodes.end(name, signal)
    with pytest.raises(WorkerLostError) as gone:
        gather([call], 60, "the end of the node")
    end = time.monotonic() + 60
    while (node := next(one for one in ray.nodes() if one["NodeID"] == here))["Alive"]:
        assert time.monotonic() < end, node
        time.sleep(0.1)
    assert NodeDeathInfo.Reason.Name(node["DeathReason"]) == reason
    assert gone.value.announced == (left is not None)
    held.stop()


def _work(config: dict[str, Any]) -> None:
    """In place of the policy trainer's worker: takes a job, which it never ends on the node that goes."""
    hub, node = config["hub"], ray.get_runtime_context().get_node_labels()["raylla/node"]
    done = -1
    while (turn := ray.get(hub.next.remote(done, 0, (node, os.getpid())))) is not None:
        number, jobs = turn
        if not jobs:
            continue
        while node == "b":
            time.sleep(0.1)
        ray.get(hub.finish.remote(number, TuneResult(node, "", 0, (), Probe((), (), ()), 0, 0.0)))
        done = number


def test_the_trainer_is_brought_up_elsewhere(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "1")
    monkeypatch.setattr(policy, "_work", _work)
    monkeypatch.setattr(policy, "MAX_FAILURES", 0)
    trainer = policy.PolicyTrainer(Dpo(workers=1, cpus=0.5), 0, False, tmp_path, Deadlines())
    trainer.start()
    while not ray.get(trainer._hub.ready.remote()):
        time.sleep(0.1)
    nodes.add("c")
    nodes.wait("c")
    nodes.announce("b")
    job = TuneJob("v1", "", "", (), Tuning(), 0, "", "")
    assert trainer.tune(job, lambda *_: None).version == "c"
    trainer.stop()
