"""A Ray node that is slow to come up is tried again, within the config's own deadline."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray._raylet import AuthenticationTokenLoader
from ray._raylet import Config as RayConfig
from ray.core.generated.autoscaler_pb2 import ClusterConfig

from raylla.actors import login, placement
from raylla.actors.placement import NodeKind, check_placement, connect
from raylla.config import Config, parse_config
from raylla.errors import PlacementError


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What each start of Ray does: the next of the list's sentences as an error, or "" for a start."""
    planned: list[str] = []

    def init(address: str, **how: object) -> None:
        assert address == "local", "a cluster that is left in Ray's directory would be joined"
        assert how["logging_level"] == logging.WARNING, "colours and addresses would stand in a run's log"
        if said := planned.pop(0):
            raise Exception(said)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return planned


def test_a_slow_start_is_tried_again(starts: list[str]) -> None:
    starts += ["The current node timed out during startup. This could happen", ""]
    connect(parse_config({}, "test"))
    assert starts == []


def test_starts_end_with_the_deadline(starts: list[str]) -> None:
    starts += ["The current node timed out during startup."] * 2
    with pytest.raises(PlacementError, match=r"deadlines\.start=1e-09 s"):
        connect(parse_config({"deadlines": {"start": 1e-9}}, "test"))
    assert len(starts) == 1


def test_other_failures_are_not_tried_again(starts: list[str]) -> None:
    starts += ["no disk", ""]
    with pytest.raises(Exception, match="no disk"):
        connect(parse_config({}, "test"))
    assert starts == [""]


def test_what_keeps_ray_from_starting_here_is_told(
    starts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(*_: object, **__: object) -> None:
        raise ConnectionError("no room in /dev/shm")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(PlacementError, match=r"did not start on this machine \(no room in /dev/shm\)"):
        connect(parse_config({}, "test"))


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Config]:
    """A config that names a cluster which answers on its port and lets nobody in; no token is there."""

    def refuse(address: str, **_: object) -> None:
        raise ConnectionError(f"Failed to connect to Ray cluster at {address}")

    monkeypatch.setattr(ray, "init", refuse)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that it is put back, whatever is set meanwhile
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    loader = AuthenticationTokenLoader.instance()
    loader.reset_cache()
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        yield parse_config({"ray": {"address": f"127.0.0.1:{head.getsockname()[1]}"}}, "test")
    monkeypatch.undo()
    loader.reset_cache()
    RayConfig.initialize("")


def test_a_cluster_that_asks_for_a_token_is_joined_with_it(named: Config, tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("a" * 32)
    AuthenticationTokenLoader.instance().reset_cache()
    with pytest.raises(PlacementError, match=r"no cluster .* is the token in RAY_AUTH_TOKEN, .* own\?"):
        connect(named)
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert login.headers() == {"authorization": f"Bearer {'a' * 32}"}


def test_what_is_missing_where_a_cluster_lets_nobody_in(
    named: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        PlacementError, match=r"if it asks for a token, give it in RAY_AUTH_TOKEN, .*auth_token"
    ):
        connect(named)
    assert "RAY_AUTH_MODE" not in os.environ
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(PlacementError, match=r"RAY_AUTH_MODE=disabled is set, .*: unset it"):
        connect(named)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[NodeKind]:
    """A cluster of one node of 2 CPUs, whose autoscaler adds these nodes."""
    node = {"Alive": True, "Resources": {"CPU": 2.0}, "Labels": {"ray.io/zone": "a"}}
    kinds: list[NodeKind] = []
    monkeypatch.setattr(ray, "nodes", lambda: [node])
    monkeypatch.setattr(placement, "autoscaled", lambda: kinds or None)
    return kinds


def test_what_an_autoscaler_can_add_is_not_refused(small: list[NodeKind]) -> None:
    tree = {"rollout": {"workers": 6, "cpus": 4, "labels": {"pool": "gpu"}}}
    with pytest.raises(PlacementError, match=r"rollout: one worker needs 4 CPUs .* set ray.autoscaling"):
        check_placement(parse_config(tree, "test"))
    small.append(NodeKind(8, 0, 4, None))
    assert check_placement(parse_config(tree, "test"))["CPU"] < 0
    small.append(NodeKind(0, 8, float("inf"), None))
    assert check_placement(parse_config(tree | {"judge": {"gpus": 8, "cpus": 0}}, "test"))["GPU"] == -8


def test_what_an_autoscaler_can_never_add_is_refused_though_it_is_on(small: list[NodeKind]) -> None:
    small.append(NodeKind(8, 0, 4, None))
    on = {"ray": {"autoscaling": True}}
    with pytest.raises(PlacementError, match=r"the cluster has 2 and grows to 32; .* most nodes"):
        check_placement(parse_config({"rollout": {"workers": 9, "cpus": 4}} | on, "test"))
    with pytest.raises(PlacementError, match="judge: one worker needs 9 CPUs"):
        check_placement(parse_config({"judge": {"cpus": 9}} | on, "test"))


def test_what_a_cluster_tells_of_its_autoscaler(monkeypatch: pytest.MonkeyPatch) -> None:
    told = ClusterConfig()
    for name, cpus, most in (("head", 0, 0), ("cpu", 4, 3), ("gpu", 8, -1)):
        told.node_group_configs.add(name=name, resources={"CPU": cpus}, max_count=most)
    answers = [None, ClusterConfig(), told]
    monkeypatch.setattr(ray._private.state.state, "get_cluster_config", lambda: answers.pop(0))
    assert placement.autoscaled() is None
    assert placement.autoscaled() is None
    assert placement.autoscaled() == [NodeKind(4, 0, 3, None), NodeKind(8, 0, float("inf"), None)]


def test_of_a_pool_that_grows_the_least_must_fit(small: list[NodeKind]) -> None:
    tree = {"rollout": {"workers": 100, "min_workers": 1, "cpus": 1}}
    assert check_placement(parse_config(tree, "test"))["CPU"] >= 0
