"""What Alembic runs to begin a migration: it takes the connection and transaction that migrate.py holds open."""

from alembic import context

from aerodrome.adapters.sql import tables

context.configure(connection=context.config.attributes["connection"], target_metadata=tables.METADATA)
context.run_migrations()
