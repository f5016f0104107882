"""What the campaign, click and conversion API answers."""

from __future__ import annotations

import datetime as dt
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from raylla.config import Links
from raylla.serving.http.bodies import AD, FrequencyCap, Pacing, example
from raylla.serving.money.records import Invalid, Outcome

_Item = TypeVar("_Item")


class View(BaseModel):
    """Base of what clients get."""

    model_config = ConfigDict(from_attributes=True)


class Page(BaseModel, Generic[_Item]):
    """Some of many; ``next`` is the ``after`` of the page behind it, none at the end."""

    items: list[_Item]
    next: str | None


class AdvertiserView(View):
    """An advertiser with its account: ``balance_micros`` is payments minus what was billed."""

    model_config = example(
        id="adv_5b1c0a9d2e7f4c36",
        name="Lumo Home",
        domain="lumo.example",
        created="2026-11-25T09:00:00Z",
        balance_micros=-640_000,
        accrued_micros=0,
    )

    id: str
    name: str
    domain: str
    created: dt.datetime
    balance_micros: int
    accrued_micros: int = Field(description="clicks under the rule `resampled` that await settlement")


class EntryView(View):
    """A line of the ledger; of settlements and payments the fields of a click are null."""

    model_config = example(
        id=118,
        at="2026-11-25T09:03:11Z",
        kind="charge",
        amount_micros=640_000,
        currency="USD",
        campaign_id="cmp_90c1d2e3f4a5b6c7",
        auction_id="auc_1f2e3d4c5b6a7988",
        impression_id="imp_0123456789abcdef",
        click_id="clk_fedcba9876543210",
        price_rule="first_price",
        weight_version="v3",
        day="2026-11-25",
        spent_micros=640_000,
        budget_micros=20_000_000,
        through=None,
        reference=None,
        debit="advertiser",
        credit="revenue",
        voids=None,
    )

    id: int
    at: dt.datetime
    kind: Literal["charge", "accrual", "settlement", "payment", "invalid"]
    amount_micros: int
    currency: str
    campaign_id: str | None
    auction_id: str | None
    impression_id: str | None
    click_id: str | None
    price_rule: str | None
    weight_version: str | None
    day: dt.date | None
    spent_micros: int | None = Field(description="the campaign's spend of the day after this line")
    budget_micros: int | None = Field(description="the daily budget that it was held against")
    through: int | None = Field(description="of a settlement: the last accrual that it bills")
    reference: str | None
    debit: str = Field(description="the account that the amount goes from")
    credit: str = Field(description="the account that it goes to")
    voids: int | None = Field(description="of `invalid`: the line whose amount is taken back")


class CampaignView(View):
    """A campaign with what it has spent today."""

    model_config = example(
        id="cmp_90c1d2e3f4a5b6c7",
        advertiser_id="adv_5b1c0a9d2e7f4c36",
        name="Winter",
        daily_budget_micros=20_000_000,
        spent_today_micros=640_000,
        pacing="even",
        frequency_cap={"impressions": 3, "hours": 24},
        burl=None,
        lurl=None,
        paused=False,
        created="2026-11-25T09:00:00Z",
    )

    id: str
    advertiser_id: str
    name: str
    daily_budget_micros: int
    spent_today_micros: int
    pacing: Pacing
    frequency_cap: FrequencyCap | None
    burl: str | None
    lurl: str | None
    paused: bool
    created: dt.datetime


class AdView(View):
    """An ad; ``id`` is the number in ``[Ad-1234]``."""

    model_config = example(
        id="1042",
        campaign_id="cmp_90c1d2e3f4a5b6c7",
        **AD,
        paused=False,
        created="2026-11-25T09:00:00Z",
    )

    id: str
    campaign_id: str
    title: str
    category: str
    theme: str
    description: str
    url: str
    bid_micros: int
    labels: list[str]
    paused: bool
    created: dt.datetime


_KEY = {
    "id": "0f1e2d3c4b5a6978",
    "role": "application",
    "advertiser_id": None,
    "name": "assistant",
    "created": "2026-11-25T09:00:00Z",
    "revoked": None,
    "links": None,
}


class KeyView(View):
    """An API key without its secret."""

    model_config = example(**_KEY)

    id: str
    role: str
    advertiser_id: str | None
    name: str
    created: dt.datetime
    revoked: dt.datetime | None
    links: Links | None


class FreshKey(KeyView):
    """A new API key; ``key`` is shown this once."""

    model_config = example(**_KEY, key="rk_0f1e2d3c4b5a6978_...")

    key: str


class NoticeKey(View):
    """The secret of an advertiser's notices, as verifiers of Standard Webhooks take it; for
    `Raylla-Signature` the same in hex, with its id there."""

    model_config = example(secret="whsec_n4bQgYhMfWWaL+qgxVrQ...", key_id="k1", key="9f86d081...")

    secret: str
    key_id: str
    key: str


class NoticeView(View):
    """A billing or loss notice: ``due`` is its next attempt, null once it was sent or given up."""

    model_config = example(
        id="ntc_0123456789abcdef",
        kind="burl",
        url="https://hooks.lumo.example/billed?price=0.640000",
        created="2026-11-25T09:03:11Z",
        attempts=1,
        due=None,
        sent="2026-11-25T09:03:12Z",
        error=None,
    )

    id: str
    kind: Literal["burl", "lurl"]
    url: str
    created: dt.datetime
    attempts: int
    due: dt.datetime | None
    sent: dt.datetime | None
    error: str | None


class SettlementView(View):
    """What a settlement billed an advertiser for ``accruals`` clicks."""

    model_config = example(
        advertiser_id="adv_5b1c0a9d2e7f4c36", billed_micros=5_120_000, accruals=31, through=208
    )

    advertiser_id: str
    billed_micros: int
    accruals: int
    through: int


class TallyView(View):
    """Clicks of one campaign on one day with one outcome."""

    model_config = example(
        campaign_id="cmp_90c1d2e3f4a5b6c7", outcome="invalid", reason="prefetch", clicks=12, amount_micros=0
    )

    campaign_id: str
    outcome: Outcome
    reason: Invalid | None = Field(description="of `invalid`: why")
    clicks: int
    amount_micros: int = Field(description="what the ledger's lines of these clicks say")


class ConversionView(View):
    """A booked conversion."""

    model_config = example(
        id="cnv_0123456789abcdef",
        click_id="clk_fedcba9876543210",
        order_id="A-2217",
        value_micros=24_900_000,
        at="2026-11-25T09:10:00Z",
    )

    id: str
    click_id: str
    order_id: str
    value_micros: int
    at: dt.datetime
