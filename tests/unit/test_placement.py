"""A Ray node that is slow to come up is tried again, within the config's own deadline."""

from __future__ import annotations

import pytest
import ray

from raylla.actors.placement import connect
from raylla.config import parse
from raylla.errors import PlacementError


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What each start of Ray does: the next of the list's sentences as an error, or "" for a start."""
    planned: list[str] = []

    def init(**_: object) -> None:
        if said := planned.pop(0):
            raise Exception(said)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return planned


def test_a_slow_start_is_tried_again(starts: list[str]) -> None:
    starts += ["The current node timed out during startup. This could happen", ""]
    connect(parse({}, "test"))
    assert starts == []


def test_starts_end_with_the_deadline(starts: list[str]) -> None:
    starts += ["The current node timed out during startup."] * 2
    with pytest.raises(PlacementError, match=r"deadlines\.start=1e-09 s"):
        connect(parse({"deadlines": {"start": 1e-9}}, "test"))
    assert len(starts) == 1


def test_other_failures_are_not_tried_again(starts: list[str]) -> None:
    starts += ["no disk", ""]
    with pytest.raises(Exception, match="no disk"):
        connect(parse({}, "test"))
    assert starts == [""]
