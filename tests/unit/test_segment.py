"""The segment auction: frequencies, prices and the multi-ad auction's pivot."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylla.auction.checks import Array
from raylla.mechanisms import segment

SEEDS = st.integers(0, 2**32 - 1)
RELEVANCE = np.array([0.9, 0.5, 0.2, 0.7])
BIDS = np.array([20.0, 60.0, 90.0, 5.0])
DRAWS = 40_000
NODES, WEIGHTS = np.polynomial.legendre.leggauss(400)


def _random(seed: int) -> tuple[np.random.Generator, Array, Array]:
    rng = np.random.default_rng(seed)
    return rng, rng.uniform(0.05, 1, 4), rng.uniform(0, 100, 4)


def _chi_square(observed: Array, shares: Array) -> float:
    expected = shares * observed.sum()
    return float(((observed - expected) ** 2 / expected).sum())


def expected_payments(relevance: Array, bids: Array) -> Array:
    """Expected price times win [n] of one segment, in bid units; 0 without a competitor.

    With S = sum_{j != i} q_j b_j, integrating P(i wins) over its bid gives
    (S / q) log(1 + q b / S) - b S / (q b + S).
    """
    scores = relevance * bids
    others = (scores * (1 - np.eye(len(scores)))).sum(axis=1)
    ratio = np.divide(scores, others, out=np.zeros_like(scores), where=(others > 0) & (scores > 0))
    share = np.divide(np.log1p(ratio), ratio, out=np.ones_like(ratio), where=ratio > 0)
    payments: Array = bids * np.maximum(share - 1 / (1 + ratio), 0)
    return payments


def test_winners_come_in_proportion_to_score() -> None:
    noise = np.random.default_rng(0).gumbel(size=(DRAWS, 1, 4))
    winners, _ = segment.segment_auction(RELEVANCE, BIDS, noise, replace=True)
    shares = RELEVANCE * BIDS / (RELEVANCE @ BIDS)
    assert segment.probabilities(RELEVANCE, BIDS) == pytest.approx(shares)
    assert _chi_square(np.bincount(winners[:, 0], minlength=4), shares) < 16.3  # 99.9 %, 3 degrees
    assert _chi_square(np.bincount(winners[:, 0], minlength=4), np.full(4, 0.25)) > 100


def test_segments_with_and_without_replacement() -> None:
    noise = np.random.default_rng(1).gumbel(size=(DRAWS, 3, 4))
    again, _ = segment.segment_auction(RELEVANCE, BIDS, noise, replace=True)
    shares = segment.probabilities(RELEVANCE, BIDS)
    pairs = np.bincount(again[:, 0] * 4 + again[:, 2], minlength=16)
    assert _chi_square(pairs, np.outer(shares, shares).ravel()) < 37.7  # 99.9 %, 15 degrees
    once, _ = segment.segment_auction(RELEVANCE, BIDS, noise, replace=False)
    assert (np.diff(np.sort(once, axis=1), axis=1) > 0).all()
    left = shares * (np.arange(4) != 1)
    seconds = np.bincount(once[once[:, 0] == 1, 1], minlength=4)
    assert seconds[1] == 0
    assert _chi_square(seconds[[0, 2, 3]], (left / left.sum())[[0, 2, 3]]) < 13.9  # 99.9 %, 2 degrees


@given(SEEDS)
def test_the_price_is_the_lowest_bid_that_wins(seed: int) -> None:
    rng, relevance, bids = _random(seed)
    noise = rng.gumbel(size=(1, 4))
    winners, prices = segment.segment_auction(relevance, bids, noise, replace=True)
    winner, price = winners[0], prices[0]
    assert 0 <= price <= bids[winner]
    for factor, wins in ((1 + 1e-9, True), (1 - 1e-9, False)):
        other = bids.copy()
        other[winner] = price * factor
        assert (segment.segment_auction(relevance, other, noise, replace=True)[0][0] == winner) == wins


@given(SEEDS, st.booleans())
def test_scale(seed: int, replace: bool) -> None:
    rng, relevance, bids = _random(seed)
    noise = rng.gumbel(size=(3, 4))
    winners, prices = segment.segment_auction(relevance, bids, noise, replace=replace)
    same, money = segment.segment_auction(relevance * 3, bids * 100, noise, replace=replace)
    assert same.tolist() == winners.tolist()
    assert money == pytest.approx(prices * 100)


def test_expected_payment_is_what_winners_pay_on_average() -> None:
    noise = np.random.default_rng(2).gumbel(size=(DRAWS, 1, 4))
    winners, prices = segment.segment_auction(RELEVANCE, BIDS, noise, replace=True)
    for i, expected in enumerate(expected_payments(RELEVANCE, BIDS)):
        charged = np.where(winners == i, prices, 0)
        assert abs(charged.mean() - expected) < 4 * charged.std() / np.sqrt(DRAWS)


@given(SEEDS)
def test_expected_payment_is_the_myerson_integral(seed: int) -> None:
    _, relevance, bids = _random(seed)
    bids += 1
    others = relevance @ bids - relevance * bids
    for i, expected in enumerate(expected_payments(relevance, bids)):
        scores = relevance[i] * bids[i] * (NODES + 1) / 2
        area = bids[i] / 2 * WEIGHTS @ (scores / (scores + others[i]))
        assert expected == pytest.approx(
            bids[i] * segment.probabilities(relevance, bids)[i] - area, abs=1e-9
        )


def test_without_competitors_or_bids() -> None:
    winners, prices = segment.segment_auction([0.5, 0.5, 0.5], [10, 0, 0], np.zeros((2, 3)), replace=False)
    assert (winners.tolist(), prices.tolist()) == ([0, -1], [0, 0])
    assert segment.segment_auction([0.5], [10], [[0]], replace=True)[1].tolist() == [0]
    assert segment.probabilities([1, 1], [0, 0]).tolist() == [0, 0]
    assert expected_payments(np.array([0.5, 0.5, 0]), np.array([10, 0, 5])).tolist() == [0, 0, 0]


def test_without_replacement_a_later_segment_can_be_the_cheaper_one() -> None:
    """Two ads, two segments: each gets one, and who comes second pays nothing."""
    noise = np.random.default_rng(3).gumbel(size=(1000, 2, 2))
    spent = []
    for bid in (50.0, 1.0):
        winners, prices = segment.segment_auction([1, 1], [bid, 50], noise, replace=False)
        assert (np.sort(winners, axis=1) == [0, 1]).all()
        spent.append(prices[winners == 0].mean())
    assert spent[1] < spent[0] / 10


def test_subsets() -> None:
    members = segment.subsets(4, 2)
    assert members.shape == (6, 4)
    assert (members.sum(axis=1) == 2).all()
    assert len(np.unique(members, axis=0)) == 6


@given(SEEDS)
def test_set_prices_are_the_others_loss_and_at_most_the_bid(seed: int) -> None:
    rng, relevance, bids = _random(seed)
    quality = segment.subsets(4, 2) * relevance * rng.uniform(0.5, 1, (6, 4))
    noise = rng.gumbel(size=(5, 6))
    chosen, prices = segment.set_auction(quality, bids, noise)
    for draw in range(5):
        welfare = np.exp(noise[draw]) * (quality @ bids)
        assert chosen[draw] == welfare.argmax()
        for i in range(4):
            others = np.exp(noise[draw]) * (quality @ np.where(np.arange(4) == i, 0, bids))
            worth = np.exp(noise[draw, chosen[draw]]) * quality[chosen[draw], i]
            owed = others.max() - others[chosen[draw]]
            expected = owed / worth if worth else 0
            assert prices[draw, i] == pytest.approx(expected, abs=1e-9)
            assert 0 <= prices[draw, i] <= bids[i]
            assert worth or owed <= 1e-9


@given(SEEDS)
def test_no_misreport_gains_in_a_set_auction_as_it_counts_value(seed: int) -> None:
    rng, relevance, values = _random(seed)
    quality = segment.subsets(4, 2) * relevance * rng.uniform(0.5, 1, (6, 4))
    noise = rng.gumbel(size=6)

    def utility(bid: float) -> float:
        chosen, prices = segment.set_auction(quality, np.append(bid, values[1:]), noise)
        return float(np.exp(noise[chosen]) * quality[chosen, 0] * (values[0] - prices[0]))

    truth = utility(values[0])
    assert all(utility(bid) <= truth + 1e-9 for bid in np.linspace(0, 150, 40))


def test_sets_are_chosen_in_proportion_and_a_higher_bid_can_lower_the_clicks() -> None:
    quality = np.array([[1.0, 1.0], [0.5, 0.0]])
    noise = np.random.default_rng(4).gumbel(size=(DRAWS, 2))
    clicks = []
    for bid in (1.0, 100.0):
        scores = quality @ [bid, 100.0]
        chosen, _ = segment.set_auction(quality, [bid, 100.0], noise)
        assert _chi_square(np.bincount(chosen, minlength=2), scores / scores.sum()) < 10.9  # 99.9 %
        clicks.append(quality[chosen, 0].mean())
    assert clicks[1] < clicks[0] - 0.05


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="relevance"):
        segment.probabilities([-1, 1], [1, 1])
    with pytest.raises(ValueError, match="bids"):
        segment.probabilities([1, 1], [1, 1, 1])
    with pytest.raises(ValueError, match="noise"):
        segment.segment_auction([1, 1], [1, 1], [0, 0], replace=True)
    with pytest.raises(ValueError, match="noise"):
        segment.segment_auction([1, 1], [1, 1], [[0, 0, 0]], replace=True)
    with pytest.raises(ValueError, match="size"):
        segment.subsets(3, 4)
    with pytest.raises(ValueError, match="set_relevance"):
        segment.set_auction([[1, 0, 0]], [1, 1], [0])
