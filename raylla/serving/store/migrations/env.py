"""Runs the migrations on the connection, and in the transaction, that `Database` hands over."""

from alembic import context

from raylla.serving.store.models import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
