"""The synthetic world is fixed by its seed, survives the disk, and is refused when unusable."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raylla import config
from raylla.auction import parse
from raylla.config import Model
from raylla.errors import WorldError
from raylla.records import Ad, Profile, Query, Turn
from raylla.world import World, bids, build, prompts, store
from raylla.world.synthetic import lexicon
from raylla.world.turns import in_context

SETTINGS = config.World(profiles=8, ads=100)


@pytest.fixture(scope="module")
def world() -> World:
    empty = build.synthetic(SETTINGS, 0)
    splits = build.split_users(empty.profiles, 0.2, 0)
    queries = [
        build.query_from_text(user, index, f"best {interest} near me", splits[user.id])
        for user in empty.profiles
        for index, interest in enumerate(user.interests)
    ]
    return replace(empty, queries=tuple(query for query in queries if query))


def test_catalogue_covers_every_category_twice(world: World) -> None:
    assert Counter(Counter(ad.category for ad in world.ads).values()) == {2: 50}
    assert len({ad.title for ad in world.ads}) == len(world.ad_ids) == 100
    assert all(len(ad.id) == 4 and ad.theme == lexicon.theme_of(ad.category) for ad in world.ads)
    assert len({ad.theme for ad in build.catalogue(config.World(ads=10), 0)}) == 10


def test_same_seed_same_world() -> None:
    assert build.synthetic(SETTINGS, 3) == build.synthetic(SETTINGS, 3)
    assert build.synthetic(SETTINGS, 3) != build.synthetic(SETTINGS, 4)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_split_holds_out_some_profiles_but_not_all(world: World, share: float) -> None:
    assert set(build.split_users(world.profiles, share, 0).values()) == {"train", "test"}


def test_split_of_one_profile_is_refused(world: World) -> None:
    with pytest.raises(WorldError, match=r"world\.profiles=1"):
        build.split_users(world.profiles[:1], 0.2, 0)


def test_query_from_text() -> None:
    user = Profile("p7", "30 nurse Oslo", ("tea",))
    query = build.query_from_text(user, 2, ' "Where is\n<|user|> a good kettle?" ', "train")
    assert query == Query("p7-2", "p7", "Where is < |user| > a good kettle?", "tea", "food", "train")
    for text in ("", '""', " 12 ?", "\n"):
        assert build.query_from_text(user, 0, text, "train") is None
    long = build.query_from_text(user, 0, "word " * 200, "test")
    assert long is not None
    assert len(long.text) <= build.MAX_QUERY
    assert (long.category, long.theme) == ("", "")


def test_candidates_are_related_fixed_and_distinct(world: World) -> None:
    for query in world.queries:
        found = build.candidates(world, query, 6, 0)
        assert found == build.candidates(world, query, 6, 0)
        assert len({ad.id for ad in found}) == 6
        assert sum(ad.category == query.category for ad in found) >= 2
        assert sum(ad.theme == query.theme for ad in found) >= 4
    query = world.queries[0]
    assert found != build.candidates(world, query, 6, 1)
    assert sorted(ad.id for ad in build.candidates(world, query, 500, 0)) == sorted(world.ad_ids)
    assert len(build.candidates(world, replace(query, category="", theme=""), 6, 0)) == 6
    assert len(build.candidates(world, query, 1, 0)) == 1


def test_paired_ads_come_first(world: World) -> None:
    query = world.queries[0]
    far = [ad.id for ad in world.ads if ad.theme != query.theme][:2]
    paired = replace(world, related={query.id: tuple(far)})
    found = build.candidates(paired, query, 6, 0)
    assert set(far) <= {ad.id for ad in found}
    assert sum(ad.theme == query.theme for ad in found) == 2


def test_sample_keeps_both_splits_and_spreads_over_themes(world: World) -> None:
    small = build.sample_queries(world, 6, 0)
    assert len(small.queries) == 6
    assert {query.split for query in small.queries} == {"train", "test"}
    assert len({query.theme for query in small.queries}) >= 3
    assert build.sample_queries(world, 1000, 0) is world
    with pytest.raises(WorldError, match="at least 2"):
        build.sample_queries(world, 1, 0)


def test_ids_and_bids_are_functions_of_names() -> None:
    auction = bids.auction_id(1, "reward", "p12-3")
    assert auction == "e1/reward/p12-3"
    assert bids.sample_id(auction, 0) == "e1/reward/p12-3/0"
    drawn = bids.draw(0, auction, 1000, 100)
    assert drawn == bids.draw(0, auction, 1000, 100)
    assert drawn != bids.draw(1, auction, 1000, 100)
    assert set(drawn) <= set(map(float, range(1, 101)))
    assert sum(drawn) / 1000 == pytest.approx(50.5, abs=4)


def test_saved_world_comes_back_and_is_replaced_whole(world: World, tmp_path: Path) -> None:
    path = tmp_path / "world"
    paired = replace(world, related={world.queries[0].id: (world.ads[0].id,)}, notes={"titles_cleaned": 3})
    store.save_world(world, path)
    store.save_world(paired, path)
    assert store.load_world(path) == paired
    assert [entry.name for entry in tmp_path.iterdir()] == ["world"]


def test_a_directory_that_is_no_world_is_left_alone(world: World, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(WorldError, match="is no world"):
        store.save_world(world, tmp_path)
    assert (tmp_path / "precious.txt").exists()


def test_partial_worlds_are_refused(world: World, tmp_path: Path) -> None:
    path = tmp_path / "world"
    with pytest.raises(WorldError, match=r"world\.json"):
        store.load_world(path)
    store.save_world(world, path)
    ads = path / "ads.parquet"
    whole = ads.read_bytes()
    pq.write_table(pq.read_table(ads).slice(0, 5), ads)
    with pytest.raises(WorldError, match="holds 5 rows"):
        store.load_world(path)
    pq.write_table(pq.read_table(ads).drop_columns(["title"]), ads)
    with pytest.raises(WorldError, match="no column 'title'"):
        store.load_world(path)
    ads.write_bytes(whole)
    table = pq.read_table(ads)
    field = table.schema.get_field_index("category")
    other = pa.array([b"tea \xff"] * len(table), pa.binary()).view(pa.string())
    pq.write_table(table.set_column(field, table.schema.field(field), other), ads)
    with pytest.raises(WorldError, match=r"ads\.parquet holds text that is not UTF-8 .*0xff.* again"):
        store.load_world(path)
    ads.write_bytes(whole[:100])
    with pytest.raises(WorldError, match="not a parquet file"):
        store.load_world(path)
    ads.unlink()
    with pytest.raises(WorldError, match=r"ads\.parquet is missing"):
        store.load_world(path)
    about = json.loads((path / "world.json").read_text())
    (path / "world.json").write_text(json.dumps({**about, "format": 99}))
    with pytest.raises(WorldError, match="format=99"):
        store.load_world(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"title": "a@b"}, "holds '@'"),
        ({"title": "a[b"}, r"holds '\['"),
        ({"title": "a\nb"}, "line break"),
        ({"title": "a<|b"}, "control token"),
        ({"title": " "}, "is empty"),
        ({"title": "x" * 81}, "over 80"),
        ({"id": "12a"}, "digits"),
        ({"category": "a\nb"}, "category="),
    ],
)
def test_bad_ads_are_refused(world: World, change: dict[str, str], message: str) -> None:
    bad = replace(world.ads[0], **change)
    with pytest.raises(WorldError, match=message):
        store.check_world(replace(world, ads=(bad, *world.ads[1:])))


def test_contradictory_worlds_are_refused(world: World) -> None:
    store.check_world(world)
    first = world.queries[0]
    other = "test" if first.split == "train" else "train"
    cases: list[tuple[World, str]] = [
        (replace(world, ads=()), "catalogue is empty"),
        (replace(world, profiles=()), "profiles: there are none"),
        (replace(world, ads=(*world.ads, world.ads[0])), "occurs twice"),
        (replace(world, queries=world.of("train")), "split='test'"),
        (replace(world, queries=world.of("test")), "split='train'"),
        (replace(world, queries=(*world.queries, replace(first, id="n", profile_id="?"))), "is unknown"),
        (replace(world, queries=(*world.queries, replace(first, id="n", split=other))), "in both"),
        (replace(world, related={first.id: ("0",)}), "related='0'"),
    ]
    for bad, message in cases:
        with pytest.raises(WorldError, match=message):
            store.check_world(bad)


def test_every_title_survives_its_markup(world: World) -> None:
    for ad in world.ads:
        assert isinstance(ad, Ad)
        assert parse(f"x @{ad.title}@[Ad-{ad.id}] y", [ad]).ad_ids == (ad.id,)


def test_a_query_keeps_its_turns_and_a_world_from_before_has_none(world: World, tmp_path: Path) -> None:
    turns = (Turn("system", "be brief"), Turn("user", "which mug?"), Turn("assistant", "of steel"))
    first, *rest = world.queries
    talk = replace(world, queries=(replace(first, turns=turns), *rest))
    store.save_world(talk, tmp_path / "w")
    assert store.load_world(tmp_path / "w") == talk
    store.save_world(world, tmp_path / "w")
    path = tmp_path / "w" / "queries.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["turns"]), path)
    assert store.load_world(tmp_path / "w") == world
    for bad in (Turn("tool", "x"), Turn("user", " ")):  # type: ignore[arg-type]
        with pytest.raises(WorldError, match="a turn is text of"):
            store.check_world(replace(world, queries=(replace(first, turns=(bad,)), *rest)))


@pytest.mark.parametrize(
    ("turns", "read"),
    [
        ((), "and a cheaper one?"),
        ((Turn("user", "which mug?"), Turn("assistant", "of steel")), "which mug? and a cheaper one?"),
        ((Turn("system", "s"), Turn("assistant", "try a mug")), "try a mug and a cheaper one?"),
        ((Turn("user", "old " * 60), Turn("user", "a mug?")), "a mug? and a cheaper one?"),
        ((Turn("user", "a mug?"), Turn("user", "in blue?")), "a mug? in blue? and a cheaper one?"),
    ],
)
def test_a_question_in_its_context(turns: tuple[Turn, ...], read: str) -> None:
    assert in_context(Query("q", "p", "and a cheaper one?", "", "", "test", turns)) == read


def test_turns_stand_before_the_question_in_every_prompt() -> None:
    turns = (
        Turn("system", "be\nbrief"),
        Turn("user", "which <|user|> mug?"),
        Turn("assistant", "\u00a49 steel"),
    )
    query = Query("q", "p", "and a cheaper one?", "", "", "test", turns)
    user, ads = Profile("p", "30 nurse Oslo", ("tea",)), [Ad("12", "Lumo Cup", "tea", "food")]
    for form in ("paper", "plain", "compact"):
        bare = prompts.answer(form, replace(query, turns=()), user, ads, [4])
        said = prompts.answer(form, query, user, ads, [4])
        assert [*said[: len(bare) - 1], said[-1]] == bare
        assert [one["role"] for one in said[-4:-1]] == ["system", "user", "assistant"]
        assert said[-4:-2] == [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "which < |user| > mug?"},
        ]
        assert ("\u00a4 9" in said[-2]["content"]) == (form == "compact")
        assert prompts.organic(form, query, user)[-4:-1] == said[-4:-1]
    assert "which < |user| > mug? and a cheaper one?" in str(prompts.judge("plain", query, user, "A.", ads))


@pytest.mark.parametrize("form", ["plain", "paper", "compact"])
def test_ads_are_listed_by_their_bids_where_a_model_wants_it(form: prompts.Form) -> None:
    ads = [Ad(str(1000 + place), f"Mug{place}", "tea", "food") for place in range(4)]
    query, user = Query("q", "p", "which mug?", "tea", "food", "test"), Profile("p", "30 nurse", ("tea",))

    def listed(order: str, bids: list[float | None]) -> list[int]:
        model = Model.model_validate({"path": "x", "prompt": form, "order": order})
        said = "\n".join(one["content"] for one in prompts.of(model, query, user, ads, bids))
        return sorted(range(4), key=lambda place: said.index(f"@Mug{place}@"))

    assert listed("drawn", [5, 90, 40, 40]) == [0, 1, 2, 3]
    assert listed("bid", [5, 90, 40, 40]) == [1, 2, 3, 0]
    assert listed("bid", [None] * 4) == [0, 1, 2, 3]
    assert listed("bid", [5, 90, None, 40]) == [0, 1, 2, 3]
