"""Whether what is said beside an ad is borne out by its description."""

from __future__ import annotations

import pytest

from raylla.auction import ReadAnswer
from raylla.records import Ad, Auction, Planned, Profile, Query
from raylla.terms.descriptions import Descriptions, content

KETTLE = Ad("1", "Lumo Kettle", "kettle", "home", "Boils a litre in two minutes and keeps green tea warm.")
POT = Ad("2", "Oak Pot", "kettle", "home", "A cast iron pot for slow mornings.")
SHOE = Ad("3", "Fleet Shoe", "shoes", "sport", "Light running shoe of two litres of foam.")
BARE = Ad("4", "Nameless", "kettle", "home")


def planned(*ads: Ad) -> Planned:
    query = Query("q", "p", "which kettle keeps tea?", "kettle", "home", "test")
    auction = Auction("a", "q", tuple(ad.id for ad in ads), (1.0,) * len(ads))
    return Planned("test", auction, query, Profile("p", "30", ()), ads, 1)


def test_content_words_are_compared_without_endings() -> None:
    assert content("It keeps the kettle's teas, and boils in 2,000 minutes") == {
        "keep",
        "kettl",
        "teas",
        "boil",
        "000",
        "minut",
    }


@pytest.mark.parametrize(
    ("said", "share"),
    [
        # Words of the question and of the title do not count.
        ("The kettle @Lumo Kettle@[Ad-1] boils a litre within minutes.", 3 / 4),
        ("It heals bones, as @Lumo Kettle@[Ad-1] does not boil.", 1 / 3),
        ("It heals bones. Try @Lumo Kettle@[Ad-1], which boils.", 1 / 2),
    ],
)
def test_the_share_of_words_that_the_description_holds(said: str, share: float) -> None:
    found = Descriptions([KETTLE, POT, SHOE, BARE]).borne_out(ReadAnswer.of(planned(KETTLE), said))
    assert [one for one, _ in found] == pytest.approx([share])


def test_chance_is_what_other_ads_of_the_category_would_bear_out() -> None:
    said = "Slow mornings want @Lumo Kettle@[Ad-1] and two litres."
    [(share, chance)] = Descriptions([KETTLE, POT, SHOE, BARE]).borne_out(
        ReadAnswer.of(planned(KETTLE), said)
    )
    assert (share, chance) == (pytest.approx(2 / 5), pytest.approx(2 / 5))
    [(_, elsewhere)] = Descriptions([KETTLE, SHOE]).borne_out(ReadAnswer.of(planned(KETTLE), said))
    assert elsewhere == pytest.approx(2 / 5)
    [(_, alone)] = Descriptions([KETTLE]).borne_out(ReadAnswer.of(planned(KETTLE), said))
    assert alone == 0


def test_ads_that_nothing_is_said_of_or_known_of_do_not_count() -> None:
    described = Descriptions([KETTLE, BARE])
    assert (
        described.borne_out(
            ReadAnswer.of(planned(KETTLE, BARE), "@Nameless@[Ad-4] is quick. @Lumo Kettle@[Ad-1].")
        )
        == []
    )
    assert (
        described.borne_out(ReadAnswer.of(planned(KETTLE), "An altered @Lumo Kettles@[Ad-1] boils.")) == []
    )
    assert not Descriptions([BARE])
