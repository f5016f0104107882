"""Winners and losers of an auction."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from raylla.irpo.scoring import group
from raylla.records import Answer

REWARDS = st.lists(st.floats(-200, 200), min_size=1, max_size=8)


def _answers(count: int) -> list[Answer]:
    return [
        Answer(f"e1/preference/q/{i}", "e1/preference/q", i, "v0", "t", (1,), (2, i)) for i in range(count)
    ]


@given(REWARDS, st.floats(0, 50))
def test_losers_lie_more_than_delta_below(rewards: list[float], delta: float) -> None:
    answers = _answers(len(rewards))
    found = group(answers, rewards, delta)
    if found is None:
        assert all(max(rewards) - reward <= delta for reward in rewards)
        return
    assert found.winner_reward == max(rewards)
    assert all(found.winner_reward - reward > delta for reward in found.loser_rewards)
    assert len(found.losers) == sum(max(rewards) - reward > delta for reward in rewards)


def test_equal_rewards_make_no_pairs() -> None:
    assert group(_answers(5), [3.0] * 5, 0.0) is None
    assert group([], [], 0.0) is None
