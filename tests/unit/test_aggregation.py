"""The token auction's arithmetic: what is drawn and the least bid for it; texts of several models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylla.auction import aggregation, parse
from raylla.auction.checks import Array
from raylla.config import Sampling
from raylla.engines.aggregating import Joined, Joining, Listed, as_sampled, joined, union, write_jointly
from raylla.engines.protocol import Aggregate, JointText
from raylla.records import Ad

SEEDS = st.integers(0, 2**32 - 1)
DRAWS = 20_000
PUBLISHED = np.array([[0.8, 0.2], [1.0, 0.0], [0.0, 1.0]])
ADS = tuple(Ad(str(1000 + i), f"Brand Word{i}", "tea", "food") for i in range(3))


class Case:
    """Random distributions over 6 tokens, bids and noise of 3 bidders."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.log_p = np.log(rng.dirichlet(np.full(6, 0.4), 3) + 1e-6)
        self.log_p -= np.logaddexp.reduce(self.log_p, axis=1, keepdims=True)
        self.bids = rng.uniform(0.5, 100, 3)
        self.noise, self.race = rng.gumbel(size=6), rng.exponential(size=3)
        self.rng = rng

    def bidding(self, bidder: int, bid: float) -> Array:
        bids = self.bids.copy()
        bids[bidder] = bid
        return bids


def test_the_linear_aggregate_is_the_bids_mean_of_the_models() -> None:
    """The paper's example: bids 1, 2, 2 make (0.56, 0.44)."""
    rng = np.random.default_rng(0)
    with np.errstate(divide="ignore"):
        log_p = np.log(PUBLISHED)
    first = 0
    for race, noise in zip(rng.exponential(size=(DRAWS, 3)), rng.gumbel(size=(DRAWS, 2)), strict=True):
        bidder, _ = aggregation.race_winner([1, 2, 2], np.ones(3), race)
        first += (log_p[bidder] + noise).argmax() == 0
    assert first / DRAWS == pytest.approx(0.56, abs=3.3 * np.sqrt(0.56 * 0.44 / DRAWS))


def test_the_log_linear_aggregate_is_a_geometric_mean() -> None:
    q = np.exp(aggregation.log_linear(np.log([[0.8, 0.2], [0.5, 0.5], [0.1, 0.9]]), [3, 1, 0]))
    odds = (0.8 / 0.2) ** 0.75
    assert q == pytest.approx([odds / (1 + odds), 1 / (1 + odds)])
    assert np.exp(aggregation.log_linear(np.log([[0.8, 0.2]]), [7])) == pytest.approx([0.8, 0.2])
    with np.errstate(divide="ignore"), pytest.raises(ValueError, match="no token is possible for all"):
        aggregation.log_linear(np.log(PUBLISHED), [1, 2, 2])


def test_log_linear_tokens_come_as_their_aggregate_says() -> None:
    case = Case(3)
    q = np.exp(aggregation.log_linear(case.log_p, case.bids))
    noise = case.rng.gumbel(size=(DRAWS, 6))
    drawn = [aggregation.log_linear_token(case.log_p, case.bids, one) for one in noise]
    assert np.bincount(drawn, minlength=6) / DRAWS == pytest.approx(q, abs=0.015)


@given(SEEDS, st.integers(0, 2))
def test_a_drawn_bidder_stays_from_its_least_bid_on_which_is_the_others(seed: int, bidder: int) -> None:
    case = Case(seed)
    qualities = np.exp(case.log_p[:, 0])
    prices, drawn = set(), []
    for bid in [*np.geomspace(0.01, 1e4, 25), case.bids[bidder]]:
        winner, least = aggregation.race_winner(case.bidding(bidder, bid), qualities, case.race)
        assert 0 <= least <= case.bidding(bidder, bid)[winner]
        drawn.append((bid, winner, int((case.log_p[winner] + case.noise).argmax())))
        if winner == bidder:
            prices.add(round(least, 9))
    (_, rival, before), (_, last, after) = min(drawn), max(drawn)
    if last == bidder != rival:  # its model's token, of the same noise, is the one that it finds likelier
        gain = case.log_p[bidder] - case.log_p[rival]
        assert gain[after] >= gain[before]
        assert {token for _, _, token in drawn} == {before, after}
    if prices:
        (price,) = prices  # its own bid does not change it
        for share, wins in ((1.001, True), (0.999, False)):
            again, _ = aggregation.race_winner(case.bidding(bidder, price * share), qualities, case.race)
            assert (again == bidder) == wins


@given(SEEDS, st.integers(0, 2))
def test_log_linear_sampling_is_stable(seed: int, bidder: int) -> None:
    """As a bid rises, what is drawn is ever likelier to its bidder against the others' aggregate."""
    case = Case(seed)
    others = aggregation.log_linear(np.delete(case.log_p, bidder, axis=0), np.delete(case.bids, bidder))
    slopes = case.log_p[bidder] - others
    grid = np.geomspace(1e-3, 1e5, 60)
    drawn = [aggregation.log_linear_token(case.log_p, case.bidding(bidder, b), case.noise) for b in grid]
    assert (np.diff(slopes[drawn]) >= 0).all()
    for bid, token in zip(grid, drawn, strict=True):
        bids = case.bidding(bidder, bid)
        least = aggregation.keeping_bid(case.log_p, bids, case.noise, bidder)
        assert 0 <= least <= bid
        if least > 1e-9:
            for share, same in ((1 + 1e-6, True), (1 - 1e-6, False)):
                lower = case.bidding(bidder, min(least * share, bid))
                assert (aggregation.log_linear_token(case.log_p, lower, case.noise) == token) == same


def test_who_bids_alone_keeps_its_token_for_nothing() -> None:
    case = Case(0)
    assert aggregation.keeping_bid(case.log_p, [0, 9, 0], case.noise, 1) == 0
    assert aggregation.race_winner([0, 9, 0], np.ones(3), case.race) == (1, 0.0)


@pytest.mark.parametrize(
    ("log_p", "bids", "said"),
    [
        ([[0.0]], [-1], "bids"),
        ([[0.0]], [0], "above 0"),
        ([[0.0]], [1, 1], "a row"),
        ([[0.5]], [1], "logs of probabilities"),
    ],
)
def test_what_is_no_aggregate_is_named(log_p: list[list[float]], bids: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        aggregation.log_linear(log_p, bids)
    with pytest.raises(ValueError, match="above 0"):
        aggregation.race_winner([1, 0], [0, 1], [1, 1])


WORDS = [" tea", " is", " fine", " and", " good", " @", "Brand", " Word0", " Word1", " Word2"]
WORDS += ["@[Ad-", "1000", "1001", "1002", "]", ".", "</s>"]
END = len(WORDS) - 1
AT = {word: place for place, word in enumerate(WORDS)}


def ahead(contexts: Sequence[list[int]]) -> list[Listed]:
    """Models that say words, name their own ad where a markup is open, and end after a stop.

    A context's first id says whose it is."""
    found = []
    for whose, *said in contexts:
        text = "".join(WORDS[one] for one in said)
        tail = text[text.rfind("@", 0, text.rfind("@[Ad-") if text.endswith("@[Ad-") else None) :]
        follow = {" @": "Brand", "Brand": f" Word{whose}", f" Word{whose}": "@[Ad-", "@[Ad-": f"100{whose}"}
        last = WORDS[said[-1]] if said else ""
        if last.isdecimal():
            chances = {"]": 1.0}
        elif last in follow:
            chances = {follow[last]: 0.999, " tea": 0.001}
        elif last == ".":
            chances = {"</s>": 1.0}
        else:
            assert not last.startswith(" Word"), f"{whose} was asked to go on with {tail!r}"
            chances = {WORDS[one]: 0.15 for one in range(5)} | {" @": 0.2, ".": 0.05}
        ids = np.array([AT[word] for word in chances])
        found.append((ids, np.log(list(chances.values()))))
    return found


def write(
    rule: aggregation.Aggregation, bids: tuple[float, ...], n: int, longest: int = 60, seed: int = 0
) -> list[JointText]:
    request = Aggregate("a", tuple([{}] for _ in bids), bids, rule, n, seed)
    prompts = [[place] for place in range(len(bids))]
    texts = [Joined(request, draw, prompts) for draw in range(n)]
    joining = Joining(
        ahead,
        lambda ids: "".join(WORDS[one] for one in ids if one != END),
        {END},
        len(WORDS),
        Sampling(max_tokens=longest),
    )
    write_jointly(texts, joining)
    told = joined(request, prompts, texts)
    assert told.prompt_tokens == (1,) * len(bids)
    return list(told.texts)


@pytest.mark.parametrize("rule", aggregation.AGGREGATIONS)
def test_who_opens_a_markup_finishes_it(rule: aggregation.Aggregation) -> None:
    texts = write(rule, (30.0, 60.0, 0.0), 60)
    begun = [(one, opening) for one in texts for opening in one.openings]
    assert {opening.bidder for _, opening in begun} == {0, 1}  # who bids nothing has no part in it
    whole = 0
    for one, opening in begun:
        rest = one.text[opening.start :]
        assert rest.startswith("@")
        assert 0 <= opening.least <= (30.0, 60.0)[opening.bidder]
        own = f"@Brand Word{opening.bidder}@[Ad-100{opening.bidder}]"
        assert own.startswith(rest[: len(own)]) or " tea" in rest[:22]  # cut, or the model's own mistake
        whole += rest.startswith(own)
    assert whole > 0.9 * len(begun)
    shares = np.bincount([opening.bidder for _, opening in begun], minlength=2) / len(begun)
    assert shares[1] == pytest.approx(2 / 3, abs=0.15)
    assert all(one.text.endswith(".") and one.finished for one in texts if one.tokens < 60)
    assert any(len(parse(one.text, ADS).placements) == 2 for one in texts)


def test_joint_texts_follow_from_seed_and_draw() -> None:
    first = write("linear", (30.0, 60.0, 10.0), 8)
    assert write("linear", (30.0, 60.0, 10.0), 8) == first
    assert write("linear", (30.0, 60.0, 10.0), 3, seed=5) == first[5:]
    assert write("linear", (30.0, 60.0, 10.0), 8, seed=99) != first
    assert {one.tokens for one in write("log-linear", (1.0, 2.0), 8, longest=4)} <= {2, 3, 4}


def test_a_bid_buys_its_own_markup_at_the_least_bid_for_it() -> None:
    """The first opening of a text comes after the same words: just below its price it is another's."""
    bids = (30.0, 60.0, 40.0)
    tried = 0
    for draw, one in enumerate(write("linear", bids, 40)):
        if not one.openings or one.openings[0].least < 1e-6:
            continue
        opening = one.openings[0]
        changed = list(bids)
        for share, kept in ((0.999, False), (1.001, True)):
            changed[opening.bidder] = opening.least * share
            (again,) = write("linear", tuple(changed), 1, seed=draw)
            same = [(found.bidder, found.start) for found in again.openings[:1]]
            if again.text[: opening.start] == one.text[: opening.start]:
                assert (same == [(opening.bidder, opening.start)]) == kept
                tried += 1
    assert tried > 5


def test_a_list_is_cut_as_its_model_is_sampled() -> None:
    ids, logs = np.array([7, 3, 5, 9]), np.log([0.1, 0.4, 0.3, 0.05])
    kept, log_p = as_sampled(ids, logs, Sampling(top_k=3, temperature=1.0))
    assert kept.tolist() == [3, 5, 7]
    assert np.exp(log_p) == pytest.approx([0.5, 0.375, 0.125])
    assert as_sampled(ids, logs, Sampling(top_k=3, top_p=0.6))[0].tolist() == [3, 5]
    cold = as_sampled(ids, logs, Sampling(temperature=0.5))
    assert np.exp(cold[1][0] - cold[1][1]) == pytest.approx((0.4 / 0.3) ** 2)
    assert as_sampled(ids, logs, Sampling(temperature=0))[0].tolist() == [3]


def test_a_token_that_a_list_lacks_has_its_lowest_chance() -> None:
    lists = [(np.array([4, 2]), np.log([0.6, 0.2])), (np.array([9, 2]), np.log([0.5, 0.25]))]
    ids, table = union(lists, 1.0)
    assert ids.tolist() == [2, 4, 9]
    assert np.exp(table) == pytest.approx(np.array([[0.25, 0.75, 0.25], [1 / 3, 1 / 3, 2 / 3]]))
