"""The click model by hand: every factor of the documented formula."""

from __future__ import annotations

import pytest

from raylla.auction import markup, parse
from raylla.records import Ad, Profile, Query
from raylla.world.clicks import click_probabilities, crowding, sentence_around

TEA = Ad("1", "Lumo Kettle", "tea", "food")
POT = Ad("2", "Zed Teapot", "tea", "food")
PIZZA = Ad("3", "Nara Pizza", "pizza", "food")
BOOT = Ad("4", "Kita Boot", "shoes", "fashion")
ADS = {ad.id: ad for ad in (TEA, POT, PIZZA, BOOT)}
QUERY = Query("q", "p", "tea for a nurse", "tea", "food", "train")
USER = Profile("p", "30 nurse Oslo", ("cars",))


def rates(text: str, user: Profile = USER, query: Query = QUERY) -> dict[str, float]:
    return click_probabilities(query, user, text, parse(text, list(ADS.values())).placements, ADS)


@pytest.mark.parametrize(("ad", "rate"), [(TEA, 0.55), (PIZZA, 0.2), (BOOT, 0.04)])
def test_relevance(ad: Ad, rate: float) -> None:
    assert rates(f"Some like {markup(ad)} a lot.") == {ad.id: pytest.approx(rate)}


def test_interest_bluntness_position_and_competition() -> None:
    keen = Profile("p", "30 nurse Oslo", ("tea",))
    text = f"Buy {markup(TEA)} now! Some like {markup(POT)} too. Or {markup(PIZZA)}."
    assert rates(text, keen) == {
        "1": pytest.approx(0.55 * 1.5 * 0.4),
        "2": pytest.approx(0.55 * 1.5 * 0.85 * 0.5),
        "3": pytest.approx(0.2 * 0.85**2),
    }


def test_nobody_clicks_in_a_flooded_answer() -> None:
    text = " ".join(markup(ad) for ad in ADS.values())
    assert set(rates(text).values()) == {0.0}


def test_crowding_is_what_the_others_leave() -> None:
    text = f"Some like {markup(TEA)}. Or {markup(PIZZA)}. And {markup(POT)}."
    placements = parse(text, list(ADS.values())).placements
    assert crowding(placements, ADS) == {
        "1": 1.0,
        "3": pytest.approx(0.85),
        "2": pytest.approx(0.85**2 * 0.5),
    }
    assert crowding(placements[2:], ADS) == {"2": 1.0}
    assert crowding((), ADS) == {}
    flooded = parse(" ".join(markup(ad) for ad in ADS.values()), list(ADS.values())).placements
    assert crowding(flooded, ADS) == dict.fromkeys(("1", "2", "3", "4"), 0.0)


def test_rates_have_a_floor() -> None:
    text = f"Buy {markup(BOOT)} or order {markup(PIZZA)} now!"
    assert rates(text)["4"] == pytest.approx(0.04 * 0.4)
    unknown = Query("q", "p", "hello", "", "", "train")
    late = f"{markup(PIZZA)}. {markup(TEA)}. Buy {markup(BOOT)} now!"
    assert rates(late, query=unknown)["4"] == pytest.approx(0.04 * 0.4 * 0.85**2)


def test_the_sentence_is_the_ads_own() -> None:
    text = f"First one. Then {markup(TEA)} comes! Last."
    (placement,) = parse(text, [TEA]).placements
    assert sentence_around(text, placement) == f"Then {markup(TEA)} comes!"
