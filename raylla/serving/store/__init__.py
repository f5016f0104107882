"""The endpoint's database: campaigns, auctions, clicks and the ledger."""

from raylla.serving.store.billing import Settlement
from raylla.serving.store.parties import NewAd, NewCampaign
from raylla.serving.store.store import Store, open_store

__all__ = ["NewAd", "NewCampaign", "Settlement", "Store", "open_store"]
