"""Runs one client's part of docs/clients.md, in the environment that has the client; needs nothing else.

Reads ``{"source": {case: code}, "names": {name: value}, "distribution": name}`` from standard input, and
writes the client's version and, of each case, what it printed, in how many pieces, and the error that it
ended with ("" for none). The cases share their names, as on the page.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import sys
import traceback
from typing import Any


class Printed(io.StringIO):
    """What is printed, and how often."""

    pieces = 0

    def write(self, text: str) -> int:
        """Print something."""
        self.pieces += bool(text.strip())
        return super().write(text)


def run(source: dict[str, str], names: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What came of each case."""
    found = {}
    for case, code in source.items():
        printed, error = Printed(), ""
        with contextlib.redirect_stdout(printed):
            try:
                exec(compile(code, case, "exec"), names)
            except Exception:  # whatever a client raises is what this is to find
                error = traceback.format_exc()
        found[case] = {"said": printed.getvalue(), "pieces": printed.pieces, "error": error}
    return found


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    version = importlib.metadata.version(asked["distribution"])
    json.dump({"version": version, "cases": run(asked["source"], asked["names"])}, sys.stdout)
