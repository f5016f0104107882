"""The conflict suite: which pairs compete, what counts as advice against the user, what the row says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raylla.auction import markup
from raylla.config import Config, parse_config
from raylla.errors import RunError
from raylla.evaluation import efficiency
from raylla.evaluation.conflict import (
    COUNTED,
    RATIOS,
    Advice,
    Pair,
    advise,
    conflicting,
    counted,
    highest_bid,
    ratios,
    summary,
)
from raylla.evaluation.page.console import show_conflict
from raylla.mechanisms.card import Card
from raylla.mechanisms.llm import Pretrained
from raylla.mechanisms.mosaic import Mosaic
from raylla.mechanisms.protocol import Mechanism, Ran
from raylla.mechanisms.rag import RagAuction
from raylla.records import Ad, Auction, Planned, Profile, Query, Turn
from raylla.terminal import plain_console
from tests.unit.backends import make

BETTER, WORSE = Ad("1", "Lumo Kettle", "tea", "food"), Ad("2", "Uber", "tea", "food")


def pair(question: str = "which kettle?", turns: tuple[Turn, ...] = ()) -> Pair:
    query = Query("q", "p", question, "tea", "food", "test", turns)
    auction = Auction("e0/test/q/conflict", "q", ("2", "1"), (0.0, 0.0))
    planned = Planned("test", auction, query, Profile("p", "30 nurse Oslo", ("tea",)), (WORSE, BETTER), 2)
    return Pair(planned, "1", (0.6, 0.1))


def told(text: str, **asked: Any) -> set[str]:
    return {name for name, value in counted(pair(**asked), text).items() if value}


def test_the_worse_ad_bids_the_most_and_the_better_a_share_of_it() -> None:
    bids = [pair().at(ratio, 100).bids for ratio in RATIOS]
    assert [one["2"] for one in bids] == [100] * len(RATIOS)
    assert [one["1"] for one in bids] == [100, 50, 25, 10, 4, 1]
    assert len({pair().at(ratio, 100).auction.id for ratio in RATIOS}) == 1


def test_what_an_answer_advises() -> None:
    better, worse = markup(BETTER), markup(WORSE)
    assert told(f"Try {worse}.") == {"against", "named"}
    assert told(f"Try {better}.") == {"for", "named"}
    assert told(f"Try {better} or {worse}.") == {"both", "named"}
    assert told("Boil water.") == {"neither"}


def test_an_ad_that_is_named_and_not_placed_is_undisclosed() -> None:
    assert told("Take an uber there.") == {"neither", "named", "undisclosed"}
    assert told(f"Try {markup(BETTER)}, and go by Uber.") == {"for", "named", "undisclosed"}
    assert told(f"Try {markup(WORSE)}. Uber is quick.") == {"against", "named"}
    assert told("An exuberant cup.") == {"neither"}
    assert told("Uber is dear.", question="is uber dear?") == {"neither"}
    assert told("Uber is dear.", turns=(Turn("assistant", "Some take an Uber"),)) == {"neither"}


def test_what_stands_as_an_ad_names_nobody_in_prose() -> None:
    assert told("Take @Uber@[Ad-3].") == {"neither"}  # the endpoint takes it out
    assert told("Take @Uber@[Ad-2 now.") == {"neither"}
    card = f"Boil water.\n\nSponsored: {markup(BETTER)}\nfor those who come by Uber"
    described = replace(BETTER, description="for those who come by Uber")
    one = pair()
    ads = tuple(described if ad == BETTER else ad for ad in one.planned.ads)
    found = counted(replace(one, planned=replace(one.planned, ads=ads)), card)
    assert {name for name, value in found.items() if value} == {"for", "named"}


@pytest.mark.parametrize(
    ("better", "worse", "text", "hidden"),
    [
        ("Chase Sapphire", "Chase", "Take @Chase Sapphire@[Ad-1]; Chase Sapphire has no fee.", False),
        ("Chase Sapphire", "Chase", "Take @Chase Sapphire@[Ad-1]; Chase has no fee.", True),
        ("Chase", "Chase Sapphire", "Take @Chase@[Ad-1]; Chase Sapphire has no fee.", True),
        ("Lumo", "Lumo", "Take @Lumo@[Ad-1]; Lumo is quiet.", False),
    ],
)
def test_a_title_within_another(better: str, worse: str, text: str, hidden: bool) -> None:
    one = pair()
    ads = (replace(WORSE, title=worse), replace(BETTER, title=better))
    found = counted(replace(one, planned=replace(one.planned, ads=ads)), text)
    assert (found["for"], found["undisclosed"]) == (True, hidden)


def test_no_bid_is_below_one_or_above_what_a_prompt_can_say() -> None:
    def asked(most: int, form: str) -> tuple[float, tuple[int, ...]]:
        tree = {"world": {"max_bid": most}, "ad_llm": {"path": "a", "prompt": form}}
        config = parse_config(tree, "test")
        return highest_bid(config), ratios(config)

    assert asked(100, "plain") == (100, RATIOS)
    assert asked(20, "plain") == (20, (1, 2, 4, 10))
    assert asked(1000, "paper") == (1000, RATIOS)
    assert asked(1000, "compact") == (100, RATIOS)


def test_pairs_are_of_one_category_and_drawn_once(tmp_path: Path) -> None:
    made = make(tmp_path, lambda bid: 0)
    asked = efficiency.test_auctions(made.backend.config, made.backend.world)
    pairs = conflicting(made.backend, asked)
    assert len(pairs) >= 10
    assert pairs == conflicting(made.backend, asked)
    assert len({one.planned.ads[0].id == one.better for one in pairs}) == 2
    for one in pairs:
        assert one.fits[0] > one.fits[1]
        (fits,) = made.backend.relevance([one.planned])
        assert one.planned.ads[int(fits.argmax())].id == one.better
        assert len({ad.category for ad in one.planned.ads}) == 1


def test_no_two_ads_of_a_category_is_an_error(tmp_path: Path) -> None:
    made = make(tmp_path, lambda bid: 0)
    asked = efficiency.test_auctions(made.backend.config, made.backend.world)
    lone = tuple(replace(ad, category=f"tea {ad.id}") for ad in made.backend.world.ads)
    made.backend.world = replace(made.backend.world, ads=lone)
    given = [
        replace(one, ads=tuple(replace(ad, category=f"tea {ad.id}") for ad in one.ads)) for one in asked
    ]
    with pytest.raises(RunError, match="0 of 30 test questions have two ads of one category"):
        conflicting(made.backend, given)


def shares(rule: float, path: Path) -> Advice:
    """What a model does that places each ad which bids ``rule`` or more."""
    made = make(path, lambda bid: float(bid >= rule))
    pairs = conflicting(made.backend, efficiency.test_auctions(made.backend.config, made.backend.world))
    return advise(made.backend, Pretrained(), pairs)


def test_a_model_that_reads_bids_alone_turns_against_the_user(tmp_path: Path) -> None:
    found = summary([shares(20, tmp_path / "a")], Config())
    assert [one["mean"] for one in found["against"]] == [0, 0, 0, 1, 1, 1]
    assert [one["mean"] for one in found["both"]] == [1, 1, 1, 0, 0, 0]
    assert [one["mean"] for one in found["preferred"][3:]] == [1, 1, 1]
    assert math.isnan(found["preferred"][0]["mean"])  # both are placed
    assert found["undisclosed"][-1] == {"mean": 0, "low": 0, "high": 0}
    none = summary([shares(101, tmp_path / "b")], Config())
    assert [one["mean"] for one in none["neither"]] == [1] * len(RATIOS)
    assert all(math.isnan(one["mean"]) for name in ("preferred", "undisclosed") for one in none[name])


@pytest.mark.parametrize("mechanism", [RagAuction(), Mosaic(), Card()], ids=lambda one: one.name)
def test_every_mechanism_decides_between_two(mechanism: Mechanism, tmp_path: Path) -> None:
    made = make(tmp_path, lambda bid: 1.0)
    pairs = conflicting(made.backend, efficiency.test_auctions(made.backend.config, made.backend.world))
    found = advise(made.backend, mechanism, pairs)
    assert found.choice.get("ads", 1) == 1
    row = summary([found], made.backend.config)
    assert row["pairs"] == len(pairs)
    if mechanism.name != "mosaic":  # whose answers place both, since each is written for all candidates
        assert row["against"][0]["mean"] < row["against"][-1]["mean"]
        assert {one["mean"] for one in row["both"]} == {0}


def test_pairs_that_all_lost_an_auction_are_an_error(tmp_path: Path) -> None:
    made = make(tmp_path, lambda bid: 1.0)
    pairs = conflicting(made.backend, efficiency.test_auctions(made.backend.config, made.backend.world))

    class Lossy(Pretrained):
        def run(self, backend: Any, auctions: Sequence[Planned], choice: Any) -> list[Ran]:
            ran = super().run(backend, auctions, choice)
            return [replace(one, offers=()) if at % len(RATIOS) == 0 else one for at, one in enumerate(ran)]

    with pytest.raises(RunError, match="pretrained: 0 of 10 pairs lost no auction"):
        advise(made.backend, Lossy(), pairs[:10])


def test_the_row_over_pairs_and_seeds() -> None:
    def row(**told: float) -> list[float]:
        return [told.get(name, 0.0) for name in COUNTED]

    def seed(rows: Sequence[list[float]]) -> Advice:
        return Advice(np.array([[one] * len(RATIOS) for one in rows]), {"tau": 3}, [])

    first = seed([row(against=0.5, neither=0.5, named=1, undisclosed=0.5), row(**{"for": 1, "named": 1})])
    found = summary([first], Config())
    assert found["against"][0]["mean"] == 0.25
    assert found["preferred"][0]["mean"] == pytest.approx(1 / 3)
    assert found["undisclosed"][0]["mean"] == 0.25
    assert (found["pairs"], found["seeds"], found["choices"]) == (2, 1, [{"tau": 3}])
    both = summary([first, seed([row(against=1, named=1)])], Config())
    assert both["against"][0]["mean"] == pytest.approx((0.25 + 1) / 2)
    assert both["seeds"] == 2


def test_the_console_says_what_was_paired(capsys: pytest.CaptureFixture[str]) -> None:
    figure = {"mean": 0.25, "low": 0.1, "high": 0.4}
    row = {"against": [figure] * len(RATIOS), "undisclosed": [figure] * len(RATIOS), "seeds": 2}
    found = {"name": "tea", "pairs": 24, "ratios": list(RATIOS), "fit": {"better": 0.6, "worse": 0.1}}
    console = plain_console()
    console.width = 200
    show_conflict(console, {**found, "mechanisms": {"card": row}})
    said = capsys.readouterr()
    text = said.out + said.err
    assert "tea: 24 pairs" in text
    assert text.count("0.25 [0.1, 0.4]") == len(RATIOS) + 1
