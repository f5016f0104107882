"""Interleaved measurement, and what `raylla bench` shows and writes of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from raylla.auction.markup import markup
from raylla.bench import PARTS, Bench, Measured, Row, Side, Spread, compare, merge, run_parts
from raylla.bench.load import answer_requests
from raylla.bench.parts import dpo, driver
from raylla.bench.run import table
from raylla.config import Config, Lora, World
from raylla.errors import ConfigError
from raylla.irpo.schedule import auctions
from raylla.world import prompts, store
from tests.worlds import asked_world

LORA = Lora(rank=4, alpha=8, targets=("q_proj", "down_proj"))


def test_sides_alternate_after_one_run_unmeasured() -> None:
    order: list[str] = []

    def side(name: str, values: list[float]) -> Side:
        left = iter(values)

        def run() -> float:
            order.append(name)
            return next(left)

        return Side(name, run)

    row = compare("a ÷ b", side("a", [99, 2, 4, 9]), side("b", [99, 1, 4, 3]), 3, "s")
    assert order == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert row.value.values == (2.0, 1.0, 3.0)
    assert (row.value.median, row.value.low, row.value.high) == (2.0, 1.0, 3.0)
    assert [one.spread.values for one in row.sides] == [(2, 4, 9), (1, 4, 3)]


def test_the_table_shows_medians_spreads_sides_and_notes() -> None:
    sides = (Measured("packed", Spread((1500.0,))), Measured("pairs", Spread((300.0,))))
    row = Row("groups", Spread((4.0, 5.0, 6.5)), sides=sides, side_unit="groups/s", notes={"tokens": 6.125})
    console = Console(width=160, record=True)
    console.print(table("dpo", [row, Row("exponent", Spread((1.01,)), "")]))
    shown = console.export_text()
    for part in ("5x", "4 to 6.5", "packed 1,500 groups/s", "pairs 300 groups/s", "tokens 6.12", "1.01"):
        assert part in shown


def test_an_unknown_part_is_named_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match=r"no benchmark named 'rolout'; there are .*refresh"):
        run_parts(["refresh", "rolout"], Config(), Console())


def test_a_part_runs_apart_with_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARTS, "threads", "tests.unit.bench_part")
    found = run_parts(["threads"], Config.model_validate({"bench": {"repeats": 2}}), Console())
    row, plain = found["threads"]["rows"]
    assert row["values"] == [1.0, 1.0]
    assert row["notes"]["elsewhere"] == "yes"
    assert plain["sides"][0] == {
        "name": "a",
        "unit": "s",
        "median": 1.0,
        "low": 1.0,
        "high": 1.0,
        "values": [1.0],
    }
    json.dumps(found)


def test_a_part_s_model_is_looked_for_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAYLLA_CACHE", str(tmp_path))
    monkeypatch.setitem(PARTS, "threads", "tests.unit.bench_part")
    with pytest.raises(ConfigError, match=r"bench lora.*raylla models fetch smollm2-135m"):
        run_parts(["threads", "lora"], Config(), Console())


def test_less_work_leaves_one_of_each(tmp_path: Path) -> None:
    bench = Bench(Config.model_validate({"bench": {"work": 0.1}}), 1, tmp_path)
    assert [bench.share(usual) for usual in (120, 16, 4)] == [12, 2, 1]
    assert Bench(Config(), 1, tmp_path).share(120) == 120


def test_requests_are_the_config_s(tmp_path: Path) -> None:
    pocket = answer_requests(Config(), 3, 2, 8)
    assert [(one.id, one.n) for one in pocket] == [("q0", 8), ("q1", 8)]
    assert pocket[0].messages == answer_requests(Config(), 3, 1, 8)[0].messages
    assert pocket[0].messages[0]["content"].count("@[Ad-") == 6

    shop = asked_world(World(profiles=4, ads=12))
    store.save_world(shop, tmp_path / "world")
    tree = {
        "world": {"path": tmp_path / "world", "candidates": 3, "max_bid": 7},
        "ad_llm": {"path": "pocket:ad-llm", "prompt": "plain"},
    }
    rules, said = answer_requests(Config.model_validate(tree), 0, 1, 2)[0].messages
    assert rules == {"role": "system", "content": prompts.PLAIN_RULES}
    listed = re.findall(r"bid ([1-7]) \| (@[^@]+@\[Ad-\d+\])", said["content"])
    assert len(listed) == 3
    assert {ad for _, ad in listed} <= {markup(ad) for ad in shop.ads}
    assert any(query.text in said["content"] for query in shop.queries)


def test_the_served_run_is_small_whatever_the_config() -> None:
    from raylla.bench.parts.serving import small

    grown = Config.model_validate(
        {"rollout": {"workers": 4, "min_workers": 2}, "online": {"database": "sqlite:///x.db"}}
    )
    made = small(grown)
    assert (made.irpo.epochs, made.rollout.least, made.online.database) == (1, 1, None)


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "adapter"])
def test_packed_gradients_are_trl_s(tiny_model: Path, lora: Lora | None) -> None:
    shape = dpo.Shape("tiny", prompt=12, answer=5, answers=3, groups=1, vocabulary=500)
    assert 0 < dpo.gradient_difference(dpo.Subject(tiny_model, lora), shape) < 1e-5


def test_both_sides_train_the_same_adapter(tiny_model: Path, tmp_path: Path) -> None:
    shape = dpo.Shape("tiny", prompt=12, answer=5, answers=3, groups=1, vocabulary=500)
    subject = dpo.Subject(tiny_model, LORA.model_copy(update={"blocks": 1}))
    theirs = dpo._trained(dpo._pair_trainer(subject, shape, str(tmp_path)).model)
    ours = dpo._trained(dpo._packed_model(subject))
    assert {name: tuple(one.shape) for name, one in ours.items()} == {
        name: tuple(one.shape) for name, one in theirs.items()
    }
    assert all("layers.1." in name and ".lora_" in name for name in ours)


def test_figures_of_other_parts_stay_and_other_files_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    merge(path, {"refresh": {"rows": [1]}, "dpo": {"rows": [2]}})
    merge(path, {"refresh": {"rows": [3]}})
    assert json.loads(path.read_text()) == {"dpo": {"rows": [2]}, "refresh": {"rows": [3]}}
    for other in ('{"epochs": []}', "[1]", "name: pocket"):
        path.write_text(other)
        with pytest.raises(ConfigError, match=r"bench\.json: it is there"):
            merge(path, {"refresh": {}})
        assert path.read_text() == other


def test_an_exponent_is_the_slope_of_logarithms() -> None:
    from raylla.bench.parts.growth import exponent

    assert exponent([1, 2, 4, 8], [3 * size**1.5 for size in (1, 2, 4, 8)]) == pytest.approx(1.5)
    assert exponent([5, 10, 20], [7.0, 7.0, 7.0]) == pytest.approx(0)


def test_the_page_of_figures_is_that_of_the_file(tmp_path: Path) -> None:
    from raylla.bench.page import write_page

    docs = Path(__file__).parents[2] / "docs"
    page = tmp_path / "performance.md"
    page.write_text((docs / "performance.md").read_text())
    write_page(docs / "results" / "bench.json", page)
    assert page.read_text() == (docs / "performance.md").read_text()
    assert "| ≥ 0.97 |" in page.read_text()


def test_every_part_is_in_the_help_and_on_the_page() -> None:
    from typer.main import get_command

    from raylla.cli import app

    shown = get_command(app).commands["bench"].params[0].help  # type: ignore[attr-defined]
    assert shown == f"{', '.join(PARTS)}; none: all"
    page = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()
    assert all(f"`{part}`" in page for part in PARTS)


def test_simulated_actors_have_the_plan_s_times_whatever_their_number() -> None:
    seconds = []
    for actors in (16, 256):
        config, latencies = driver.paper_settings(actors, 4)
        assert config.rollout.workers == actors
        world = driver.synthetic_world(config)
        assert len(world.of("train")) == pytest.approx(4 * actors, rel=0.1)
        planned = auctions(config, world, 1)
        answers = sum(one.n for one in planned)
        seconds.append(answers * latencies.answer / actors)
    assert seconds[0] == pytest.approx(seconds[1], rel=0.1)


def test_memory_is_told_by_the_answer() -> None:
    peaks = ((10, 500), (20, 700), (40, 900))
    row = driver.memory([driver.EpochTimes(1, 1, 0.5, 0, answers, peak) for answers, peak in peaks])
    assert row.value.values == pytest.approx([90 / 7])


def test_the_driver_s_share_is_that_of_an_epoch_at_the_plan_s_pace() -> None:
    planned = driver.EpochTimes(10, 10, 2.0, 0.02, 100, 1)
    slowed = driver.EpochTimes(100, 100, 3.8, 0.02, 100, 1, slower=10)
    assert planned.share == pytest.approx(0.2)
    assert slowed.work == pytest.approx(planned.work)
    assert slowed.share == pytest.approx(planned.share)


def test_the_endpoint_s_own_share_is_all_but_the_generation() -> None:
    from raylla.bench.parts.serving import LoadFigures, _own

    generation = {f"a{place}": 50.0 for place in range(100)}
    took = tuple((f"a{place}", 51.0 + place) for place in range(100))
    busy, none = LoadFigures(1, 1, 1, 0, took), LoadFigures(1, 1, 1, 0)
    found = {("endpoint", at, False): [busy] if at == 16 else [none] for at in (1, 4, 16)}
    p50, p99 = _own(found, generation)
    assert (p50.value.values, p99.value.values) == ((51.0,), (100.0,))
    assert "16 at once" in p99.name


@pytest.mark.parametrize(("most", "loaded"), [(16, [1, 4, 16]), (1, [1])])
def test_mosaic_is_loaded_as_far_as_it_is_to_be(
    most: int, loaded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from raylla.bench.parts import serving

    async def load(server: serving.Server, at: int, count: int, stream: bool) -> serving.LoadFigures:
        return serving.LoadFigures(at, count, 1, 1)

    monkeypatch.setattr(serving, "_load", load)
    servers = [serving.Server(name, "", "", []) for name in ("endpoint", "vLLM", "MOSAIC")]
    found = serving._measured(servers, {1: 24, 4: 64, 16: 192}, 2, most)
    assert [at for name, at, stream in found if name == "MOSAIC" and not stream] == loaded
    assert all(len(one) == 2 for one in found.values())
    assert sum("MOSAIC" in row.name for row in serving._rows(found)) == 2 * len(loaded)
