"""`raylla world`: worlds of your own tables and of public data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raylla.config import World
from raylla.terminal import ColumnOptions, say, tell, told

app = typer.Typer(help="Worlds: profiles, ads and queries.", no_args_is_help=True)


@app.command("import")
@told
def world_import(
    kind: Annotated[str, typer.Argument(help="table, gem-bench or webis")],
    path: Annotated[Path, typer.Argument(help="table of ads, or directory of the data set")],
    out: Annotated[Path, typer.Option(help="directory to write the world to")],
    queries: Annotated[Path | None, typer.Argument(help="table of queries")] = None,
    map_: ColumnOptions = [],  # noqa: B006
    profiles: Annotated[int, typer.Option(min=2, help="users to draw where the data has none")] = 1000,
    seed: Annotated[int, typer.Option(help="of what is drawn where the data has none")] = 0,
) -> None:
    """Turn your own tables (CSV, TSV, JSON lines, Parquet), or a public data set, into a world directory
    for `world.path`."""
    from raylla.world.imports.importers import import_world, mapping

    drawn = World.model_validate({"profiles": profiles})
    done = import_world(kind, path, queries, out, mapping(map_), drawn, seed)
    tell(done.faults)
    world = done.world
    say(
        f"{out}: {len(world.ads)} ads, {len(world.queries)} queries of {len(world.profiles)} users; "
        f"{dict(world.notes)}"
    )
