"""Bad input gets a clear message and exit status 2 before any model loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raylla.cli import app
from raylla.errors import DeadlineError, PlacementError, RayllaError, StoppedError, WorkerLostError

CONFIG = str(Path(__file__).parents[2] / "configs" / "pocket.yaml")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["dpo.zero_stge=2"], "nearest valid key is dpo.zero_stage"),
        (["ad_llm.path=nowhere/at/all"], "ad_llm.path='nowhere/at/all': no such directory"),
        (["user_llm.path=pocket:none"], "user_llm.path='pocket:none': no such pocket model"),
        (["world.path=missing-world"], "missing-world"),
        (["world.max_bid=0"], "world.max_bid"),
        (["penalty.per_ad=.nan"], "penalty.per_ad"),
    ],
)
def test_train_says_what_is_wrong(tmp_path: Path, changed: list[str], words: str) -> None:
    sets = [part for one in (*changed, "wandb.mode=disabled") for part in ("--set", one)]
    result = CliRunner().invoke(app, ["train", CONFIG, "--run", str(tmp_path / "run"), *sets])
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())


def test_nothing_is_loaded_for_bad_input(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from raylla.cli import app\n"
        f"arguments = ['train', {CONFIG!r}, '--run', {str(tmp_path / 'run')!r}]\n"
        "result = CliRunner().invoke(app, [*arguments, '--set', 'ad_llm.path=nowhere/at/all'])\n"
        "assert result.exit_code == 2, result.output\n"
        "loaded = {'vllm', 'torch', 'deepspeed'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_resume_of_nothing(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["resume", str(tmp_path)])
    assert result.exit_code == 2
    assert "not a run directory" in " ".join(result.output.split())


def test_unknown_importer(tmp_path: Path) -> None:
    arguments = ["world", "import", "criteo", str(tmp_path), "--out", str(tmp_path / "w")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "there is: webis, gem-bench, table" in " ".join(result.output.split())


def test_help_names_every_command() -> None:
    text = CliRunner().invoke(app, ["--help"]).output
    for command in ("train", "resume", "evaluate", "check", "world", "pocket"):
        assert command in text


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (PlacementError("no room"), 2),
        (DeadlineError("nobody came"), 3),
        (WorkerLostError("gone", "rollout", 0), 3),
        (StoppedError("stopped", 143), 143),
    ],
)
def test_the_exit_status_says_whether_to_try_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: RayllaError, status: int
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("raylla.irpo.loop.train_run", fail)
    result = CliRunner().invoke(app, ["train", CONFIG, "--run", str(tmp_path / "run")])
    assert result.exit_code == status
    assert f"{type(error).__name__}: {error}" in result.output
