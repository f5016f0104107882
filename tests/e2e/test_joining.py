"""Which cluster a command comes to, and how it is let in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.nodes import Nodes

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """Of a user who has set nothing, with a home directory and a Ray directory of their own."""
    # Sockets have short names: not in pytest's deep directories.
    directory = Path(tempfile.mkdtemp(prefix="rj", dir="/tmp"))
    (directory / "home" / ".ray").mkdir(parents=True)
    (directory / "ray").mkdir()
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    yield plain | {"HOME": str(directory / "home"), "RAY_TMPDIR": str(directory), "OMP_NUM_THREADS": "1"}
    shutil.rmtree(directory, ignore_errors=True)


def _check(environment: dict[str, str], *sets: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "raylla", "check", str(ROOT / "configs" / "pocket.yaml")]
    command += [part for one in sets for part in ("--set", one)]
    found = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    return found.returncode, found.stdout + found.stderr


def test_what_another_cluster_has_left_is_not_joined(environment: dict[str, str]) -> None:
    left = Path(environment["RAY_TMPDIR"]) / "ray" / "ray_current_cluster"
    left.write_text("127.0.0.1:1")
    status, said = _check(environment)
    assert (status, "spare " in said) == (0, True), said
    assert not (Path(environment["HOME"]) / ".ray" / "auth_token").exists()


def test_a_cluster_that_asks_for_a_token_takes_who_has_it(environment: dict[str, str]) -> None:
    token = Path(environment["HOME"]) / ".ray" / "auth_token"
    token.write_text("a" * 32)
    nodes = Nodes(environment)
    try:
        status, said = _check(environment, f"ray.address={nodes.address}", "ray.autoscaling=true")
        assert (status, "spare " in said) == (0, True), said
        token.unlink()
        status, said = _check(environment, f"ray.address={nodes.address}", "ray.autoscaling=true")
        assert status == 2, said
        assert "if it asks for a token, give it in RAY_AUTH_TOKEN" in said
    finally:
        nodes.close()
