"""A run on a disk that takes no more: what was committed stays, and the error says what failed."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raylla.config import Config
from raylla.errors import StorageError
from raylla.records import Answer
from raylla.runs.state import Run, save_records


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files of this process may grow to 64 KiB; then writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_takes_no_more_leaves_the_last_commit(small_files: None, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", Config())
    run.commit("world", ["a"], {"wall_seconds": 1.0})
    before = run.ledger.read_bytes()
    with pytest.raises(StorageError, match=r"ledger\.jsonl cannot be written: .*File too large"):
        run.commit("epoch-1/sample", [f"sample-{n}" for n in range(3000)], {"wall_seconds": 1.0})
    assert run.ledger.read_bytes() == before
    assert list(run.commits) == list(Run.open(run.path).commits) == ["world"]
    text = "".join(f"{n}" for n in range(60_000))
    long = [Answer("s/0", "s", 0, "v0", text, (1, 2), (3,), None)]
    with pytest.raises(StorageError, match=r"answers\.parquet cannot be written"):
        save_records(run.fresh(run.records("epoch-1/sample")) / "answers.parquet", long, Answer)
    run.commit("epoch-1/sample", ["b"], {"wall_seconds": 1.0})
    assert list(Run.open(run.path).commits) == ["world", "epoch-1/sample"]


FULL = """
import os, subprocess, sys
from pathlib import Path
from raylla.config import Config
from raylla.errors import RunError, StorageError
from raylla.runs.state import Run

disk = Path(sys.argv[1])
run = Run.create(disk / "run", Config())
run.commit("world", ["a"], {})
(disk / "other").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - 4096))
for epoch in range(1000):
    try:
        run.commit(f"epoch-{epoch}", [f"sample-{n}" for n in range(20)], {})
    except StorageError as error:
        assert "No space left on device" in str(error), error
        break
found = list(Run.open(run.path).commits)
assert found == list(run.commits) == ["world", *(f"epoch-{n}" for n in range(epoch))]
assert run.ledger.read_bytes().endswith(b"}}\\n")
subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
try:
    with run.alone():
        raise SystemExit("a read-only disk was taken")
except RunError as error:
    assert "cannot be written: Read-only file system" in str(error), error
assert "world" in Run.open(run.path).commits
print("as promised")
"""


def test_a_full_and_a_read_only_file_system(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=128k none {tmp_path}"
    own = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*own, mount], capture_output=True).returncode:
        pytest.skip("no mount namespace may be made here")
    script = f"{mount} && exec {sys.executable} -c '{FULL}' {tmp_path}"
    done = subprocess.run([*own, script], capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "as promised", done.stderr
