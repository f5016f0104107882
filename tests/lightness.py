"""Tests without a model library or Ray: one that comes to load such a module is left out there."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

HEAVY = {
    "torch",
    "vllm",
    "transformers",
    "deepspeed",
    "trl",
    "ray",
    "playwright",
    "schemathesis",
    "atheris",
}


class Light(MetaPathFinder):
    """Skips whatever test or test file imports one of `HEAVY`, at whatever depth, before it is loaded."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Nothing, so that others look for the module; or no return."""
        if name in HEAVY:
            raise pytest.skip.Exception(f"--fast: loads {name}", allow_module_level=True)
        return None
