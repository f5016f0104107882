"""Mechanisms at a backend that writes and predicts by rule: who is listed, who pays what, what it costs."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from raylla.auction import markup
from raylla.config import Penalty
from raylla.engines.protocol import Completion, Generated
from raylla.errors import ConfigError
from raylla.mechanisms.llm import LlmAuction, Pretrained
from raylla.mechanisms.mosaic import CANDIDATES, Mosaic
from raylla.mechanisms.protocol import BASE, TRAINED, Mechanism, Prompt, named_mechanisms
from raylla.mechanisms.rag import RagAuction
from raylla.records import Ad, Auction, Planned, Profile, Query

ADS = tuple(Ad(str(1000 + i), f"Brand Word{i}", "tea", "food") for i in range(4))
BIDS = (10.0, 80.0, 30.0, 50.0)


class Backend:
    """Draw d of a prompt places its listed ad d mod n; every placed ad is clicked half the time."""

    def __init__(self) -> None:
        self.penalty = Penalty(per_ad=0)
        self.asked: list[tuple[str, Prompt]] = []

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

    def score(self, version: str, wanted: Sequence[tuple[Prompt, Sequence[int]]]) -> list[float]:
        """Draw d's first token is d: without ads it is e^-d times as likely as with them."""
        return [0.0 if prompt.ads else -float(tokens[0]) for prompt, tokens in wanted]

    def predict(self, answers: Sequence[tuple[Planned, str]], epoch: int) -> list[dict[str, float]]:
        return [{ad.id: 0.5 for ad in planned.ads if markup(ad) in text} for planned, text in answers]

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


def test_choices_name_existing_epochs_once() -> None:
    assert {choice["pctr_epoch"] for choice in Mosaic().choices(1)} == {1}
    for mechanism in (Mosaic(), RagAuction()):
        choices = [tuple(sorted(choice.items())) for choice in mechanism.choices(3)]
        assert len(set(choices)) == len(choices) > 1


def test_mechanisms_by_name() -> None:
    assert [one.name for one in named_mechanisms(["mosaic", "pretrained"])] == ["mosaic", "pretrained"]
    with pytest.raises(ConfigError, match=r"'mosaik'; there are .*mosaic"):
        named_mechanisms(["mosaik"])
