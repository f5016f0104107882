"""`python -m tests.fuzz TARGET... [--runs N] [--seconds S]`: coverage-guided fuzzing of the readers.

Each target runs in a process of its own until N inputs (or S seconds) are through; a crash ends with
the input that made it.
"""

from __future__ import annotations

import argparse
import atexit
import signal
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> int:
    """Run the targets one after another; the number of those that crashed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="as in targets.py; none: all")
    parser.add_argument("--runs", type=int, default=100_000, help="inputs for each target")
    parser.add_argument("--seconds", type=int, default=0, help="stop a target after so long; 0: never")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        return _fuzz(given.targets[0], given.runs, given.seconds)
    from tests.fuzz.targets import TARGETS

    unknown = sorted(set(given.targets) - set(TARGETS))
    if unknown:
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    failed = 0
    for name in given.targets or TARGETS:
        command = [sys.executable, "-m", "tests.fuzz", name, "--inside"]
        command += ["--runs", str(given.runs), "--seconds", str(given.seconds)]
        failed += subprocess.run(command, check=False).returncode != 0
    return failed


def _fuzz(name: str, runs: int, seconds: int) -> int:
    import atheris

    # Only what is imported here for the first time is instrumented: nothing of raylla may be yet.
    with atheris.instrument_imports(include=["raylla", "yaml", "json"]):
        from tests.fuzz.targets import SEEDS, TARGETS
    corpus = Path(tempfile.mkdtemp(prefix=f"raylla-fuzz-{name}-"))
    for index, seed in enumerate(SEEDS[name]):
        (corpus / str(index)).write_bytes(seed)
    limits = [f"-atheris_runs={runs}", "-max_len=400", "-timeout=20", "-rss_limit_mb=4096"]
    if seconds:
        limits.append(f"-max_total_time={seconds}")
    atexit.register(
        signal.setitimer, signal.ITIMER_REAL, 0
    )  # its alarm would end the process behind "Done"
    atheris.Setup([f"fuzz {name}", str(corpus), *limits], TARGETS[name])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
