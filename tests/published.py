"""Published data that tests read where a copy of it lies beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest


def published_data(name: str, what: str) -> Path:
    """``name`` below the data beside the checkout; the test is skipped where it is not there."""
    path = Path(__file__).parents[2] / "shared" / "data" / name
    if not path.exists():
        pytest.skip(f"no {what} at {path}")
    return path
