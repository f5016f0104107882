"""Runs the parts one after another, each in a process with a deadline, and writes the JSON after each."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.gpu.schedule import AIMS, PARTS, SECONDS, Part, allowed, summary

TAIL = 2000
"""Characters of a failed part's last words that are kept."""


def main(arguments: Sequence[str]) -> int:
    """Run what was asked for; 1 where a part did not end well."""
    asked = _arguments(arguments)
    began = time.monotonic() - asked.spent
    chosen = [part for part in PARTS if not asked.only or part.name in asked.only]
    report: dict[str, Any] = {"small": asked.small, "aims": AIMS, "machine": {}, "parts": {}}
    for part in chosen:
        seconds = allowed(part, asked.seconds - (time.monotonic() - began))
        found = run(part, seconds, asked.small)
        report["machine"] |= found.pop("machine")
        report["parts"][part.name] = found
        report |= {
            "seconds": round(time.monotonic() - began, 1),
            "ratios": summary(report["parts"]),
        }
        whole = asked.file.with_suffix(".part")
        whole.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        whole.replace(asked.file)
        sys.stderr.write(f"{report['seconds']:6.1f} s  {part.name}: {found['status']}\n")
    return int(any(one["status"] != "done" for one in report["parts"].values()))


def run(part: Part, seconds: float | None, small: bool) -> dict[str, Any]:
    """What ``part`` found, and how it ended: done, failed, late or left out. Its figures are those that it
    had written by then."""
    empty = {"status": "left out", "seconds": 0.0, "error": None, "figures": {}, "machine": {}}
    if seconds is None:
        return empty
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        file, words = Path(scratch, "part.json"), Path(scratch, "words")
        with words.open("wb") as said:
            command = [sys.executable, "-m", "tests.gpu.part", part.name, str(file)]
            child = subprocess.Popen(
                command + ["--small"] * small, stdout=said, stderr=said, start_new_session=True
            )
            try:
                status = "failed" if child.wait(seconds) else "done"
            except subprocess.TimeoutExpired:
                status = "late"
            finally:
                # Compilers that it started are of its group.
                _end(child)
        found = json.loads(file.read_text()) if file.exists() else {}
        error = None if status == "done" else words.read_text(errors="replace")[-TAIL:]
    taken = {"status": status, "seconds": round(time.monotonic() - began, 1), "error": error}
    return empty | taken | found


def _end(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.gpu", description=__doc__)
    parser.add_argument("file", type=Path, help="where the JSON goes")
    parser.add_argument("--small", action="store_true", help="tiny models on the CPU")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the whole run")
    parser.add_argument("--spent", type=float, default=0.0, help="seconds of them that are gone")
    parser.add_argument("--only", nargs="*", metavar="PART", choices=[part.name for part in PARTS])
    asked = parser.parse_args(arguments)
    if not asked.file.absolute().parent.is_dir():
        parser.error(f"{asked.file}: its folder does not exist; make it first")
    return asked


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
