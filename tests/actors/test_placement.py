"""What can never be placed is said before any model loads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray

from raylla.actors.placement import check_placement, connect, disconnect
from raylla.config import Config, parse_config
from raylla.errors import PlacementError


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.shutdown()
    connect(Config())
    yield
    disconnect(Config())


@pytest.mark.usefixtures("cluster")
def test_what_fits_and_what_never_will() -> None:
    assert check_placement(Config())["CPU"] >= 0
    many = parse_config({"rollout": {"workers": 1000, "cpus": 1}}, "test")
    with pytest.raises(PlacementError, match=r"needs 10\d\d.* CPUs .*rollout 1000 x 1"):
        check_placement(many)
    big = parse_config({"judge": {"gpus": 64}}, "test")
    with pytest.raises(PlacementError, match=r"judge: one worker needs .* 64 GPUs"):
        check_placement(big)


@pytest.mark.usefixtures("cluster")
def test_labels_choose_nodes_and_an_autoscaler_lifts_the_limits() -> None:
    tree = {"dpo": {"labels": {"raylla/group": "trainer"}}}
    with pytest.raises(PlacementError, match=r"dpo: .* no node with labels .'raylla/group': 'trainer'"):
        check_placement(parse_config(tree, "test"))
    grown = check_placement(
        parse_config({**tree, "judge": {"gpus": 64}, "ray": {"autoscaling": True}}, "test")
    )
    assert grown["GPU"] < 0


def test_an_address_where_nothing_answers() -> None:
    if ray.is_initialized():
        ray.shutdown()
    with pytest.raises(PlacementError, match="no cluster could be joined"):
        connect(parse_config({"ray": {"address": "127.0.0.1:1"}}, "test"))


def test_a_cluster_of_another_version_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9.0")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(PlacementError, match=r"(?s)Ray: 2\.9\.0.*install the same requirements"):
        connect(parse_config({"ray": {"address": "auto"}}, "test"))
