"""Mechanisms at a backend that writes and predicts by rule: who is listed, who pays what, what it costs."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from raylla.auction import ReadAnswer, markup, parse
from raylla.engines.protocol import Aggregated, Completion, Generated, JointText, Opening
from raylla.errors import ConfigError
from raylla.mechanisms.card import Card, second_price
from raylla.mechanisms.llm import LlmAuction, Pretrained
from raylla.mechanisms.mosaic import CANDIDATES, Mosaic
from raylla.mechanisms.protocol import (
    BASE,
    TRAINED,
    Joint,
    Mechanism,
    Offer,
    Prompt,
    named_mechanisms,
)
from raylla.mechanisms.rag import RagAuction
from raylla.records import Ad, Auction, Planned, Profile, Query

ADS = tuple(Ad(str(1000 + i), f"Brand Word{i}", "tea", "food") for i in range(4))
BIDS = (10.0, 80.0, 30.0, 50.0)


class Backend:
    """Draw d of a prompt places its listed ad d mod n; every placed ad is clicked half the time."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Prompt]] = []
        self.joint: list[tuple[str, Joint]] = []
        self.named = ""

    def write(self, version: str, prompts: Sequence[Prompt]) -> list[Generated]:
        found = []
        for prompt in prompts:
            self.asked.append((version, prompt))
            draws = [
                Completion(f"Try {markup(prompt.ads[d % len(prompt.ads)])}.", (d, 2, 3), True)
                for d in range(prompt.n)
            ]
            found.append(Generated("", (1,) * 10, tuple(draws)))
        return found

    highest_bid = 90.0

    def write_jointly(self, version: str, wanted: Sequence[Joint]) -> list[Aggregated]:
        """Entrant d mod their number opens draw d at a tenth of its bid and places its ad; then its model
        names the last ad of the auction."""
        self.joint.extend((version, one) for one in wanted)
        found = []
        for one in wanted:
            entered = [place for place, bid in enumerate(one.bids) if bid > 0]
            texts = []
            for d in range(one.n):
                place = entered[d % len(entered)]
                text = f"Try {markup(one.planned.ads[place])} or {markup(one.planned.ads[-1])}."
                opening = Opening(place, 4, one.bids[place] / 10)
                texts.append(JointText(text, 7, True, (opening,)))
            lengths = tuple(5 * (bid > 0) for bid in one.bids)
            found.append(Aggregated("", lengths, tuple(texts)))
        return found

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The more like an organic answer, the less it is of ad 3."""
        return np.array([[1.0, 1.0 if ADS[3].title in text else 0.0] for text in texts], np.float32)

    def organic(self, auctions: Sequence[Planned], what: str) -> list[Generated]:
        draws = [
            Completion(f"Well, {self.named}{d}.\n", (d, 2), True)
            for d in range(max(one.n for one in auctions))
        ]
        return [Generated("", (1,) * 4, tuple(draws[: one.n])) for one in auctions]

    def score(self, version: str, wanted: Sequence[tuple[Prompt, Sequence[int]]]) -> list[float]:
        """Draw d's first token is d: without ads it is e^-d times as likely as with them."""
        return [0.0 if prompt.ads else -float(tokens[0]) for prompt, tokens in wanted]

    def predict(self, answers: Sequence[ReadAnswer], epoch: int) -> list[dict[str, float]]:
        return [dict.fromkeys(answer.parsed.ad_ids, 0.5) for answer in answers]

    def costs(self, answers: Sequence[ReadAnswer]) -> list[float]:
        return [0.0] * len(answers)

    def relevance(self, auctions: Sequence[Planned]) -> list[NDArray[np.float64]]:
        return [np.array([0.9, 0.0, 0.0, 0.0]) for _ in auctions]

    def generator(self, planned: Planned, what: str) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(f"{planned.auction.id}{what}".encode()))


def auctions(count: int, n: int) -> list[Planned]:
    query = Query("q", "p", "which tea?", "tea", "food", "test")
    return [
        Planned(
            "test",
            Auction(f"e0/test/q{i}", "q", tuple(ad.id for ad in ADS), BIDS),
            query,
            Profile("p", "30 nurse Oslo", ("tea",)),
            ADS,
            n,
        )
        for i in range(count)
    ]


@pytest.mark.parametrize(("mechanism", "version"), [(Pretrained(), BASE), (LlmAuction(), TRAINED)])
def test_the_model_alone_pays_bids(mechanism: Mechanism, version: str) -> None:
    backend = Backend()
    ran = mechanism.run(backend, auctions(3, 4), mechanism.choices(3)[0])
    assert {asked for asked, _ in backend.asked} == {version}
    assert backend.asked[0][1].bids == BIDS
    assert [len(one.offers) for one in ran] == [4, 4, 4]
    assert dict(ran[0].offers[1].prices) == dict(zip([ad.id for ad in ADS], BIDS, strict=True))
    assert (ran[0].served, ran[0].generations, ran[0].sampled_tokens) == (4, 4, 12)


def test_rag_lists_the_winner_and_charges_less_than_its_bid() -> None:
    backend = Backend()
    mechanism = RagAuction()
    choice = {"ads": 1, "rule": "without replacement", "temperature": 0.02}
    ran = mechanism.run(backend, auctions(50, 4), choice)
    assert all(len(prompt.ads) == 1 and prompt.bids == (None,) for _, prompt in backend.asked)
    # Relevance e^45 times the others' outweighs any bid.
    assert {prompt.ads[0].id for _, prompt in backend.asked} == {"1000"}
    prices = [offer.prices["1000"] for one in ran for offer in one.offers]
    assert max(prices) <= BIDS[0]


@pytest.mark.parametrize("rule", ["without replacement", "with replacement", "set"])
def test_rag_of_several_ads(rule: str) -> None:
    backend = Backend()
    ran = RagAuction().run(backend, auctions(40, 2), {"ads": 2, "rule": rule, "temperature": 10.0})
    listed = [len(prompt.ads) for _, prompt in backend.asked]
    assert set(listed) == ({1, 2} if rule == "with replacement" else {2})
    for one in ran:
        for offer in one.offers:
            assert all(0 <= price <= BIDS[int(ad) - 1000] for ad, price in offer.prices.items())
    chosen = [prompt.ads for _, prompt in backend.asked]
    share = [np.mean([ADS[i] in ads for ads in chosen]) for i in range(4)]
    assert share[1] > share[0]  # 80 against 10


def test_mosaic_hides_the_bids_and_takes_the_best_at_zero() -> None:
    backend = Backend()
    ran = Mosaic().run(backend, auctions(3, 4), {"tau": 0.0, "pctr_epoch": 3, "reference": "generator"})
    assert all(prompt.bids == (None,) * 4 and prompt.n == CANDIDATES for _, prompt in backend.asked)
    assert {offer.text for one in ran for offer in one.offers} == {f"Try {markup(ADS[1])}."}
    assert ran[0].offers[0].prices["1001"] == pytest.approx(50)  # the second highest, per click
    assert ran[0].offers[0].prices["1003"] == 0
    assert (ran[0].served, ran[0].generations) == (1, CANDIDATES)
    assert ran[0].notes["effective_sample_size"] == pytest.approx(5)


def test_other_bids_leave_mosaic_s_candidates_as_they_are() -> None:
    asked = []
    for bids in (BIDS, tuple(reversed(BIDS))):
        backend, planned = Backend(), auctions(3, 4)
        changed = [replace(one, auction=replace(one.auction, bids=bids)) for one in planned]
        Mosaic().run(backend, changed, {"tau": 1.0, "pctr_epoch": 3, "reference": "generator"})
        asked.append([(prompt.ads, prompt.bids, prompt.n, prompt.name) for _, prompt in backend.asked])
    assert asked[0] == asked[1]


def test_mosaic_at_a_high_temperature_returns_anything() -> None:
    ran = Mosaic().run(Backend(), auctions(60, 4), {"tau": 1e6, "pctr_epoch": 1, "reference": "generator"})
    assert len({offer.text for one in ran for offer in one.offers}) == 4
    assert ran[0].offers[0].prices["1001"] == pytest.approx(0, abs=0.01)


def test_mosaic_keeps_close_to_the_organic_model() -> None:
    ran = Mosaic().run(Backend(), auctions(60, 4), {"tau": 1e6, "pctr_epoch": 1, "reference": "organic"})
    texts = [offer.text for one in ran for offer in one.offers]
    # Rewards do not count; ad i is in the draws i, i + 4, ..., which share e^-i (1 + e^-4 + ...).
    share = [np.mean([markup(ad) in text for text in texts]) for ad in ADS]
    likely = np.exp(-np.arange(4.0))
    assert share == pytest.approx(likely / likely.sum(), abs=0.1)
    notes = ran[0].notes
    assert notes["effective_sample_size_of_ratios"] == pytest.approx(1 / np.tanh(0.5), rel=1e-6)
    assert notes["effective_sample_size"] == pytest.approx(
        notes["effective_sample_size_of_ratios"], rel=1e-3
    )


def test_the_card_is_below_the_organic_answer_at_the_second_price() -> None:
    backend = Backend()
    ran = Card().run(backend, auctions(2, 3), {"reserve": 0.0, "pctr_epoch": 3})
    assert not backend.asked  # nothing was written for ads
    assert [offer.text for offer in ran[1].offers] == [
        f"Well, {d}.\n\nSponsored: {markup(ADS[1])}" for d in range(3)
    ]
    assert {tuple(offer.prices.items()) for one in ran for offer in one.offers} == {(("1001", 50.0),)}
    assert (ran[0].served, ran[0].generations, ran[0].prompt_tokens, ran[0].sampled_tokens) == (3, 3, 12, 6)


def test_a_card_shows_the_description_and_none_is_shown_below_the_reserve() -> None:
    planned = auctions(1, 1)[0]
    ads = tuple(replace(ad, description="Leaves @from@[Ad-1000] the hill.") for ad in ADS)
    (shown,) = Card().run(Backend(), [replace(planned, ads=ads)], {"reserve": 70.0, "pctr_epoch": 1})
    placed = parse(shown.offers[0].text, ads)
    assert [one.ad_id for one in placed.placements] == ["1001"]
    assert not placed.violations
    assert shown.offers[0].text.endswith("\nLeaves from Ad-1000 the hill.")
    assert shown.offers[0].prices == {"1001": 70.0}
    (none,) = Card().run(Backend(), [planned], {"reserve": 81.0, "pctr_epoch": 1})
    assert none.offers == (Offer("Well, 0.\n", {}),)


numbers = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1), st.floats(0, 120)), min_size=1, max_size=6)


@given(sellers=numbers, reserve=st.sampled_from([0.0, 25.0, 50.0]))
def test_a_second_price_is_one_s_least_winning_bid(
    sellers: list[tuple[float, float, float]], reserve: float
) -> None:
    values, rates, others = (np.array(column) for column in zip(*sellers, strict=True))
    truthful = second_price(values, rates, reserve)
    if truthful is not None:
        winner, price = truthful
        assert reserve <= price <= values[winner]
    for place in range(len(values)):  # no other bid is worth more to whom it is made for
        other = values.copy()
        other[place] = others[place]
        worth = [
            rates[place] * (values[place] - won[1]) if won is not None and won[0] == place else 0.0
            for won in (truthful, second_price(other, rates, reserve))
        ]
        assert worth[1] <= worth[0] + 1e-9
        higher = values.copy()
        higher[place] += others[place]
        if truthful is not None and truthful[0] == place:
            again = second_price(higher, rates, reserve)
            assert again == (place, pytest.approx(truthful[1]))  # monotone


def test_who_is_never_clicked_wins_no_card() -> None:
    assert second_price([100, 1], [0, 0.5], 0) == (1, 0)
    assert second_price([100], [0.0], 0) is None
    assert second_price([10, 9], [0.5, 1.0], 0) == (1, 5.0)


@pytest.mark.parametrize(
    ("bids", "rates", "reserve", "said"),
    [
        ([-1], [0.5], 0, "bids"),
        ([1], [1.5], 0, "rates"),
        ([1], [0.5, 0.5], 0, "rates"),
        ([1], [0.5], -1, "reserve"),
    ],
)
def test_what_is_no_bid_or_rate_is_named(
    bids: list[float], rates: list[float], reserve: float, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        second_price(bids, rates, reserve)


def test_choices_name_existing_epochs_once() -> None:
    assert {choice["pctr_epoch"] for choice in Mosaic().choices(1)} == {1}
    for mechanism in (Mosaic(), RagAuction(), Card()):
        choices = [tuple(sorted(choice.items())) for choice in mechanism.choices(3)]
        assert len(set(choices)) == len(choices) > 1


def test_mechanisms_by_name() -> None:
    assert [one.name for one in named_mechanisms(["mosaic", "card"])] == ["mosaic", "card"]
    with pytest.raises(ConfigError, match=r"'mosaik'; there are .*mosaic"):
        named_mechanisms(["mosaik"])
