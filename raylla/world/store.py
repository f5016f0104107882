"""A world on disk: parquet files of its records and a world.json, and the checks it must pass."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from raylla.errors import WorldError
from raylla.records import Ad, Auction, Profile, Query, Turn, TurnRole
from raylla.strictjson import dumps
from raylla.world.texts import check_ad, check_line, composed
from raylla.world.world import World

FORMAT = 1
_AGAIN = "build or import the world again"
_TEXT = pa.string()
_TURNS = pa.list_(pa.struct([("role", _TEXT), ("text", _TEXT)]))
_SCHEMAS = {
    "profiles": pa.schema([("id", _TEXT), ("basics", _TEXT), ("interests", pa.list_(_TEXT))]),
    "ads": pa.schema(
        [(name, _TEXT) for name in ("id", "title", "category", "theme", "description", "url")]
    ),
    "queries": pa.schema(
        [(name, _TEXT) for name in ("id", "profile_id", "text", "category", "theme", "split")]
        + [("related", pa.list_(_TEXT)), ("candidates", pa.list_(_TEXT)), ("turns", _TURNS)]
    ),
    "auctions": pa.schema(
        [("id", _TEXT), ("query_id", _TEXT), ("ad_ids", pa.list_(_TEXT)), ("bids", pa.list_(pa.float64()))]
    ),
}
_ADDED: dict[str, Any] = {"description": "", "url": "", "candidates": [], "turns": []}
"""Columns that older worlds lack, and what they stand for there."""


def save_world(world: World, directory: Path) -> None:
    """Write ``world`` to ``directory`` in one step: readers see the old world or the new one.

    Raises:
        WorldError: the directory holds something else than a world.
    """
    if directory.exists() and not (directory / "world.json").is_file():
        raise WorldError(f"{directory} exists and is no world (it has no world.json); choose another path")
    directory.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        rows = {
            "profiles": [asdict(profile) for profile in world.profiles],
            "ads": [asdict(ad) for ad in world.ads],
            "queries": [
                {
                    **asdict(query),
                    "related": list(world.related.get(query.id, ())),
                    "candidates": list(world.candidates.get(query.id, ())),
                }
                for query in world.queries
            ],
            "auctions": [asdict(auction) for auction in world.auctions],
        }
        for name, schema in _SCHEMAS.items():
            pq.write_table(pa.Table.from_pylist(rows[name], schema=schema), fresh / f"{name}.parquet")
        about = {"format": FORMAT, "name": world.name, "seed": world.seed, "notes": dict(world.notes)}
        about["counts"] = {name: len(members) for name, members in rows.items()}
        (fresh / "world.json").write_text(dumps(about, indent=2) + "\n")
        fresh.chmod(0o755)
        _swap(fresh, directory)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def load_world(directory: Path) -> World:
    """Read a world written by `save_world`, and check it.

    Raises:
        WorldError: a file is missing, unreadable, of another format or other than world.json
            counts it, or the world fails `check_world`.
    """
    about = _about(directory / "world.json")
    # worlds without served auctions were once written without their file
    names = [name for name in _SCHEMAS if name != "auctions" or name in about["counts"]]
    rows = {name: _rows(directory / f"{name}.parquet", name) for name in names}
    for name, members in rows.items():
        if about["counts"].get(name) != len(members):
            raise WorldError(
                f"{directory}/{name}.parquet holds {len(members)} rows, world.json counts "
                f"{about['counts'].get(name)}; the world is partial: {_AGAIN}"
            )
    related, candidates = (
        {row["id"]: ads for row in rows["queries"] if (ads := tuple(row.pop(name)))}
        for name in ("related", "candidates")
    )
    world = World(
        name=about["name"],
        seed=about["seed"],
        profiles=tuple(
            Profile(row["id"], row["basics"], tuple(row["interests"])) for row in rows["profiles"]
        ),
        ads=tuple(composed(Ad(**row)) for row in rows["ads"]),
        queries=tuple(
            Query(**{**row, "turns": tuple(Turn(**turn) for turn in row["turns"])})
            for row in rows["queries"]
        ),
        related=related,
        candidates=candidates,
        auctions=tuple(
            Auction(row["id"], row["query_id"], tuple(row["ad_ids"]), tuple(row["bids"]))
            for row in rows.get("auctions", ())
        ),
        notes=about["notes"],
    )
    check_world(world)
    return world


def check_world(world: World) -> None:
    """Refuse a world that a run would stumble over.

    Raises:
        WorldError: names the record, the field, the value and the way out.
    """
    if not world.profiles:
        raise WorldError("profiles: there are none; a world needs at least 2")
    if not world.ads:
        raise WorldError("ads: the catalogue is empty; add at least one ad")
    _unique("profiles", [profile.id for profile in world.profiles])
    _unique("ads", [ad.id for ad in world.ads])
    _unique("queries", [query.id for query in world.queries])
    for ad in world.ads:
        check_ad(ad)
    for profile in world.profiles:
        for interest in profile.interests:
            check_line(f"profiles: {profile.id}", "interests", interest)
    _check_queries(world)
    for name, named in (("related", world.related), ("candidates", world.candidates)):
        for query_id, ids in named.items():
            for unknown in (id for id in ids if id not in world.ad_by_id):
                raise WorldError(
                    f"queries: {query_id}: {name}={unknown!r} is no ad; add it or drop it there"
                )
    _unique("auctions", [auction.id for auction in world.auctions])
    for auction in world.auctions:
        unknown_ads = set(auction.ad_ids) - world.ad_ids
        if auction.query_id not in world.query_by_id or unknown_ads:
            raise WorldError(
                f"auctions: {auction.id}: query {auction.query_id!r} or one of the ads is not in the world"
            )


def _check_queries(world: World) -> None:
    splits: dict[str, str] = {}
    for query in world.queries:
        where = f"queries: {query.id}"
        if query.profile_id not in world.profile_by_id:
            raise WorldError(
                f"{where}: profile_id={query.profile_id!r} is unknown; add the profile or drop it"
            )
        if query.split not in ("train", "test"):
            raise WorldError(f"{where}: split={query.split!r}; it is train or test")
        if not query.text.strip():
            raise WorldError(f"{where}: text={query.text!r} is empty; drop the query")
        for turn in query.turns:
            if turn.role not in get_args(TurnRole) or not turn.text.strip():
                raise WorldError(
                    f"{where}: turns hold {turn.text[:40]!r} of {turn.role!r}; a turn is text of "
                    f"{', '.join(get_args(TurnRole))}: mend or drop it"
                )
        if splits.setdefault(query.profile_id, query.split) != query.split:
            raise WorldError(
                f"{where}: split={query.split!r}, but profile {query.profile_id} has queries in both; "
                "hold out whole profiles"
            )
    for split in ("train", "test"):
        if split not in splits.values():
            raise WorldError(f"queries: none has split={split!r}; hold out some profiles, but not all")


def _unique(kind: str, ids: list[str]) -> None:
    seen: set[str] = set()
    for id in ids:
        if id in seen:
            raise WorldError(f"{kind}: id={id!r} occurs twice; ids are unique: renumber one")
        seen.add(id)


def _swap(fresh: Path, directory: Path) -> None:
    if not directory.exists():
        os.replace(fresh, directory)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{directory.name}-old-", dir=directory.parent))
    os.replace(directory, old)
    os.replace(fresh, directory)
    shutil.rmtree(old)


def _about(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text())
    except OSError as error:
        raise WorldError(f"{path}: {error.strerror or error}; give a saved world's directory") from None
    except ValueError as error:
        raise WorldError(f"{path} is not JSON: {error}; {_AGAIN}") from None
    wanted = {"format", "name", "seed", "notes", "counts"}
    if not isinstance(about, dict) or not wanted <= about.keys() or not isinstance(about["counts"], dict):
        raise WorldError(
            f"{path} lacks one of {', '.join(sorted(wanted))}; build or import the world again"
        )
    if about["format"] != FORMAT:
        raise WorldError(f"{path}: format={about['format']!r}, this version reads {FORMAT}; {_AGAIN}")
    return about


def _rows(path: Path, name: str) -> list[dict[str, Any]]:
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise WorldError(f"{path} is missing; the world is partial: {_AGAIN}") from None
    except (pa.ArrowException, OSError) as error:
        raise WorldError(
            f"{path} is not a parquet file: {error}; build or import the world again"
        ) from None
    there = [field.name for field in _SCHEMAS[name] if field.name in table.column_names]
    added = {field.name: _ADDED[field.name] for field in _SCHEMAS[name] if field.name in _ADDED}
    for field in _SCHEMAS[name]:
        if field.name not in there and field.name not in added:
            raise WorldError(f"{path} has no column {field.name!r}; {_AGAIN}")
    for column in there:
        if table.column(column).null_count:
            raise WorldError(f"{path}: column {column!r} has gaps; build or import the world again")
    try:
        rows: list[dict[str, Any]] = table.select(there).to_pylist()
    except UnicodeDecodeError as error:
        raise WorldError(f"{path} holds text that is not UTF-8 ({error}); {_AGAIN}") from None
    return [{**added, **row} for row in rows]
