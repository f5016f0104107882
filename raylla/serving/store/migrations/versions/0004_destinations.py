"""Notices by destination: each has a queue of its own."""

import sqlalchemy as sa
from alembic import op

from raylla.errors import StoreError
from raylla.serving.security.addresses import destination

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column, and fill it for what is still to be sent."""
    op.add_column("notices", sa.Column("destination", sa.String(), nullable=False, server_default=""))
    op.create_index("ix_notices_destination_due", "notices", ["destination", "due"])
    notices = sa.table(
        "notices", sa.column("id"), sa.column("url"), sa.column("due"), sa.column("destination")
    )
    connection = op.get_bind()
    urls = connection.execute(
        sa.select(notices.c.id, notices.c.url).where(notices.c.due.is_not(None))
    ).all()
    change = sa.update(notices).where(notices.c.id == sa.bindparam("notice"))
    if urls:
        rows = [{"notice": id, "new": destination(url)} for id, url in urls]
        connection.execute(change.values(destination=sa.bindparam("new")), rows)


def downgrade() -> None:
    """As of the first tables: the books stay."""
    raise StoreError("the store's books are not taken away by a downgrade; drop the database itself")
