"""A small market in a store: advertisers, campaigns, ads, and auctions over them, for tests."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from itertools import count

from raylla.pricing.curve import AllocationCurve
from raylla.pricing.reserves import Reserves
from raylla.pricing.sheet import written
from raylla.records import Ad, Profile, Query
from raylla.serving.money import pricing, sheets
from raylla.serving.money.records import Candidate, Impression, Listing, PriceRule, ServedAuction
from raylla.serving.security.tokens import Claims, new_claims
from raylla.serving.store import AdTerms, CampaignTerms, Store

KEYS = {"k2": b"2" * 32, "k1": b"1" * 32}
ADMIN_KEY = "an-admin-key-for-tests"
UNIT = 10_000
MU = 0.1
PLAIN = tuple(rule for rule in PriceRule if rule is not PriceRule.RESERVE)
"""The rules that need no price sheet: those of stores from before there were any."""
SHEET = written(
    AllocationCurve(-1.0, (0.5, 0.2, 0.1), 0.3, 1.0, (2.0, 0.5, 0.2), 100.0), Reserves(1.0), {"": 0.3}, {}
)
"""Prices of the rule `reserve`, whose least bid is everyone's reserve."""


@dataclass
class Market:
    """Lists ads and makes auctions over them at one moment."""

    store: Store
    now: dt.datetime
    numbers: count[int] = field(default_factory=count)

    def seat(self, name: str = "Lumo") -> str:
        """A new advertiser's id."""
        return self.store.parties.add_advertiser(name, f"{name.lower()}.example", self.now).id

    def listing(
        self, seat: str, bid: int = 64, budget: int = 10**9, title: str | None = None, **campaign: object
    ) -> Listing:
        """A new ad, in a campaign of its own."""
        new = CampaignTerms(name="c", daily_budget_micros=budget, **{"pacing": "asap"} | campaign)  # type: ignore[arg-type]
        row = self.store.parties.add_campaign(seat, new, self.now)
        ad = Ad("", title or f"Cup {next(self.numbers)}", "cups", "kitchen")
        url = "https://lumo.example/cups?x=1"
        listed = self.store.parties.add_ads(row.id, [AdTerms(ad, url, bid * UNIT)], self.now)[0]
        ad = Ad(listed.id, ad.title, ad.category, ad.theme)
        domain = self.store.parties.advertiser(seat).domain
        return Listing(ad, row.id, seat, domain, url, bid * UNIT)

    def auction(
        self,
        *listings: Listing,
        rule: PriceRule = PriceRule.FIRST_PRICE,
        resampled: bool = False,
        pctr: float = 0.3,
        lost: tuple[Listing, ...] = (),
        test: bool = False,
        user_id: str | None = "u1",
        now: dt.datetime | None = None,
    ) -> ServedAuction:
        """An auction whose answer placed ``listings`` and lost ``lost``; not yet recorded."""
        number = next(self.numbers)
        reserve = rule is PriceRule.RESERVE
        if reserve:
            self.store.keep_sheet(SHEET.digest, SHEET.text, self.now)
        competed = self.competed(*listings, *lost) if reserve else {}
        share = MU if rule is PriceRule.RESAMPLED else None
        shown = tuple(
            Impression(
                f"imp{number}-{index}",
                one.ad.id,
                one.campaign_id,
                one.advertiser_id,
                10 * index,
                10 * index + 5,
                one.bid_micros,
                pricing.price(
                    rule,
                    one.bid_micros,
                    pctr=pctr,
                    resampled=resampled,
                    mu=MU,
                    quoted=competed[one.ad.id].price_micros if reserve else None,
                ),
                pctr,
                pctr / 2,
                pctr,
                resampled,
            )
            for index, one in enumerate(listings)
        )
        return ServedAuction(
            id=f"auc{number}",
            request_id=f"req{number}",
            created=now or self.now,
            query="which cup?",
            user_id=user_id,
            basics="",
            interests=(),
            weight_version="v1",
            pctr_version="p1",
            prompt="compact",
            seed=0,
            price_rule=rule,
            currency="USD",
            candidates=tuple(
                competed.get(one.ad.id) or Candidate(one, UNIT if resampled else one.bid_micros, resampled)
                for one in listings
            )
            + tuple(competed.get(one.ad.id) or Candidate(one, one.bid_micros) for one in lost),
            raw_text="raw",
            text="text",
            prompt_token_ids=(1, 2),
            token_ids=(3,),
            reward_value=1.5,
            reward_penalty=0.5,
            impressions=shown,
            resample_share=share,
            test=test,
            micros_per_unit=UNIT,
            prices=SHEET.digest if reserve else None,
        )

    def competed(self, *listings: Listing) -> dict[str, Candidate]:
        """Candidates under `reserve` by ad id, of the question that `auction` asks."""
        asked = Query("", "u1", "which cup?", "", "", "test"), Profile("u1", "", ())
        reserves = [sheets.reserve_micros(SHEET, *asked, one.ad, UNIT) for one in listings]
        entered = [(one.ad, one.bid_micros, least) for one, least in zip(listings, reserves, strict=True)]
        prices = sheets.quoted_micros(SHEET, *asked, entered, UNIT)
        return {
            one.ad.id: Candidate(one, one.bid_micros, False, reserve, price)
            for one, reserve, price in zip(listings, reserves, prices, strict=True)
        }

    def served(self, *listings: Listing, **how: object) -> ServedAuction:
        """A recorded auction."""
        auction = self.auction(*listings, **how)  # type: ignore[arg-type]
        self.store.record(auction)
        return auction

    def claims(self, auction: ServedAuction, index: int = 0, ttl: float = 3600) -> Claims:
        """What the token of an impression says."""
        shown = auction.impressions[index]
        return new_claims(
            auction.id,
            shown.id,
            shown.ad_id,
            shown.advertiser_id,
            shown.price_micros,
            "USD",
            auction.created,
            ttl,
        )
