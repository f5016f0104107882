"""Rewards of phase-2 answers from the judge's own readings."""

from __future__ import annotations

import pytest

from raylla import config
from raylla.irpo.sampling import Sampled, readings
from raylla.irpo.scoring import judged_rates, predicted_rates, score
from raylla.records import Ad, Answer, Auction, Planned, Prediction, Profile, Query

AD = Ad("12", "Lumo Kettle", "tea", "food")
PLANNED = Planned(
    "preference",
    Auction("e1/preference/q", "q", ("12",), (40.0,)),
    Query("q", "p", "which tea?", "tea", "food", "train"),
    Profile("p", "30 nurse Oslo", ("tea",)),
    (AD,),
    3,
)


def test_the_mean_of_what_was_read_and_nothing_for_what_was_not() -> None:
    settings = config.parse_config(
        {"irpo": {"reward": "judge", "judgements": 4}, "penalty": {"per_ad": 2}}, "test"
    )
    texts = ("Try @Lumo Kettle@[Ad-12].", "None.", "Or @Lumo Kettle@[Ad-12].")
    answers = [
        Answer(f"e1/preference/q/{draw}", "e1/preference/q", draw, "v0", text, (1,), (2,))
        for draw, text in enumerate(texts)
    ]
    sampled = Sampled({PLANNED.auction.id: PLANNED}, "v0", answers)
    names = [readings(answer.sample_id, 4) for answer in answers]
    # Three readings of four arrived, one of them a click; the third answer was never read.
    sampled.clicks = {name: {"12": name == names[0][2]} for name in names[0][:3]}
    sampled.clicks |= {name: {} for name in names[1]}
    rates = judged_rates(settings, sampled)
    assert rates == {answers[0].sample_id: {"12": pytest.approx(1 / 3)}, answers[1].sample_id: {}}
    rewards = score(settings, sampled, rates)
    assert {name: one.total for name, one in rewards.items()} == {
        answers[0].sample_id: pytest.approx(40 / 3 - 2),
        answers[1].sample_id: 0,
    }


@pytest.mark.parametrize(("risk", "rate"), [(0.0, 0.5), (0.5, 0.4), (1.0, 0.3)])
def test_risk_scores_towards_the_low_end_of_the_interval(risk: float, rate: float) -> None:
    settings = config.parse_config({"irpo": {"risk": risk}, "penalty": {"per_ad": 2}}, "test")
    text = "Try @Lumo Kettle@[Ad-12]."
    answer = Answer("e1/preference/q/0", "e1/preference/q", 0, "v0", text, (1,), (2,))
    sampled = Sampled({PLANNED.auction.id: PLANNED}, "v0", [answer])
    found = predicted_rates(sampled, [Prediction(0.5, 0.3, 0.9)], risk)
    assert found == {answer.sample_id: {"12": pytest.approx(rate)}}
    rewards = score(settings, sampled, found)
    assert rewards[answer.sample_id].total == pytest.approx(40 * rate - 2)
