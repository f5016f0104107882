"""A run on several nodes of which one is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.commands import begin, finish, ids, results, training, wait_for_commit
from tests.e2e.nodes import Nodes

pytestmark = pytest.mark.e2e


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
    """Each node has room for one shard with its rollout engine (of a GPU, which nobody looks for on a CPU)
    and for one DPO rank; one is killed with all of them, another takes its place.

    Whether the run gets over it by itself or ends by saying that it lost a part and is resumed, it makes
    what a run on one machine makes.
    """
    run, log = tmp_path / "run", tmp_path / "log"
    spread = {"rollout__workers": 2, "rollout__cpus": 0, "rollout__gpus": 0.3, "dpo__cpus": 0.6}
    shards = {"shards__workers": 2, "shards__cpus": 0, "shards__gpus": 0.6, "judge__workers": 2}
    head = dict.fromkeys(("judge__labels", "reward_trainer__labels"), "{raylla/node: head}")
    light = dict.fromkeys(("judge__cpus", "reward_trainer__cpus"), 0)
    cluster = {"ray__address": nodes.address, "ray__autoscaling": "true"}
    process = begin(training(run, **spread, **shards, **head, **light, **cluster), log)
    wait_for_commit(process, run, "epoch-1/sample", log)
    nodes.kill("b")
    nodes.add("c")
    if process.wait(timeout=400) != 0:
        assert process.returncode == 3, log.read_text()[-4000:]
        finish(["resume", str(run)], log)
    assert ids(run) == ids(whole)
    assert results(run)["epochs"] == results(whole)["epochs"]
