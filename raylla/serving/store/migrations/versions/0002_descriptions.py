"""Ads keep their description."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Ads from before have none."""
    op.add_column("ads", sa.Column("description", sa.String(), nullable=False, server_default=""))


def downgrade() -> None:
    """Back to titles."""
    op.drop_column("ads", "description")
