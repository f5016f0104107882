"""Prices held on a model whose allocation is known: what is measured is what it does, within its bounds."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from raylla.actors.judge import Judgement
from raylla.auction import ReadAnswer, markup
from raylla.config import Config
from raylla.engines.protocol import Completion, Generated
from raylla.evaluation.backend import by_ads
from raylla.evaluation.prices import holdout
from raylla.mechanisms.protocol import TRAINED, Prompt
from raylla.pricing.curve import AllocationCurve
from raylla.pricing.logs import as_log, click_rates
from raylla.pricing.reserves import Reserves
from raylla.pricing.rule import quote
from raylla.pricing.sheet import written
from raylla.records import Planned
from raylla.world.bids import seed_of
from tests.worlds import asked_world

CURVE = AllocationCurve(-2.0, (0.6, 0.2, 0.3), 0.2, 1.5, (2.0, 0.5, 0.2), 100.0)
CLICKED = 0.4
CONFIG = Config.model_validate(
    {
        "world": {"profiles": 24, "queries_per_profile": 2, "candidates": 4},
        "evaluation": {
            "answers": 24,
            "incentive_answers": 30,
            "incentive_queries": 12,
            "bids": [0, 1, 50, 100],
        },
    }
)
SHEET = written(CURVE, Reserves(30.0), {"": CLICKED}, {})


class Known:
    """A backend whose model places by `CURVE`, and whose judge clicks everything with one probability."""

    def __init__(self) -> None:
        self.config = CONFIG
        self.world = asked_world(CONFIG.world)
        self.aliases = {TRAINED: "v1"}
        self.asked: list[Prompt] = []

    def write(self, version: str, wanted: Sequence[Prompt]) -> list[Generated]:
        assert version == TRAINED
        self.asked += wanted
        return [self._answer(one) for one in wanted]

    def _answer(self, prompt: Prompt) -> Generated:
        held = holdout.contests_of([prompt.planned])
        assert prompt.ads == prompt.planned.ads
        shares = CURVE.shares(held, held.there)[0]
        rng = self.generator(prompt.planned, str(prompt.bids))
        drawn = rng.choice(len(shares) + 1, prompt.n, p=[*shares, 1 - shares.sum()])
        texts = [markup(prompt.ads[one]) if one < len(shares) else "Nothing." for one in drawn]
        return Generated("", (1,), tuple(Completion(text, (1,), True) for text in texts))

    def judgements(self, answers: Sequence[ReadAnswer]) -> list[Judgement]:
        placed = [answer.parsed.ad_ids for answer in answers]
        return [
            Judgement("", dict.fromkeys(ads, True), 1, probabilities=dict.fromkeys(ads, CLICKED))
            for ads in placed
        ]

    def generator(self, planned: Planned, what: str) -> np.random.Generator:
        return np.random.default_rng(seed_of(0, f"{what}/{planned.auction.id}"))

    def bound(self, what: str, lost: int, total: int) -> None:
        assert not lost


@pytest.fixture(scope="module")
def known() -> Any:
    return Known()


def test_what_is_held_is_what_the_model_does(known: Any) -> None:
    auctions = holdout.test_markets(known, 3, 2)
    assert {one.query.split for one in auctions} == {"test"}
    assert {len(one.ads) for one in auctions} == {3}
    assert len({one.auction.id for one in auctions}) == len(auctions) == 24
    held = holdout.hold_market(known, SHEET, auctions, 0)
    found = holdout.market_figures(held, 200, 0)
    values = holdout.contests_of(auctions)
    table = np.full_like(values.bids, 30.0)
    for rule, reserves in (("first_price", None), ("myerson", np.ones_like(table)), ("reserve", table)):
        quoted = quote(CURVE, values, reserves)
        wanted = CLICKED * (quoted.shares * quoted.prices).sum(axis=1).mean()
        truthful = found["rules"][rule]["truthful"]
        assert truthful["on_curve"]["mean"] == pytest.approx(wanted)
        assert truthful["revenue"]["mean"] == pytest.approx(wanted, rel=0.12)
        surplus = truthful["welfare"]["mean"] - truthful["revenue"]["mean"]
        assert truthful["surplus"]["mean"] == pytest.approx(surplus)
    first, learned = found["rules"]["first_price"], found["rules"]["reserve"]
    assert first["truthful"]["surplus"]["mean"] == pytest.approx(0)
    value, truthful = (first[kind]["revenue"]["mean"] for kind in ("value", "truthful"))
    assert value == truthful  # the same auctions, and answers
    assert first["utility"]["revenue"]["mean"] < first["truthful"]["revenue"]["mean"]
    # who is charged by the curve that allocates has nothing to gain, but for what the fit is off
    gain = learned["utility"]["surplus"]["mean"] - learned["truthful"]["surplus"]["mean"]
    assert abs(gain) < 0.1 * learned["truthful"]["surplus"]["mean"]
    regret = {rule: one["regret"]["utility"]["mean"] for rule, one in found["regret"].items()}
    assert regret["reserve"] < regret["first_price"]
    assert found["regret"]["reserve"]["least_utility"]["mean"] >= 0
    gains = found["gains"]["reserve"]["utility"]["revenue"]
    ratio = learned["utility"]["revenue"]["mean"] / first["utility"]["revenue"]["mean"]
    assert gains["mean"] == pytest.approx(ratio - 1)
    assert gains["low"] <= gains["mean"] <= gains["high"]


def test_who_bids_below_the_reserve_is_not_in_the_prompt(known: Any) -> None:
    known.asked.clear()
    auctions = holdout.test_markets(known, None, 1)
    answers = holdout.ModelClicks(known, auctions)
    values = holdout.contests_of(auctions)
    entered = values.there & (values.bids >= 30)
    (got,) = answers.clicks([(values.bids, entered)])
    for prompt in known.asked:
        assert min(bid for bid in prompt.bids if bid is not None) >= 30
    assert (got[~entered] == 0).all()
    asked = len(known.asked)
    answers.clicks([(values.bids, entered)])
    assert len(known.asked) == asked  # nothing is asked twice
    nobody = np.zeros_like(values.there)
    assert answers.clicks([(values.bids, nobody)])[0].sum() == 0


def test_a_log_of_training_questions_has_its_clicks(known: Any) -> None:
    found = holdout.log_auctions(known, [None, 2], 10, 8)
    assert [len(one.bids) for one in found] == [4] * 10 + [2] * 10
    assert {one.version for one in found} == {"v1"}
    tested = {one.text for one in known.world.of("test")}
    assert not {one.asked for one in found} & tested
    log = as_log(found, 2)
    assert (log.placed.sum(axis=1) <= 8 + 1e-9).all()
    assert click_rates(log)[""] == pytest.approx(CLICKED)


def test_a_log_of_nobody_is_none() -> None:
    backend = SimpleNamespace(write=lambda *_: [], judgements=lambda _: [], bound=lambda *_: None)
    assert holdout.clicks_of(backend, []) == []  # type: ignore[arg-type]


def test_a_judgement_is_of_the_ads_that_a_text_places_among_those_that_entered(known: Any) -> None:
    whole = holdout.test_markets(known, None, 1)[0]
    text = " ".join(markup(ad) for ad in whole.ads[:2])
    bids, entered = np.array(whole.auction.bids), np.arange(len(whole.ads)) != 1
    alone = holdout._among(whole, bids, entered)
    assert alone.auction.id == whole.auction.id

    def name(planned: Planned, text: str) -> str:
        return by_ads(ReadAnswer.of(planned, text), planned.auction.id).planned.auction.id

    assert name(alone, text) != name(whole, text)
    assert name(alone, text) == name(alone, text + ".")
