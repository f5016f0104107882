"""The store's first tables, and the triggers that keep its books append-only."""

import sqlalchemy as sa
from alembic import op

from raylla.errors import StoreError

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
APPEND_ONLY = ("ledger", "budgets", "auctions", "impressions", "clicks", "conversions")


def upgrade() -> None:
    """Make the tables, then the triggers."""
    _parties()
    _auctions()
    _books()
    for name, value in (("catalogue", 0), ("row", 0), ("ad", 1000)):
        row = sa.text("INSERT INTO counters (name, value) VALUES (:name, :value)")
        op.execute(row.bindparams(name=name, value=value))
    if op.get_bind().dialect.name == "postgresql":
        _triggers_postgresql()
    else:
        _triggers_sqlite()


def downgrade() -> None:
    """The first tables are not taken away: they hold the books."""
    raise StoreError("the store's books are not taken away by a downgrade; drop the database itself")


def _triggers_sqlite() -> None:
    for table in APPEND_ONLY:
        for action in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{action.lower()} BEFORE {action} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )


def _triggers_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
    )
    for table in APPEND_ONLY:
        for action in ("UPDATE", "DELETE", "TRUNCATE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{action.lower()} BEFORE {action} ON {table} "
                "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
            )


def _parties() -> None:
    """Who advertises what, and for how much."""
    op.create_table(
        "advertisers",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("domain", sa.String(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("balance_micros", sa.BigInteger(), nullable=False),
        sa.Column("accrued_micros", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_advertisers"),
    )
    op.create_table(
        "counters",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_counters"),
    )
    op.create_table(
        "floors",
        sa.Column("category", sa.String(), nullable=False),
        sa.Column("floor_micros", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("category", name="pk_floors"),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("advertiser_id", sa.String(), nullable=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["advertiser_id"], ["advertisers.id"], name="fk_api_keys_advertiser_id_advertisers"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
    )
    op.create_table(
        "campaigns",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("advertiser_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("daily_budget_micros", sa.BigInteger(), nullable=False),
        sa.Column("pacing", sa.String(), nullable=False),
        sa.Column("cap_impressions", sa.BigInteger(), nullable=True),
        sa.Column("cap_hours", sa.BigInteger(), nullable=True),
        sa.Column("burl", sa.String(), nullable=True),
        sa.Column("lurl", sa.String(), nullable=True),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["advertiser_id"], ["advertisers.id"], name="fk_campaigns_advertiser_id_advertisers"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_campaigns"),
    )
    op.create_index("ix_campaigns_advertiser_id", "campaigns", ["advertiser_id"], unique=False)
    op.create_index("ix_campaigns_version", "campaigns", ["version"], unique=False)
    op.create_table(
        "ads",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("row", sa.BigInteger(), nullable=False),
        sa.Column("campaign_id", sa.String(), nullable=False),
        sa.Column("title", sa.String(), nullable=False),
        sa.Column("category", sa.String(), nullable=False),
        sa.Column("theme", sa.String(), nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("bid_micros", sa.BigInteger(), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaigns.id"], name="fk_ads_campaign_id_campaigns"),
        sa.PrimaryKeyConstraint("id", name="pk_ads"),
        sa.UniqueConstraint("row", name="uq_ads_row"),
    )
    op.create_index("ix_ads_campaign_id", "ads", ["campaign_id"], unique=False)
    op.create_index("ix_ads_version", "ads", ["version"], unique=False)
    op.create_table(
        "budgets",
        sa.Column("id", SERIAL, nullable=False),
        sa.Column("campaign_id", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("daily_budget_micros", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaigns.id"], name="fk_budgets_campaign_id_campaigns"),
        sa.PrimaryKeyConstraint("id", name="pk_budgets"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_budgets_campaign_id", "budgets", ["campaign_id"], unique=False)
    op.create_table(
        "spend",
        sa.Column("campaign_id", sa.String(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("spent_micros", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaigns.id"], name="fk_spend_campaign_id_campaigns"),
        sa.PrimaryKeyConstraint("campaign_id", "day", name="pk_spend"),
    )
    op.create_index("ix_spend_day", "spend", ["day"], unique=False)


def _auctions() -> None:
    """What was served and what came of it."""
    op.create_table(
        "auctions",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("weight_version", sa.String(), nullable=False),
        sa.Column("price_rule", sa.String(), nullable=False),
        sa.Column("currency", sa.String(), nullable=False),
        sa.Column("resample_share", sa.Double(), nullable=True),
        sa.Column("canary", sa.Boolean(), nullable=False),
        sa.Column("test", sa.Boolean(), nullable=False),
        sa.Column("record", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_auctions"),
    )
    op.create_index("ix_auctions_created_id", "auctions", ["created", "id"], unique=False)
    op.create_index("ix_auctions_request_id", "auctions", ["request_id"], unique=False)
    op.create_table(
        "impressions",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("auction_id", sa.String(), nullable=False),
        sa.Column("ad_id", sa.String(), nullable=False),
        sa.Column("campaign_id", sa.String(), nullable=False),
        sa.Column("advertiser_id", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=True),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("bid_micros", sa.BigInteger(), nullable=False),
        sa.Column("price_micros", sa.BigInteger(), nullable=False),
        sa.Column("pctr", sa.Double(), nullable=False),
        sa.Column("resampled", sa.Boolean(), nullable=False),
        sa.Column("billed", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["ad_id"], ["ads.id"], name="fk_impressions_ad_id_ads"),
        sa.ForeignKeyConstraint(
            ["advertiser_id"], ["advertisers.id"], name="fk_impressions_advertiser_id_advertisers"
        ),
        sa.ForeignKeyConstraint(["auction_id"], ["auctions.id"], name="fk_impressions_auction_id_auctions"),
        sa.ForeignKeyConstraint(
            ["campaign_id"], ["campaigns.id"], name="fk_impressions_campaign_id_campaigns"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_impressions"),
    )
    op.create_index("ix_impressions_auction_id", "impressions", ["auction_id"], unique=False)
    op.create_index("ix_impressions_user_id_created", "impressions", ["user_id", "created"], unique=False)
    op.create_table(
        "clicks",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("token_id", sa.String(), nullable=False),
        sa.Column("impression_id", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["impression_id"], ["impressions.id"], name="fk_clicks_impression_id_impressions"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_clicks"),
    )
    op.create_index("ix_clicks_impression_id", "clicks", ["impression_id"], unique=False)
    op.create_index(
        "uq_clicks_first",
        "clicks",
        ["impression_id"],
        unique=True,
        sqlite_where=sa.text("outcome NOT IN ('replay', 'expired')"),
        postgresql_where=sa.text("outcome NOT IN ('replay', 'expired')"),
    )
    op.create_table(
        "conversions",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("click_id", sa.String(), nullable=False),
        sa.Column("order_id", sa.String(), nullable=False),
        sa.Column("value_micros", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["click_id"], ["clicks.id"], name="fk_conversions_click_id_clicks"),
        sa.PrimaryKeyConstraint("id", name="pk_conversions"),
        sa.UniqueConstraint("click_id", "order_id", name="uq_conversions_click_id_order_id"),
    )


def _books() -> None:
    """What is owed, and who is told."""
    op.create_table(
        "notices",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("advertiser_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("due", sa.DateTime(timezone=True), nullable=True),
        sa.Column("sent", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["advertiser_id"], ["advertisers.id"], name="fk_notices_advertiser_id_advertisers"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_notices"),
    )
    op.create_index("ix_notices_due", "notices", ["due"], unique=False)
    op.create_table(
        "ledger",
        sa.Column("id", SERIAL, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("amount_micros", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.String(), nullable=False),
        sa.Column("advertiser_id", sa.String(), nullable=False),
        sa.Column("campaign_id", sa.String(), nullable=True),
        sa.Column("auction_id", sa.String(), nullable=True),
        sa.Column("impression_id", sa.String(), nullable=True),
        sa.Column("click_id", sa.String(), nullable=True),
        sa.Column("price_rule", sa.String(), nullable=True),
        sa.Column("weight_version", sa.String(), nullable=True),
        sa.Column("day", sa.Date(), nullable=True),
        sa.Column("spent_micros", sa.BigInteger(), nullable=True),
        sa.Column("budget_micros", sa.BigInteger(), nullable=True),
        sa.Column("through", sa.BigInteger(), nullable=True),
        sa.Column("reference", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["advertiser_id"], ["advertisers.id"], name="fk_ledger_advertiser_id_advertisers"
        ),
        sa.ForeignKeyConstraint(["auction_id"], ["auctions.id"], name="fk_ledger_auction_id_auctions"),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaigns.id"], name="fk_ledger_campaign_id_campaigns"),
        sa.ForeignKeyConstraint(["click_id"], ["clicks.id"], name="fk_ledger_click_id_clicks"),
        sa.ForeignKeyConstraint(
            ["impression_id"], ["impressions.id"], name="fk_ledger_impression_id_impressions"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_ledger"),
        sa.UniqueConstraint("advertiser_id", "reference", name="uq_ledger_advertiser_id_reference"),
        sa.UniqueConstraint("impression_id", name="uq_ledger_impression_id"),
        sqlite_autoincrement=True,
    )
