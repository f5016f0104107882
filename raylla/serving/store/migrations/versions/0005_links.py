"""API keys say how answers to them carry click URLs."""

import sqlalchemy as sa
from alembic import op

from raylla.errors import StoreError

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Keys from before leave it to the server."""
    op.add_column("api_keys", sa.Column("links", sa.String(), nullable=True))


def downgrade() -> None:
    """As of the first tables: the books stay."""
    raise StoreError("the store's books are not taken away by a downgrade; drop the database itself")
