"""Scopes of keys: those that are there may do what they could, connect."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column."""
    op.add_column("keys", sa.Column("scopes", sa.Text, nullable=False, server_default="connect"))
