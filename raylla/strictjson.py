"""Strict JSON: an undefined figure (NaN, or one without bound) is null, which every reader knows."""

from __future__ import annotations

import json
import math
from typing import Any


def defined(value: Any) -> Any:
    """``value`` with null in place of every number that JSON has no word for."""
    if isinstance(value, dict):
        return {name: defined(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [defined(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def dumps(value: Any, indent: int | None = None) -> str:
    """``value`` as a JSON text."""
    return json.dumps(defined(value), indent=indent, allow_nan=False)
