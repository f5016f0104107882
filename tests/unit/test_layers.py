"""Layers point one way: no rooms import in a circle; the mechanism, the store and the driver load no
model library. Names tell things apart: few stand for one thing here and for another there."""

from __future__ import annotations

import statistics
import subprocess
import sys

import pytest

from tests import house

MOST = 12
"""Modules that a folder holds at most, beside `__init__` and `__main__`: more are two rooms."""

DOUBLED = 15
"""Public names that more than one module defines, at most."""

VAGUE = {"one": 100, "found": 120}
"""Names that say nothing of the thing -> how often raylla binds them, at most."""

LIGHT = (
    "raylla.records",
    "raylla.config",
    "raylla.auction",
    "raylla.bidding.autobidders",
    "raylla.bidding.hindsight",
    "raylla.mechanisms",
    "raylla.figures.intervals",
    "raylla.figures.offpolicy",
    "raylla.plan.console",
    "raylla.pricing.learn",
    "raylla.terms.fidelity",
    "raylla.terms.welfare",
    "raylla.world.fit",
    "raylla.world.retrieval",
    "raylla.serving.billing.audit",
    "raylla.serving.http.campaigns",
    "raylla.serving.http.clicks",
    "raylla.serving.auction.eligibility",
    "raylla.serving.store.importing",
    "raylla.serving.billing.notices",
    "raylla.world.build",
    "raylla.world.imports.importers",
    "raylla.world.meaning",
)
DRIVER = (
    "raylla.cli",
    "raylla.bench",
    "raylla.irpo.loop",
    "raylla.irpo.stages",
    "raylla.evaluation.conflict",
    "raylla.evaluation.day.suite",
    "raylla.evaluation.evaluate",
    "raylla.evaluation.offpolicy.suite",
    "raylla.evaluation.prices.holdout",
    "raylla.serving.deploy.app",
    "raylla.serving.deploy.cluster",
    "raylla.serving.deploy.deploy",
    "raylla.serving.deploy.estimate",
    "raylla.serving.deploy.rewriting",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        (LIGHT, ("ray", "torch", "vllm", "transformers")),
        (DRIVER, ("torch", "vllm", "deepspeed", "trl")),
        (("raylla.serving.money.records",), ("ray", "torch", "vllm", "sqlalchemy", "fastapi")),
    ],
    ids=["mechanism", "driver", "records"],
)
def test_imports(modules: tuple[str, ...], forbidden: tuple[str, ...]) -> None:
    code = f"import sys, {', '.join(modules)}; print([m for m in {forbidden!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("package", house.PACKAGES)
def test_rooms_do_not_import_in_circles(package: str) -> None:
    graph = house.rooms(package)
    assert len(graph) > 5
    assert house.circles(graph) == []


def test_a_circle_is_found() -> None:
    assert house.circles({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]}) == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]


def test_no_room_is_crowded() -> None:
    assert {folder: number for folder, number in house.crowds().items() if number > MOST} == {}


def test_public_names_are_defined_once() -> None:
    assert len(house.homes()) > 1000
    doubled = house.doubled()
    assert len(doubled) <= DOUBLED, "\n".join(
        f"{name}: {', '.join(where)}" for name, where in doubled.items()
    )


def test_files_and_functions_are_short() -> None:
    files, functions = house.lengths(), house.functions()
    assert statistics.median(files.values()) <= 120
    assert {name: lines for name, lines in files.items() if lines > 400} == {}
    assert {name: lines for name, lines in functions.items() if lines > 60} == {}


def test_what_is_public_is_called_by_more_than_tests() -> None:
    assert house.unused() == []


def test_things_have_names_that_say_what_they_are() -> None:
    bound = house.bound()
    assert {name: bound[name] for name, most in VAGUE.items() if bound[name] > most} == {}
