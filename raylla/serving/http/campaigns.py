"""The campaign API: advertisers, campaigns, ads, floors, accounts and API keys.

A key of role `advertiser` sees and changes its own advertiser only; what belongs to others does not
exist for it (404).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from fastapi import APIRouter

from raylla.errors import UnknownError
from raylla.serving.http import bodies, views, web
from raylla.serving.money import money
from raylla.serving.security.keys import Principal, Role
from raylla.serving.security.signing import notice_keys, webhook_secret
from raylla.serving.store import AdTerms, CampaignTerms, models

router = APIRouter(prefix="/v1", responses=web.errors(400, 401, 403, 422, 503), dependencies=web.ONLY_KNOWN)
_LOST = web.errors(404)
_CLASH = web.errors(404, 409)
_View = TypeVar("_View", bound=views.View)


@router.post("/advertisers", status_code=201, tags=["advertisers"])
def add_advertiser(body: bodies.NewAdvertiser, behind: web.Behind, _: web.Admin) -> views.AdvertiserView:
    """Open an account."""
    row = behind.store.parties.add_advertiser(body.name, body.domain, web.now())
    return views.AdvertiserView.model_validate(row)


@router.get("/advertisers", tags=["advertisers"])
def list_advertisers(
    behind: web.Behind, _: web.Admin, after: bodies.After = "", limit: bodies.Limit = 100
) -> views.Page[views.AdvertiserView]:
    """All advertisers by id."""
    return _page(views.AdvertiserView, behind.store.parties.advertisers(after, limit), limit)


@router.get("/advertisers/{advertiser_id}", tags=["advertisers"], responses=_LOST)
def get_advertiser(
    advertiser_id: bodies.AdvertiserId, behind: web.Behind, caller: web.Seat
) -> views.AdvertiserView:
    """An advertiser and its balance."""
    return views.AdvertiserView.model_validate(_own(behind, caller, advertiser_id))


@router.post("/advertisers/{advertiser_id}/payments", status_code=201, tags=["accounts"], responses=_CLASH)
def add_payment(
    advertiser_id: bodies.AdvertiserId, body: bodies.Payment, behind: web.Behind, _: web.Admin
) -> views.EntryView:
    """Book a payment; the same reference again changes nothing."""
    entry = behind.store.parties.pay(
        advertiser_id, body.amount_micros, behind.serving.currency, body.reference, web.now()
    )
    return views.EntryView.model_validate(entry)


@router.post("/advertisers/{advertiser_id}/invalid", status_code=201, tags=["accounts"], responses=_LOST)
def take_back(
    advertiser_id: bodies.AdvertiserId, body: bodies.Invalid, behind: web.Behind, _: web.Admin
) -> views.EntryView:
    """Take back what invalid traffic was charged; the same line again changes nothing."""
    return views.EntryView.model_validate(behind.store.void(advertiser_id, body.line, web.now()))


@router.get("/advertisers/{advertiser_id}/ledger", tags=["accounts"], responses=_LOST)
def list_ledger(
    advertiser_id: bodies.AdvertiserId,
    behind: web.Behind,
    caller: web.Seat,
    after: bodies.AfterEntry = 0,
    limit: bodies.Limit = 100,
) -> views.Page[views.EntryView]:
    """Every charge, settlement and payment of an advertiser, in order."""
    _own(behind, caller, advertiser_id)
    return _page(views.EntryView, behind.store.ledger(advertiser_id, after, limit), limit)


@router.get("/advertisers/{advertiser_id}/clicks", tags=["accounts"], responses=_LOST)
def count_clicks(
    advertiser_id: bodies.AdvertiserId, behind: web.Behind, caller: web.Seat, day: bodies.Day = None
) -> list[views.TallyView]:
    """An advertiser's clicks of a day by campaign and outcome; of invalid ones by reason."""
    _own(behind, caller, advertiser_id)
    tallies = behind.store.clicks(advertiser_id, day or web.now().date())
    return [views.TallyView.model_validate(tally) for tally in tallies]


@router.get("/advertisers/{advertiser_id}/notices", tags=["notices"], responses=_LOST)
def list_notices(
    advertiser_id: bodies.AdvertiserId,
    behind: web.Behind,
    caller: web.Seat,
    after: bodies.After = "",
    limit: bodies.Limit = 100,
) -> views.Page[views.NoticeView]:
    """An advertiser's billing and loss notices, and whether they arrived."""
    _own(behind, caller, advertiser_id)
    return _page(views.NoticeView, behind.store.outbox.of(advertiser_id, after, limit), limit)


@router.get("/advertisers/{advertiser_id}/notice-key", tags=["notices"], responses=_LOST)
def get_notice_key(
    advertiser_id: bodies.AdvertiserId, behind: web.Behind, caller: web.Seat
) -> views.NoticeKey:
    """What verifies an advertiser's notices; it changes when the endpoint's signing key does."""
    _own(behind, caller, advertiser_id)
    key_id, key = next(iter(notice_keys(behind.tokens, advertiser_id).items()))
    return views.NoticeKey(secret=webhook_secret(key), key_id=key_id, key=key.hex())


@router.post("/settlements", tags=["accounts"])
def settle(behind: web.Behind, _: web.Admin) -> list[views.SettlementView]:
    """Bill what clicks under the rule `resampled` have accrued, one sum per advertiser."""
    return [
        views.SettlementView.model_validate(settlement) for settlement in behind.store.settle(web.now())
    ]


@router.post("/advertisers/{advertiser_id}/campaigns", status_code=201, tags=["campaigns"], responses=_LOST)
def add_campaign(
    advertiser_id: bodies.AdvertiserId, body: bodies.NewCampaign, behind: web.Behind, caller: web.Seat
) -> views.CampaignView:
    """Start a campaign."""
    _own(behind, caller, advertiser_id)
    new = CampaignTerms(**_flat(body.model_dump()))
    return _campaign(behind, behind.store.parties.add_campaign(advertiser_id, new, web.now()))


@router.get("/advertisers/{advertiser_id}/campaigns", tags=["campaigns"], responses=_LOST)
def list_campaigns(
    advertiser_id: bodies.AdvertiserId,
    behind: web.Behind,
    caller: web.Seat,
    after: bodies.After = "",
    limit: bodies.Limit = 100,
) -> views.Page[views.CampaignView]:
    """An advertiser's campaigns by id."""
    _own(behind, caller, advertiser_id)
    rows = behind.store.parties.campaigns(advertiser_id, after, limit)
    items = [_campaign(behind, row) for row in rows]
    return views.Page(items=items, next=items[-1].id if len(items) == limit else None)


@router.get("/campaigns/{campaign_id}", tags=["campaigns"], responses=_LOST)
def get_campaign(
    campaign_id: bodies.CampaignId, behind: web.Behind, caller: web.Seat
) -> views.CampaignView:
    """A campaign and what it has spent today."""
    return _campaign(behind, own_campaign(behind, caller, campaign_id))


@router.patch("/campaigns/{campaign_id}", tags=["campaigns"], responses=_LOST)
def change_campaign(
    campaign_id: bodies.CampaignId, body: bodies.CampaignChange, behind: web.Behind, caller: web.Seat
) -> views.CampaignView:
    """Change budget, pacing, cap or notices; pause and resume. Holds from the next charge on."""
    own_campaign(behind, caller, campaign_id)
    changes = _flat(body.model_dump(exclude_unset=True))
    return _campaign(behind, behind.store.parties.change_campaign(campaign_id, changes, web.now()))


@router.post("/campaigns/{campaign_id}/ads", status_code=201, tags=["ads"], responses=_LOST)
def add_ad(
    campaign_id: bodies.CampaignId, body: bodies.NewAd, behind: web.Behind, caller: web.Seat
) -> views.AdView:
    """List an ad; the store gives its id."""
    own_campaign(behind, caller, campaign_id)
    _check_bid(behind, body.bid_micros)
    new = AdTerms(body.ad(), body.url, body.bid_micros, tuple(body.labels), body.paused)
    return views.AdView.model_validate(behind.store.parties.add_ads(campaign_id, [new], web.now())[0])


@router.get("/campaigns/{campaign_id}/ads", tags=["ads"], responses=_LOST)
def list_ads(
    campaign_id: bodies.CampaignId,
    behind: web.Behind,
    caller: web.Seat,
    after: bodies.After = "",
    limit: bodies.Limit = 100,
) -> views.Page[views.AdView]:
    """A campaign's ads by id."""
    own_campaign(behind, caller, campaign_id)
    return _page(views.AdView, behind.store.parties.ads(campaign_id, after, limit), limit)


@router.get("/ads/{ad_id}", tags=["ads"], responses=_LOST)
def get_ad(ad_id: bodies.AdId, behind: web.Behind, caller: web.Seat) -> views.AdView:
    """One ad."""
    return views.AdView.model_validate(_own_ad(behind, caller, ad_id))


@router.patch("/ads/{ad_id}", tags=["ads"], responses=_LOST)
def change_ad(
    ad_id: bodies.AdId, body: bodies.AdChange, behind: web.Behind, caller: web.Seat
) -> views.AdView:
    """Change bid, landing page or labels; pause and resume. Holds from the next auction on."""
    _own_ad(behind, caller, ad_id)
    changes = body.model_dump(exclude_unset=True)
    if "bid_micros" in changes:
        _check_bid(behind, body.bid_micros)
    return views.AdView.model_validate(behind.store.parties.change_ad(ad_id, changes))


@router.put("/floors", tags=["floors"])
def set_floor(body: bodies.FloorBody, behind: web.Behind, _: web.Admin) -> bodies.FloorBody:
    """Set the least bid per click in a category or theme."""
    behind.store.parties.set_floor(body.category, body.floor_micros)
    return body


@router.get("/floors", tags=["floors"])
def list_floors(behind: web.Behind, _: web.Seat) -> list[bodies.FloorBody]:
    """All floors."""
    floors = behind.store.parties.floors()
    return [bodies.FloorBody(category=name, floor_micros=floor) for name, floor in sorted(floors.items())]


@router.post("/keys", status_code=201, tags=["keys"], responses=_LOST)
def add_key(body: bodies.NewKey, behind: web.Behind, _: web.Admin) -> views.FreshKey:
    """Make an API key; its secret is shown this once."""
    made = Role(body.role), body.advertiser_id, body.name
    row, key = behind.store.parties.add_key(*made, web.now(), body.links)
    return views.FreshKey(key=key, **views.KeyView.model_validate(row).model_dump())


@router.get("/keys", tags=["keys"])
def list_keys(
    behind: web.Behind, _: web.Admin, after: bodies.After = "", limit: bodies.Limit = 100
) -> views.Page[views.KeyView]:
    """All keys by id, revoked ones too."""
    return _page(views.KeyView, behind.store.parties.api_keys(after, limit), limit)


@router.delete("/keys/{key_id}", tags=["keys"], responses=_LOST)
def revoke_key(key_id: bodies.KeyId, behind: web.Behind, _: web.Admin) -> views.KeyView:
    """Revoke a key, from the next request on; other replicas may let it in for a second more."""
    revoked = behind.store.parties.revoke_key(key_id, web.now())
    behind.access.forget()
    return views.KeyView.model_validate(revoked)


def _own(behind: web.Services, caller: Principal, advertiser_id: str) -> models.StoredAdvertiser:
    """The advertiser, where it exists and is the caller's."""
    if caller.role is Role.ADVERTISER and caller.advertiser_id != advertiser_id:
        raise UnknownError(f"advertiser {advertiser_id!r} does not exist")
    return behind.store.parties.advertiser(advertiser_id)


def own_campaign(behind: web.Services, caller: Principal, id: str) -> models.StoredCampaign:
    """A campaign of the caller's.

    Raises:
        UnknownError: there is none of that id, or it is another's.
    """
    campaign = behind.store.parties.campaign(id)
    if caller.role is Role.ADVERTISER and caller.advertiser_id != campaign.advertiser_id:
        raise UnknownError(f"campaign {id!r} does not exist")
    return campaign


def _own_ad(behind: web.Services, caller: Principal, id: str) -> models.StoredAd:
    ad, advertiser_id = behind.store.parties.ad(id)
    if caller.role is Role.ADVERTISER and caller.advertiser_id != advertiser_id:
        raise UnknownError(f"ad {id!r} does not exist")
    return ad


def _check_bid(behind: web.Services, bid: money.Micros) -> None:
    money.check_bid(bid, behind.serving.micros_per_unit, behind.max_bid)


def _flat(fields: dict[str, Any]) -> dict[str, Any]:
    """A body's fields as the store's columns."""
    if "frequency_cap" in fields:
        cap = fields.pop("frequency_cap") or {}
        fields |= {"cap_impressions": cap.get("impressions"), "cap_hours": cap.get("hours")}
    return fields


def _campaign(behind: web.Services, row: models.StoredCampaign) -> views.CampaignView:
    cap = None
    if row.cap_impressions is not None and row.cap_hours is not None:
        cap = bodies.FrequencyCap(impressions=row.cap_impressions, hours=row.cap_hours)
    columns = {name: getattr(row, name) for name in views.CampaignView.model_fields if hasattr(row, name)}
    spent = behind.store.parties.spent(row.id, web.now().date())
    return views.CampaignView(**columns, frequency_cap=cap, spent_today_micros=spent)


def _page(view: type[_View], rows: Sequence[models.Base], limit: int) -> views.Page[_View]:
    items = [view.model_validate(row) for row in rows]
    last = str(rows[-1].id) if len(rows) == limit else None  # type: ignore[attr-defined]
    return views.Page(items=items, next=last)
