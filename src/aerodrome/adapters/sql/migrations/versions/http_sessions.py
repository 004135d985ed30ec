"""What HTTP sessions are opened with."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Create their table."""
    op.create_table(
        "http_sessions",
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("tenant_name", sa.Text, nullable=False),
        sa.Column("user_name", sa.Text, nullable=False),
        sa.Column("options", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("session_id", name="pk_http_sessions"),
    )
    op.create_index("ix_http_sessions_tenant_name_user_name", "http_sessions", ["tenant_name", "user_name"])
