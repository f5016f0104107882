"""A few hundred hostile inputs for each reader; `python -m tests.fuzz` tries as many as asked."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import SEEDS, TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_hold_the_promise(name: str) -> None:
    target, seeds = TARGETS[name], SEEDS[name]
    for seed in seeds:
        target(seed)
    mixed = st.lists(st.sampled_from(seeds) | st.binary(max_size=40), max_size=6).map(b"".join)

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(mixed)
    def holds(data: bytes) -> None:
        target(data)

    holds()
