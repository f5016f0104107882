"""The off-policy suite on versions whose chances are known: what it asks, estimates and counts."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raylla.engines.protocol import Completion, Generated, Given, Request, Scored
from raylla.evaluation.offpolicy.console import show_offpolicy
from raylla.evaluation.offpolicy.suite import SUITE_MEASURES, Written, answered, hold_pairs, logged, summed
from raylla.figures.offpolicy import ESTIMATORS
from raylla.records import WeightVersion
from raylla.terminal import plain_console
from tests.unit.backends import LINE, Writer, make

CHANCES = {"v0": 0.2, "v1": 0.5, "v2": 0.7}
"""Of each listed ad to be placed, whatever it bids."""


class Versions(Writer):
    """Places each ad with its version's chance, and says so when it is asked for log-probabilities."""

    def __init__(self) -> None:
        super().__init__(lambda bid: 0)
        self.impossible: set[str] = set()
        """Versions that no other version's answers are possible under."""

    def generate(self, requests: list[Request], version: str) -> Iterator[Generated]:
        for request in requests:
            listed = [mark for _, mark in LINE.findall(request.messages[0]["content"])]
            draws = []
            for draw in range(request.n):
                rng = random.Random(f"{request.seed + draw}")
                ids = tuple(1 + (rng.random() < CHANCES[version]) for _ in listed)
                placed = [mark for mark, id in zip(listed, ids, strict=True) if id == 2]
                draws.append(Completion(f"Try {', '.join(placed) or 'nothing'}.", ids, True))
            yield Generated(request.id, (1,) * 5, tuple(draws))

    def score(self, given: list[Given], version: str) -> Iterator[Scored]:
        chance = CHANCES[version]
        for one in given:
            assert one.sampling is not None
            logprob = sum(math.log(chance if id == 2 else 1 - chance) for id in one.token_ids)
            yield Scored(one.id, logprob, len(one.token_ids), int(version in self.impossible), True)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Written]:
    made = make(tmp_path_factory.mktemp("run"), lambda bid: 0, queries=80)
    return answered(_with_versions(made, Versions()))


def _with_versions(made: Any, writer: Versions) -> Any:
    backend = made.backend
    backend.versions = {
        name: (WeightVersion(name, epoch, name), None) for epoch, name in enumerate(CHANCES)
    }
    for name in ("generate", "score"):
        setattr(made.writer, name, getattr(writer, name))
    return backend


def test_every_version_answers_and_every_version_reads(measured: dict[str, Written]) -> None:
    assert list(measured) == list(CHANCES)
    for name, one in measured.items():
        assert len(one.queries) == 80 * 4
        assert one.logprobs.keys() == CHANCES.keys()
        share = np.mean(one.gains > 0)
        assert share == pytest.approx(1 - (1 - CHANCES[name]) ** 3, abs=0.08)
        said = one.predicted[1]
        assert np.all(said.low <= said.mean)
        assert said.mean.sum() == pytest.approx(one.gains.sum() / 2)  # says 0.5 of what is clicked always
        assert not one.on_the_edge


def test_estimates_hold_and_the_naive_one_does_not(measured: dict[str, Written]) -> None:
    pairs = hold_pairs(measured, "run", 200, 0, splits=6)
    assert [(one["log"], one["new"]) for one in pairs] == [
        *(("v0", "v1"), ("v0", "v2"), ("v1", "v0"), ("v1", "v2"), ("v2", "v0"), ("v2", "v1")),
    ]
    assert [one["pctr_epoch"] for one in pairs] == [1, 2, 1, 2, 2, 2]
    found = summed(pairs)
    assert found["pairs"] == 6
    for measure in SUITE_MEASURES:
        assert found[measure]["doubly_robust"]["coverage"] >= 0.8
        assert found[measure]["naive"]["coverage"] < 0.5
        assert found[measure]["doubly_robust"]["error"] < found[measure]["naive"]["error"] / 2
    apart = next(one for one in pairs if (one["log"], one["new"]) == ("v0", "v2"))
    near = next(one for one in pairs if (one["log"], one["new"]) == ("v1", "v2"))
    assert apart["overlap"]["effective_sample_size"] < near["overlap"]["effective_sample_size"]
    shown = near["measures"]["revenue"]
    assert shown["difference_shown"]["mean"] == pytest.approx(50.5 * 3 * 0.2, rel=0.3)
    assert shown["estimates"]["doubly_robust"]["scale"] == pytest.approx(2)


def test_a_log_has_the_weights_of_its_answers_and_the_others_predictions(
    measured: dict[str, Written],
) -> None:
    queries = set(sorted(set(measured["v0"].queries))[:10])
    log = logged(measured["v0"], measured["v1"], ("v0", "v1", 1), queries)
    assert len(log.log_weights) == 40
    assert set(log.groups or ()) == queries
    weights = np.exp(log.log_weights)
    possible = {round((0.5 / 0.2) ** placed * (0.5 / 0.8) ** (3 - placed), 9) for placed in range(4)}
    assert {round(one, 9) for one in weights} <= possible
    first = [at for at, query in enumerate(measured["v1"].queries) if query == log.groups[0]]  # type: ignore[index]
    assert log.own.mean[0] == pytest.approx(measured["v1"].predicted[1].mean[first].mean(axis=0))


def test_answers_that_a_version_cannot_write_weigh_nothing(tmp_path: Path) -> None:
    made, writer = make(tmp_path, lambda bid: 0, queries=12), Versions()
    writer.impossible = {"v1"}
    measured = answered(_with_versions(made, writer))
    assert np.isneginf(measured["v0"].logprobs["v1"]).all()
    assert np.isfinite(measured["v1"].logprobs["v1"]).all()  # its own were drawn, whatever rounding says
    assert measured["v1"].on_the_edge == 1
    (pair,) = [
        one
        for one in hold_pairs(measured, "run", 100, 0, splits=2)
        if (one["log"], one["new"]) == ("v0", "v1")
    ]
    assert pair["overlap"]["impossible"] == 1
    robust, direct = (pair["measures"]["revenue"]["estimates"][one] for one in ("doubly_robust", "direct"))
    assert robust["value"]["mean"] == pytest.approx(direct["value"]["mean"])


def test_the_console_has_every_pair_and_estimator(measured: dict[str, Written]) -> None:
    pairs = hold_pairs(measured, "run", 50, 0, splits=2)
    found = {
        "name": "pocket",
        "level": 0.9,
        "splits": 2,
        "measures": list(SUITE_MEASURES),
        "clicks": {"counted": "somebody", "expected": "somebody"},
        "pairs": pairs,
        "summary": summed(pairs),
    }
    said = io.StringIO()
    console = plain_console(width=160, file=said)
    show_offpolicy(console, found)
    text = said.getvalue()
    for one in pairs:
        assert f"{one['log']} -> {one['new']}" in text
    for name in ESTIMATORS:
        assert name.replace("_", " ") in text
