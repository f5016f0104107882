"""What an evaluation's backend asks, keeps and counts, with a model and a judge that follow a rule."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raylla.actors.judge import Judgement
from raylla.actors.pool import Call, next_item
from raylla.auction import ReadAnswer, markup
from raylla.engines.protocol import (
    Completion,
    Generated,
    Scored,
)
from raylla.errors import BudgetError, WorkerLostError
from raylla.evaluation import efficiency, incentives
from raylla.evaluation.kept import ANSWERS, JUDGEMENTS, SCORES, Kept, kept
from raylla.irpo import dispatch
from raylla.mechanisms.llm import Pretrained
from raylla.mechanisms.mosaic import CANDIDATES, Mosaic
from raylla.mechanisms.protocol import BASE, Prompt, named_mechanisms
from raylla.records import Ids
from tests.unit.backends import make


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    made = make(tmp_path, lambda bid: bid / 100)
    planned = efficiency.test_auctions(made.backend.config, made.backend.world)
    prompts = [Prompt(one, one.ads, one.auction.bids, 4) for one in planned]
    first = made.backend.write(BASE, prompts)
    assert made.backend.write(BASE, [*prompts, prompts[0]]) == [*first, first[0]]
    assert len(made.writer.asked) == len(planned) == 30
    more = made.backend.write(BASE, [Prompt(planned[0], planned[0].ads, planned[0].auction.bids, 5)])
    assert more[0].completions[:4] == first[0].completions
    answers = [
        ReadAnswer.of(auction, wrote.completions[0].text)
        for auction, wrote in zip(planned, first, strict=True)
    ]
    judged = made.backend.judge(answers)
    assert made.backend.judge(answers) == judged
    assert len(made.reader.read) == 30
    made.backend.judge([answers[0], answers[0]])
    assert len(made.reader.read) == 31


@pytest.mark.parametrize("name", ["range-vcg", "screened-vcg", "token-auction"])
def test_a_mechanism_is_held_priced_and_kept(tmp_path: Path, name: str) -> None:
    (mechanism,) = named_mechanisms([name])
    choice = mechanism.choices(3)[-1]
    rows = []
    for _ in range(2):
        made = make(tmp_path, lambda bid: bid / 100)
        planned = efficiency.test_auctions(made.backend.config, made.backend.world)
        held = efficiency.hold(made.backend, mechanism, planned, choice)
        row = efficiency.mechanism_row([held], 200, 0)
        assert 0 < row["revenue"]["mean"] <= row["welfare"]["mean"]
        assert row["cost_per_auction"]["generations"]["mean"] > 1
        assert row["cost_per_auction"]["sampled_tokens"]["mean"] > 2
        found = incentives.responses(made.backend, mechanism, choice, planned[:4], (0, 50, 100))
        assert found[1][:, 0].max() == 0  # who bids 0 pays nothing
        rows.append((row["revenue"], held.answers, [one.tolist() for one in found]))
    assert rows[0] == rows[1]
    assert not made.writer.asked
    assert not made.writer.joint  # nothing is asked for twice
    assert not made.reader.read


def test_an_evaluation_that_was_stopped_goes_on_with_what_it_was_told(tmp_path: Path) -> None:
    first = make(tmp_path, lambda bid: bid / 100)
    planned = efficiency.test_auctions(first.backend.config, first.backend.world)
    before = efficiency.hold(first.backend, Pretrained(), planned[:15], {})
    (file,) = (tmp_path / "evaluation").iterdir()
    file.write_bytes(file.read_bytes() + b'{"kind": "answers", "ke')
    again = make(tmp_path, lambda bid: bid / 100)
    after = efficiency.hold(again.backend, Pretrained(), planned[:15], {})
    assert not again.writer.asked
    assert not again.reader.read
    assert after.answers == before.answers
    assert {name: row.tolist() for name, row in after.table.items()} == {
        name: row.tolist() for name, row in before.table.items()
    }
    assert after.costs.tolist() == before.costs.tolist()
    efficiency.hold(again.backend, Pretrained(), planned, {})
    assert len(again.writer.asked) == 2 * 15  # of the new auctions, and without ads for the reward terms
    whole = make(tmp_path, lambda bid: bid / 100)
    efficiency.hold(whole.backend, Pretrained(), planned, {})
    assert not whole.writer.asked


def test_what_engines_and_judges_say_is_kept_as_it_was(tmp_path: Path) -> None:
    said = Generated(
        "q", Ids([5, 6]), (Completion("a \ud83d", Ids([1, 2**20]), True, -1.5, (0.25,)),), None
    )
    judged = Judgement("s", {"1000": True}, 2, None, {"1000": 0.75})
    first = Kept(tmp_path / "kept.jsonl")
    first.put(ANSWERS, ["v0", "q"], said)
    first.put(JUDGEMENTS, ("q", 0, "text"), judged)
    first.put(SCORES, ["v0", "x"], Scored("x", -3.5, 7))
    again = Kept(tmp_path / "kept.jsonl")
    read = again.get(ANSWERS, ["v0", "q"])
    assert list(read.prompt_token_ids) == [5, 6]
    assert list(read.completions[0].token_ids) == [1, 2**20]
    assert (read.completions[0].text, read.completions[0].choices) == ("a \ud83d", (0.25,))
    assert again.get(JUDGEMENTS, ("q", 0, "text")) == judged
    assert again.get(SCORES, ["v0", "x"]) == Scored("x", -3.5, 7)
    assert not again.holds(SCORES, ["v1", "x"])


def test_time_of_a_part_done_in_two_goes_is_not_counted(tmp_path: Path) -> None:
    made = make(tmp_path, lambda bid: bid / 100)
    planned = efficiency.test_auctions(made.backend.config, made.backend.world)[:20]
    efficiency.hold(made.backend, Pretrained(), planned[:1], {})
    more = [replace(one, n=one.n + 1) for one in planned[:1]]
    efficiency.hold(made.backend, Pretrained(), more, {})
    (file,) = (tmp_path / "evaluation").iterdir()
    assert file.read_text().count('"kind": "seconds"') == 2  # more answers are another part
    again = make(tmp_path, lambda bid: bid / 100)
    assert len(efficiency.hold(again.backend, Pretrained(), planned, {}).costs) == 9
    (whole,) = efficiency.hold(again.backend, Pretrained(), planned[:2], {}).costs
    assert whole[-1] > 0  # the first one's, which was asked for by itself


def test_answers_that_another_part_asked_for_have_no_wall_time(tmp_path: Path) -> None:
    made = make(tmp_path, lambda bid: bid / 100)
    planned = efficiency.test_auctions(made.backend.config, made.backend.world)[:20]
    first = efficiency.hold(made.backend, Pretrained(), planned, {})
    shared = efficiency.hold(made.backend, Pretrained(), planned, {"unread": 1})  # the same answers
    assert not np.isnan(first.costs).any()
    assert np.isnan(shared.costs[:, -1]).all()
    cost = efficiency.mechanism_row([shared], 200, 0)["cost_per_auction"]
    assert cost["generations"]["mean"] == 1
    assert math.isnan(cost["seconds"]["mean"])


def test_another_judge_is_asked_anew(tmp_path: Path) -> None:
    made = make(tmp_path, lambda bid: bid / 100)
    config = made.backend.config
    judge = config.user_llm.model_copy(update={"path": "another"})
    other = config.model_copy(update={"user_llm": judge})
    key = ["auction", 0, "text"]
    first = kept(made.backend.run, config)
    first.put(JUDGEMENTS, key, Judgement("0", {}, 1))
    first.put(SCORES, ["v0", "x"], Scored("x", -3.5, 7))
    assert kept(made.backend.run, config).holds(JUDGEMENTS, key)
    second = kept(made.backend.run, other)
    assert not second.holds(JUDGEMENTS, key)
    assert second.holds(SCORES, ["v0", "x"])  # what was written stays; it is judged anew
    second.put(JUDGEMENTS, key, Judgement("0", {"1000": True}, 1))
    assert kept(made.backend.run, config).get(JUDGEMENTS, key).clicks == {}


def test_expected_figures_are_the_judges_own_where_it_says_how_probable_clicks_are(tmp_path: Path) -> None:
    made = make(tmp_path, lambda _: 1.0)
    made.reader.told = 0.25
    auctions = efficiency.test_auctions(made.backend.config, made.backend.world)
    held = efficiency.hold(made.backend, Pretrained(), auctions, {})
    row = efficiency.mechanism_row([held], 100, 0)
    assert row["revenue"]["mean"] > 0
    assert row["expected_revenue"]["mean"] == pytest.approx(row["revenue"]["mean"] / 4)
    plain = make(tmp_path / "plain", lambda _: 1.0)
    by_model = efficiency.mechanism_row(
        [efficiency.hold(plain.backend, Pretrained(), auctions, {})], 100, 0
    )
    assert by_model["revenue"]["mean"] == row["revenue"]["mean"]
    assert by_model["expected_revenue"]["mean"] != pytest.approx(row["expected_revenue"]["mean"])


def test_scores_come_in_the_order_asked_and_once(tmp_path: Path) -> None:
    made = make(tmp_path, lambda bid: bid / 100)
    planned = efficiency.test_auctions(made.backend.config, made.backend.world)[0]
    listed = Prompt(planned, planned.ads, planned.auction.bids, 1)
    organic = Prompt(planned, (), (), 1)
    wanted = [(listed, (1, 2)), (organic, (1, 2)), (listed, (5,)), (listed, (1, 2))]
    found = made.backend.score(BASE, wanted)
    assert found[0] == found[3] < found[1]
    assert found[2] == found[0] - 2
    assert made.backend.score(BASE, wanted) == found
    assert len(made.writer.read) == 3


def test_relevance_does_not_depend_on_the_company(tmp_path: Path) -> None:
    made = make(tmp_path, lambda bid: bid / 100)
    planned = efficiency.test_auctions(made.backend.config, made.backend.world)
    together = made.backend.relevance(planned[:5])
    for one, cosines in zip(planned, together, strict=False):
        assert made.backend.relevance([one])[0] == pytest.approx(cosines)
        assert np.abs(cosines).max() <= 1


def test_mosaic_is_tuned_on_training_queries(tmp_path: Path) -> None:
    made = make(tmp_path, lambda bid: 0.4)
    choice, tried = efficiency.tune_mechanism(
        made.backend, Mosaic(), Mosaic().choices(made.backend.config.irpo.epochs)
    )
    assert len(tried) == len(Mosaic().choices(3))
    assert {request.id.split("/")[1] for request in made.writer.asked} == {"validation"}
    assert all(request.n == CANDIDATES for request in made.writer.asked)
    assert dict(choice) == max(tried, key=lambda one: one["reward"])["choice"]
    means = {
        one["choice"]["tau"]: one["reward"] for one in tried if one["choice"]["reference"] == "generator"
    }
    assert means[0.0] > means[30.0]


def test_unread_judgements_are_bounded(tmp_path: Path) -> None:
    made = make(tmp_path, lambda bid: 1.0, unread=True)
    planned = efficiency.test_auctions(made.backend.config, made.backend.world)
    with pytest.raises(BudgetError, match="judgements of pretrained were lost"):
        efficiency.hold(made.backend, Pretrained(), planned, {})


def test_pairs_of_mechanisms_share_their_queries(tmp_path: Path) -> None:
    made = make(tmp_path, lambda bid: bid / 100)
    planned = efficiency.test_auctions(made.backend.config, made.backend.world)
    held = efficiency.hold(made.backend, Pretrained(), planned, {})
    same = efficiency.compare_mechanisms([held], [held], 200, 0)
    assert same["revenue_difference"] == {"mean": 0, "low": 0, "high": 0}
    assert same["revenue_ratio"]["mean"] == pytest.approx(1)
    assert same["expected_reward_difference"] == {"mean": 0, "low": 0, "high": 0}
    twice = replace(held, table={name: one * 2 for name, one in held.table.items()})
    assert efficiency.compare_mechanisms([twice], [held], 200, 0)["expected_revenue_ratio"][
        "mean"
    ] == pytest.approx(2)
    row = efficiency.mechanism_row([held, held], 200, 0)
    assert (row["seeds"], row["queries"]) == (2, 60)
    assert row["revenue"] == row["welfare"]
    costs = row["cost_per_auction"]
    assert costs["generations"] == {"mean": 1, "low": 1, "high": 1}
    assert costs["sampled_tokens"]["mean"] == 2
    assert 0 < costs["seconds"]["low"] <= costs["seconds"]["mean"] <= costs["seconds"]["high"]


def test_a_lost_worker_is_started_anew_and_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = (make(tmp_path, lambda bid: bid / 100) for _ in range(2))
    planned = efficiency.test_auctions(whole.backend.config, whole.backend.world)
    prompts = [Prompt(one, one.ads, one.auction.bids, 4) for one in planned]
    wanted = whole.backend.write(BASE, prompts)
    taken, restarted = itertools.count(), []

    def dies_once(calls: Sequence[Call], deadline: float, what: str) -> tuple[Call, Any]:
        if next(taken) == 3:
            calls[0].done = True
            raise WorkerLostError("killed", "rollout", 0)
        return next_item(calls, deadline, what)

    monkeypatch.setattr(dispatch, "next_item", dies_once)
    broken.backend._crew.restart = restarted.append
    assert broken.backend.write(BASE, prompts) == wanted
    assert [(lost.pool, lost.worker) for lost in restarted] == [("rollout", 0)]
    asked = Counter(request.id for request in broken.writer.asked)
    assert asked.keys() == {request.id for request in whole.writer.asked}
    assert set(asked.values()) == {2}


def test_a_reward_trainer_started_anew_loads_its_model_again(tmp_path: Path) -> None:
    made = make(tmp_path, lambda bid: bid / 100).backend
    planned = efficiency.test_auctions(made.config, made.world)
    answers = [ReadAnswer.of(auction, f"Try {markup(auction.ads[0])}.") for auction in planned]
    asked, told, crew = [], made._crew.ask_reward, made._crew
    crew.ask_reward = lambda method, *args: (asked.append(method), told(method, *args))[1]
    made.predict(answers[:1], 1)
    made.predict(answers[1:2], 1)
    crew.reward.restarts = 1
    made.predict(answers[2:3], 1)
    assert asked == ["load", "predict_intervals", "predict_intervals", "load", "predict_intervals"]


def test_predictions_are_of_the_ads_that_an_answer_places_among_its_candidates(tmp_path: Path) -> None:
    made = make(tmp_path, lambda bid: bid / 100).backend
    whole = efficiency.test_auctions(made.config, made.world)[0]
    text = f"Try {', '.join(markup(ad) for ad in whole.ads[:2])}."
    both = ReadAnswer.of(whole, text)
    first = ReadAnswer.of(replace(whole, ads=whole.ads[:1]), text)
    for answers in ([both, first], [first], [both]):
        rates = made.predict(answers, 1)
        assert [len(rate) for rate in rates] == [len(answer.planned.ads[:2]) for answer in answers]
