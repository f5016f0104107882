"""Text of whole characters: halves of surrogate pairs, which no encoding takes, become U+FFFD. And text
that shows something."""

from __future__ import annotations

import json
import re
from typing import Any

_HALF = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")
"""What a JSON text that holds a surrogate has: an escape of one, or its bytes."""

BLANKS = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
"""Letters and signs that show nothing."""


def visible(text: str) -> bool:
    """Whether anybody sees something of ``text``."""
    return any(c.isprintable() and not c.isspace() and c not in BLANKS for c in text)


def whole(text: str) -> str:
    """``text`` with each half of a surrogate pair that has lost the other as U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def whole_json(body: bytes) -> bytes:
    """A JSON text, in whichever encoding JSON may have, with such halves replaced in all its strings;
    anything else as it is."""
    if json.detect_encoding(body).startswith("utf-8") and not _HALF.search(body):
        return body
    try:
        return json.dumps(whole_value(json.loads(body))).encode()
    except (ValueError, RecursionError):
        return body  # no JSON; who parses it says so


def whole_value(value: Any) -> Any:
    """What JSON holds, with such halves replaced in all its strings.

    Raises:
        RecursionError: it is nested too deeply.
    """
    if isinstance(value, str):
        return whole(value)
    if isinstance(value, list):
        return [whole_value(part) for part in value]
    if isinstance(value, dict):
        return {whole(key): whole_value(part) for key, part in value.items()}
    return value
