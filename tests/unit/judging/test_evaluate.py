"""A judge on held-out questions: scripted engines and a scripted network, real measures."""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from rich.console import Console

from raylla.actors.judge import JudgeWorker
from raylla.config import Config, parse_config
from raylla.engines import Completion, Generated, Request
from raylla.errors import BudgetError, ConfigError
from raylla.judging import about, evaluate, network
from raylla.judging.commands import show_figures
from raylla.progress import Steps
from raylla.records import Prediction
from raylla.reward.rows import ClickRow
from tests.unit.judging.test_published import JUDGES, row, written

SILENT = Steps(Console(quiet=True))
TASTE = {"a": 0.9, "b": 0.6, "c": 0.4, "d": 0.1}
"""How likely each judge clicks an ad that is called Good; half of that, one that is not."""


class Engine:
    """A User-LLM that knows the mean of the judges, and refuses prompts that name a certain product."""

    refused = "Awful"

    def __init__(self, path: str, settings: object, seed: int) -> None: ...

    def generate(self, requests: Sequence[Request], sampling: object) -> Iterator[Generated]:
        for request in requests:
            assert request.choices == ("yes", "no")
            text = request.messages[1]["content"]
            if self.refused in text:
                yield Generated(request.id, (1,), (), "too long")
                continue
            p = 0.5 if "Ad: Good" in text else 0.25
            yield Generated(
                request.id, (1,), (Completion("", (2,), False, None, (math.log(p), math.log(1 - p))),)
            )


class Network:
    """In place of the pCTR network: says the same of everything, and keeps what it was taught."""

    taught: ClassVar[list[list[ClickRow]]] = []

    def __init__(self, encoder: str, settings: object, seed: int) -> None:
        type(self).taught = []

    def take(self, rows: list[ClickRow]) -> None:
        self.taught.append(rows)

    def update(self) -> None: ...

    def predict_intervals(self, rows: list[ClickRow]) -> list[Prediction]:
        return [Prediction(0.4, 0.3, 0.5)] * len(rows)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    rng = random.Random(0)
    rows = []
    for number in range(600):
        good = number % 2 == 0
        clicks = "".join(
            "1" if rng.random() < TASTE[judge] * (1 if good else 0.5) else "0" for judge in JUDGES
        )
        name = "Good Kettle" if good else "Plain Kettle"
        product = {"name": name, "desc": ""}
        rows.append(row(f"question {number // 6}", clicks, product=product, response=f"Buy a {name}. Sip."))
    data = written(tmp_path / "judged.jsonl.gz", *rows)
    monkeypatch.setattr(
        evaluate,
        "JudgeWorker",
        lambda *args: JudgeWorker(*args, engine=Engine),  # type: ignore[arg-type]
    )
    monkeypatch.setattr("raylla.reward.trainer.RewardTrainer", Network)
    tree = {"data": str(data), "bootstrap": 50}
    return parse_config({"judging": tree, "ray": {"in_process": True}}, "test")


def adapter(path: Path, taught: about.Taught) -> str:
    path.mkdir()
    (path / "config.json").write_text("{}")
    about.write_taught(path, taught)
    return str(path)


def test_a_judge_beside_the_network_and_the_ceiling(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = adapter(tmp_path / "judge", about.Taught(("a", "b"), 0, 0.2))
    found = evaluate.measure_judge(config, place, SILENT)
    json.dumps(found, allow_nan=False)
    assert (found["rows"], found["unread"], found["questions"], found["learned_rows"]) == (120, 0, 20, 480)
    assert found["taught_by"] == ["a", "b"]
    assert list(found["judges"]) == list(JUDGES)
    assert list(found["groups"]) == ["all judges", "judges that taught it"]
    for name, one in found["judges"].items():
        # Half the rows at 0.5 and half at 0.25, whoever clicks.
        assert one["judge"]["predicted"] == pytest.approx(0.375)
        assert one["judge"]["clicked"] == pytest.approx(0.75 * TASTE[name], abs=0.12)
        assert one["network"]["auc"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
        assert one["auc_over_network"]["mean"] == pytest.approx(one["judge"]["auc"]["mean"] - 0.5)
        assert one["ceiling"]["calibration_error"]["mean"] < one["judge"]["calibration_error"]["mean"] + 0.1
    assert found["judges"]["d"]["judge"]["calibration_error"]["mean"] > 0.2
    both = found["groups"]["all judges"]["judge"]
    assert both["calibration_error"]["mean"] < 0.1
    assert both["auc"]["low"] > 0.55
    # The network learned each row once from each judge that taught the adapter, of no held-out question.
    assert [len(rows) for rows in Network.taught] == [480, 480]
    assert {one.profile_id for one in Network.taught[0]} == {network.ANYONE}
    show_figures(found)
    said = capsys.readouterr().out
    assert "taught by a, b" in said
    assert "ceiling" in said


def test_a_judge_that_may_know_the_questions_is_refused(config: Config, tmp_path: Path) -> None:
    place = adapter(tmp_path / "judge", about.Taught(("a",), 1, 0.2))
    with pytest.raises(ConfigError, match=r"judging\.seed=0.*split of seed 1"):
        evaluate.measure_judge(config, place, SILENT)


def test_a_model_that_nobody_taught_is_measured_too(config: Config) -> None:
    said = io.StringIO()
    found = evaluate.measure_judge(config, "pocket:user-llm", Steps(Console(file=said)))
    begun = [line.split(" ", 2)[2] for line in said.getvalue().splitlines() if line.endswith(": begun")]
    assert begun == [
        "start engines: begun",
        "judge held-out rows: begun",
        "teach the network that it is held against: begun",
        "figures: begun",
    ]
    assert found["taught_by"] == []
    assert list(found["groups"]) == ["all judges"]
    assert [len(rows) for rows in Network.taught] == [480] * 4


def test_rows_that_the_engine_refuses_are_left_out_and_bounded(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "refused", "question 1")
    with pytest.raises(BudgetError, match=r"refused \d+ of 120 rows"):
        evaluate.measure_judge(config, "pocket:user-llm", SILENT)
    lenient = parse_config(config.model_dump(mode="json") | {"irpo": {"max_drop_share": 1.0}}, "test")
    found: dict[str, Any] = evaluate.measure_judge(lenient, "pocket:user-llm", SILENT)
    assert found["rows"] + found["unread"] == 120
    assert found["unread"] > 0


def test_one_judge_has_no_ceiling() -> None:
    clicks = np.array([[True], [False], [True], [False]])
    p = np.array([0.9, 0.1, 0.8, 0.3])
    found = evaluate.compare_judges(p, p, clicks, clicks, ["q", "r", "s", "t"], ["a"], ["a"], 20, 0)
    assert "ceiling" not in found["judges"]["a"]
    assert found["judges"]["a"]["judge"]["auc"]["mean"] == 1.0
