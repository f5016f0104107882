"""The attack's own arithmetic: when a strike is over, and what it counts as lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.chaos.attack import DRIVER, HUNG, Strike
from tests.chaos.processes import DPO
from tests.chaos.runs import Event, compare

EVENTS = [
    Event(1.0, "lost", "judge"),
    Event(11.0, "accepted", "reward"),
    Event(12.0, "lost", "rollout"),
    Event(13.0, "lost", "judge"),
    Event(14.0, "committed", "epoch-1/sample"),
    Event(15.0, "accepted", "judgements"),
    Event(16.0, "committed", "epoch-1/align"),
]


@pytest.mark.parametrize(
    ("kind", "group", "over"),
    [("judge", "judge", 15.0), (HUNG, "judge", 15.0), (DRIVER, DRIVER, 11.0), (DPO, DPO, None)],
)
def test_a_strike_is_over_with_the_first_sample_after_its_own_repair(
    kind: str, group: str, over: float | None
) -> None:
    assert Strike(kind, group, 10.0).over(EVENTS) == over


def test_lost_and_repeated_samples_are_seen(tmp_path: Path) -> None:
    runs = {"alone": ["a", "b", "c"], "same": ["a", "b", "c"], "worse": ["a", "c", "c"]}
    for name, ids in runs.items():
        run = tmp_path / name
        run.mkdir()
        lines = [json.dumps({"stage": "s", "sample_id": one}) for one in ids]
        (run / "ledger.jsonl").write_text("\n".join([*lines, '{"stage": "s", "commit": {}}']) + "\n")
        (run / "results.json").write_text('{"epochs": []}')
    same, worse = (compare(tmp_path / "alone", tmp_path / name) for name in ("same", "worse"))
    assert (same["lost"], same["duplicated"], same["same_ids"]) == (0, 0, True)
    assert (worse["lost"], worse["duplicated"], worse["same_ids"]) == (1, 1, False)
