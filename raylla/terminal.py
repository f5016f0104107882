"""What every command of the command line shares: the console, its arguments, how errors are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.text import Text

from raylla import __version__
from raylla.errors import RayllaError
from raylla.progress import Steps


def plain_console(**options: Any) -> Console:
    """A console that shows text as it is: no name or message is read as markup, or as a sign's name."""
    return Console(markup=False, emoji=False, highlight=False, **options)


console = plain_console()
if not console.is_terminal:
    console = plain_console(width=200)  # A table in a log file is not squeezed into 80 columns.

_Result = TypeVar("_Result")


ConfigPath = Annotated[
    Path, typer.Argument(help="YAML overlay over the defaults: a file, or the name of a shipped one")
]
RunPath = Annotated[str, typer.Argument(help="run directory, or URL of one in a bucket")]
Overrides = Annotated[list[str], typer.Option("--set", help="section.key=value, repeatable")]

ColumnOptions = Annotated[
    list[str],
    typer.Option("--map", help="FIELD=COLUMN of a table, repeatable: title=ad_title"),
]
RAY = "start Ray or join it"
"""The stage of a command that connects to Ray."""
_NAMED = 20
"""Rows of a table that are named where it has many that cannot be used."""


def say(text: str) -> None:
    """Print ``text`` as it is, whatever signs it holds."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def steps() -> Steps:
    """What a command is at, for whoever waits for it."""
    return Steps(console)


def loading(what: str = "Ray and the driver") -> AbstractContextManager[None]:
    """What is at work before the first stage: on a cold machine the imports take a minute or two."""
    return steps().stage(f"raylla {__version__}: load {what}")


def tell(faults: Sequence[object]) -> None:
    """Name what was passed over, a line each, and how many more there are."""
    for fault in faults[:_NAMED]:
        say(str(fault))
    if len(faults) > _NAMED:
        say(f"and {len(faults) - _NAMED} more rows that cannot be used")


def told(command: Callable[..., _Result]) -> Callable[..., _Result]:
    """Turn a RayllaError into its sentence and its exit status."""

    @wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> _Result:
        try:
            return command(*args, **kwargs)
        except RayllaError as error:
            said = Text.assemble((type(error).__name__, "bold red"), f": {error}")
            plain_console(stderr=True).print(said, soft_wrap=True)
            raise typer.Exit(error.status) from None

    return wrapper
