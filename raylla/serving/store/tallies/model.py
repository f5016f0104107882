"""The table of tallies: one row per hour, and one per day, of an ad under a weight version."""

from __future__ import annotations

import datetime as dt

from sqlalchemy import Index
from sqlalchemy.orm import Mapped, mapped_column

from raylla.serving.money.records import Reason
from raylla.serving.store import models

LOSSES = {
    reason: f"lost_{reason.value}"
    for reason in Reason
    if reason not in (Reason.PAUSED, Reason.NOT_RETRIEVED)
}
"""Why an ad that stood by was not shown -> its column. A paused ad does not stand by; which ads were not
retrieved no auction's record says."""
COUNTS = (
    *("impressions", "clicked", "clicks", "invalid_clicks", "expected_micros", "charged_micros"),
    *("conversions", "conversion_micros", *LOSSES.values()),
)
"""The columns that add up."""


class StoredTally(models.Base):
    """What happened to an ad in the ``span`` ("hour" or "day", UTC) that begins at ``start``.

    Everything is counted when it happens, tests left out. ``clicked`` alone is of the span's own
    impressions, whenever the click came, so that it is never above ``impressions``. ``expected_micros`` is
    price times pCTR (the price itself where the impression is charged), ``charged_micros`` what the
    ledger's lines of that span earned (`raylla.serving.store.ledger.earned`). A click whose charge was
    taken back moves from ``clicks`` to ``invalid_clicks`` in the span in which it came.

    ``ad_id`` is no foreign key: an auction's record may name candidates that the store does not list.
    """

    __tablename__ = "tallies"
    __table_args__ = (
        Index("ix_tallies_ad_id_span_start", "ad_id", "span", "start"),
        {"sqlite_with_rowid": False},  # rows lie in order of their key: a span is read in one go
    )
    span: Mapped[str] = mapped_column(primary_key=True)
    start: Mapped[dt.datetime] = mapped_column(primary_key=True)
    ad_id: Mapped[str] = mapped_column(primary_key=True)
    weight_version: Mapped[str] = mapped_column(primary_key=True)
    impressions: Mapped[int]
    clicked: Mapped[int]
    clicks: Mapped[int]
    invalid_clicks: Mapped[int]
    expected_micros: Mapped[int]
    charged_micros: Mapped[int]
    conversions: Mapped[int]
    conversion_micros: Mapped[int]
    lost_off_grid: Mapped[int]
    lost_blocked_advertiser: Mapped[int]
    lost_blocked_category: Mapped[int]
    lost_floor: Mapped[int]
    lost_budget: Mapped[int]
    lost_pacing: Mapped[int]
    lost_frequency_cap: Mapped[int]
    lost_not_placed: Mapped[int]
