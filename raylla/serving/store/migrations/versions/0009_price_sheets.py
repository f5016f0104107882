"""Price sheets that auctions are charged by."""

import sqlalchemy as sa
from alembic import op

from raylla.errors import StoreError

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add their table."""
    op.create_table(
        "price_sheets",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_price_sheets")),
    )


def downgrade() -> None:
    """As of the first tables: the books stay."""
    raise StoreError("the store's books are not taken away by a downgrade; drop the database itself")
