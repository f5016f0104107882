"""The day of bidders: who may compete is the endpoint's word, what is booked adds up, what the row says."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raylla import config
from raylla.auction import ReadAnswer, markup
from raylla.auction.checks import Array
from raylla.bidding.autobidders import AUTOBIDDERS, BIDDER_KINDS, Population
from raylla.config import parse_config
from raylla.errors import ConfigError, RunError
from raylla.evaluation.day.accounts import DayAccount, market_row
from raylla.evaluation.day.market import (
    COHORTS,
    PERIODS,
    SPREAD,
    Books,
    Market,
    budgets_of,
    day_market,
    traffic,
)
from raylla.evaluation.day.play import Played, _among, _Answer, _Days, click_chances, lone_answers, play
from raylla.evaluation.day.suite import played_days, population
from raylla.evaluation.page.console import show_day
from raylla.mechanisms.card import Card
from raylla.mechanisms.llm import LlmAuction, Pretrained
from raylla.mechanisms.protocol import Mechanism
from raylla.mechanisms.rag import RagAuction
from raylla.progress import Steps
from raylla.terminal import plain_console
from tests.unit.backends import make

UNBOUND = 1e9


def backend(path: Path, rule: Any = lambda bid: float(bid >= 50), **day: Any) -> Any:
    """A backend whose model places each ad by ``rule``, and whose judge says 0.5 of each."""
    made = make(path, rule)
    tree = made.backend.config.model_dump(mode="json")
    tree["evaluation"]["day"] |= {"queries": 3, "days": 1, "cap": None} | day
    tree["user_llm"]["reading"] = "token"
    made.backend.config = parse_config(tree, "test")
    made.reader.told = 0.5
    return made.backend


def played(one: Any, kind: str, budget: float, mechanism: Mechanism | None = None) -> tuple[Market, Played]:
    market = day_market(one.config, one.world)
    budgets = np.full(len(market.ads), budget)
    bidders = Population([kind] * len(market.ads), budgets, 1.25, np.random.default_rng(0))
    (found,) = play(one, mechanism or Pretrained(), {}, market, [bidders], budgets)
    return market, found


def test_traffic_is_a_day_of_one_wave() -> None:
    shares = traffic()
    assert shares.sum() == pytest.approx(1)
    assert (int(shares.argmax()), int(shares.argmin())) == (40, 16)
    assert shares.max() / shares.min() == pytest.approx(4)


def test_without_limits_everyone_competes_and_pays_for_its_clicks(tmp_path: Path) -> None:
    market, found = played(backend(tmp_path), "truthful", UNBOUND)
    assert found.kept_out.total() == 0
    assert found.entered == PERIODS * 3 * 3
    users = market.users[0].sum(axis=0)
    placed = market.values * (market.values >= 50)
    assert found.value[0] == pytest.approx(users[:, None] * placed * 0.5)
    assert found.paid[0] == pytest.approx(found.value[0], abs=0.01)  # first price, bids are values
    assert found.spent[0].sum(axis=0) == pytest.approx(found.paid[0].sum(axis=0))
    assert found.unpaid.tolist() == [0]


def test_nobody_pays_more_than_its_budget_and_who_has_none_sits_out(tmp_path: Path) -> None:
    one = backend(tmp_path)
    market, rich = played(one, "truthful", UNBOUND)
    budget = rich.paid[0].sum(axis=0).max() / 3
    _, poor = played(one, "truthful", budget)
    assert (poor.paid[0].sum(axis=0) <= budget + 1e-6).all()
    assert poor.paid[0].sum(axis=0).max() > 0.95 * budget
    assert poor.kept_out["budget"] + poor.kept_out["pacing"] > 0
    assert poor.value[0].sum() < rich.value[0].sum()
    assert len(market.ads) == 3


def test_even_pacing_is_the_endpoint_s_and_follows_the_clock(tmp_path: Path) -> None:
    one = backend(tmp_path)
    rich = played(one, "truthful", UNBOUND)[1].paid[0].sum(axis=0)
    spender = int(rich.argmax())
    _, even = played(one, "truthful", rich.max() / 3)
    gone = even.spent[0, :, spender].cumsum() / (rich.max() / 3)
    clock = np.arange(PERIODS) / PERIODS
    ahead = gone[:-1] > clock[1:] + 1e-9
    assert (even.spent[0, 1:, spender][ahead] == 0).all()  # who is ahead of the clock waits
    assert even.kept_out["pacing"] > 0
    assert gone[PERIODS // 2 - 1] < 0.6
    _, paced = played(one, "pid", rich.max() / 3)
    assert paced.kept_out["pacing"] == 0  # autobidders pace themselves


def test_the_frequency_cap_counts_a_user_s_impressions(tmp_path: Path) -> None:
    one = backend(tmp_path, rule=lambda bid: 1.0, cap=2)
    _, found = played(one, "truthful", UNBOUND)
    # All queries are of one user's profile: two impressions of each ad for each of its cohorts.
    assert found.kept_out["frequency_cap"] == PERIODS * 3 * 3 - found.entered
    shown = found.entered / 3 / COHORTS
    assert 2 <= shown <= 3  # the auctions of a period are one batch
    free = backend(tmp_path / "free", rule=lambda bid: 1.0, cap=None)
    assert played(free, "truthful", UNBOUND)[1].kept_out.total() == 0


def test_books_are_read_as_the_store_is(tmp_path: Path) -> None:
    one = backend(tmp_path)
    market = day_market(one.config, one.world)
    books = Books(market, [(1.5, "asap"), (2.0, "even"), (3.0, "even")], 10_000, 2)
    catalogue = books.changes(0)
    assert [ad.id for ad in catalogue.ads] == list(market.ads)
    assert [row.daily_budget_micros for row in catalogue.campaigns] == [15_000, 20_000, 30_000]
    assert not books.changes(1).ads
    day, ad = dt.date(2026, 1, 1), market.ads[0]
    assert books.charge(ad, 4_000, 2.5, day) == 10_000
    assert books.charge(ad, 4_000, 2.5, day) == 4_000  # the budget holds one more
    assert books.charge(ad, 4_000, 1, day) == books.charge(ad, 0, 5, day) == 0
    assert books.spending(day) == {ad: 14_000}
    assert books.spending(dt.date(2026, 1, 2)) == {}
    noon = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
    books.show("u", [ad], noon)
    assert books.seen("u", noon - dt.timedelta(hours=1)) == [(ad, noon)]
    assert books.seen("u", noon) == books.seen("v", noon - dt.timedelta(hours=1)) == []


def test_budgets_bind_for_some(tmp_path: Path) -> None:
    one = backend(tmp_path, queries=8)
    market = day_market(one.config, one.world)
    rates, answers = lone_answers(one, LlmAuction(), market)
    assert set(rates.ravel()) == {0, 0.5}
    assert (rates > 0).tolist() == (market.values >= 50).tolist()
    assert len(answers) >= 8
    budgets = budgets_of(market, rates, one.config)
    worth = market.users.sum(axis=1).mean(axis=0)[:, None] * market.values * rates
    share = worth.max(axis=1).sum() / worth.sum()
    shares = one.config.evaluation.day.budget * share * worth.sum(axis=0)
    off = np.log(budgets / shares) / np.log(SPREAD)
    assert (np.abs(off) <= 1 + 1e-9).all()
    tree = one.config.model_dump(mode="json")
    tree["evaluation"]["day"]["budget"] *= 2
    assert budgets_of(market, rates, parse_config(tree, "t")) == pytest.approx(2 * budgets)
    with pytest.raises(RunError, match="no answer with one candidate alone is clicked"):
        budgets_of(market, np.zeros_like(rates), one.config)


def test_pacing_leaves_more_of_the_day_to_those_who_can_pay(tmp_path: Path) -> None:
    """Under a mechanism in which the higher bid wins, paced bidders spend over the day and not at once."""
    one = backend(tmp_path, queries=8, days=3)
    market = day_market(one.config, one.world)
    budget = 0.1 * float((market.users[0].sum(axis=0)[:, None] * market.values * 0.5).sum(axis=0).mean())
    _, found = played(one, "pid", budget, RagRanked())
    gone = found.spent[-1].cumsum(axis=0) / budget
    used = gone[-1] > 0.9
    assert used.any()
    assert (gone[PERIODS // 2 - 1, used] < 0.75).all()
    assert found.multiples[-1].min() < 1


class RagRanked(RagAuction):
    """RAG-Auction at one setting."""

    def run(self, backend: Any, auctions: Sequence[Any], choice: Any) -> Any:
        return super().run(backend, auctions, {"ads": 1, "rule": "without replacement", "temperature": 0.3})


def test_chances_are_the_judge_s_own_or_the_click_model_s(tmp_path: Path) -> None:
    one = backend(tmp_path)
    market = day_market(one.config, one.world)
    ad = market.auctions[0].ads[0]
    texts = (f"Try {markup(ad)}.", "Boil water.")
    answers = [ReadAnswer.of(market.auctions[0], text) for text in texts]
    assert click_chances(one, [*answers, *answers]) == [{ad.id: 0.5}, {}] * 2
    tree = one.config.model_dump(mode="json")
    tree["user_llm"]["reading"] = "json"
    one.config = parse_config(tree, "test")
    (told, nothing) = click_chances(one, answers)
    assert told is not None
    assert told[ad.id] == pytest.approx(0.55 * 1.5)  # own category, an interest, native, first
    assert nothing == {}


def test_a_text_is_worth_what_the_candidates_that_it_places_are(tmp_path: Path) -> None:
    """Placed among both ads, a text is worth the clicks of both; among one, of that one alone."""
    one = backend(tmp_path)
    market = day_market(one.config, one.world)
    planned = market.auctions[0]
    text = f"Try {', '.join(markup(ad) for ad in planned.ads[:2])}."
    days = _Days(one, market, population("truthful", np.full(3, UNBOUND), 1.25, 0), np.full(3, UNBOUND))
    for kept in ([0, 1], [0]):
        asked = _among(planned, kept, [50.0] * len(kept))
        ids = asked.auction.ad_ids
        prices, chances = dict.fromkeys(ids, 1.0), dict.fromkeys(ids, 0.5)
        answer = _Answer(ReadAnswer.of(asked, text), prices, chances)
        days.settle(0, 0, [(0, "u", asked)], [answer], np.ones(3, np.bool_))
    both = days.played.answers[0, text, planned.auction.ad_ids[:2]]
    alone = days.played.answers[0, text, planned.auction.ad_ids[:1]]
    assert (both > 0).sum() == 2
    assert (alone > 0).sum() == 1
    assert both.sum() > alone.sum()


def account(path: Path, kind: str, **day: Any) -> tuple[Any, dict[str, Any]]:
    one = backend(path, lambda bid: bid / 100, markets=[kind], **day)
    watch = Steps(plain_console())
    found = played_days(one, [LlmAuction(), Card()], watch)
    return one, {name: markets[kind] for name, (_, markets) in found.items()}


def test_the_optimum_is_no_less_than_what_was_had(tmp_path: Path) -> None:
    one, found = account(tmp_path, "mixed", queries=6, days=2)
    for each in found.values():
        assert (each.own >= each.liquid - 1e-6).all()
        assert (each.any >= each.own - 1e-6).all()
        assert (each.liquid > 0).all()
    assert (found["llm-auction"].any == found["card"].any).all()  # the same users, budgets and answers
    told = market_row([found["llm-auction"]], one.config)
    assert told["price_of_anarchy"]["mean"] >= 1
    assert math.isnan(told["price_of_anarchy"]["low"])
    assert told["return"]["mean"] >= 1 - 1e-9  # nobody pays more than its value under first price
    found["llm-auction"].played.paid[:] = 0
    assert math.isnan(market_row([found["llm-auction"]], one.config)["return"]["mean"])
    assert set(told["bidders"]) <= set(AUTOBIDDERS)
    assert sum(kind["advertisers"] for kind in told["bidders"].values()) == 3
    assert len(told["days"]) == 2
    for kind in told["bidders"]:
        spent, multiples = told["curves"][kind]["spent"], told["curves"][kind]["multiples"]
        assert len(spent) == PERIODS
        assert len(multiples) == 2 * PERIODS
        assert spent == sorted(spent)
        assert spent[-1] == pytest.approx(told["bidders"][kind]["budget_use"]["mean"], abs=1e-3)


def test_markets_side_by_side_are_as_they_are_alone(tmp_path: Path) -> None:
    one = backend(tmp_path, lambda bid: bid / 100, queries=4, days=2, cap=2)
    market = day_market(one.config, one.world)
    budgets = np.full(3, 0.1 * float((market.users[0].sum(axis=0) @ market.values).mean()))
    kinds = ["truthful", "mixed", "learned"]

    def many(names: list[str]) -> list[Played]:
        bidders = [population(name, budgets, 1.25, 0) for name in names]
        return play(one, LlmAuction(), {}, market, bidders, budgets)

    for together, (alone_,) in zip(many(kinds), [many([kind]) for kind in kinds], strict=True):
        for name in ("value", "paid", "spent", "multiples", "unpaid"):
            assert getattr(together, name) == pytest.approx(getattr(alone_, name))
        assert together.kept_out == alone_.kept_out
        assert together.answers.keys() == alone_.answers.keys()


def test_the_row_over_seeds(tmp_path: Path) -> None:
    one, first = account(tmp_path / "a", "truthful")
    tree = one.config.model_dump(mode="json") | {"seed": 1}
    other = backend(tmp_path / "b", lambda bid: bid / 100, markets=["truthful"])
    other.config = parse_config(tree, "test")
    second = played_days(other, [LlmAuction()], Steps(plain_console()))["llm-auction"][1]["truthful"]
    told = market_row([first["llm-auction"], second], one.config)
    each = [market_row([lone], one.config)["revenue"]["mean"] for lone in (first["llm-auction"], second)]
    assert told["seeds"] == 2
    assert min(each) <= told["revenue"]["mean"] <= max(each)
    assert told["price_of_anarchy"]["low"] <= told["price_of_anarchy"]["mean"]
    assert told["moved"] == {"mean": 0, "low": 0, "high": 0}  # who tells the truth learns nothing


def test_a_mixed_market_has_as_many_of_each_kind() -> None:
    found = population("mixed", np.ones(10), 1.25, 0)
    counts = [int((found.kinds == kind).sum()) for kind in AUTOBIDDERS]
    assert sorted(counts) == [2, 2, 3, 3]
    again = population("mixed", np.ones(10), 1.25, 0)
    assert found.kinds.tolist() == again.kinds.tolist()
    assert found.kinds.tolist() != population("mixed", np.ones(10), 1.25, 1).kinds.tolist()


def test_how_far_multiples_still_move() -> None:
    flat: Array = np.full((2, PERIODS, 2), 0.5)
    flat[0, 36:, 0] = 0.9
    flat[0, :24] = 7.0  # the morning is not looked at
    nothing = np.zeros((2, 1, 2))
    one = Played(nothing, nothing, np.zeros_like(flat), flat, np.zeros(2))
    found = DayAccount(np.ones((2, 1), int), np.ones(2), np.array(["pid", "value"]), one, *np.ones((3, 2)))
    assert found.moved() == pytest.approx([0.2, 0])
    assert found.moved("pid") == pytest.approx([0.4, 0])
    assert found.moved("value") == pytest.approx([0, 0])


@pytest.mark.parametrize(
    ("field", "value"),
    [("queries", 1), ("days", 0), ("markets", []), ("markets", ["greedy"]), ("budget", 0), ("target", 0.9)],
)
def test_settings_that_make_no_day_are_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"evaluation.day.{field}"):
        parse_config({"evaluation": {"day": {field: value}}}, "test")


def test_every_kind_of_bidder_is_a_market() -> None:
    kinds = [*BIDDER_KINDS, "mixed"]
    assert parse_config(
        {"evaluation": {"day": {"markets": kinds}}}, "test"
    ).evaluation.day.markets == tuple(kinds)
    with pytest.raises(ConfigError, match="'truthful', 'pacing', 'pid', 'value', 'learned' or 'mixed'"):
        parse_config({"evaluation": {"day": {"markets": ["none"]}}}, "test")


def test_more_queries_than_there_are_is_an_error_before_anything_loads(tmp_path: Path) -> None:
    one = backend(tmp_path, queries=31)
    with pytest.raises(RunError, match=r"30 test queries are fewer than evaluation\.day\.queries=31"):
        day_market(one.config, one.world)


def test_the_day_is_no_part_of_what_a_run_is() -> None:
    other = config.changed(config.Config(), None, ["evaluation.day.days=9"])
    assert other.evaluation.day.days == 9
    assert other.digest() == config.Config().digest()


def test_the_console_has_a_row_for_each_market(capsys: pytest.CaptureFixture[str]) -> None:
    figure = {"mean": 0.25, "low": 0.1, "high": 0.4}
    keys = ("revenue", "welfare", "budget_use", "return", "price_of_anarchy", "moved")
    told = dict.fromkeys(keys, figure) | {"seeds": 1}
    told["moved"] = {"mean": 0.125, "low": math.nan, "high": math.nan}
    console = plain_console()
    console.width = 200
    found = {"name": "tea", "settings": {"days": 3}, "periods": 48, "clicks": "adapter:judge"}
    show_day(console, {**found, "mechanisms": {"card": {"markets": {"pid": told, "mixed": told}}}})
    said = capsys.readouterr()
    text = said.out + said.err
    assert "tea: the last of 3 days" in text
    assert text.count("0.25 [0.1, 0.4]") == 2 * 5
    assert text.count("0.125") == 2
    assert "nan" not in text
