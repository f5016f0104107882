"""Tallies: counts by hour and day from which reports are served, filled from what is there."""

import sqlalchemy as sa
from alembic import op

from raylla.errors import StoreError
from raylla.serving.store.tallies import recount

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

COUNTS = (
    *("impressions", "clicked", "clicks", "invalid_clicks", "expected_micros", "charged_micros"),
    *("conversions", "conversion_micros", "lost_off_grid", "lost_blocked_advertiser"),
    *("lost_blocked_category", "lost_floor", "lost_budget", "lost_pacing", "lost_frequency_cap"),
    "lost_not_placed",
)


def upgrade() -> None:
    """Make the table and fill it."""
    op.create_table(
        "tallies",
        sa.Column("span", sa.String(), nullable=False),
        sa.Column("start", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ad_id", sa.String(), nullable=False),
        sa.Column("weight_version", sa.String(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in COUNTS),
        sa.PrimaryKeyConstraint("span", "start", "ad_id", "weight_version", name="pk_tallies"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_tallies_ad_id_span_start", "tallies", ["ad_id", "span", "start"])
    connection = op.get_bind()
    recount(connection).write(connection)


def downgrade() -> None:
    """As of the first tables: the books stay."""
    raise StoreError("the store's books are not taken away by a downgrade; drop the database itself")
