"""What the reader gets: figures from made reads, and reads at a backend whose engines follow a rule."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from raylla.auction import ReadAnswer
from raylla.engines.protocol import Completion, Generated, Request
from raylla.evaluation import efficiency
from raylla.evaluation.page.console import _show_quality
from raylla.evaluation.reader import reading
from raylla.figures import quality
from raylla.figures.quality import Read
from raylla.world import World
from tests.unit.backends import make


def read(query: str, tokens: int, nll: float, claims: list[tuple[float, float]] | None = None) -> Read:
    return Read(query, 10, 0.5, nll, tokens, False, claims or [])


def test_perplexity_is_per_token_and_what_is_not_there_does_not_count() -> None:
    table = quality.reads_per_query([read("a", 10, 20.0), read("a", 0, 0.0), read("b", 30, 20.0)])
    row = quality.quality_figures([table], 500, 0)
    # Per query 5 and 30 tokens, 10 and 20 nats.
    assert row["perplexity"]["mean"] == pytest.approx(np.exp(30 / 35))
    assert 1 <= row["perplexity"]["low"] < row["perplexity"]["mean"] < row["perplexity"]["high"]
    assert row["nothing_left"]["mean"] == pytest.approx(0.25)
    assert row["words"] == {"mean": 10, "low": 10, "high": 10}
    assert row["fidelity"] is None


def test_the_interval_of_a_share_ends_where_shares_do() -> None:
    rare = [read(f"q{i}", 0 if i == 0 else 5, 1.0, [(0.9 if i else 1.0, 0.0)]) for i in range(12)]
    for tables in ([rare], [rare, rare[1:]]):
        row = quality.quality_figures([quality.reads_per_query(one) for one in tables], 500, 0)
        for name in quality.SHARES:
            assert 0 <= row[name]["low"] <= row[name]["mean"] <= row[name]["high"] <= 1


def test_fidelity_is_per_ad_that_something_is_said_of() -> None:
    table = quality.reads_per_query([read("a", 1, 1.0, [(1.0, 0.2), (0.5, 0.1)]), read("b", 1, 1.0)])
    row = quality.quality_figures([table, table], 500, 0)
    assert row["fidelity"]["mean"] == pytest.approx(0.75)
    assert row["fidelity_chance"]["mean"] == pytest.approx(0.15)


def test_ratios_pair_queries() -> None:
    before = quality.reads_per_query([read(f"q{i}", 10, 10.0 * (i + 1)) for i in range(20)])
    after = quality.reads_per_query(
        [read(f"q{i}", 10, 10.0 * (i + 1) + 2) for i in range(20)] + [read("x", 9, 1)]
    )
    ratio = quality.perplexity_ratio([after], [before], 500, 0)
    # Each query differs by 0.2 nats a token, though the queries differ by far more.
    assert ratio["mean"] == pytest.approx(np.exp(0.2))
    assert ratio["high"] == pytest.approx(np.exp(0.2))
    nothing = quality.reads_per_query([read(f"q{i}", 0, 0.0) for i in range(20)])
    assert quality.perplexity_ratio([nothing], [before], 500, 0) is None
    assert quality.perplexity_ratio([{"y": np.zeros(10)}], [before], 500, 0) is None


class Suspicious:
    """Suspects answers that name a brand."""

    @staticmethod
    def suspects(texts: list[str]) -> np.ndarray:
        return np.array(["Brand" in text for text in texts])


def organic(requests: list[Request], version: str) -> Iterator[Generated]:
    """The question, said again."""
    for request in requests:
        text = f"{request.messages[0]['content'].splitlines()[-1]} Well."
        yield Generated(request.id, (1,), (Completion(text, (1, 2), True),) * request.n)


def at_backend(tmp_path: Path, description: str = "") -> Any:
    made = make(tmp_path, lambda bid: bid / 100)
    made.writer.generate = organic
    backend, world = made.backend, made.backend.world
    ads = tuple(replace(ad, description=description) for ad in world.ads)
    backend.world = World(world.name, 0, world.profiles, ads, world.queries)
    planned = efficiency.test_auctions(backend.config, backend.world)
    first, second = ads[0], ads[1]
    made.answers = [
        ReadAnswer.of(auction, text)
        for auction in planned
        for text in (
            f"Steep it long. Green boxes fill @{first.title}@[Ad-{first.id}] (Sponsored). Pour it.",
            f"Buy @{second.title}@[Ad-{second.id}]!",
        )
    ]
    return made


def test_answers_are_read_as_their_reader_would(tmp_path: Path) -> None:
    made = at_backend(tmp_path, "Boxes of green leaves.")
    reads = reading.read_tables(made.backend, {"versions": {"v0": made.answers}}, Suspicious())
    columns = dict(zip(quality.READ_COLUMNS, next(iter(reads["versions"]["v0"].values())), strict=True))
    assert columns["words"] == (10 + 3) / 2
    assert (columns["tokens"], columns["nothing_left"], columns["detected"]) == (5 / 2, 1 / 2, 1)
    # Green and boxes are in the description, fill and buy are not.
    assert (columns["borne_out"], columns["claims"]) == (pytest.approx(2 / 3 / 2), 1)
    assert -1 <= columns["similarity"] <= columns["compared"] == 1
    assert len(made.writer.read) == 2 * 30
    assert {one.text for one in made.writer.read} >= {"Steep it long. Pour it.", "which tea 7? Well."}
    assert all("Brand" not in one.messages[0]["content"] for one in made.writer.read)
    own = dict(zip(quality.READ_COLUMNS, next(iter(reads["organic"]["organic"].values())), strict=True))
    # Its two draws are the same text here.
    assert (own["similarity"], own["words"], own["detected"]) == (pytest.approx(1), 4, 0)
    assert len(reads["organic"]["organic"]) == 30


def test_the_untouched_model_is_loaded_once(tmp_path: Path) -> None:
    made = at_backend(tmp_path)
    loaded: list[str] = []

    def refresh(version: Any, _: Any) -> list[float]:
        loaded.append(version.name)
        made.backend._crew.version = version
        return []

    made.backend._crew.refresh = refresh
    reading.read_tables(made.backend, {"versions": {"v0": made.answers}}, None)
    assert loaded == ["v0"]


def test_what_was_not_measured_is_absent_and_said(tmp_path: Path) -> None:
    made = at_backend(tmp_path)
    reads = reading.read_tables(
        made.backend, {"mechanisms": {"mosaic": made.answers}, "versions": {"v0": made.answers}}, None
    )
    found = quality.summary(
        [reads, reads],
        {"llm-auction: masked": [(reads["mechanisms"]["mosaic"], None)]},
        {"detected": "nobody taught it", **dict.fromkeys(quality.FIDELITY, "no descriptions")},
        200,
        0,
    )
    assert list(found["mechanisms"]) == ["mosaic", "llm-auction: masked"]
    row = found["mechanisms"]["mosaic"]
    assert not {"detected", "fidelity", "fidelity_chance"} & row.keys()
    assert row["perplexity_ratio"] == {"mean": 1, "low": 1, "high": 1}
    assert found["mechanisms"]["llm-auction: masked"]["perplexity_ratio"] is None
    assert found["organic"]["organic"]["perplexity_ratio"] is None
    shown = io.StringIO()
    _show_quality(Console(file=shown, width=160), found | {"detector": None})
    assert "detected: not measured, for nobody taught it" in shown.getvalue()
    assert shown.getvalue().count("mosaic") == 1


def test_lost_organic_answers_are_bounded(tmp_path: Path) -> None:
    made = at_backend(tmp_path)
    counted: list[tuple[str, int, int]] = []
    made.backend.bound = lambda *args: counted.append(args)
    made.backend.untouched_answers = lambda asked: [Generated(one.id, (), ()) for one in asked]
    reads = reading.read_tables(made.backend, {"versions": {"v0": made.answers}}, None)
    assert counted == [("organic answers", 60, 60)]
    assert quality.quality_figures([reads["versions"]["v0"]], 100, 0)["similarity"] is None
