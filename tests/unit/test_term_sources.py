"""What terms need beside the encoder: refused before anything loads, written once a run, read as kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raylla import config
from raylla.actors.pool import Pool
from raylla.auction import markup
from raylla.config import Actors, Config, plugins
from raylla.engines.protocol import Generated, Request
from raylla.errors import BudgetError, ConfigError
from raylla.evaluation import efficiency
from raylla.evaluation.setup import check_terms
from raylla.irpo.organic import organic_request, write_organic
from raylla.irpo.sampling import Sampled
from raylla.irpo.schedule import auctions
from raylla.irpo.scoring import Valuer
from raylla.irpo.shards.parts import OrganicAnswers
from raylla.mechanisms.llm import Pretrained
from raylla.mechanisms.mosaic import Mosaic
from raylla.records import Answer, WeightVersion
from raylla.runs.state import Run
from raylla.terms import protocol
from raylla.terms.native import taught
from raylla.terms.protocol import named_terms, weighed_terms
from raylla.terms.sources import detector_for
from raylla.terms.welfare import UserWelfare
from tests.unit.backends import make
from tests.unit.test_detect import PLAIN, made, written


def weighed(*names: str, **evaluation: Any) -> Config:
    terms = [{"name": name, "weight": 10} for name in names]
    tree = {"reward_terms": terms, "evaluation": evaluation, "world": {"candidates": 3, "ads": 3}}
    return config.parse_config(tree, "test")


def test_a_term_without_its_detector_is_refused(tmp_path: Path) -> None:
    for given, words in (
        ({}, "names no published answers"),
        ({"native_answers": str(tmp_path / "none")}, "/none' is no file"),
    ):
        settings = weighed("detectability", **given)
        with pytest.raises(ConfigError, match="detectability reads answers with the detector"):
            weighed_terms(settings)
        with pytest.raises(ConfigError, match=words):
            check_terms(settings)
    assert [term.name for term in weighed_terms(weighed("credibility"))] == ["credibility"]
    assert detector_for(weighed_terms(weighed("credibility")), weighed("credibility")) is None


def test_a_detector_that_tells_nothing_is_refused(tmp_path: Path) -> None:
    rows = made()
    for row in rows:
        if row["label"]:
            row["response"], row["sen_span"] = PLAIN, [0, 23]
    settings = weighed("detectability", native_answers=str(written(tmp_path / "a.jsonl.gz", rows)))
    with pytest.raises(
        ConfigError, match=r"detectability: .* has an F1 of 0\.\d\d on answers held out, below"
    ):
        detector_for(weighed_terms(settings), settings)


class Greedy(UserWelfare):
    name = "greedy"
    needs = ("organic", "judge")


def test_a_need_that_nothing_meets(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("greedy", f"{__name__}:Greedy", protocol._GROUP)]
    monkeypatch.setattr(plugins, "entry_points", lambda group: EntryPoints(points))
    with pytest.raises(ConfigError, match="'greedy' needs judge; a term may need organic and detector"):
        named_terms(["greedy"])


def test_the_file_that_teaches_a_weighed_term_decides_a_run() -> None:
    assert weighed("credibility").digest() == weighed("credibility", native_answers="a").digest()
    assert weighed("detectability").digest() != weighed("detectability", native_answers="a").digest()


class Watch:
    """An observer that counts."""

    def __init__(self) -> None:
        self.wall = {"organic answers": 1.5}
        self.counted = 0

    def stage(self, name: str, **due: int) -> Any:
        self.due = due
        return nullcontext()

    def advance(self, what: str, count: int, tokens: int) -> None:
        self.counted += count


class Answering:
    """A shard with one engine."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def ready(self) -> None: ...

    def answer(self, requests: list[Request], version: str) -> Iterator[Generated]:
        yield from self._writer.generate(requests, version)


def organic_run(path: Path, settings: Config) -> Any:
    """A run of ``settings`` with scripted engines that hold v1, while the untouched model is v0."""
    found = make(path, lambda bid: 1.0)
    crew, loaded = found.backend._crew, []
    crew.version = WeightVersion("v1", 1, path)
    crew.refresh = lambda version, probe: loaded.append(version.name)
    crew.shards = Pool("shard", Answering, (found.writer,), Actors(), in_process=True)
    crew.shards.start(1)
    crew.patience = 1
    return SimpleNamespace(
        run=Run.create(path / "run", settings), crew=crew, loaded=loaded, watch=Watch(), **vars(found)
    )


def test_organic_answers_are_written_once_a_run(tmp_path: Path) -> None:
    settings = weighed("credibility")
    one = organic_run(tmp_path, settings)
    world = one.backend.world
    write_organic(one.run, one.crew, one.watch, world)
    questions = {query.id for query in world.queries}
    assert one.loaded == ["v0", "v1"]  # the untouched model's weights, and back
    assert one.watch.due == {"organic": 2 * len(questions)}
    assert one.watch.counted == 2 * len(questions) == 2 * len(one.writer.asked)
    assert all("@" not in request.messages[-1]["content"] for request in one.writer.asked)  # told of no ads
    write_organic(one.run, one.crew, one.watch, world)
    assert len(one.writer.asked) == len(questions)
    # A prompt of five tokens, computed once, and two answers of two.
    assert one.run.committed("organic")["tokens"] == len(questions) * (5 + 2 * 2)
    (planned,) = auctions(settings, world, 1)[:1]
    ((kept),) = OrganicAnswers(one.run.place)([planned])
    assert kept == ("Try nothing.", "Try nothing.")
    assert json.loads((one.run.records("organic") / "answers.json").read_text()).keys() == questions
    ad, other = planned.ads[0], "Its price fell twice last winter."
    answers = [
        Answer(f"a/{draw}", planned.auction.id, draw, "v0", text, (1,), (2,))
        for draw, text in enumerate((f"Try nothing. {markup(ad)}", f"{markup(ad)} {other}", other))
    ]
    sampled = Sampled({planned.auction.id: planned}, "v0", answers)
    valuer = Valuer(settings, world, one.run.place)
    found = valuer.values(sampled, planned.phase, one.backend._encode)
    assert found["a/0"]["credibility"] == pytest.approx(0, abs=1e-6)  # says what the model says
    assert -2 <= found["a/1"]["credibility"] < -0.1
    assert found["a/2"]["credibility"] == 0  # places no ad


def test_a_run_whose_terms_read_none_writes_none(tmp_path: Path) -> None:
    one = organic_run(tmp_path, weighed("user-welfare"))
    write_organic(one.run, one.crew, one.watch, one.backend.world)
    assert (one.loaded, one.writer.asked, one.run.commits) == ([], [], {})


def test_engines_that_answer_nothing_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = organic_run(tmp_path, weighed("credibility"))
    whole = one.writer.generate

    def failing(requests: Any, version: str) -> Any:
        return (replace(found, completions=(), error="lost") for found in whole(requests, version))

    monkeypatch.setattr(one.writer, "generate", failing)
    with pytest.raises(BudgetError, match="40 of 40 questions had no answer without ads"):
        write_organic(one.run, one.crew, one.watch, one.backend.world)
    assert one.run.committed("organic") is None


def test_an_evaluation_reads_the_same_organic_answers_as_a_run(tmp_path: Path) -> None:
    found = make(tmp_path, lambda bid: 1.0)
    backend = found.backend
    asked = efficiency.test_auctions(backend.config, backend.world)[:3]
    assert backend.sources.organic(asked) == [("Try nothing.", "Try nothing.")] * 3
    wanted = organic_request(backend.config, asked[0], "organic", 2)
    assert found.writer.asked[0] == wanted
    backend.sources.organic(asked)
    assert len(found.writer.asked) == 3


def test_with_a_detector_every_mechanism_has_its_column(tmp_path: Path) -> None:
    detector, _ = taught(written(tmp_path / "a.jsonl.gz", made()))
    found = make(tmp_path, lambda bid: 1.0)
    old = found.backend
    backend = type(old)(
        old.run, old.config, old._crew, old.world, old._kept, old._progress, detector=detector
    )
    asked = efficiency.test_auctions(backend.config, backend.world)[:10]
    held = efficiency.hold(backend, Pretrained(), asked, {})
    values = efficiency.mechanism_row([held], 100, 0)["terms"]["detectability"]
    expected = detector.chances([held.answers[0].text.replace("@", "")])
    assert -1 <= values["low"] <= values["mean"] <= values["high"] <= 0
    assert values["mean"] < 0 < expected[0]
    with pytest.raises(ConfigError, match="says in its needs that it does not"):
        old.sources.detected(["a"])


def test_what_is_not_weighed_is_not_measured_while_a_mechanism_is_tuned(tmp_path: Path) -> None:
    found = make(tmp_path, lambda bid: 1.0)
    asked: list[Any] = []
    found.backend.sources.organic = lambda planned: asked.append(planned) or [()] * len(planned)
    choices = [{"tau": tau, "pctr_epoch": 1, "reference": "generator"} for tau in (0.0, 30.0)]
    efficiency.tune_mechanism(found.backend, Mosaic(), choices)
    assert not asked
    tested = efficiency.test_auctions(found.backend.config, found.backend.world)[:2]
    efficiency.hold(found.backend, Pretrained(), tested, {})
    assert asked
