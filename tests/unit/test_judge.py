"""The judge's JSON is read strictly, asked again once, and never taken for a "no"; its one word for an ad
is read by its probability."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Literal

import pytest

from raylla.actors.judge import (
    JudgeItem,
    Judgement,
    JudgeWorker,
    click_probability,
    judge_item,
    parse_clicks,
    retry_seed,
)
from raylla.auction import markup, parse
from raylla.config import Engine as Settings
from raylla.config import Sampling, UserLlm
from raylla.engines import Completion, Generated, Probe, Request, Weights
from raylla.records import Ad, Profile, Query

ADS = ("12", "0034")


@pytest.mark.parametrize(
    ("text", "clicks"),
    [
        ('{"Ad-12": 1, "Ad-0034": 0}', {"12": True, "0034": False}),
        ('\n {"Ad-0034":true,"Ad-12":false}\t\n', {"12": False, "0034": True}),
        ('{"Ad-12": 1, "Ad-0034": 0} and so on', {"12": True, "0034": False}),
        ('```json\n{"Ad-12": 1, "Ad-0034": 0}\n```', {"12": True, "0034": False}),
        ('My word: [{"Ad-12": 0, "Ad-0034": 0}]', {"12": False, "0034": False}),
    ],
)
def test_reads_what_was_asked_for(text: str, clicks: dict[str, bool]) -> None:
    parsed = parse_clicks(text, ADS)
    assert parsed == clicks
    assert list(parsed) == list(ADS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no click",
        "[]",
        "1",
        "null",
        '{"Ad-12": 1}',
        '{"Ad-12": 1, "Ad-0034": 0, "Ad-7": 0}',
        '{"Ad-12": 1, "Ad-0034": 0, "Ad-12": 1}',
        '{"Ad-12": 1, "Ad-12": 0}',
        '{"12": 1, "0034": 0}',
        '{"Ad-12": 1, "Ad-34": 0}',
        '{"Ad-12": 2, "Ad-0034": 0}',
        '{"Ad-12": -0, "Ad-0034": 0}',
        '{"Ad-12": 1.0, "Ad-0034": 0}',
        '{"Ad-12": NaN, "Ad-0034": 0}',
        '{"Ad-12": "1", "Ad-0034": 0}',
        '{"Ad-12": null, "Ad-0034": 0}',
        '{"Ad-12": {"Ad-0034": 0}, "Ad-0034": 0}',
        '[["Ad-12", true], ["Ad-0034", false]]',
        '{"Ad-12": 1, "Ad-0034": 0} {"Ad-12": 1, "Ad-0034": 0}',
        '{"Ad-12": 1, "Ad-0034": 0} or {',
        '} {"Ad-12": 1, "Ad-0034": 0}',
        '{"Ad-12": 2, "x": {"Ad-12": 1, "Ad-0034": 0}}',
        "{" * 100_000,
        '{"a":' * 100_000,
        '{"Ad-12": 1, "Ad-0034": 0',
        "[" * 100_000,
    ],
)
def test_reads_nothing_else(text: str) -> None:
    assert parse_clicks(text, ADS) is None


def test_no_ads_is_an_empty_object() -> None:
    assert parse_clicks("{}", ()) == {}
    assert parse_clicks("[]", ()) is None


class Scripted:
    """Answers by the prompt: a list of texts, one per try; remembers the seeds."""

    def __init__(self, script: dict[str, list[Generated | str]]) -> None:
        self.script = script
        self.seeds: dict[str, list[int]] = {}

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Generated]:
        for request in reversed(requests):
            self.seeds.setdefault(request.id, []).append(request.seed)
            told = self.script[request.messages[0]["content"]].pop(0)
            if isinstance(told, Generated):
                yield told
            else:
                finished = not told.endswith("...")
                yield Generated(request.id, (1, 2), (Completion(told.removesuffix("..."), (3,), finished),))

    def load(self, weights: Weights, probe: Probe | None) -> float:
        raise NotImplementedError


def judge(script: dict[str, list[Generated | str]]) -> tuple[dict[str, Judgement], Scripted, JudgeWorker]:
    engine = Scripted(script)
    worker = JudgeWorker("model", Sampling(), Settings(), 0, engine=lambda path, settings, seed: engine)
    items = [
        JudgeItem(name, [{"role": "user", "content": name}], ("7",), seed)
        for seed, name in enumerate(script, 100)
    ]
    return {found.sample_id: found for found in worker.judge(items)}, engine, worker


def test_unread_is_asked_again_with_another_seed_and_then_dropped() -> None:
    good = '{"Ad-7": 1}'
    found, engine, _ = judge(
        {"good": [good], "second": ["what?", good], "never": ["what?", "{}"], "cut": [good + "...", good]}
    )
    assert found == {
        "good": Judgement("good", {"7": True}, 1),
        "second": Judgement("second", {"7": True}, 2),
        "never": Judgement("never", None, 2),
        "cut": Judgement("cut", {"7": True}, 2),
    }
    assert engine.seeds["good"] == [100]
    assert engine.seeds["second"] == [101, retry_seed(101)]


def test_a_refused_prompt_is_not_asked_again() -> None:
    found, _, _ = judge({"long": [Generated("long", (), (), "too long")]})
    assert found["long"] == Judgement("long", None, 1, "too long")


def test_an_answer_without_ads_needs_no_judge() -> None:
    _, _, worker = judge({})
    assert list(worker.judge([JudgeItem("bare", [], (), 0)])) == [Judgement("bare", {}, 0)]


TEA, POT, BOOT = (
    Ad("7", "Lumo Kettle", "tea", "food", "Boils water."),
    Ad("8", "Zed Pot", "tea", "food"),
    Ad("9", "Kita Boot", "shoes", "fashion"),
)
TEXT = f"Sip. Some like {markup(TEA)} a lot. Or {markup(POT)} perhaps. Walk in {markup(BOOT)} then."


def item_of(name: str, text: str, seed: int = 3, reading: Literal["json", "token"] = "token") -> JudgeItem:
    query = Query("q", "p", "what tea?", "tea", "food", "test")
    ads = {ad.id: ad for ad in (TEA, POT, BOOT)}
    placements = parse(text, list(ads.values())).placements
    user_llm = UserLlm(path="model", prompt="plain", reading=reading)
    return judge_item(
        user_llm, name, query, Profile("p", "30 nurse", ("tea",)), text, placements, ads, seed
    )


class Chooser(Scripted):
    """Says yes with a probability that the ad's line in the prompt decides, and refuses some prompts."""

    def __init__(self, chances: dict[str, float]) -> None:
        super().__init__({})
        self.chances = chances
        self.asked: list[Request] = []

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Generated]:
        self.asked += requests
        for request in reversed(requests):
            line = next(
                one for one in request.messages[1]["content"].splitlines() if one.startswith("Ad: ")
            )
            chance = next(chance for title, chance in self.chances.items() if title in line)
            if chance < 0:
                yield Generated(request.id, (1,), (), "too long")
            else:
                # Only half of the probability is on the two words.
                said = (math.log(chance / 2), math.log((1 - chance) / 2))
                yield Generated(request.id, (1,), (Completion("maybe", (3,), False, None, said),))


def judged(chances: dict[str, float], items: list[JudgeItem]) -> tuple[dict[str, Judgement], Chooser]:
    engine = Chooser(chances)
    worker = JudgeWorker("model", Sampling(), Settings(), 0, engine=lambda path, settings, seed: engine)
    return {one.sample_id: one for one in worker.judge(items)}, engine


def test_each_ad_is_asked_for_by_itself() -> None:
    found, engine = judged(
        {"Lumo": 0.6, "Zed": 0.5, "Kita": 0.2}, [item_of("one", TEXT), item_of("bare", "Sip.")]
    )
    assert found["bare"] == Judgement("bare", {}, 0)
    one = found["one"]
    assert one.probabilities == pytest.approx({"7": 0.6, "8": 0.5 * 0.85 * 0.5, "9": 0.2 * 0.85**2})
    assert one.clicks is not None
    assert list(one.clicks) == ["7", "8", "9"]
    assert (one.attempts, one.error) == (1, None)
    assert len(engine.asked) == 3
    assert all(request.choices == ("yes", "no") and request.n == 1 for request in engine.asked)
    assert engine.asked[0].messages[1]["content"] == (
        "Question: what tea?\n"
        "Answer: Sip. Some like Lumo Kettle a lot. Or Zed Pot perhaps.\n"
        "Ad: Lumo Kettle: Boils water.\n"
        "Would this user click it? Answer yes or no."
    )


def test_a_flooded_answer_is_clicked_by_nobody() -> None:
    ads = [Ad(str(n), f"Brand {n}", "tea", "food") for n in range(4)]
    text = " ".join(f"Try {markup(ad)} now." for ad in ads)
    item = judge_item(
        UserLlm(path="model", reading="token"),
        "one",
        Query("q", "p", "tea", "tea", "food", "test"),
        Profile("p", "", ()),
        text,
        parse(text, ads).placements,
        {ad.id: ad for ad in ads},
        0,
    )
    found, _ = judged({"Brand": 0.99}, [item])
    assert found["one"].probabilities == dict.fromkeys("0123", 0.0)
    assert found["one"].clicks == dict.fromkeys("0123", False)


def test_clicks_are_drawn_from_the_probabilities_and_from_the_seed_alone() -> None:
    text = f"Some like {markup(TEA)}."
    chances = {"Lumo": 0.3}
    found, _ = judged(chances, [item_of(str(seed), text, seed) for seed in range(800)])
    again, _ = judged(chances, [item_of(str(seed), text, seed) for seed in reversed(range(800))])
    assert found == again
    assert sum(one.clicks == {"7": True} for one in found.values()) == pytest.approx(240, abs=50)


def test_a_refused_ad_leaves_its_answer_unread() -> None:
    other = f"Some like {markup(TEA)}."
    found, engine = judged(
        {"Lumo": 0.6, "Zed": -1, "Kita": 0.2}, [item_of("one", TEXT), item_of("two", other)]
    )
    assert found["one"] == Judgement("one", None, 1, "too long")
    assert found["two"].probabilities == pytest.approx({"7": 0.6})
    assert len(engine.asked) == 4


def test_json_reading_asks_for_all_ads_at_once() -> None:
    item = item_of("one", TEXT, reading="json")
    assert item.each == ()
    assert item.ad_ids == ("7", "8", "9")
    # With rules of its own: some templates put others before a chat that has none.
    assert [one["role"] for one in item.messages] == ["system", "user"]
    assert "[Ad-7] tea: Lumo Kettle" in item.messages[1]["content"]


@pytest.mark.parametrize(
    ("yes", "no", "p"),
    [(-1.0, -1.0, 0.5), (-5.0, -5.0 + math.log(3), 0.25), (0.0, -900.0, 1.0), (-900.0, 0.0, 0.0)],
)
def test_click_probability(yes: float, no: float, p: float) -> None:
    assert click_probability(yes, no) == pytest.approx(p)


def test_retry_seeds_are_fixed_and_apart() -> None:
    assert retry_seed(1) == retry_seed(1)
    assert len({retry_seed(seed) for seed in range(1000)} | set(range(1000))) == 2000
    assert all(0 <= retry_seed(seed) < 2**48 for seed in range(1000))


def test_actors_import_neither_torch_nor_vllm() -> None:
    code = "import sys, raylla.actors; print([m for m in ('torch', 'vllm') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
