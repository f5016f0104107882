"""What every command of the command line shares: the console, its arguments, how errors are told."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from raylla.errors import RayllaError

console = Console()
if not console.is_terminal:
    console = Console(width=200)  # A table in a log file is not squeezed into 80 columns.

Result = TypeVar("Result")
ConfigPath = Annotated[
    Path, typer.Argument(help="YAML overlay over the defaults: a file, or the name of a shipped one")
]
RunPath = Annotated[str, typer.Argument(help="run directory, or URL of one in a bucket")]
Overrides = Annotated[list[str], typer.Option("--set", help="section.key=value, repeatable")]


def told(command: Callable[..., Result]) -> Callable[..., Result]:
    """Turn a RayllaError into its sentence and its exit status."""

    @wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Result:
        try:
            return command(*args, **kwargs)
        except RayllaError as error:
            Console(stderr=True).print(
                f"[bold red]{type(error).__name__}[/bold red]: {error}", highlight=False, soft_wrap=True
            )
            raise typer.Exit(error.status) from None

    return wrapper
