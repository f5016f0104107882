"""What a version would show, from an endpoint's ledger: which auctions count, and what is made of them."""

from __future__ import annotations

import datetime as dt
import io
import json
import math
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from raylla.auction import markup
from raylla.cli import app as cli
from raylla.config import Config
from raylla.engines.protocol import Completion, Generated, Given, Probe, Request, Scored
from raylla.errors import ConfigError, EndpointError, WeightError
from raylla.records import Prediction, WeightVersion
from raylla.reward.rows import ClickRow
from raylla.serving.deploy import estimate, rewriting
from raylla.serving.deploy.cluster import Dashboard
from raylla.serving.deploy.deploy import MEASURES, measured
from raylla.serving.deploy.rewriting import Rewriting, Rewritten, RewrittenPart
from raylla.serving.deploy.versions import Target
from raylla.serving.money.records import Candidate, PriceRule, Served, ServedAuction
from raylla.terminal import plain_console
from tests.unit.serving.market import MU, UNIT, Market
from tests.unit.serving.test_rollout import ADDRESS, Serve, at, run, serve

__all__ = ["at", "run", "serve"]  # fixtures

OLD, NEW = 10.0, 20.0
"""Nats that the scripted engine's two versions take off each token."""


def config(database: str = "sqlite://") -> Config:
    sampling = {"max_tokens": 6, "top_k": 5}
    return Config.model_validate(
        {"serving": {"database": database}, "ad_llm": {"path": "a", "sampling": sampling}}
    )


def auctions(market: Market, count: int, clicked: int = 0, **how: Any) -> list[Served]:
    """Recorded auctions, a second apart, each with one ad placed and one not; the first are clicked."""
    seat = market.seat()
    cup, pot = (
        market.listing(seat, bid=50, title="Lumo Cup"),
        market.listing(seat, bid=20, title="Vento Pot"),
    )
    found = []
    for place in range(count):
        one = market.auction(cup, lost=(pot,), now=market.now + dt.timedelta(seconds=place), **how)
        one = replace(one, token_ids=(7, 8, 9), prompt_token_ids=(1, 2, 3, 4), reward_value=50 * 0.3)
        market.store.record(one)
        if place < clicked:
            market.store.click(market.claims(one), market.now + dt.timedelta(seconds=place + 1))
        found.append(market.store.auction(one.id))
    return found


class Scripted:
    """An engine whose versions differ by what they take off a token, and the new one by what it writes."""

    def __init__(
        self,
        text: str,
        short: Sequence[str] = (),
        outside: Sequence[str] = (),
        refused: Sequence[str] = (),
    ) -> None:
        self.text, self.short, self.outside, self.refused = text, short, outside, refused
        self.held = ""
        self.asked: list[Request] = []

    def load(self, weights: dict[str, Any], probe: Probe | None) -> float:
        if "refused" in weights:
            raise WeightError("the probe differs")
        (self.held,) = weights
        return 0.0

    def score(self, given: Sequence[Given]) -> Iterator[Scored]:
        off = {"old": OLD, "new": NEW}[self.held]
        for one in given:
            assert one.token_ids
            assert (one.prompt_token_ids, one.messages) == ((1, 2, 3, 4), [])
            assert one.sampling is not None
            outside = int(self.held == "new" and one.id in self.outside)
            yield Scored(
                one.id, -off * len(one.token_ids), len(one.token_ids), outside, one.id not in self.short
            )

    def generate(self, requests: Sequence[Request], sampling: Any) -> Iterator[Generated]:
        assert self.held == "new"
        for one in requests:
            self.asked.append(one)
            if one.id in self.refused:
                yield Generated(one.id, one.prompt_token_ids, (), "too long")
                continue
            yield Generated(one.id, one.prompt_token_ids, (Completion(self.text, (5,), True),))


class Rates:
    """Says 0.4 of every ad."""

    def __init__(self, encoder: str, settings: object, seed: int) -> None:
        self.rows: list[ClickRow] = []

    def load(self, place: str) -> None:
        assert place == "reward/epoch-1"

    def predict_intervals(self, rows: Sequence[ClickRow]) -> list[Prediction]:
        return [Prediction(0.4, 0.3, 0.6) for _ in rows]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = pytest.importorskip("raylla.reward.trainer")
    monkeypatch.setattr(trainer, "RewardTrainer", Rates)
    monkeypatch.setattr(rewriting, "read_weights", lambda place: {place: None})
    monkeypatch.setattr("raylla.models.resolve", lambda path, field: path)


def job(*found: ServedAuction) -> Rewriting:
    old, new = (WeightVersion(name, 1, name) for name in ("old", "new"))
    return Rewriting(config(), (old, None), (new, None), "reward/epoch-1", found)


def test_the_newest_auctions_of_the_version_count_under_the_pctr_model_that_serves(market: Market) -> None:
    found = auctions(market, 8)
    odd = [
        {"canary": True},
        {"test": True},
        {"weight_version": "v2"},
        {"pctr_version": "other/epoch-1"},
    ]
    for place, changed in enumerate(odd):
        other = replace(found[0].auction, id=f"odd{place}", impressions=(), **changed)  # type: ignore[arg-type]
        market.store.record(replace(other, created=market.now + dt.timedelta(seconds=4.5)))
    url = str(market.store.database.url)
    kept, left_out = estimate.written_by(config(url), Target("run", "v1"), "p1", 5)
    assert [one.auction.id for one in kept] == [one.auction.id for one in reversed(found[3:])]
    assert left_out == {estimate.OF_ANOTHER_PCTR: 1}
    assert list(market.store.newest("v3")) == []


def test_each_auction_is_read_by_both_versions_and_written_by_the_new_one(
    market: Market, scripted: None
) -> None:
    found = [one.auction for one in auctions(market, 40)]
    cup = found[0].candidates[0].listing.ad
    engine = Scripted(f"Take {markup(cup)} and @Nobody@[Ad-9].", short=[found[3].id], outside=[found[5].id])
    long = replace(found[0], id="long", prompt_token_ids=(1,) * 10_000)
    first, *parts = rewriting.rewritten_parts(engine, job(*found, long))
    assert first == RewrittenPart((), {rewriting.TOO_LONG: 1, rewriting.CUT_SHORT: 1})
    assert [len(part.rewritten) for part in parts] == [rewriting.TOGETHER, 39 - rewriting.TOGETHER]
    anew = {one.auction_id: one for part in parts for one in part.rewritten}
    assert anew.keys() == {one.id for one in found} - {found[3].id}
    assert (anew[found[0].id].old_logprob, anew[found[0].id].new_logprob) == (-30, -60)
    assert anew[found[5].id].new_logprob == -math.inf
    assert len({one.seed for one in engine.asked}) == 39
    settings = config().penalty
    punished = settings.weight * (settings.per_ad + settings.per_violation)
    one = anew[found[0].id]
    assert one.gains[0] == [pytest.approx(50 * 0.4), 0, 0, pytest.approx(50 * 0.4), 0]
    assert (one.gains[1][0], one.gains[2][0]) == (pytest.approx(50 * 0.3), pytest.approx(50 * 0.6))
    assert one.known == [0, pytest.approx(20), pytest.approx(20 - punished), -punished, 1]


def test_a_whole_answer_may_be_as_long_as_answers_get(market: Market, scripted: None) -> None:
    (one,) = auctions(market, 1)
    whole = replace(one.auction, token_ids=(7,) * config().ad_llm.sampling.max_tokens)
    first, part = rewriting.rewritten_parts(Scripted("Nothing.", short=[whole.id]), job(whole))
    assert (first.left_out, len(part.rewritten)) == ({}, 1)


def test_neither_an_answer_without_tokens_nor_one_that_is_refused_earns_nothing(
    market: Market, scripted: None
) -> None:
    found = [one.auction for one in auctions(market, 40)]
    empty = replace(found[0], id="empty", token_ids=())
    engine = Scripted("Nothing.", refused=[found[3].id, found[35].id])
    parts = list(rewriting.rewritten_parts(engine, job(*found, empty)))
    left_out = [part.left_out for part in parts]
    assert left_out == [{rewriting.EMPTY: 1}, {rewriting.REFUSED: 1}, {rewriting.REFUSED: 1}]
    written = [one.auction_id for part in parts for one in part.rewritten]
    assert written == [one.id for at, one in enumerate(found) if at not in (3, 35)]


def test_a_prompt_is_left_out_for_its_own_length_and_not_for_its_answer_s(
    market: Market, scripted: None
) -> None:
    (one,) = auctions(market, 1)
    most, longest = config().ad_llm.sampling.max_tokens, config().engine.max_model_len
    for answer in (1, most):
        for prompt, reason in ((longest - most - 1, None), (longest - most, rewriting.TOO_LONG)):
            tried = replace(one.auction, token_ids=(7,) * answer, prompt_token_ids=(1,) * prompt)
            assert rewriting._unfit(tried, config()) == reason


def test_the_auctions_of_the_rule_reserve_cost_what_their_candidates_were_quoted(
    market: Market, scripted: None
) -> None:
    (one,) = auctions(market, 1)
    quoted = tuple(replace(each, price_micros=12 * UNIT) for each in one.auction.candidates)
    auction = replace(one.auction, price_rule=PriceRule.RESERVE, candidates=quoted)
    engine = Scripted(f"Take {markup(quoted[0].listing.ad)}.")
    _, part = rewriting.rewritten_parts(engine, job(auction))
    assert part.rewritten[0].gains[0][0] == pytest.approx(12 * 0.4)
    told, _ = estimate._told(replace(one, auction=auction), UNIT)
    assert told[0][0] == pytest.approx(12 * 0.3)


def candidate(bid: int, entered: int, resampled: bool, market: Market) -> Candidate:
    return Candidate(
        market.listing(market.seat(), bid=bid), entered * UNIT, resampled, 10 * UNIT, 25 * UNIT
    )


@pytest.mark.parametrize(
    ("rule", "resampled", "revenue", "ends"),
    [
        (PriceRule.FIRST_PRICE, False, 50 * 0.4, (50 * 0.2, 50 * 0.5)),
        (PriceRule.EXPECTED, False, 50 * 0.4, (50 * 0.4, 50 * 0.4)),
        (PriceRule.RESERVE, False, 25 * 0.4, (25 * 0.2, 25 * 0.5)),
        (PriceRule.RESAMPLED, True, -9 * 50 * 0.4, (-9 * 50 * 0.5, -9 * 50 * 0.2)),
    ],
)
def test_what_an_answer_earns_follows_the_price_rule(
    market: Market,
    rule: PriceRule,
    resampled: bool,
    revenue: float,
    ends: tuple[float, float],
) -> None:
    shown = [(candidate(50, 30, resampled, market), Prediction(0.4, 0.2, 0.5))]
    gains, sure = rewriting.outcome(rule, MU, UNIT, shown, 7.0, 2)
    assert [row[0] for row in gains] == pytest.approx([revenue, *ends])
    assert [row[3] for row in gains] == pytest.approx([30 * 0.4, 30 * 0.2, 30 * 0.5])
    assert sure == pytest.approx([0, 50 * 0.4, 30 * 0.4 - 7, -7, 2])


def rewritten(log: Sequence[Served], gain: float = 0.0, ratio: float = 0.0) -> dict[str, Rewritten]:
    """The new version writes answers with an expected ``gain`` and nothing else."""
    gains = [[gain, 0.0, 0.0, gain, 0.0]] * 3
    known = [0.0, gain, gain, 0.0, 0.0]
    return {
        one.auction.id: Rewritten(one.auction.id, -5.0, -5.0 + ratio, False, gains, known) for one in log
    }


def test_measures_are_those_of_the_canary(market: Market) -> None:
    log = auctions(market, 40, clicked=20)
    assert measured(log[0], UNIT) == [
        50,
        pytest.approx(50 * 0.3),
        pytest.approx(50 * 0.3 - 0.5),
        50 - 0.5,
        0,
    ]
    found = estimate.estimated(log, rewritten(log), config())
    assert list(found["estimates"]) == list(MEASURES)
    naive = {name: one["naive"]["value"]["mean"] for name, one in found["estimates"].items()}
    shown = np.mean([measured(one, UNIT) for one in log], axis=0)
    assert list(naive.values()) == pytest.approx(shown.tolist())
    json.dumps(found, allow_nan=False)
    said = io.StringIO()
    about = {"log": "v1 of run", "new": "v2 of run", "level": 0.9, "left_out": {}}
    estimate.show_estimate(plain_console(width=160, file=said), found | about)
    for name in MEASURES:
        assert name.replace("_", " ") in said.getvalue()
    assert "effective sample size 40.0" in said.getvalue()


def test_where_the_new_version_has_nothing_in_common_its_own_answers_decide(market: Market) -> None:
    log = auctions(market, 40, clicked=20)
    found = estimate.estimated(log, rewritten(log, gain=30.0, ratio=-math.inf), config())
    robust = {name: one["doubly_robust"]["value"]["mean"] for name, one in found["estimates"].items()}
    # The log's ads were said to be clicked in 0.3 of the auctions, and are in 0.5.
    assert robust["revenue"] == pytest.approx(30 * 0.5 / 0.3)
    assert robust["expected_revenue"] == robust["reward"] == pytest.approx(30)
    assert found["overlap"]["effective_sample_size"] == 0


def test_the_same_version_earns_what_it_did(market: Market) -> None:
    log = auctions(market, 40, clicked=10)
    told = {one.auction.id: estimate._told(one, UNIT) for one in log}
    same = {id: Rewritten(id, -5.0, -5.0, False, *rows) for id, rows in told.items()}
    found = estimate.estimated(log, same, config())
    for one in found["estimates"].values():
        assert one["doubly_robust"]["difference"]["mean"] == pytest.approx(0)
        assert one["doubly_robust"]["slack"] == (0, 0)


def deploy(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["deploy", *arguments, "--address", ADDRESS])


def test_with_too_few_auctions_the_version_is_deployed_and_the_reason_told(
    serve: Serve, at: Dashboard, run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "estimate.json"
    done = deploy(str(run), "--version", "v2", "--estimate-only", "--json", str(file))
    assert done.exit_code == 0, done.output
    assert "no estimate: 0 logged auctions, fewer than 20" in done.output
    assert json.loads(file.read_text())["absent"].startswith("0 logged auctions")
    assert serve.told("Ingress")["canary"] is None
    done = deploy(str(run), "--version", "v1", "--estimate-only")
    assert "is what serves" in done.output
    done = deploy(str(run), "--version", "v2")
    assert "no estimate: 0 logged" in done.output
    assert serve.told("Ingress")["canary"]["version"] == "v2"


def test_an_estimate_can_be_done_without_or_be_all(
    serve: Serve, at: Dashboard, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise EndpointError("the process that reads has ended")

    monkeypatch.setattr(estimate, "written_by", fails)
    done = deploy(str(run), "--version", "v2", "--estimate-only")
    assert done.exit_code == 2
    assert serve.told("Ingress")["canary"] is None
    done = deploy(str(run), "--version", "v2", "--no-estimate")
    assert done.exit_code == 0, done.output
    assert "no estimate" not in done.output
    assert serve.told("Ingress")["canary"]["version"] == "v2"
    done = deploy("--rollback", "--json", "x.json")
    assert done.exit_code == 2
    assert "go with a run directory" in " ".join(done.output.split())


@pytest.mark.parametrize(
    "bound", ["--seconds=inf", "--seconds=1e300", "--seconds=nan", "--share=nan", "--auctions=10000000"]
)
def test_bounds_that_no_clock_knows_are_refused(run: Path, bound: str) -> None:
    done = deploy(str(run), "--version", "v2", bound)
    assert done.exit_code == 2
    said = " ".join(done.output.split())
    assert f"'{bound.split('=')[0]}'" in said
    assert "should be less than or equal to" in said


def test_a_reading_process_that_nobody_waits_for_ends_in_silence() -> None:
    ours, theirs = multiprocessing.Pipe()
    ours.close()
    rewriting.rewrite(theirs, job())  # ad_llm.path is nowhere


def test_what_the_reading_process_meets_is_told(market: Market) -> None:
    (one,) = auctions(market, 1)
    with pytest.raises(ConfigError, match=r"ad_llm\.path"):
        list(estimate._within(60, job(one.auction), lambda done: None))
