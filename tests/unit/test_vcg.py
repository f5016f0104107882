"""Range VCG, screened VCG and the token auction: what no bid changes, prices, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylla.auction import markup
from raylla.engines.protocol import Completion, Generated
from raylla.mechanisms.mosaic import priced
from raylla.mechanisms.protocol import BASE, TRAINED, Mechanism, Offer, Prompt
from raylla.mechanisms.ranges import RangeVcg
from raylla.mechanisms.screened import ScreenedVcg, screened_vcg
from raylla.mechanisms.tokens import TokenAuction, entrants
from raylla.records import Planned
from tests.unit.test_mechanisms import ADS, BIDS, Backend, auctions

SEEDS = st.integers(0, 2**32 - 1)
BEST = {"answers": 1, "tau": 0.0, "pctr_epoch": 3}
ALONE = {"ads": 1, "quality": 10.0, "pctr_epoch": 3}
PAIR = {"bidders": 2, "aggregation": "linear"}


class Reading(Backend):
    """Places the ad of the highest bid."""

    def write(self, version: str, prompts: Sequence[Prompt]) -> list[Generated]:
        found = []
        for prompt in prompts:
            self.asked.append((version, prompt))
            best = max(range(len(prompt.ads)), key=lambda place: prompt.bids[place] or 0)
            draw = Completion(f"Try {markup(prompt.ads[best])}.", (1, 2, 3), True)
            found.append(Generated("", (1,) * 10, (draw,) * prompt.n))
        return found


def bidding(planned: Planned, bids: tuple[float, ...]) -> Planned:
    return replace(planned, auction=replace(planned.auction, bids=bids))


def test_a_range_has_an_answer_for_each_ad_under_its_own_profile() -> None:
    backend = Reading()
    (ran,) = RangeVcg().run(backend, auctions(1, 3), BEST)
    assert {version for version, _ in backend.asked} == {TRAINED}
    assert [prompt.bids for _, prompt in backend.asked] == [
        tuple(90.0 if at == place else 1.0 for at in range(4)) for place in range(4)
    ]
    assert {offer.text for offer in ran.offers} == {f"Try {markup(ADS[1])}."}  # it bids 80, and the next 50
    assert ran.offers[0].prices == {"1000": 0.0, "1001": pytest.approx(50), "1002": 0.0, "1003": 0.0}
    assert (len(ran.offers), ran.served, ran.generations, ran.prompt_tokens) == (3, 1, 5, 44)
    assert ran.notes["organic"] == 0


def test_a_range_of_more_answers_begins_with_that_of_fewer() -> None:
    few, more = Reading(), Reading()
    RangeVcg().run(few, auctions(1, 2), BEST)
    (ran,) = RangeVcg().run(more, auctions(1, 2), BEST | {"answers": 2})
    assert ran.generations == 9
    assert all(one in more.asked for one in few.asked)


def test_nobody_pays_for_a_range_without_bids() -> None:
    backend = Reading()
    (nobody,) = RangeVcg().run(backend, [bidding(auctions(1, 1)[0], (0.0,) * 4)], BEST | {"tau": 1e-3})
    assert nobody.notes["organic"] == pytest.approx(1 / 5)  # all are worth the same
    assert set(nobody.offers[0].prices.values()) == {0.0}


@pytest.mark.parametrize(
    ("mechanism", "choice"),
    [(RangeVcg(), BEST), (ScreenedVcg(), ALONE), (ScreenedVcg(), ALONE | {"ads": 2})],
)
def test_other_bids_leave_the_candidates_as_they_are(
    mechanism: Mechanism, choice: dict[str, float | int | str | bool]
) -> None:
    asked = []
    for bids in (BIDS, tuple(reversed(BIDS)), (0.0, 0.0, 0.0, 1.0)):
        backend = Backend()
        mechanism.run(backend, [bidding(one, bids) for one in auctions(3, 2)], choice)
        first = backend.asked[: 3 * len(ADS)]  # before what is written about several that were sold
        asked.append([(prompt.ads, prompt.bids, prompt.n, prompt.name) for _, prompt in first])
    assert asked[0] == asked[1] == asked[2]


class Range:
    """Random candidates of 4 ads, the first of them organic."""

    def __init__(self, seed: int, count: int = 7) -> None:
        self.rng = np.random.default_rng(seed)
        shown = self.rng.random((4, count)) < 0.5
        shown[:, 0] = False
        self.rates = shown * self.rng.uniform(0.01, 1, (4, count))
        self.costs = self.rng.uniform(0, 60, count) * (np.arange(count) > 0)
        self.values = self.rng.uniform(0, 100, 4)

    def utility(self, bids: tuple[float, ...], tau: float) -> tuple[np.ndarray, np.ndarray]:
        """Of bidders with ``values`` at ``bids``, in expectation; and prices per click."""
        shown = [dict(zip("0123", column, strict=True)) for column in self.rates.T.tolist()]
        planned = auctions(1, 1)[0]
        named = replace(planned.auction, bids=bids, ad_ids=tuple("0123"))
        log_p, prices = priced(
            replace(planned, auction=named), shown, self.costs, np.zeros(len(shown)), tau
        )
        paid = np.array(list(prices.values()))
        return (self.values - paid) * (self.rates @ np.exp(log_p)), paid


@given(SEEDS, st.sampled_from([0.0, 1.0, 10.0]))
def test_no_misreport_gains_in_a_range(seed: int, tau: float) -> None:
    case = Range(seed)
    values = tuple(case.values.tolist())
    truth, paid = case.utility(values, tau)
    assert (truth >= -1e-9).all()
    assert ((paid >= 0) & (paid <= case.values + 1e-9)).all()
    for bidder in range(4):
        for report in [0.0, *case.rng.uniform(0, 200, 5), *(case.values[bidder] * np.array([0.9, 1.1]))]:
            bids = list(values)
            bids[bidder] = float(report)
            assert case.utility(tuple(bids), tau)[0][bidder] <= truth[bidder] + 1e-9
    case.rates[2] = 0
    assert case.utility(values, tau)[1][2] == 0  # who is never clicked pays nothing


@given(SEEDS, st.integers(1, 3))
def test_no_misreport_gains_in_a_screened_auction(seed: int, places: int) -> None:
    rng = np.random.default_rng(seed)
    values, rates = rng.uniform(0, 100, 5), rng.uniform(0, 1, 5) * (rng.random(5) < 0.8)
    losses = rng.uniform(0, 40, 5)
    winners, prices = screened_vcg(values, rates, losses, places)
    assert len(winners) <= places
    for place in range(5):
        if place not in winners:
            assert prices[place] == 0
            continue
        assert losses[place] / rates[place] - 1e-9 <= prices[place] <= values[place]  # the reserve
        truth = rates[place] * (values[place] - prices[place])
        for report in (*rng.uniform(0, 200, 5), prices[place] * 1.001, values[place] * 3):
            bids = values.copy()
            bids[place] = report
            again, owed = screened_vcg(bids, rates, losses, places)
            if report > prices[place] + 1e-9:  # monotone, and its own bid does not change its price
                assert place in again
                assert owed[place] == pytest.approx(prices[place])
            assert (place in again) * rates[place] * (values[place] - owed[place]) <= truth + 1e-9
    for place in set(range(5)) - set(winners.tolist()):
        for report in (*rng.uniform(0, 200, 5), 1e4):
            bids = values.copy()
            bids[place] = report
            again, owed = screened_vcg(bids, rates, losses, places)
            assert (place in again) * rates[place] * (values[place] - owed[place]) <= 1e-9


def test_an_ad_that_costs_more_than_it_brings_does_not_enter() -> None:
    winners, prices = screened_vcg([10, 80, 30, 50], [0.5, 0.5, 0.5, 0], [1, 30, 14.9, 0], 2)
    assert winners.tolist() == [1, 0]  # worth 10, 4 and 0.1
    assert prices == pytest.approx([2.2, 60.2, 0, 0])
    nobody, _ = screened_vcg([10, 80], [0.5, 0.5], [5, 40], 1)
    assert nobody.tolist() == []  # a marginal welfare of 0 is not positive


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        (([-1], [0.5], [0], 1), "bids"),
        (([1], [2], [0], 1), "rates"),
        (([1], [0.5], [-1], 1), "losses"),
        (([1], [0.5], [0], 0), "places=0"),
        (([1], [0.5, 0.5], [0], 1), "rates has shape"),
    ],
)
def test_what_cannot_be_screened_is_named(given_: tuple[list[float], ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        screened_vcg(*given_)  # type: ignore[arg-type]


def test_the_screen_lets_in_whom_likeness_does_not_rule_out() -> None:
    backend = Backend()
    (ran,) = ScreenedVcg().run(backend, auctions(1, 2), ALONE)
    assert {version for version, _ in backend.asked} == {BASE}
    assert [(prompt.ads, prompt.bids) for _, prompt in backend.asked] == [((ad,), (None,)) for ad in ADS]
    # Ad 3's answer is unlike the organic one: 1 - 1/sqrt(2) lost, at 10 a unit.
    second = 50 * 0.5 - 10 * (1 - 2**-0.5)
    assert [dict(offer.prices) for offer in ran.offers] == [{"1001": pytest.approx(second / 0.5)}] * 2
    assert {offer.text for offer in ran.offers} == {f"Try {markup(ADS[1])}."}
    assert (ran.served, ran.generations, ran.notes["passed"]) == (2, 10, 1.0)


def test_where_nobody_passes_the_reader_gets_the_organic_answer() -> None:
    (ran,) = ScreenedVcg().run(Backend(), [bidding(auctions(1, 1)[0], (0.0, 0.0, 0.0, 5.0))], ALONE)
    # 5 x 0.5 for 10 (1 - 1/sqrt(2)) = 2.93; who bids 0 loses nothing and brings nothing.
    assert ran.offers == (Offer("Well, 0.\n", {}),)
    assert ran.notes["passed"] == 0


def test_several_that_are_sold_are_written_about_together() -> None:
    backend = Backend()
    (ran,) = ScreenedVcg().run(backend, auctions(1, 2), ALONE | {"ads": 2})
    assert [prompt.ads for _, prompt in backend.asked[4:]] == [(ADS[1], ADS[3])] * 2
    third = 30 * 0.5
    lost = 10 * (1 - 2**-0.5)
    assert dict(ran.offers[1].prices) == {
        "1001": pytest.approx(third / 0.5),
        "1003": pytest.approx((third + lost) / 0.5),
    }
    assert (ran.served, ran.generations) == (2, 12)


@given(SEEDS, st.integers(1, 4))
def test_who_enters_does_so_from_its_least_bid_on(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    bids, relevance = rng.uniform(0.1, 100, 5), rng.uniform(0.01, 1, 5)
    weights, least = entrants(bids, relevance, count)
    assert (weights > 0).sum() == count
    assert set(np.flatnonzero(weights)) == set(np.argsort(-bids * relevance)[:count])
    for place in np.flatnonzero(weights):
        assert 0 <= least[place] <= bids[place]
        for share, enters in ((1.001, True), (0.999, False)):
            changed = bids.copy()
            changed[place] = least[place] * share
            again, price = entrants(changed, relevance, count)
            assert (again[place] > 0) == enters
            if enters:
                assert price[place] == pytest.approx(least[place])


def test_the_token_auction_charges_the_second_price_of_the_opening() -> None:
    backend = Backend()
    planned = bidding(auctions(1, 4)[0], (10.0, 80.0, 30.0, 0.5))
    (ran,) = TokenAuction().run(backend, [planned], PAIR)
    ((version, joint),) = backend.joint
    # Relevance e^9 times the others' brings ad 0 in; ad 1 outbids ad 2.
    assert (version, joint.bids, joint.rule, joint.n) == (BASE, (10.0, 80.0, 0.0, 0.0), "linear", 4)
    # An opening costs a tenth of the bid; to enter, ad 1 has to bid 30, and ad 0 30 / e^9.  The last ad is
    # placed by a model that is not its own, and pays nothing.
    assert [dict(offer.prices) for offer in ran.offers] == [{"1000": 1.0}, {"1001": 30.0}] * 2
    assert (ran.served, ran.generations, ran.prompt_tokens, ran.sampled_tokens) == (4, 8, 40, 2 * 4 * 7)
    assert ran.notes == {"markups_begun": 1.0, "markups_whole": 1.0}


def test_without_bids_nobody_writes_but_the_organic_model() -> None:
    backend = Backend()
    planned = bidding(auctions(1, 2)[0], (0.0,) * 4)
    ran = TokenAuction().run(backend, [planned, auctions(1, 2)[0]], PAIR)
    assert [offer.text for offer in ran[0].offers] == ["Well, 0.\n", "Well, 1.\n"]
    assert len(backend.joint) == 1
    assert len(ran[1].offers) == 2


def test_settings_of_the_new_mechanisms_are_distinct() -> None:
    for mechanism, epochs in ((RangeVcg(), {1, 3}), (ScreenedVcg(), {1, 3}), (TokenAuction(), {None})):
        choices = [tuple(sorted(one.items())) for one in mechanism.choices(3)]
        assert len(set(choices)) == len(choices) > 1
        assert {dict(one).get("pctr_epoch") for one in choices} == epochs
