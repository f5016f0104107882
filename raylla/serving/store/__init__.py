"""The endpoint's database: campaigns, auctions, clicks and the ledger."""

from raylla.serving.store import models
from raylla.serving.store.billing import Settlement
from raylla.serving.store.parties import AdTerms, CampaignTerms
from raylla.serving.store.store import Store, open_store

__all__ = ["AdTerms", "CampaignTerms", "Settlement", "Store", "models", "open_store"]
