"""A plan held to a run that was written by hand: what is read, what is counted, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raylla import precision
from raylla.cli import app
from raylla.config import Config, parse_config
from raylla.errors import RunError
from raylla.plan import AT_MOST, Counts, Lengths, budget, hardware
from raylla.plan.against import Compared, Reckoning, core_seconds, reckon
from raylla.plan.hardware import GPUS
from raylla.records import Answer, Click
from raylla.runs.state import Run, save_records, write_json, write_text

DEVICE = GPUS["h100"]


@pytest.fixture(autouse=True)
def plain_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cores of 75 GFLOP/s, whatever this machine has."""
    for room in (precision, hardware):
        monkeypatch.setattr(room, "unit", lambda: None)


SMALL = {
    "name": "byhand",
    "world": {"profiles": 10, "queries_per_profile": 1, "test_share": 0.2, "ads": 10},
    "irpo": {"epochs": 1, "queries": 2, "reward_answers": 1, "preference_answers": 2},
    "evaluation": {"answers": 1, "queries": 1},
    "rollout": {"workers": 2},
    "dpo": {"batch_groups": 2, "micro_groups": 1, "passes": 2},
}
"""Two queries of 1 + 2 answers, one tested: 5 requests, 7 answers."""

SPANS = (
    ("rollout[0]", "reward", 0, 4),
    ("rollout[1]", "preference", 0, 4),
    ("judge[0]", "reward", 2, 4),
    ("reward-trainer[0]", "update", 4, 5),
    ("policy-trainer[0]", "align", 5, 8),
    ("rollout[0]", "test", 5, 6),
    ("rollout[0]", "load", 8, 8.5),
)


def answer(name: str, prompt: int, tokens: int, text: str = "Buy @Tea@[Ad-1111].") -> Answer:
    auction = name.rpartition("/")[0]
    return Answer(name, auction, int(name[-1]), "v0", text, (1,) * prompt, (2,) * tokens, -1.0)


def write_run(path: Path, config: Config | None = None) -> Run:
    """One epoch: prompts of 50 tokens, answers of 10, but one of 40 that places nothing; a group of two."""
    run = Run.create(path, config or parse_config(SMALL, "here"))
    sample = run.fresh(run.records("epoch-1/sample"))
    held = [
        answer("e1/reward/a/0", 50, 10),
        answer("e1/reward/b/0", 50, 40, "Nothing fits."),
        *(answer(f"e1/preference/{query}/{draw}", 50, 10) for query in "ab" for draw in (0, 1)),
    ]
    save_records(sample / "answers.parquet", held, Answer)
    save_records(sample / "clicks.parquet", [Click("e1/reward/a/0", "1111", True)], Click)
    test = run.fresh(run.records("epoch-1/test"))
    save_records(test / "answers.parquet", [answer("e0/test/c/0", 50, 10)], Answer)
    save_records(test / "clicks.parquet", [Click("e0/test/c/0", "1111", False)], Click)
    learn = run.fresh(run.records("epoch-1/learn"))
    group = {
        "auction_id": "e1/preference/a",
        "winner": "e1/preference/a/1",
        "losers": ["e1/preference/a/0"],
        "winner_reward": 1.0,
        "loser_rewards": [0.0],
    }
    write_json(learn / "groups.json", [group])
    run.commit("epoch-1/sample", [], {})
    run.commit("epoch-1/align", [], {"tokens": 2 * 70, "steps": 2})
    lines = [
        {"epoch": 1, "actor": actor, "task": task, "began": began, "ended": ended}
        for actor, task, began, ended in SPANS
    ]
    whole = {"epoch": 1, "wall_seconds": 9.0, "critical_seconds": 9.0}
    write_text(run.path / "timeline.jsonl", "".join(json.dumps(one) + "\n" for one in (*lines, whole)))
    write_json(run.path / "results.json", {"peak_memory_bytes": 8_000_000_000})
    run.commit("conclude", [], {})
    return run


def figure(found: Reckoning, phase: str, quantity: str) -> Compared:
    [one] = [one for one in found.figures if (one.phase, one.quantity) == (phase, quantity)]
    return one


def test_what_a_run_had_is_counted_from_its_records(tmp_path: Path) -> None:
    found = reckon(write_run(tmp_path / "run"), DEVICE, 2)
    assert (found.epochs, found.lengths.prompt) == (1, 50)
    assert found.lengths.answer == pytest.approx(100 / 7)
    # Five prompts, each once, and 7 answers.
    assert figure(found, "rollout", "tokens").had == pytest.approx(5 * 50 + 100)
    # Two answers of which an ad was judged; the third holds none.
    judged = found.lengths.judge_prompt + found.lengths.judgement
    assert figure(found, "judge", "tokens").had == pytest.approx(2 * judged)
    # 60 tokens of answers that place an ad, 3 queries of 8 tokens and 10 ads of 5.
    assert figure(found, "learn", "tokens").had == pytest.approx(60 + 3 * 8 + 10 * 5)
    # One group of 70 tokens, two passes of forward and backward, and one to check its reference.
    assert figure(found, "align", "tokens").had == pytest.approx(70 * (2 * 3 + 1))
    planned = Lengths.of(write_run(tmp_path / "run").config)
    # Of two queries 0.96 groups each, two passes of three and one to check; two answers are the least.
    row = planned.prompt + 2 * planned.answer
    assert figure(found, "align", "tokens").planned == pytest.approx(2 * 0.96 * row * 7)
    assert figure(found, "epoch", "memory").had == 8e9


def test_seconds_are_those_of_cores_that_are_shared(tmp_path: Path) -> None:
    found = reckon(write_run(tmp_path / "run"), DEVICE, 2)
    # Alone for 2 s, then with the judge: three on two cores. Then beside the trainer's two ranks for 1 s.
    assert figure(found, "rollout", "seconds").had == pytest.approx((2 * 2 + 2 * 2 * 2 / 3 + 2 / 3) / 2)
    assert figure(found, "judge", "seconds").had == pytest.approx(2 * 2 / 3)
    assert figure(found, "learn", "seconds").had == 1
    assert figure(found, "align", "seconds").had == pytest.approx((2 * 2 / 3 + 2 * 2) / 2)
    assert figure(found, "deploy", "seconds").had == 0.25
    one = figure(found, "epoch", "seconds")
    assert one.had == 9
    assert one.off == (one.planned / 9 - 1, one.informed / 9 - 1)


def test_devices_of_their_own_are_not_shared() -> None:
    spans = [
        {"actor": actor, "task": task, "began": began, "ended": ended}
        for actor, task, began, ended in SPANS
    ]
    found = core_seconds(spans, Config(), None)
    assert found == {"rollout": 9, "judge": 2, "learn": 1, "align": 6, "deploy": 0.5}


def test_the_shares_are_those_with_which_the_plan_is_the_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    found = reckon(run, DEVICE, 2)
    flops = figure(found, "judge", "FLOP").had
    assert flops is not None
    # One core of 75 GFLOP/s; each of the reply's 10 tokens takes 0.2 ms of it besides.
    fixed = 2 * 10 * 0.2e-3
    assert found.shares["judge"] == pytest.approx(flops / 75e9 / (4 / 3 - fixed), rel=1e-4)
    learn = figure(found, "learn", "FLOP").had
    assert learn is not None
    # 4.2 answers of the mean length are encoded, at 1.2 ms besides.
    assert found.shares["learn"] == pytest.approx(learn / 75e9 / (1.0 - 1.2e-3 * 4.2), rel=1e-4)


def test_the_command(tmp_path: Path) -> None:
    run, out = write_run(tmp_path / "run"), tmp_path / "found.json"
    result = CliRunner().invoke(
        app, ["plan", "--against", str(run.path), "--cores", "2", "--json", str(out)]
    )
    assert result.exit_code == 0, result.output
    assert "byhand: mean of 1 epochs; prompts of 50 tokens" in result.output
    assert "share of a device's best" in result.output
    written = json.loads(out.read_text())
    [epoch] = [one for one in written["figures"] if (one["phase"], one["quantity"]) == ("epoch", "seconds")]
    assert epoch["run"] == 9.0
    assert set(written["shares"]) == {"rollout", "judge", "learn", "align"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pocket", "--against", "RUN"], "plans the run's own config; leave out CONFIG"),
        (["--against", "RUN", "--set", "irpo.epochs=2"], "leave out CONFIG, --set"),
        ([], "give the CONFIG to plan, or --against RUN"),
        (["pocket", "--json", "x.json"], "--json writes the table of --against RUN"),
        (["--against", "nowhere"], "nowhere is not a run directory"),
    ],
)
def test_what_the_command_refuses(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["plan", *arguments])
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", Config())
    with pytest.raises(RunError, match=r"is not finished.*finish it with `raylla resume"):
        reckon(run, DEVICE, 2)


def test_a_run_without_a_timeline_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run.path / "timeline.jsonl").unlink()
    with pytest.raises(RunError, match=r"has no timeline\.jsonl"):
        reckon(run, DEVICE, 2)
    # Of an epoch that was resumed, what was done before is not there.
    write_text(run.path / "timeline.jsonl", '{"epoch": 1, "wall_seconds": 3.0}\n')
    with pytest.raises(RunError, match=r"has no epoch that one process sampled"):
        reckon(run, DEVICE, 2)


def test_sampling_lasts_as_long_as_the_cores_have_work() -> None:
    config = parse_config(SMALL, "here")
    found = budget(config, DEVICE, Lengths.of(config), cores=2)
    sampling = [found.phase(name) for name in ("rollout", "judge", "learn")]
    work = sum(one.workers * one.seconds for one in sampling) / 2
    rest = found.phase("align").seconds + found.phase("deploy").seconds
    assert found.epoch_seconds == pytest.approx(max(work, *(one.seconds for one in sampling)) + rest)
    one = budget(config, DEVICE, Lengths.of(config), cores=1)
    assert (one.phase("rollout").workers, one.phase("align").workers) == (1, 1)
    assert one.phase("align").times["compute"] == pytest.approx(2 * found.phase("align").times["compute"])


def test_the_longest_group_decides_the_activations() -> None:
    config = parse_config(SMALL, "here")
    counts, lengths = Counts.of(config), Lengths(50, 10, 60, 10)

    def activations(longest: float | None) -> float:
        found = budget(config, DEVICE, lengths, cores=2, counts=replace(counts, longest=longest))
        return next(one for one in found.memory if one.group == "dpo").parts["activations"]

    # Groups of 50 + 2 x 10 tokens.
    assert activations(140) == pytest.approx(2 * activations(None))


def test_counts_of_a_config_are_the_most_it_comes_to() -> None:
    counts = Counts.of(parse_config(SMALL, "here"), AT_MOST)
    assert (counts.requests, counts.answers, counts.readings, counts.encoded) == (5, 7, 3, 7)
    assert (counts.groups, counts.members, counts.steps, counts.longest) == (2, 2, 2, None)


def test_answers_that_the_judge_scores_are_not_read_by_the_pctr_model(tmp_path: Path) -> None:
    irpo = {**SMALL["irpo"], "reward": "judge"}  # type: ignore[dict-item]
    config = parse_config(SMALL | {"irpo": irpo}, "here")
    assert Counts.of(config, AT_MOST).encoded == 3
    had = figure(reckon(write_run(tmp_path / "run", config), DEVICE, 2), "learn", "tokens").had
    # 20 tokens of answers that place an ad, the four of the preference phase left out.
    assert had == pytest.approx(20 + 3 * 8 + 10 * 5)


def test_ranks_without_a_row_wait(tmp_path: Path) -> None:
    found = reckon(write_run(tmp_path / "run"), DEVICE, 2)
    counts = Counts(
        requests=5,
        answers=7,
        readings=2,
        encoded=60 / (100 / 7),
        queries=3,
        ads=10,
        groups=1,
        members=20 / (100 / 7),
        steps=2,
        longest=70,
        uneven=2.0,  # one group, two ranks
    )
    config = parse_config(SMALL, "here")
    expected = budget(config, DEVICE, found.lengths, cores=2, counts=counts)
    assert figure(found, "align", "seconds").informed == pytest.approx(expected.phase("align").seconds)


def test_the_untouched_model_s_answers_are_reckoned_once(tmp_path: Path) -> None:
    config = parse_config(SMALL | {"reward_terms": [{"name": "credibility", "weight": 1}]}, "here")
    run = write_run(tmp_path / "run", config)
    run.commit("organic", [], {"wall_seconds": 3.5, "weight_version": "v0", "tokens": 120})
    found = reckon(run, DEVICE, 2)
    assert figure(found, "organic, once", "tokens").had == 120
    seconds = figure(found, "organic, once", "seconds")
    planned = budget(config, DEVICE, Lengths.of(config), cores=2).organic
    assert planned is not None
    assert (seconds.planned, seconds.had) == (planned.seconds, 3.5)
    # A run from before its tokens were counted has seconds alone.
    without = write_run(tmp_path / "other", config)
    without.commit("organic", [], {"wall_seconds": 3.5})
    assert figure(reckon(without, DEVICE, 2), "organic, once", "tokens").had is None
