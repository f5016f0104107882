"""The reference pages, read off the code: `python -m tests.reference` writes docs/reference/*.md.

`tests/unit/test_reference.py` holds the pages to the code.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.main import get_command

from raylla.cli import app
from raylla.config import Config

HOME = Path(__file__).parents[1] / "docs" / "reference"
MADE = "This page is made of the code by `python -m tests.reference`; do not edit it by hand."


def pages() -> dict[str, str]:
    """File name -> text of each page."""
    return {"config.md": config_page(), "cli.md": cli_page()}


def config_page() -> str:
    """Every section and field of a config, with type, bounds, default and meaning."""
    lines = [
        "# Settings",
        "",
        MADE,
        "",
        "A config file is YAML. It says only what differs from these defaults, as the files in `configs/` "
        "do. An unknown key or a value out of bounds is refused before anything loads. One value is "
        "changed by `--set section.key=value`:",
        "",
        "    raylla train pocket --set irpo.epochs=1 --set dpo.lr=1e-5",
        "",
        "## Top level",
        "",
    ]
    lines += _table(Config, {})
    for name, model, default in _sections(Config):
        lines += ["", f"## {name}", "", _text(model.__doc__), "", *_table(model, default)]
    return "\n".join(lines) + "\n"


def cli_page() -> str:
    """Every command with its arguments and options."""
    lines = ["# Commands", "", MADE, "", "Each command says the same by `--help`."]
    for name, command in _commands(get_command(app), "raylla"):
        usage = " ".join(param.name.upper() for param in command.params if _positional(param))
        lines += ["", f"## {name}", "", f"    {name} {usage}".rstrip(), "", _prose(command.help or "")]
        rows = [_option(param) for param in command.params if param.name != "help"]
        if rows:
            lines += ["", "| option | value | default | what it is |", "|---|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _sections(model: type[BaseModel], at: str = "") -> Iterator[tuple[str, type[BaseModel], Any]]:
    """Name, model and default (None where it is absent by default) of each section, in order of fields."""
    for name, field in model.model_fields.items():
        for part in _models(field.annotation):
            yield f"{at}{name}", part, None if field.is_required() else field.default
            yield from _sections(part, f"{at}{name}.")


def _models(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for part in get_args(kind):
        yield from _models(part)


def _table(model: type[BaseModel], default: Any) -> list[str]:
    rows = ["| key | value | default | what it is |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        section = next(_models(field.annotation), None)
        if section is not None:
            several = get_origin(field.annotation) is tuple
            kind = "list of sections" if several else "section"
            value = "below" if field.default not in (None, ()) else "empty" if several else "none"
        else:
            kind = _kind(field.annotation, field.metadata)
            given = getattr(default, name, None if field.is_required() else field.default)
            value = "to be given" if given is None and field.is_required() else _value(given)
        about = field.description or (_text(section.__doc__) if section else "")
        rows.append(f"| `{name}` | {_cell(kind)} | {_cell(value)} | {_cell(about)} |")
    return rows


def _kind(kind: Any, metadata: Sequence[Any] = ()) -> str:
    """A type with its bounds in words: `whole number from 1`."""
    if get_origin(kind) is Annotated:
        inner, *more = get_args(kind)
        metadata = (*metadata, *(part for one in more for part in _flat(one)))
        return _kind(inner, metadata)
    parts = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join("none" if part is type(None) else _kind(part, metadata) for part in parts)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in parts)
    if get_origin(kind) is tuple:
        return f"list: {_kind(parts[0])}"
    if get_origin(kind) is dict:
        return f"names, each with {_kind(parts[1])}"
    if get_origin(kind) is list:
        return f"{_kind(parts[0])}, one or more"
    words = {bool: "`true`, `false`", int: "whole number", float: "number", str: "text", Path: "path"}
    return words.get(kind, getattr(kind, "__name__", "value").lower()) + _bounds(metadata)


def _flat(constraint: Any) -> Sequence[Any]:
    return constraint.metadata if isinstance(constraint, FieldInfo) else (constraint,)


_BOUNDS = {"ge": " from {}", "gt": " above {}", "min_length": ", {} or more", "max_length": ", {} at most"}


def _bounds(metadata: Sequence[Any]) -> str:
    """` from 0 to 1`, ` above 0`, ` that matches ...`."""
    said = ""
    for part in metadata:
        for name, words in _BOUNDS.items():
            if (bound := getattr(part, name, None)) is not None:
                said += words.format(bound)
        if (most := getattr(part, "le", None)) is not None:
            said += f" to {most}" if "from" in said else f", at most {most}"
        if (end := getattr(part, "lt", None)) is not None:
            said += f", below {end}"
        if pattern := getattr(part, "pattern", None):
            said += f" that matches `{pattern}`"
    return said


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple | list):
        return ", ".join(_value(part) for part in value) or "empty"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if value != {} and value != "" else "empty"


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command below a typer command, with the words that call it."""
    for part, inner in sorted(getattr(command, "commands", {}).items()):
        yield from _commands(inner, f"{name} {part}")
    if not hasattr(command, "commands"):
        yield name, command


def _positional(param: Any) -> bool:
    return not param.opts[0].startswith("-")


def _option(param: Any) -> str:
    """A command's argument or option as a row of a table."""
    names = [param.name.upper()] if _positional(param) else [*param.opts, *param.secondary_opts]
    told, annotation = param.type_descriptor.parameter_info, param.type_descriptor.annotation
    bounds = [types.SimpleNamespace(ge=told.min, le=told.max)]
    cells = [
        ", ".join(f"`{name}`" for name in names),
        _kind(annotation, bounds),
        "to be given" if param.required else _value(param.default),
        param.help or "",
    ]
    return f"| {' | '.join(_cell(text) for text in cells)} |"


def _text(doc: str | None) -> str:
    return re.sub(r"\s+", " ", (doc or "").strip())


def _prose(text: str) -> str:
    return "\n\n".join(_text(part) for part in text.split("\n\n"))


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


if __name__ == "__main__":
    HOME.mkdir(parents=True, exist_ok=True)
    for page, text in pages().items():
        (HOME / page).write_text(text)
