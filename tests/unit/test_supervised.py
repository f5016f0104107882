"""From where supervised training goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raylla.policy.trainers import supervised


@pytest.mark.parametrize(("other", "steps"), [(3, 3), (0, 0)])
def test_a_checkpoint_that_another_rank_has_not_got_is_none(
    other: int, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gather(found: list[int], mine: int) -> None:
        found[:] = [mine, other]

    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    assert supervised._last(tmp_path) == 0
    (tmp_path / "done.json").write_text('{"steps": 3, "of": 8}')
    assert supervised._last(tmp_path) == steps
