"""The sections of what is measured of finished runs: `raylla evaluate` and `raylla bench`."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from raylla.config.sections import NonNegative, Positive, Section, Seed


class BiddingDay(Section):
    """`raylla evaluate --suite day`: bidders with budgets, over days of 48 periods."""

    queries: Annotated[int, Field(ge=2)] = Field(8, description="test queries, each asked in every period")
    days: Positive = Field(3, description="days in a row, the bidders keeping what they learn")
    draws: Positive = Field(
        4, description="seeds that periods take in turn: answers to a query and bids that differ by chance"
    )
    users: Positive = Field(100, description="mean number of users whom an auction stands for")
    markets: tuple[Literal["truthful", "pacing", "pid", "value", "learned", "mixed"], ...] = Field(
        ("truthful", "mixed"),
        min_length=1,
        description="who bids: all advertisers of one kind, or the four autobidders in turn (mixed)",
    )
    budget: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        0.5, description="budgets, as a multiple of the advertisers' shares of what could be earned"
    )
    cap: Positive | None = Field(4, description="impressions per user and campaign in a day; none: any")
    target: Annotated[float, Field(ge=1, allow_inf_nan=False)] = Field(
        1.25, description="value that a value maximizer wants per unit that it spends"
    )


class Evaluation(Section):
    """The table at the end of a run, and `raylla evaluate`."""

    seeds: tuple[Seed, ...] = Field(
        (0, 1, 2), min_length=1, description="training seeds that `raylla evaluate CONFIG` trains"
    )
    variants: dict[str, tuple[str, ...]] = Field(
        {},
        description="name -> overrides section.key=value: runs that it trains beside them, first seed only",
    )

    user_llm: str | None = Field(
        None, description="who judges in `raylla evaluate`, read as user_llm is; none: user_llm.path itself"
    )
    queries: Positive | None = Field(None, description="test queries; none: all")
    answers: Positive = Field(4, description="answers per test query")
    bootstrap: Positive = Field(2000, description="resamples of an interval")
    mechanisms: tuple[str, ...] = Field(
        ("pretrained", "rag-auction", "mosaic", "range-vcg", "screened-vcg", "llm-auction"),
        description="rows of `raylla evaluate`, by entry point",
    )
    bids: tuple[NonNegative, ...] = Field(
        (0, 1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100), description="grid of the sweeps over one bid"
    )
    sweep_answers: Positive = Field(4, description="answers per query and bid of the monotonicity sweep")
    sweep_versions: Literal["all", "ends"] = Field(
        "all", description="weight versions that the sweep asks: every epoch's, or the first and the last"
    )
    curve_answers: Positive = Field(
        200, description="answers per bid of the continuity curves, the averaged one's over all seeds"
    )
    curve_queries: Positive = Field(40, description="queries of each seed in the averaged curve")
    incentive_queries: Positive = Field(50, description="queries of each seed in the search for regret")
    incentive_answers: Positive = Field(8, description="answers per query and bid of those sweeps")
    equilibrium_queries: Annotated[int, Field(ge=0)] = Field(
        6, description="auctions of best responses, each seed"
    )
    equilibrium_bids: tuple[NonNegative, ...] = Field(
        (1, 20, 40, 60, 80, 100), description="bids to choose from there"
    )
    validation_queries: Positive = Field(60, description="training queries to tune mechanisms on")
    organic_answers: Annotated[int, Field(ge=2)] = Field(
        2, description="answers without ads of the untouched model, per test query"
    )
    native_answers: Path | None = Field(
        None,
        description="published answers with and without native ads (JSON lines), which teach what an ad "
        "reads like; none: detectability is not measured, and cannot be a reward term",
    )

    day: BiddingDay = BiddingDay()

    @field_validator("bids", "equilibrium_bids")
    @classmethod
    def _grid(cls, bids: tuple[float, ...]) -> tuple[float, ...]:
        if len(bids) < 2 or any(a >= b for a, b in pairwise(bids)):
            raise ValueError("give two or more bids in increasing order")
        return bids


class Bench(Section):
    """`raylla bench`."""

    repeats: Positive = Field(5, description="interleaved repeats of each comparison")
    work: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        1.0,
        description="share of their usual auctions that rollout, reference and serve hold in a repeat; "
        "less for larger models",
    )
