"""Whatever a killed driver leaves behind: the next one finds what was committed, and nothing else."""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from raylla.config import Config
from raylla.errors import RunError
from raylla.records import Answer
from raylla.runs.state import Run, load_records, save_records, write_json

STAGES = ("world", *(f"epoch-{epoch}/{stage}" for epoch in (1, 2) for stage in ("sample", "learn", "test")))
CONFIG = Config()


def answers(stage: str) -> list[Answer]:
    """What a scripted stage makes: alike each time that it is done."""
    names = [f"{stage}/q{number}" for number in range(2 + len(stage) % 3)]
    return [Answer(f"{name}/0", name, 0, "v0", f"text of {name} \u2028", (1, 2), (3,)) for name in names]


class Resumed(RuleBasedStateMachine):
    """A run of scripted stages, committed, killed in the midst of one, and opened again."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp())
        self.held = ExitStack()
        self.done: list[str] = []

    def teardown(self) -> None:
        self.held.close()
        shutil.rmtree(self.place)

    @initialize()
    def begin(self) -> None:
        self.start(again=True)

    def start(self, again: bool) -> None:
        """A driver takes the run over: by `raylla resume`, or by the same command again."""
        path = self.place / "run"
        self.run = Run.create(path, CONFIG) if again else Run.open(path)
        self.held.enter_context(self.run.alone())

    def die(self, again: bool) -> None:
        """The driver is gone, its lock with it; another one begins."""
        self.held.close()
        self.start(again)

    @property
    def next(self) -> str:
        return STAGES[len(self.done)]

    def write(self) -> Path:
        """The files of the next stage."""
        directory = self.run.fresh(self.run.records(self.next))
        save_records(directory / "answers.parquet", answers(self.next), Answer)
        write_json(directory / "report.json", {"of": self.next})
        return directory

    def commit(self) -> None:
        ids = [answer.sample_id for answer in answers(self.next)]
        self.run.commit(self.next, ids, {"wall_seconds": 1.0, "of": self.next})

    def left(self) -> bool:
        return len(self.done) < len(STAGES)

    @precondition(left)
    @rule()
    def do_a_stage(self) -> None:
        self.write()
        self.commit()
        self.done.append(self.next)

    @rule(again=st.booleans())
    def killed_between_stages(self, again: bool) -> None:
        self.die(again)

    @precondition(left)
    @rule(share=st.floats(0, 1), again=st.booleans())
    def killed_while_it_writes_records(self, share: float, again: bool) -> None:
        file = self.write() / "answers.parquet"
        cut(file, 0, share)
        self.die(again)

    @precondition(left)
    @rule(share=st.floats(0, 1), again=st.booleans())
    def killed_while_it_writes_json(self, share: float, again: bool) -> None:
        report = self.write() / "report.json"
        report.replace(report.with_name("report.json.new"))
        cut(report.with_name("report.json.new"), 0, share)
        self.die(again)

    @precondition(left)
    @rule(share=st.floats(0, 1), again=st.booleans())
    def killed_while_it_commits(self, share: float, again: bool) -> None:
        before = self.run.ledger.stat().st_size if self.run.ledger.exists() else 0
        self.write()
        self.commit()
        cut(self.run.ledger, before, share)
        self.die(again)

    @rule()
    def a_second_driver_is_refused(self) -> None:
        with (
            pytest.raises(RunError, match="in the hands of another process"),
            Run.open(self.run.path).alone(),
        ):
            pass

    @precondition(lambda self: len(self.done) > 1)
    @rule(data=st.data())
    def a_commit_vanishes_before_others(self, data: st.DataObject) -> None:
        """A line that no kill leaves behind is never skipped over."""
        whole = self.run.ledger.read_bytes()
        lines = whole.splitlines(keepends=True)
        place = data.draw(st.integers(0, len(lines) - 2))
        at = data.draw(st.integers(1, len(lines[place]) - 2))
        lines[place] = lines[place][:at] + b"\n"
        self.run.ledger.write_bytes(b"".join(lines))
        with pytest.raises(RunError, match=f"line {place + 1} is damaged"):
            Run.open(self.run.path)
        self.run.ledger.write_bytes(whole)

    @invariant()
    def every_sample_is_there_once(self) -> None:
        if not hasattr(self, "run"):
            return
        text = self.run.ledger.read_text() if self.run.ledger.exists() else ""
        lines = [json.loads(line) for line in text.splitlines()]
        found = [line["sample_id"] for line in lines if "sample_id" in line]
        assert found == [answer.sample_id for stage in self.done for answer in answers(stage)]
        assert len(found) == len(set(found))

    @invariant()
    def what_was_committed_is_whole(self) -> None:
        if not hasattr(self, "run"):
            return
        assert list(self.run.commits) == self.done
        assert list(Run.open(self.run.path).commits) == self.done
        for stage in self.done:
            assert self.run.committed(stage) == {"wall_seconds": 1.0, "of": stage}
            directory = self.run.records(stage)
            assert load_records(directory / "answers.parquet", Answer) == answers(stage)
            assert sorted(one.name for one in directory.iterdir()) == ["answers.parquet", "report.json"]


def cut(file: Path, least: int, share: float) -> None:
    """Leave a file's first bytes, not all of them: ``share`` of those after the first ``least``."""
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.truncate(min(size - 1, least + int(share * (size - least))))


Resumed.TestCase.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
TestResumed = pytest.mark.slow(Resumed.TestCase)
