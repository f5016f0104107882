"""What is trained for a judge, and what is kept beside its adapter; the trainer itself is scripted."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rich.console import Console
from typer.testing import CliRunner

from raylla.cli import app
from raylla.config import parse_config
from raylla.errors import ConfigError, DataError
from raylla.judging import about
from raylla.judging.train import judge_settings, train_judge
from raylla.policy.jobs import TuneJob
from raylla.progress import Steps
from tests.unit.judging.test_published import row, written


class Trainer:
    """Keeps the job and leaves an adapter."""

    jobs: ClassVar[list[TuneJob]] = []

    @classmethod
    def tune(cls, config: Any, chosen: Any, job: TuneJob, storage: Path, watch: Steps, name: str) -> None:
        cls.jobs.append(job)
        Path(job.target).mkdir(parents=True)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    Trainer.jobs = []
    monkeypatch.setattr("raylla.judging.train.tune", Trainer.tune)
    return written(tmp_path / "judged.jsonl", *[row(f"question {n}", "1010") for n in range(10)])


def test_the_job_holds_the_learned_rows_alone(data: Path, tmp_path: Path) -> None:
    judging = {"data": str(data), "judges": ["c", "a", "b"], "base": "pocket:user-llm", "seed": 5}
    said = io.StringIO()
    target = tmp_path / "out" / "adapter"
    train_judge(
        parse_config({"judging": judging}, "test"), target, tmp_path / "out", Steps(Console(file=said))
    )
    (job,) = Trainer.jobs
    assert len(job.lessons) == 8
    assert all(lesson.weights == pytest.approx((2 / 3, 1 / 3)) for lesson in job.lessons)
    assert (job.seed, job.base, job.target) == (5, "pocket:user-llm", str(target))
    assert job.settings.batch == 16
    assert about.read_taught(str(target)) == about.Taught(("a", "b", "c"), 5, 0.2)
    assert said.getvalue().endswith(" judge: 8 rows, 2 held out; taught by a, b, c\n")


def test_what_is_missing_or_unknown_is_said_before_anything_is_trained(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"give at least judging\.data"):
        judge_settings(parse_config({}, "test"))
    unknown = {"data": str(data), "judges": ["e"], "base": "pocket:user-llm"}
    with pytest.raises(DataError, match="e is not among"):
        train_judge(
            parse_config({"judging": unknown}, "test"), tmp_path / "adapter", tmp_path, Steps(Console())
        )
    assert Trainer.jobs == []


def test_the_command_goes_on_with_its_own_training_alone(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "judge.yaml"
    file.write_text(f"judging: {{data: {data}, base: 'pocket:user-llm'}}\nray: {{in_process: true}}\n")
    command = ["judge", "train", str(file), "--out", str(tmp_path / "out")]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    assert "set user_llm.path to it" in first.output
    lines = first.output.splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d [\d:]{8} raylla \S+: load Ray and the driver: begun", lines[0])
    assert any(line.endswith("start Ray or join it: begun") for line in lines)
    assert all(line.strip() for line in lines)
    again = CliRunner().invoke(app, [*command, "--set", "judging.save_every=3"])
    assert again.exit_code == 0
    assert len(Trainer.jobs) == 1
    other = CliRunner().invoke(app, [*command, "--set", "judging.judges=[a]"])
    assert other.exit_code == 2
    assert "judge of other settings" in " ".join(other.stderr.split())
