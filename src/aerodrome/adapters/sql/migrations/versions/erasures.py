"""Erasures that tokens may be older than."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Create their table."""
    op.create_table(
        "erasures",
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("issued_until", sa.Double, nullable=False),
        sa.Column("kept_until", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_erasures"),
    )
