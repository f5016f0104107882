"""The judge's JSON is read strictly, asked again once, and never taken for a "no"."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest

from raylla.actors.judge import JudgeItem, Judgement, JudgeWorker, parse_clicks, retry_seed
from raylla.config import Engine as Settings
from raylla.config import Sampling
from raylla.engines import Completion, Generated, Probe, Request, Weights

ADS = ("12", "0034")


@pytest.mark.parametrize(
    ("text", "clicks"),
    [
        ('{"Ad-12": 1, "Ad-0034": 0}', {"12": True, "0034": False}),
        ('\n {"Ad-0034":true,"Ad-12":false}\t\n', {"12": False, "0034": True}),
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
        '{"Ad-12": 1, "Ad-0034": 0} and so on',
        '```json\n{"Ad-12": 1, "Ad-0034": 0}\n```',
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
    found, engine, worker = judge(
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
    assert worker.stats().generated_tokens == 7
    assert worker.stats().prompt_tokens == 14


def test_a_refused_prompt_is_not_asked_again() -> None:
    found, _, _ = judge({"long": [Generated("long", (), (), "too long")]})
    assert found["long"] == Judgement("long", None, 1, "too long")


def test_an_answer_without_ads_needs_no_judge() -> None:
    _, _, worker = judge({})
    assert list(worker.judge([JudgeItem("bare", [], (), 0)])) == [Judgement("bare", {}, 0)]


def test_retry_seeds_are_fixed_and_apart() -> None:
    assert retry_seed(1) == retry_seed(1)
    assert len({retry_seed(seed) for seed in range(1000)} | set(range(1000))) == 2000
    assert all(0 <= retry_seed(seed) < 2**48 for seed in range(1000))


def test_actors_import_neither_torch_nor_vllm() -> None:
    code = "import sys, raylla.actors; print([m for m in ('torch', 'vllm') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
