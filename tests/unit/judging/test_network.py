"""`raylla judge network`: a pCTR model of published decisions that a run's reward trainer goes on from."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from raylla import config as settings
from raylla.cli import app
from raylla.judging import published
from raylla.judging.network import row as as_row
from raylla.reward.trainer import RewardTrainer
from tests.unit.judging.test_published import row, written

LIKED = {True: "Good Kettle", False: "Plain Kettle"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        row(
            f"question {number // 4}",
            "1110" if number % 2 else "0001",
            product={"name": LIKED[bool(number % 2)], "desc": ""},
            response=f"Buy a {LIKED[bool(number % 2)]}. Sip.",
        )
        for number in range(200)
    ]
    return written(tmp_path / "judged.jsonl.gz", *rows)


def test_a_run_s_trainer_goes_on_from_what_the_judges_click(data: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "judge.yaml", tmp_path / "pctr"
    pctr = "pctr: {passes: 15, members: 2, batch: 64}"
    file.write_text(f"judging: {{data: {data}, judges: [a, b]}}\n{pctr}\n")
    done = CliRunner().invoke(app, ["judge", "network", str(file), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "taught by a, b" in done.output
    loaded = settings.load_config(file, [f"pctr.start={out}"])
    trainer = RewardTrainer(loaded.pctr.encoder, loaded.pctr, loaded.seed)
    trainer.load(loaded.pctr.start or "")
    shown = published.read_impressions(data).impressions
    rates = {one.name: trainer.predict_intervals([as_row(one)])[0].mean for one in shown[:2]}
    assert rates["Good Kettle"] > 0.7
    assert rates["Plain Kettle"] < 0.3


def test_the_judges_are_those_of_the_data(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "judge.yaml"
    file.write_text(f"judging: {{data: {data}, judges: [e]}}\n")
    done = CliRunner().invoke(app, ["judge", "network", str(file), "--out", str(tmp_path / "pctr")])
    assert done.exit_code == 2
    assert "e is not among" in done.stderr
    assert not (tmp_path / "pctr").exists()
