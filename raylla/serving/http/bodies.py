"""What clients send to the campaign and conversion API: strict, no unknown fields, money in micros."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import Path, Query
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from raylla.config import Links
from raylla.errors import WorldError
from raylla.records import Ad
from raylla.serving.money.money import LARGEST
from raylla.serving.security.addresses import AddressError, Hook
from raylla.serving.store import names
from raylla.wholetext import visible
from raylla.world.texts import MAX_DESCRIPTION, MAX_TITLE, check_ad, landing, one_form, one_line, printable

_MACRO = "${"
_BEHIND_HOST = re.compile("[/?#]")
MACROS = ("ID", "IMP_ID", "AD_ID", "SEAT_ID", "CURRENCY", "PRICE", "CLICK_PRICE", "LOSS")


def _printable(text: str) -> str:
    if not printable(text) or not visible(text):
        raise ValueError("give printable text")
    return text


def _composed(text: Any) -> Any:
    return one_form(text) if isinstance(text, str) else text


def _on_one_line(text: Any) -> Any:
    return one_line(text) if isinstance(text, str) else text


def _landing(url: str) -> str:
    try:
        return landing(url)
    except WorldError as error:
        raise ValueError(str(error)) from None


def _notice_url(url: str) -> str:
    """A URL with OpenRTB macros, which may stand anywhere behind the host, as the sender will read it."""
    bare = url
    for name in MACROS:
        bare = bare.replace(f"${{AUCTION_{name}}}", "0")
    host, rest = _BEHIND_HOST.split(url.partition("://")[2] + "/", 1)
    if _MACRO in host or _MACRO in bare:
        raise ValueError(
            f"macros stand behind the host and are ${{AUCTION_x}}, x one of {', '.join(MACROS)}"
        )
    if not (url.isascii() and url.isprintable()) or " " in rest:
        raise ValueError("give the URL in ASCII, other characters percent-encoded")
    _landing(bare)
    try:
        Hook.parse(bare)
    except AddressError as error:
        raise ValueError(str(error)) from None
    return url


Composed = BeforeValidator(_composed)
"""Names and texts are compared letter by letter, and tokenizers may compose: one form (NFC) everywhere."""
_Text = Annotated[str, Composed, Field(min_length=1, max_length=120), AfterValidator(_printable)]
Amount = Annotated[int, Field(ge=0, le=LARGEST)]
Domain = Annotated[str, Field(min_length=1, max_length=254), AfterValidator(names.domain)]
Landing = Annotated[str, Field(max_length=2000), AfterValidator(_landing)]
NoticeUrl = Annotated[str, Field(max_length=2000), AfterValidator(_notice_url)]
_Labels = Annotated[list[_Text], Field(max_length=10)]
Pacing = Literal["even", "asap"]

AdvertiserId = Annotated[str, Path(pattern="^adv_[0-9a-f]{16}$")]
CampaignId = Annotated[str, Path(pattern="^cmp_[0-9a-f]{16}$")]
AdId = Annotated[str, Path(pattern="^[0-9]{1,18}$")]
KeyId = Annotated[str, Path(pattern="^[0-9a-f]{16}$")]
After = Annotated[str, Query(pattern="^[A-Za-z0-9_]{0,64}$", description="`next` of the page before")]
AfterEntry = Annotated[int, Query(ge=0, le=2**63 - 1, description="`next` of the page before")]
Day = Annotated[dt.date | None, Query(description="of UTC; left out: today")]
Limit = Annotated[int, Query(ge=1, le=1000)]


class Body(BaseModel):
    """Base of what clients send."""

    model_config = ConfigDict(extra="forbid", strict=True)


def example(**fields: Any) -> ConfigDict:
    """The OpenAPI example of a body."""
    return ConfigDict(json_schema_extra={"examples": [fields]})


AD = {
    "title": "Lumo Floral Cup",
    "category": "Tea & Coffee",
    "theme": "Kitchen",
    "description": "Bone china, hand-painted.",
    "url": "https://lumo.example/cups/floral",
    "bid_micros": 640_000,
    "labels": ["new"],
}
"""An ad as examples show it."""


class NewAdvertiser(Body):
    """Who pays; ``domain`` is what requests block (badv) and responses name (adomain)."""

    model_config = example(name="Lumo Home", domain="lumo.example")

    name: _Text
    domain: Domain


class Payment(Body):
    """Money received from an advertiser; ``reference`` books it once."""

    model_config = example(amount_micros=50_000_000, reference="INV-2026-118")

    amount_micros: Annotated[int, Field(ge=1, le=LARGEST)]
    reference: _Text


class Invalid(Body):
    """A charge or accrual whose traffic was invalid, by its line of the ledger."""

    model_config = example(line=118)

    line: Annotated[int, Field(ge=1, le=2**63 - 1)]


class FrequencyCap(Body):
    """At most ``impressions`` of a campaign per user within ``hours``."""

    model_config = example(impressions=3, hours=24)

    impressions: Annotated[int, Field(ge=1, le=1000)]
    hours: Annotated[int, Field(ge=1, le=24 * 30)]


class NewCampaign(Body):
    """A daily budget (UTC days), how to spend it, and whom to tell."""

    model_config = example(
        name="Winter",
        daily_budget_micros=20_000_000,
        pacing="even",
        frequency_cap={"impressions": 3, "hours": 24},
        burl="https://hooks.lumo.example/billed?price=${AUCTION_CLICK_PRICE}",
    )

    name: _Text
    daily_budget_micros: Amount
    pacing: Pacing = Field("even", description="even: over the day; asap: as fast as clicks come")
    frequency_cap: FrequencyCap | None = None
    burl: NoticeUrl | None = Field(None, description="called when something is billed")
    lurl: NoticeUrl | None = Field(None, description="called when a candidate was not placed")
    paused: bool = False


class CampaignChange(Body):
    """What to change of a campaign; a field left out stays, null takes a cap or a notice away."""

    model_config = example(daily_budget_micros=30_000_000, paused=False)

    name: _Text = ""
    daily_budget_micros: Amount = 0
    pacing: Pacing = "even"
    frequency_cap: FrequencyCap | None = None
    burl: NoticeUrl | None = None
    lurl: NoticeUrl | None = None
    paused: bool = False


class NewAd(Body):
    """An ad: its title is what the model writes, so it holds no markup and never changes."""

    model_config = example(**AD)

    title: Annotated[str, Composed, Field(min_length=1, max_length=MAX_TITLE)]
    category: _Text
    theme: Annotated[str, Composed, Field(max_length=120)] = ""
    description: Annotated[str, BeforeValidator(_on_one_line), Field(max_length=MAX_DESCRIPTION)] = Field(
        "", description="what encoders read of it beside the title, and prompts that show descriptions"
    )
    url: Landing
    bid_micros: Amount = Field(description="per click; a whole multiple of serving.micros_per_unit")
    labels: _Labels = []
    paused: bool = False

    @model_validator(mode="after")
    def _fits_a_prompt(self) -> NewAd:
        try:
            check_ad(replace(self.ad(), id="0"))
        except WorldError as error:
            raise ValueError(str(error)) from None
        return self

    def ad(self) -> Ad:
        """As a record, without the id that the store will give."""
        return Ad("", self.title, self.category, self.theme, self.description)


class AdChange(Body):
    """What to change of an ad; a field left out stays."""

    model_config = example(bid_micros=720_000)

    url: Landing = ""
    bid_micros: Amount = 0
    labels: _Labels = []
    paused: bool = False


class FloorBody(Body):
    """The least bid per click in a category or theme; 0 takes it away."""

    model_config = example(category="Tea & Coffee", floor_micros=100_000)

    category: _Text
    floor_micros: Amount


class NewKey(Body):
    """What an API key is for; ``advertiser_id`` belongs to the role `advertiser` and to no other, ``links``
    to the others."""

    model_config = example(role="advertiser", advertiser_id="adv_5b1c0a9d2e7f4c36", name="Lumo's agency")

    role: Literal["admin", "advertiser", "application"]
    advertiser_id: Annotated[str, Field(pattern="^adv_[0-9a-f]{16}$")] | None = None
    name: _Text
    links: Links | None = Field(
        None, description="how answers carry click URLs where a request does not say; null: `serving.links`"
    )

    @model_validator(mode="after")
    def _whose(self) -> NewKey:
        if (self.role == "advertiser") != (self.advertiser_id is not None):
            raise ValueError("advertiser_id belongs to the role advertiser, and to no other")
        if self.role == "advertiser" and self.links is not None:
            raise ValueError("links belongs to keys that ask for answers, not to the role advertiser")
        return self


class NewConversion(Body):
    """What a click led to; ``order_id`` is yours, and books it once."""

    model_config = example(click_id="clk_fedcba9876543210", order_id="A-2217", value_micros=24_900_000)

    click_id: Annotated[str, Field(pattern="^clk_[0-9a-f]{16}$")]
    order_id: _Text
    value_micros: Amount
