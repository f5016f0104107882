"""A short campaign: a rollout, a judge and the reward trainer are killed at work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.campaign import campaign

pytestmark = pytest.mark.chaos


def test_a_run_whose_workers_are_killed_ends_as_if_nothing_happened(tmp_path: Path) -> None:
    found = campaign(tmp_path, epochs=1, kills=3, seed=1, kinds=("rollout", "judge", "reward-trainer"))
    assert sum(one["kills"] for one in found["kinds"].values()) >= 1
    assert not any(one["hangs"] for one in found["kinds"].values())
    samples = found["samples"]
    assert samples["same_ids"], samples
    assert samples["same_table"], samples
    assert samples["duplicated"] == 0
