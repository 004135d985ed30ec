"""Sealed GitHub tokens of users."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create their table."""
    op.create_table(
        "github_tokens",
        sa.Column("tenant_name", sa.Text, nullable=False),
        sa.Column("user_name", sa.Text, nullable=False),
        sa.Column("sealed", sa.Text, nullable=False),
        sa.Column("expires_at", sa.Double),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.Column("can_refresh", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("tenant_name", "user_name", name="pk_github_tokens"),
    )
