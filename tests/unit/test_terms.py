"""Reward terms: by hand, found by name, weighed into rewards, costs and tables."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from raylla import config
from raylla.auction import ReadAnswer, markup, parse
from raylla.config import Penalty, plugins
from raylla.errors import ConfigError, RunError
from raylla.evaluation import efficiency
from raylla.figures.table import COLUMNS, JudgedAnswer, per_query, row_figures, terms_of
from raylla.irpo.sampling import Sampled
from raylla.irpo.scoring import Valuer, group, score
from raylla.mechanisms.llm import Pretrained
from raylla.mechanisms.mosaic import Mosaic
from raylla.records import Ad, Answer, Auction, Planned, Profile, Query, Reward
from raylla.runs.state import Run, load_records, save_records
from raylla.storage import home
from raylla.terms import protocol
from raylla.terms.credibility import Credibility
from raylla.terms.detectability import Detectability
from raylla.terms.diversity import Diversity
from raylla.terms.fidelity import Fidelity
from raylla.terms.nativeness import Nativeness
from raylla.terms.protocol import known_terms, least_values, named_terms, term_values, weighted
from raylla.terms.welfare import UserWelfare
from tests.unit.backends import make

BEST = Ad("1", "Lumo Kettle", "tea", "food", "Boils a litre in two minutes.")
WORSE = Ad("2", "Uber", "tea", "food")
PLANNED = Planned(
    "preference",
    Auction("e1/preference/q", "q", ("2", "1"), (90.0, 30.0)),
    Query("q", "p", "which kettle?", "tea", "food", "train"),
    Profile("p", "30 nurse Oslo", ("tea",)),
    (WORSE, BEST),
    2,
)
TEXTS = (
    f"Try {markup(BEST)}.",
    f"Try {markup(WORSE)}.",
    f"Try {markup(WORSE)} or {markup(BEST)}.",
    "Boil water.",
    f"Try {markup(WORSE)[:-1]}.",
)


ORGANIC = ("Boil fresh water. Wait four minutes.", "Use boiling water.")


class Fits:
    """A question that the kettle suits at 0.6, and the other at 0.2."""

    asked = 0

    def __init__(self) -> None:
        self.read: list[str] = []

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """A direction of its own for each word of these."""
        return np.array(
            [[word in text for word in ("water", "Kettle", "Uber")] for text in texts], np.float32
        ).reshape(-1, 3)

    def relevance(self, auctions: Sequence[Planned]) -> list[NDArray[np.float64]]:
        self.asked += len(auctions)
        return [np.array([{"1": 0.6, "2": 0.2}[ad.id] for ad in one.ads]) for one in auctions]

    def directions(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """A dimension for each word of these texts: those without a common word are at right angles."""
        if not texts:
            return np.zeros((0, 1), np.float32)
        words = [set(re.findall(r"\w+", text.lower())) for text in texts]
        every = sorted(set().union(*words))
        vectors = np.array([[word in one for word in every] for one in words], np.float32)
        found: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return found

    def organic(self, auctions: Sequence[Planned]) -> list[tuple[str, ...]]:
        return [ORGANIC for _ in auctions]

    def detected(self, texts: Sequence[str]) -> NDArray[np.float64]:
        self.read += texts
        return np.array([0.9 if "Uber" in text else 0.2 for text in texts])


def answered(*texts: str) -> list[ReadAnswer]:
    return [ReadAnswer.of(PLANNED, text) for text in texts]


def test_user_welfare_by_hand() -> None:
    fits = Fits()
    found = UserWelfare().values(fits, answered(*TEXTS))
    assert found == pytest.approx([0, -0.4, -0.2, 0, 0])
    assert fits.asked == 1  # one auction


def test_fidelity_by_hand() -> None:
    texts = (
        f"The {markup(BEST)} boils a litre in two minutes.",
        f"The {markup(BEST)} boils a litre and sings.",
        f"The {markup(BEST)} sings.",
        f"Go by {markup(WORSE)}, which sings.",  # says nothing of itself
        "It sings.",
    )
    assert Fidelity().values(Fits(), answered(*texts)) == pytest.approx([0, -1 / 3, -1, 0, 0])


def test_nativeness_by_hand() -> None:
    texts = (
        f"Boil water. The {markup(BEST)} boils water, too.",
        f"Boil water. The {markup(BEST)} is blue.",
        f"Boil water. Try the {markup(BEST)} for water. Go by {markup(WORSE)}.",
        f"The {markup(BEST)} boils water.",
        "Boil water.",
    )
    half = np.sqrt(0.5)  # of two words one is shared
    found = Nativeness().values(Fits(), answered(*texts))
    assert found == pytest.approx([half - 1, -1, half / 2 - 1, -1, 0])


def test_diversity_by_hand() -> None:
    one, other = f"Try {markup(BEST)}.", f"Try {markup(WORSE)}."
    assert Diversity().values(Fits(), answered(one, one, one)) == [-1, -1, -1]
    assert Diversity().values(Fits(), answered(one, other, one, "None.")) == pytest.approx(
        [-1 / 3, 0, -1 / 3, 0]
    )
    assert Diversity().values(Fits(), answered(one)) == [0]
    elsewhere = replace(PLANNED, auction=replace(PLANNED.auction, id="e1/preference/r"))
    assert Diversity().values(Fits(), [ReadAnswer.of(PLANNED, one), ReadAnswer.of(elsewhere, one)]) == [
        0,
        0,
    ]
    both = f"Try {markup(BEST)} or {markup(WORSE)}."
    assert Diversity().values(Fits(), answered(both, one)) == [-0.5, -1]


def test_credibility_by_hand() -> None:
    half = np.sqrt(0.5)
    texts = (
        f"Boil fresh water. {markup(BEST)} boils a litre in two minutes.",  # all of it is borne out
        f"Boil fresh milk. Try {markup(BEST)}.",  # two words of three; to try it claims nothing
        f"{markup(BEST)} cures sadness.",
        f"Boil fresh water. {markup(WORSE)}",  # a name alone claims nothing
        f"Boil fresh water. {markup(WORSE)} boils fresh water.",  # it is not described: as the model says
        markup(WORSE),
        "Boil fresh milk.",
        f"Go far. {markup(BEST)[:-1]} cures sadness.",
    )
    found = Credibility().values(Fits(), answered(*texts))
    assert found == pytest.approx([0, 2 / 3 - 1, -1, 0, (1 + 2 / 3) / 2 - 1, 0, 0, 0], abs=1e-6)
    lost = Fits()
    lost.organic = lambda auctions: [() for _ in auctions]  # type: ignore[method-assign]
    assert Credibility().values(lost, answered(texts[2])) == [0]
    # a sentence without markup that is nearer to the ad than to the organic answers is about the ad
    about = f"{markup(BEST)} boils a litre in two minutes. It boils two litres."
    near = len({"boils", "two"}) / np.sqrt(4 * 6)
    assert Credibility().values(Fits(), answered(about)) == pytest.approx([(1 + near) / 2 - 1])
    assert near < half


WORDS = ("boil", "fresh", "water", "milk", "litre", "two", "minutes", "cures", "sadness")


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12), st.booleans())
def test_credibility_is_never_above_0_and_falls_with_what_nothing_bears_out(
    words: list[str], placed: bool
) -> None:
    ad = markup(BEST) if placed else "Nothing"
    said = f"Try {ad}. {' '.join(words).capitalize()}."
    before, after = Credibility().values(Fits(), answered(said, f"{said} Qwertz asdf."))
    assert -2 <= before <= 0
    assert before == 0 or placed
    assert after <= before + 1e-6  # a claim that shares no word with anything


def test_credibility_tells_sources_from_those_of_other_questions() -> None:
    """With descriptions and organic answers dealt to the wrong answers, values are lower on average."""
    rng = np.random.default_rng(0)
    words = [f"{one}{two}" for one in string.ascii_lowercase for two in "xyz"]
    drawn = [[" ".join(rng.choice(words, 6)).capitalize() + "." for _ in range(2)] for _ in range(20)]
    fits = Fits()

    def mean(shift: int, moved: str) -> float:
        answers, told = [], []
        for place, (own, claim) in enumerate(drawn):
            other = drawn[(place + shift) % len(drawn)]
            said = other[1] if moved == "description" else claim
            ad = replace(BEST, description=said.capitalize())
            answers.append(ReadAnswer.of(replace(PLANNED, ads=(ad,)), f"{own} {markup(ad)} {claim}"))
            told.append((other[0] if moved == "organic" else own,))
        fits.organic = lambda _: told  # type: ignore[method-assign, assignment]
        return float(np.mean(Credibility().values(fits, answers)))

    own = mean(0, "")
    assert own == pytest.approx(0, abs=1e-6)
    assert mean(7, "description") < -0.2
    assert mean(7, "organic") < -0.2


def test_detectability_by_hand() -> None:
    fits = Fits()
    assert Detectability().values(fits, answered(*TEXTS, TEXTS[0])) == [-0.2, -0.9, -0.9, 0, 0, -0.2]
    assert fits.read == ["Try Lumo Kettle.", "Try Uber.", "Try Uber or Lumo Kettle."]  # once each, bare
    assert Detectability().values(Fits(), answered("Boil water.")) == [0]


def test_every_term_that_is_shipped_keeps_what_terms_promise() -> None:
    assert known_terms() == [
        *("credibility", "detectability", "diversity", "fidelity", "nativeness", "user-welfare")
    ]
    for term, name in zip(named_terms(known_terms()), known_terms(), strict=True):
        assert term.name == name
        values = term.values(Fits(), answered(*TEXTS))
        assert all(math.isfinite(value) and value <= 0 for value in values)
        assert least_values([term])[name] in (-1, -2)
        assert values[3] == values[4] == 0  # an answer without ads
        assert list(term.values(Fits(), [])) == []


def test_a_name_that_nobody_has() -> None:
    with pytest.raises(ConfigError, match="no reward term named 'welfare'; there are credibility, detect"):
        named_terms(["welfare"])
    with pytest.raises(ConfigError, match="occurs twice"):
        config.parse_config({"reward_terms": [{"name": "a", "weight": 1}, {"name": "a", "weight": 2}]}, "x")
    with pytest.raises(ConfigError, match="weight"):
        config.parse_config({"reward_terms": [{"name": "a", "weight": -1}]}, "x")


class Misnamed(UserWelfare):
    name = "mine"


class Broken:
    name = "broken"

    def __init__(self) -> None:
        raise OSError("no such lexicon")


class Odd:
    name = "odd"
    found: Any = ()

    def values(self, texts: protocol.Texts, answers: Sequence[ReadAnswer]) -> Sequence[float]:
        values: Sequence[float] = self.found
        return values


def test_a_package_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    places = {"odd": "Odd", "broken": "Broken", "none": "Fits", "gone": "Gone", "other": "Misnamed"}
    points = [EntryPoint(name, f"{__name__}:{place}", protocol._GROUP) for name, place in places.items()]
    monkeypatch.setattr(plugins, "entry_points", lambda group: EntryPoints(points))
    assert [one.name for one in named_terms(["odd"])] == ["odd"]
    for name, message in (
        ("broken", "no such lexicon"),
        ("none", "is no reward term"),
        ("gone", "cannot be made"),
        ("other", "calls itself 'mine'"),
    ):
        with pytest.raises(ConfigError, match=message):
            named_terms([name])


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ((1.0,), "odd gave 1 values for 2 answers"),
        ((math.nan, 0.0), "1 of them not finite"),
        ((math.inf, 0.0), "1 of them not finite"),
        ((0.0, 0.5), "without ads another value than 0"),
        (("a", "b"), "odd failed: ValueError: could not convert"),
        (None, "odd failed: TypeError"),
    ],
)
def test_what_is_no_value(found: Any, message: str) -> None:
    term = Odd()
    term.found = found
    with pytest.raises(RunError, match=message):
        term_values([term], Fits(), answered(TEXTS[0], TEXTS[3]))
    term.found = (-2, 0)
    assert term_values([term], Fits(), answered(TEXTS[0], TEXTS[3])) == [
        {"odd": -2.0},
        {"odd": 0.0},
    ]


def test_terms_decide_who_wins(tmp_path: Path) -> None:
    tree: dict[str, Any] = {"penalty": {"per_ad": 0}, "irpo": {"delta": 1}}
    answers = [
        Answer(f"e1/preference/q/{draw}", "e1/preference/q", draw, "v0", text, (1,), (2,))
        for draw, text in enumerate(TEXTS[:2])
    ]
    sampled = Sampled({PLANNED.auction.id: PLANNED}, "v0", answers)
    rates = {answers[0].sample_id: {"1": 0.5}, answers[1].sample_id: {"2": 0.5}}
    winners = []
    for weight in (0, 70, 80):
        terms = {"reward_terms": [{"name": "user-welfare", "weight": weight}]}
        run = Run(home(tmp_path), config.parse_config(tree | terms, "test"))
        values = term_values(named_terms(["user-welfare"]), Fits(), answered(*TEXTS[:2]))
        by_id = {answer.sample_id: one for answer, one in zip(answers, values, strict=True)}
        rewards = score(run.config, sampled, rates, by_id)
        assert [one.total for one in rewards.values()] == pytest.approx([15, 45 - 0.4 * weight])
        chosen = group(answers, [one.total for one in rewards.values()], run.config.irpo.delta)
        assert chosen is not None
        winners.append(chosen.winner.draw)
        save_records(tmp_path / "rewards.parquet", list(rewards.values()), Reward)
        assert load_records(tmp_path / "rewards.parquet", Reward) == list(rewards.values())
    assert winners == [1, 1, 0]  # 45 against 15, and 0.4 x 70 or 80 less


def test_without_terms_nothing_is_asked(tmp_path: Path) -> None:
    made = make(tmp_path, lambda bid: 1.0)
    asked = efficiency.test_auctions(made.backend.config, made.backend.world)[:1]
    answer = Answer("a/0", asked[0].auction.id, 0, "v0", f"Try {markup(asked[0].ads[0])}.", (1,), (2,))
    sampled = Sampled({asked[0].auction.id: asked[0]}, "v0", [answer])
    settings = made.backend.config
    world, encode = made.backend.world, made.backend._encode
    assert Valuer(settings, world, str(tmp_path)).values(sampled, "test", encode) == {}
    weighed = config.parse_config({"reward_terms": [{"name": "user-welfare", "weight": 3}]}, "test")
    found = Valuer(weighed, world, str(tmp_path)).values(sampled, "test", encode)
    (fits,) = made.backend.relevance(asked)
    assert found == {"a/0": {"user-welfare": pytest.approx(fits[0] - fits.max())}}


def test_the_table_has_a_column_for_each_and_the_reward_their_weight() -> None:
    def judged(query: str, text: str, welfare: float) -> JudgedAnswer:
        parsed = parse(text, PLANNED.ads)
        bids = PLANNED.bids
        clicks = dict.fromkeys(parsed.ad_ids, True)
        chances = dict.fromkeys(parsed.ad_ids, 0.5)
        return JudgedAnswer(query, parsed, bids, bids, clicks, chances, {"user-welfare": welfare, "b": 1.0})

    answers = [judged("q", TEXTS[1], -0.4), judged("q", TEXTS[0], 0.0), judged("r", TEXTS[3], 0.0)]
    weights = {"user-welfare": 50.0, "b": 0.0}
    table = per_query(answers, Penalty(per_ad=0), weights)
    plain = per_query(answers, Penalty(per_ad=0))
    at = COLUMNS.index("reward")
    assert table["q"][at] == pytest.approx(plain["q"][at] - 0.2 * 50)
    assert table["q"][COLUMNS.index("expected_reward")] == pytest.approx(30 - 10)
    assert table["r"][at] == plain["r"][at] == 0
    row = row_figures([table], 100, 0, {"user-welfare": -0.2, "b": -1})
    assert row["terms"]["user-welfare"]["mean"] == pytest.approx(-0.1)
    assert row["terms"]["b"]["mean"] == 1
    assert row["terms"]["user-welfare"]["low"] == -0.2
    assert row["terms"]["user-welfare"]["high"] == 0  # both ends would pass the bounds
    assert terms_of([row, {"revenue": 1}]) == ["user-welfare", "b"]
    assert row_figures([plain], 100, 0)["terms"] == {}


def test_costs_that_mosaic_counts_hold_the_terms(tmp_path: Path) -> None:
    made = make(tmp_path, lambda bid: 1.0)
    backend = made.backend
    asked = efficiency.test_auctions(backend.config, backend.world)
    one = asked[0]
    (fits,) = backend.relevance([one])
    answers = [ReadAnswer.of(one, f"Try {markup(ad)}.") for ad in one.ads]
    assert backend.costs(answers) == [0, 0, 0]
    terms = {"reward_terms": [{"name": "user-welfare", "weight": 7}], "penalty": {"per_ad": 2}}
    backend.config = backend.config.model_copy(
        update={name: getattr(config.parse_config(terms, "test"), name) for name in terms}
    )
    assert backend.costs(answers) == pytest.approx([2 + 7 * (fits.max() - fit) for fit in fits])
    backend.measure = backend.config
    held = efficiency.hold(backend, Pretrained(), asked[:10], {})
    assert list(held.terms) == ["credibility", "diversity", "fidelity", "nativeness", "user-welfare"]
    assert held.terms["fidelity"] == -1
    row = efficiency.mechanism_row([held], 100, 0)
    assert row["terms"]["fidelity"]["mean"] == 0
    assert row["terms"]["user-welfare"]["mean"] < 0
    difference = row["welfare"]["mean"] - row["reward"]["mean"]
    punished = 2 * row["ads_per_answer"]["mean"] + 30 * max(0, row["ads_per_answer"]["mean"] - 2)
    assert difference == pytest.approx(punished - 7 * row["terms"]["user-welfare"]["mean"])
    backend.config = config.parse_config({"reward_terms": [{"name": "user-welfare", "weight": 99}]}, "test")
    again = efficiency.hold(backend, Pretrained(), asked[:10], {})
    for query, figures in held.table.items():  # rewards of a table are the main config's
        assert again.table[query].tolist() == figures.tolist()
    choices = [{"tau": tau, "pctr_epoch": 1, "reference": "generator"} for tau in (0.0, 30.0)]
    choice, tried = efficiency.tune_mechanism(backend, Mosaic(), choices)
    assert len(tried) == 2
    assert choice in [one["choice"] for one in tried]


def test_weights_keep_their_order() -> None:
    assert weighted({"b": 1.0, "a": -0.5}, {"a": 10.0, "b": 2.0}) == (-5.0, 2.0)
