"""The allocation curve, the price rule on it, where bidders settle, and what is learned from logs."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylla.auction import incentives, optimum
from raylla.errors import ConfigError, DataError
from raylla.pricing import learn
from raylla.pricing.bidders import best_respond, shade
from raylla.pricing.curve import TRAITS, AllocationCurve, Contests, fit_curve
from raylla.pricing.learn import Bounds, learn_sheet
from raylla.pricing.logs import AuctionLog, LoggedAuction, as_log, by_question, click_rates, rates_at
from raylla.pricing.reserves import Reserves, learn_reserves, simulate_truth
from raylla.pricing.rule import bid_grid, click_prices, quote
from raylla.pricing.sheet import PriceSheet, parse_sheet, read_sheet, written
from raylla.records import Ad, Profile, Query

LARGEST = 100.0
GRID = bid_grid(LARGEST)
STEEP = AllocationCurve(-2.0, (0.6, 0.2, 0.3), 0.2, 1.5, (2.0, 0.5, 0.2), LARGEST)
USER = Profile("p", "Kim", ("tea",))
QUERY = Query("q", "p", "which tea?", "tea", "food", "test")

coefficients = st.floats(0, 4)
curves = st.builds(
    AllocationCurve,
    st.floats(-4, 2),
    st.tuples(*[st.floats(-2, 2)] * len(TRAITS)),
    coefficients,
    coefficients,
    st.tuples(coefficients, coefficients, coefficients),
    st.just(LARGEST),
)


@st.composite
def contests(draw: st.DrawFn) -> Contests:
    """One auction of one to six ads."""
    bids = draw(st.lists(st.integers(1, 100), min_size=1, max_size=6))
    traits = draw(st.lists(st.tuples(*[st.integers(0, 1)] * 3), min_size=len(bids), max_size=len(bids)))
    return Contests.of([bids], [traits])


def logged(curve: AllocationCurve, count: int, seed: int, clicks: float = 0.5) -> list[LoggedAuction]:
    """Auctions of four ads with bids U{1..100}, answered as the curve says."""
    rng, found = np.random.default_rng(seed), []
    for number in range(count):
        bids = rng.integers(1, 101, 4)
        near = rng.integers(0, 2, 4)
        traits = [(int(one), int(one), 0) for one in near]
        held = Contests.of([bids.tolist()], [traits])
        shares = curve.shares(held, held.there)[0]
        placed = rng.multinomial(5, [*shares, 1 - shares.sum()])[:4].astype(float)
        kinds = [("tea", "food") if one else ("cars", "travel") for one in near]
        found.append(
            LoggedAuction(
                f"question {number}",
                tuple(map(float, bids)),
                tuple(traits),
                tuple(kinds),
                5,
                tuple(placed),
                tuple(placed),
                tuple(placed * clicks * np.where(near, 1.0, 0.5)),
                "v1",
            )
        )
    return found


@given(curves, contests(), st.data())
def test_a_share_rises_in_the_own_bid(curve: AllocationCurve, held: Contests, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, held.bids.shape[1] - 1))
    shares = []
    for bid in (1, 7, 40, 41, 100):
        bids = held.bids.copy()
        bids[0, place] = bid
        shares.append(curve.shares(held.at(bids), held.there)[0])
    rising = np.diff(np.array(shares), axis=0)
    assert (rising[:, place] >= -1e-12).all()
    assert (np.array(shares).sum(axis=1) <= 1 + 1e-12).all()


@given(curves, contests(), st.data())
def test_along_is_the_share_at_each_bid(
    curve: AllocationCurve, held: Contests, data: st.DataObject
) -> None:
    width = held.bids.shape[1]
    entered = np.array([data.draw(st.lists(st.booleans(), min_size=width, max_size=width))])
    grid = np.array([1.0, 13.0, 50.0, 100.0])
    along = curve.along(held, entered, grid)
    for place in range(held.bids.shape[1]):
        for at, bid in enumerate(grid):
            bids, inside = held.bids.copy(), entered.copy()
            bids[0, place], inside[0, place] = bid, True
            wanted = curve.shares(held.at(bids), inside)[0, place]
            assert along[0, place, at] == pytest.approx(wanted, abs=1e-12)


@given(curves, contests(), st.integers(1, 100))
def test_prices_lie_between_reserve_and_bid_and_rise(
    curve: AllocationCurve, held: Contests, reserve: int
) -> None:
    along = curve.along(held, held.there, GRID)
    reserves = np.full(held.bids.shape, float(reserve))
    prices = click_prices(along, GRID, reserves)
    assert np.isnan(prices[..., : reserve - 1]).all()
    above = prices[..., reserve - 1 :]
    assert (above >= reserve).all()
    assert (above <= GRID[reserve - 1 :]).all()
    assert (np.diff(above, axis=-1) >= -1e-9).all()
    assert above[..., 0] == pytest.approx(reserve)


@given(curves, contests(), st.integers(1, 60))
def test_the_truth_is_a_best_response_on_the_curve(
    curve: AllocationCurve, held: Contests, reserve: int
) -> None:
    """For every value of the grid, whatever the others bid; who is below the reserve stays out."""
    along = curve.along(held, held.there, GRID)
    prices = click_prices(along, GRID, np.full(held.bids.shape, float(reserve)))
    shares = np.where(np.isnan(prices), 0.0, along)
    paid = shares * np.nan_to_num(prices)
    assert incentives.regret(GRID, shares, paid).max() <= 1e-9
    assert incentives.least_utility(GRID, shares, paid).min() >= -1e-9


def test_without_a_reserve_the_price_is_myersons() -> None:
    held = Contests.of([[30, 60, 90]], [[(1, 1, 0), (0, 0, 0), (0, 1, 1)]])
    along = STEEP.along(held, held.there, GRID)
    prices = click_prices(along, GRID, np.ones(held.bids.shape))
    from_zero = optimum.myerson(np.append(0, GRID), np.dstack([np.zeros((1, 3, 1)), along]))[..., 1:]
    # up to the first bid of the grid, below which nobody can bid, the two differ by half a unit of it
    assert prices * along == pytest.approx(from_zero + along[..., :1] / 2, abs=1e-9)


def test_a_step_costs_what_the_next_one_bids() -> None:
    """Where the highest bid takes all, a click costs the second bid, or the reserve above it."""
    sure = AllocationCurve(20.0, (0, 0, 0), 0, 0, (20.0, 0, 0), LARGEST)
    held = Contests.of([[80, 50]], [[(0, 0, 0)] * 2])
    assert quote(sure, held, np.ones((1, 2))).prices[0, 0] == pytest.approx(50, abs=1)
    assert quote(sure, held, np.full((1, 2), 65.0)).prices[0].tolist() == pytest.approx([65, 0], abs=1)
    assert quote(sure, held, np.full((1, 2), 81.0)).shares.sum() == 0


@settings(max_examples=20)
@given(curves, contests(), st.integers(0, 5), st.sampled_from([1.0, 35.0]))
def test_bidders_settle_at_the_truth_under_the_rule(
    curve: AllocationCurve, held: Contests, seed: int, reserve: float
) -> None:
    reserves = np.full(held.bids.shape, reserve)
    found = best_respond(curve, held, reserves, "utility", np.random.default_rng(seed))
    assert found.settled == 1
    (bids,) = found.rounds
    truthful, got = quote(curve, held, reserves), quote(curve, held.at(bids), reserves)
    assert got.shares == pytest.approx(truthful.shares, abs=1e-9)
    assert got.shares * got.prices == pytest.approx(truthful.shares * truthful.prices, abs=1e-7)


def test_bidders_shade_under_first_price_and_value_maximizers_do_not() -> None:
    held = Contests.of([[90, 70, 20]] * 3, [[(0, 0, 0)] * 3] * 3)
    rng = np.random.default_rng(0)
    for bids in best_respond(STEEP, held, None, "utility", rng).rounds:
        assert (bids[:, 0] < 90).all()
    (bids,) = best_respond(STEEP, held, None, "value", rng).rounds
    assert (bids == held.bids).all()
    calm = held.at(np.array([[90.0, 30.0, 2.0]] * 3))
    found = best_respond(STEEP, calm, np.ones_like(held.bids), "value", rng)
    (over,) = found.rounds
    got = quote(STEEP, calm.at(over), np.ones_like(held.bids))
    assert found.settled == 1
    assert (over > calm.bids).any()  # what is paid lies below the bid, and so the bid above the value
    assert (got.prices <= calm.bids + 1e-9).all()
    _, factor = shade(STEEP, held, np.ones_like(held.bids))
    assert 0.2 < factor < 1


def test_the_fit_finds_the_curve_that_answered() -> None:
    log = as_log(logged(STEEP, 1500, 1), 4)
    found = fit_curve(log.contests, log.placed, log.answers, LARGEST)
    fresh = as_log(logged(STEEP, 50, 2), 4).contests
    wanted, got = (one.shares(fresh, fresh.there) for one in (STEEP, found))
    assert np.abs(wanted - got).max() < 0.06
    assert np.abs(wanted - got).mean() < 0.01
    rates = click_rates(log)
    assert rates["110"] == pytest.approx(0.5, abs=0.01)
    assert rates["000"] == pytest.approx(0.25, abs=0.01)
    assert rates_at(rates, np.array([[[0, 0, 1], [1, 1, 0]]]))[0].tolist() == [rates[""], rates["110"]]


def test_questions_stay_in_one_fold_and_thinner_auctions_keep_their_ads() -> None:
    one = logged(STEEP, 40, 3)
    log = as_log([*one, *one], 4)
    assert (log.folds[:40] == log.folds[40:]).all()
    assert set(log.folds) == {0, 1, 2, 3}
    thin = log.thinned(2, 0)
    assert thin.contests.bids.shape == (80, 2)
    for row in range(80):
        assert set(thin.contests.bids[row]) <= set(log.contests.bids[row])


def _two(log: AuctionLog) -> AuctionLog:
    return log.thinned(2, 0)


@pytest.mark.slow
def test_a_learned_reserve_is_myersons_where_the_highest_bid_takes_all() -> None:
    """Two bidders with values U{1..100}: the best reserve is half of the largest (Myerson 1981)."""
    sure = AllocationCurve(20.0, (0, 0, 0), 0, 0, (20.0, 0, 0), LARGEST)
    log = _two(as_log(logged(STEEP, 300, 4), 4))
    rates = {"": 1.0}
    found = learn_reserves(sure, [log], rates, 0.0)["one"]
    assert 40 <= found.all <= 60
    none = simulate_truth(sure, rates, log, np.ones_like(log.contests.bids))
    some = simulate_truth(sure, rates, log, found.table(log))
    assert some.revenue.mean() / none.revenue.mean() == pytest.approx(1.25, abs=0.1)
    bound = 0.95 * float(none.surplus.sum())
    held = learn_reserves(sure, [log], rates, bound)["one"]
    kept = simulate_truth(sure, rates, log, held.table(log))
    assert bound <= kept.surplus.sum() < none.surplus.sum()
    assert none.revenue.sum() < kept.revenue.sum() < some.revenue.sum()
    beyond = learn_reserves(sure, [log], rates, 2 * float(none.surplus.sum()))
    assert all(one == Reserves() for one in beyond.values())


def test_reserves_are_looked_up_from_the_narrowest() -> None:
    found = Reserves(10, {"110": 20, "theme=food 110": 30, "category=tea 110": 40})
    assert found.of("tea", "food", "110") == 40
    assert found.of("coffee", "food", "110") == 30
    assert found.of("cars", "travel", "110") == 20
    assert found.of("tea", "food", "000") == 10


@cache
def taught() -> PriceSheet:
    return learn_sheet(
        as_log(logged(STEEP, 90, 5), 2), LARGEST, 2, [2], Bounds(least_surplus=0.6), 0, {"version": "v1"}
    )


@pytest.mark.slow
def test_a_sheet_keeps_its_bounds_across_folds_and_is_read_back(tmp_path: Path) -> None:
    sheet = taught()
    report = sheet.report["cross_fitted"]
    chosen, first = report[sheet.report["depth"]], report["first_price"]
    assert chosen["regret"] <= first["regret"]
    assert chosen["surplus"] >= 0.6 * report["first_price_shading"]["surplus"]
    assert chosen["revenue"] > first["revenue"]
    assert sheet.report["calibration"]["error"] < 0.05
    assert sheet.report["calibration"]["log_loss"] < sheet.report["calibration"]["log_loss_of_equal_shares"]
    path = tmp_path / "prices.json"
    path.write_text(sheet.text)
    assert read_sheet(path, sheet.digest) == sheet
    tea, car = Ad("1", "A", "tea", "food"), Ad("2", "B", "cars", "travel")
    bids, reserves = [90, 80], [sheet.reserve(QUERY, USER, ad) for ad in (tea, car)]
    prices = sheet.prices(QUERY, USER, [tea, car], bids, reserves)
    for price, bid, reserve in zip(prices, bids, reserves, strict=True):
        assert reserve <= price <= bid
    path.write_text(sheet.text.replace("raylla-prices-1", "raylla-prices-9"))
    with pytest.raises(ConfigError, match="raylla-prices-9"):
        read_sheet(path)
    path.write_text(sheet.text + "\n")
    with pytest.raises(ConfigError, match="prices_digest"):
        read_sheet(path, sheet.digest)
    with pytest.raises(ConfigError, match=r"serving\.prices=.*cannot be read"):
        read_sheet(tmp_path / "none.json")


def test_sheets_whose_prices_could_leave_their_bounds_are_refused() -> None:
    def text(curve: AllocationCurve = STEEP, reserves: Reserves | None = None) -> str:
        return written(curve, reserves or Reserves(), {"": 0.3}, {}).text

    falling = AllocationCurve(0.0, (0, 0, 0), -0.1, 0, (0, 0, 0), LARGEST)
    for change in (
        lambda: text(falling),
        lambda: text(reserves=Reserves(0.5)),
        lambda: text(reserves=Reserves(1, {"110": 101})),
        lambda: text(AllocationCurve(float("nan"), (0, 0, 0), 0, 0, (0, 0, 0), LARGEST)),
    ):
        with pytest.raises(ConfigError, match="no price sheet"):
            change()
    for broken in ("[]", "{}", "no", '{"form": "raylla-prices-1", "traits": []}', "[" * 100_000):
        with pytest.raises(ConfigError, match="a sheet is no price sheet"):
            parse_sheet(broken, "a sheet")


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("reserves", "all", float("inf")),
        ("reserves", "all", float("nan")),
        ("reserves", "by", {"110": float("inf")}),
        ("curve", "constant", 1000),
        ("curve", "traits", [0, -21, 0]),
        ("curve", "log_bid", 10**400),
        ("curve", "bid", 20.5),
        ("curve", "gains", [30, 0, 0]),
        ("curve", "gains", [0, 0]),
        ("curve", "largest", 1e9),
        ("curve", "largest", float("inf")),
        ("curve", "largest", 1),
        ("rates", "", float("nan")),
        ("rates", "", -0.1),
    ],
)
def test_a_sheet_edited_by_hand_is_refused(part: str, field: str, value: object) -> None:
    tree = json.loads(written(STEEP, Reserves(5), {"": 0.3}, {}).text)
    tree[part][field] = value
    with pytest.raises(ConfigError, match="a sheet is no price sheet"):
        parse_sheet(json.dumps(tree), "a sheet")


@pytest.mark.parametrize("change", [{"rates": {}}, {"rates": {"110": 0.2}}, {"report": 7}])
def test_a_sheet_without_a_rate_for_all_or_a_report_is_refused(change: dict[str, object]) -> None:
    tree = json.loads(written(STEEP, Reserves(5), {"": 0.3}, {}).text)
    with pytest.raises(ConfigError, match="a sheet is no price sheet"):
        parse_sheet(json.dumps(tree | change), "a sheet")


def test_the_steepest_sheet_still_has_prices() -> None:
    top = AllocationCurve(20.0, (20.0,) * 3, 20.0, 20.0, (20.0,) * 3, 10_000.0)
    sheet = written(top, Reserves(5), {"": 0.3}, {})
    ads = [Ad(str(number), "A", "tea", "food") for number in range(8)]
    bids = [10_000, 5, 7_000, 7_000, 6, 5, 9_999, 10_000]
    for price, bid in zip(sheet.prices(QUERY, USER, ads, bids, [5] * 8), bids, strict=True):
        assert 5 <= price <= bid


def test_a_sheet_covers_the_bids_that_it_was_learned_from() -> None:
    sheet = written(STEEP, Reserves(5), {"": 0.3}, {})
    sheet.covers(100, "a sheet")
    with pytest.raises(ConfigError, match=r"a sheet was learned .* to 100, and world\.max_bid is 101"):
        sheet.covers(101, "a sheet")


def test_auctions_of_one_question_are_one_witness() -> None:
    """Each question logged three times over says no more of what earns most than once."""
    once = logged(STEEP, 12, 7)
    log = as_log([*once, *once, *once], 2)
    assert (log.asked == np.tile(np.arange(12), 3)).all()
    held = learn._fold(STEEP, log, log, [2], Bounds(), 0)
    assert {len(one.revenue) for one in held.values()} == {12}
    first = learn._first(fit_curve(log.contests, log.placed, log.answers, LARGEST), {"": 1.0}, log, 0)
    assert by_question(first.regret, log.asked) == pytest.approx(first.regret[:12])
    table = np.arange(6.0).reshape(3, 2)
    assert by_question(table, np.array([4, 0, 4])).tolist() == [[2.0, 3.0], [2.0, 3.0]]


def test_too_few_auctions_are_refused() -> None:
    with pytest.raises(DataError, match="20 logged auctions"):
        learn_sheet(as_log(logged(STEEP, 20, 6), 3), LARGEST, 3, [2], Bounds(), 0, {})
