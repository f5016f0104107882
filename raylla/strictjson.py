"""Strict JSON. Written: an undefined figure (NaN, or one without bound) is null, which every reader knows.
Read from outside: lines of objects, and texts that are whole."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any


def defined(value: Any) -> Any:
    """``value`` with null in place of every number that JSON has no word for."""
    if isinstance(value, dict):
        return {name: defined(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [defined(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def dumps(value: Any, indent: int | None = None) -> str:
    """``value`` as a JSON text."""
    return json.dumps(defined(value), indent=indent, allow_nan=False)


def objects(path: Path, fault: Callable[[str], Exception]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON lines, gzipped or not, each behind its place: "PATH, line N".

    Empty lines are passed over.

    Raises:
        Exception: what ``fault`` makes of the words for it: the file is missing or damaged, or a line is no
            object.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise fault(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(data.splitlines(), 1):  # of bytes: U+2028 ends no line
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise fault(f"{where} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise fault(f"{where} holds no JSON object")
        yield where, row


def strange(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """What is wrong with the first of the fields ``names`` that is no text which UTF-8 can hold; JSON can
    spell halves of characters."""
    for name in names:
        value = row.get(name)
        if not isinstance(value, str) or any("\ud800" <= sign <= "\udfff" for sign in value):
            return f"{name}={value!r} is no text"
    return None
