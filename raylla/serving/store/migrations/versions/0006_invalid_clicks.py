"""Clicks say why they are invalid, and leave their impression to the true one; when an ad was seen."""

import sqlalchemy as sa
from alembic import op

from raylla.errors import StoreError

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

COUNTED = sa.text("outcome NOT IN ('replay', 'expired', 'invalid')")


def upgrade() -> None:
    """Clicks from before are as they were; an impression from before was seen when it was made."""
    op.add_column("clicks", sa.Column("reason", sa.String(), nullable=True))
    op.add_column("impressions", sa.Column("seen", sa.DateTime(timezone=True), nullable=True))
    op.drop_index("uq_clicks_first", "clicks")
    op.create_index(
        "uq_clicks_first",
        "clicks",
        ["impression_id"],
        unique=True,
        sqlite_where=COUNTED,
        postgresql_where=COUNTED,
    )
    op.create_index("ix_clicks_at", "clicks", ["at"])


def downgrade() -> None:
    """As of the first tables: the books stay."""
    raise StoreError("the store's books are not taken away by a downgrade; drop the database itself")
