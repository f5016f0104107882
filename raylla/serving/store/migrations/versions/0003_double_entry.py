"""Double entry: each line of the ledger names its two accounts and seals the one before; one currency."""

import sqlalchemy as sa
from alembic import op

from raylla.errors import StoreError
from raylla.serving.store.ledger import SEALED, accounts, seal
from raylla.serving.store.models import Utc

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
BATCH = 5_000
PLAIN: list[sa.ColumnClause[object]] = [
    sa.column(name) for name in (*SEALED, "seal") if name not in ("at", "day")
]
LEDGER = sa.table("ledger", sa.column("at", Utc()), sa.column("day", sa.Date()), *PLAIN)


def upgrade() -> None:
    """Add the columns, then give every line there is its accounts and its place in the chain."""
    op.create_table(
        "books",
        sa.Column("id", SERIAL, nullable=False),
        sa.Column("currency", sa.String(), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.Column("seal", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_books"),
    )
    for name in ("debit", "credit", "seal"):
        op.add_column("ledger", sa.Column(name, sa.String(), nullable=False, server_default=""))
    op.add_column("ledger", sa.Column("previous", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("ledger", sa.Column("voids", sa.BigInteger(), nullable=True))
    op.create_index("uq_ledger_voids", "ledger", ["voids"], unique=True)
    op.create_index("ix_ledger_at", "ledger", ["at"])
    op.create_index("ix_ledger_auction_id", "ledger", ["auction_id"])
    op.create_index("ix_ledger_advertiser_id_id", "ledger", ["advertiser_id", "id"])
    last, sealed = _chain()
    row = sa.text("INSERT INTO books (id, currency, last, seal) VALUES (1, :currency, :last, :seal)")
    op.execute(row.bindparams(currency=_currency(), last=last, seal=sealed))


def downgrade() -> None:
    """As of the first tables: the books stay."""
    raise StoreError("the store's books are not taken away by a downgrade; drop the database itself")


def _chain() -> tuple[int, str]:
    """Accounts, predecessor and seal of every line, in order; the last of them."""
    connection = op.get_bind()
    columns = [LEDGER.c[name] for name in SEALED]
    query = sa.select(*columns).where(LEDGER.c.id > sa.bindparam("last")).order_by(LEDGER.c.id).limit(BATCH)
    values: dict[str, sa.BindParameter[object]] = {
        name: sa.bindparam(f"new_{name}") for name in ("debit", "credit", "previous", "seal")
    }
    change = sa.update(LEDGER).where(LEDGER.c.id == sa.bindparam("line")).values(values)
    last, sealed = 0, ""
    locked_again = _unlocked()
    while page := connection.execute(query, {"last": last}).mappings().all():
        changes = []
        for row in page:
            debit, credit = accounts(row["kind"], row["price_rule"])
            new = {"debit": debit.value, "credit": credit.value, "previous": last}
            sealed, last = seal(sealed, {**row, **new}), row["id"]
            changes.append({"line": last, "new_seal": sealed} | {f"new_{k}": v for k, v in new.items()})
        connection.execute(change, changes)
    op.execute(locked_again)
    return last, sealed


def _unlocked() -> str:
    """Let the ledger be changed, once; how to lock it again."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE ledger DISABLE TRIGGER ledger_no_update")
        return "ALTER TABLE ledger ENABLE TRIGGER ledger_no_update"
    made = sa.text("SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name = 'ledger_no_update'")
    again = op.get_bind().execute(made).scalar_one()
    op.execute("DROP TRIGGER ledger_no_update")
    return str(again)


def _currency() -> str:
    """What the first line is in, else the newest auction; "" where there is neither."""
    for query in (
        "SELECT currency FROM ledger ORDER BY id LIMIT 1",
        "SELECT currency FROM auctions ORDER BY created DESC LIMIT 1",
    ):
        found = op.get_bind().execute(sa.text(query)).scalar()
        if found is not None:
            return str(found)
    return ""
