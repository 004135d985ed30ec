"""Browsers that have signed in, and turns that are open."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Create their tables."""
    op.create_table(
        "browsers",
        sa.Column("token_hash", sa.Text, nullable=False),
        sa.Column("tenant_name", sa.Text, nullable=False),
        sa.Column("user_name", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("proved_until", sa.Double),
        sa.Column("began_at", sa.Double, nullable=False),
        sa.Column("used_at", sa.Double, nullable=False),
        sa.Column("ends_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("token_hash", name="pk_browsers"),
    )
    op.create_index("ix_browsers_tenant_name_user_name", "browsers", ["tenant_name", "user_name"])
    op.create_table(
        "open_turns",
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("tenant_name", sa.Text, nullable=False),
        sa.Column("user_name", sa.Text, nullable=False),
        sa.Column("turns", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("session_id", "tenant_name", "user_name", name="pk_open_turns"),
    )
