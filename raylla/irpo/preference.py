"""From scored answers to preference groups (Algorithm 1, phase 2). Pure."""

from __future__ import annotations

from collections.abc import Sequence

from raylla.records import Answer, PreferenceGroup


def group(answers: Sequence[Answer], rewards: Sequence[float], delta: float) -> PreferenceGroup | None:
    """The winner of one auction's answers and the losers more than ``delta`` below it.

    The winner is the first answer of the highest reward; each loser is one DPO pair.  Returns
    None where no answer lies far enough below, so equal rewards make no pairs.
    """
    if not answers:
        return None
    best = max(range(len(answers)), key=lambda index: rewards[index])
    below = [index for index, reward in enumerate(rewards) if rewards[best] - reward > delta]
    if not below:
        return None
    return PreferenceGroup(
        auction_id=answers[best].auction_id,
        winner=answers[best],
        losers=tuple(answers[index] for index in below),
        winner_reward=rewards[best],
        loser_rewards=tuple(rewards[index] for index in below),
    )
