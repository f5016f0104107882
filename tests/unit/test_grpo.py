"""Group-relative advantages and losses by hand; what makes a group; configs that do not go with it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raylla import config
from raylla.errors import ConfigError
from raylla.irpo.scoring import whole_group
from raylla.policy.groups import token_group
from raylla.policy.trainers.grpo import advantages, token_losses
from raylla.records import Answer

REWARDS = st.lists(st.floats(-100, 100), min_size=2, max_size=8)


def test_advantages_by_hand() -> None:
    assert advantages([3.0, 1.0, 2.0], scaled=False) == pytest.approx([1, -1, 0])
    assert advantages([3.0, 1.0, 2.0], scaled=True) == pytest.approx(
        [math.sqrt(1.5), -math.sqrt(1.5), 0], abs=1e-5
    )


@given(REWARDS, st.floats(-50, 50))
def test_advantages_sum_to_nothing_and_read_no_level(rewards: list[float], level: float) -> None:
    for scaled in (False, True):
        found = advantages(rewards, scaled)
        assert sum(found) == pytest.approx(0, abs=1e-6)
        if max(rewards) - min(rewards) > 1e-2:
            assert advantages([one + level for one in rewards], scaled) == pytest.approx(found, abs=1e-3)


def test_token_losses_by_hand() -> None:
    policy = torch.tensor([0.5, 1.5, 0.5, 1.5, 1.0]).log()
    gain = torch.tensor([2.0, 2.0, -2.0, -2.0, 2.0])
    losses, clipped, divergence = token_losses(policy, torch.zeros(5), gain, clip=0.2, kl=0.0)
    # A ratio counts no further where it has gone the way that the advantage asks.
    assert losses.tolist() == pytest.approx([-1, -2.4, 1.6, 3, -2])
    assert clipped.tolist() == [False, True, True, False, False]
    assert divergence[4] == 0
    assert (divergence[:4] > 0).all()
    held, *_ = token_losses(policy, torch.zeros(5), gain, clip=0.2, kl=0.5)
    assert held.tolist() == pytest.approx((losses + 0.5 * divergence).tolist())


def test_the_first_gradient_is_the_policy_gradient() -> None:
    policy = torch.zeros(3, requires_grad=True)
    gain = torch.tensor([1.5, -2.0, 0.0])
    token_losses(policy, torch.zeros(3), gain, 0.2, 0.04)[0].sum().backward()
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx((-gain).tolist())


def test_a_filled_turn_has_no_weight_in_any_loss_or_gradient() -> None:
    """A reference of its own: one of 0 nats beside a token of -200 would be an infinity times 0."""
    tokens = torch.tensor([-200.0], requires_grad=True)
    losses, *_ = token_losses(tokens, tokens.detach(), torch.zeros(1), 0.2, 0.04)
    (losses * torch.zeros(1)).sum().backward()
    assert losses.item() == 0
    assert tokens.grad is not None
    assert tokens.grad.item() == 0


def answers(count: int) -> list[Answer]:
    return [Answer(f"a/{draw}", "a", draw, "v0", "", (1, 2), (3, draw)) for draw in range(count)]


def test_a_group_holds_all_answers() -> None:
    found = whole_group(answers(3), [1.0, 5.0, 5.0])
    assert found is not None
    assert [one.draw for one in (found.winner, *found.losers)] == [1, 0, 2]
    assert (found.winner_reward, found.loser_rewards) == (5, (1, 5))
    assert token_group(found).rewards == (5, 1, 5)
    assert whole_group(answers(3), [2.0, 2.0, 2.0]) is None
    assert whole_group([], []) is None


@pytest.mark.parametrize(
    ("tree", "field"),
    [
        ({"dpo": {"reference": "bid_masked"}}, "dpo.reference=bid_masked"),
        ({"ad_llm": {"path": "a", "sampling": {"temperature": 0}}}, "temperature=0"),
        ({"dpo": {"winner_nll": 0.5}}, "dpo.winner_nll=0.5"),
        ({"grpo": {"clip": 1}}, "grpo.clip"),
        ({"grpo": {"kl": -1}}, "grpo.kl"),
    ],
)
def test_configs_that_do_not_go_with_it(tree: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        config.parse_config(tree | {"irpo": {"align": "grpo"}}, "test")
