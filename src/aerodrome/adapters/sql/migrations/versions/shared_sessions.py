"""Members of sessions, how these are shared, and the links that make members."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Create their tables."""
    op.create_table(
        "members",
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("tenant_name", sa.Text, nullable=False),
        sa.Column("user_name", sa.Text, nullable=False),
        sa.Column("roles", sa.Text, nullable=False),
        sa.Column("since", sa.Double, nullable=False),
        sa.Column("is_invited", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("session_id", "tenant_name", "user_name", name="pk_members"),
    )
    op.create_index("ix_members_tenant_name_user_name", "members", ["tenant_name", "user_name"])
    op.create_table(
        "sharings",
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("busy", sa.Text, nullable=False),
        sa.Column("billing", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("session_id", name="pk_sharings"),
    )
    op.create_table(
        "sent_messages",
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("message_id", sa.Text, nullable=False),
        sa.Column("turn_id", sa.Text, nullable=False),
        sa.Column("user_name", sa.Text, nullable=False),
        sa.Column("sent_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("session_id", "message_id", name="pk_sent_messages"),
    )
    op.create_table(
        "share_links",
        sa.Column("link_id", sa.Text, nullable=False),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("secret_hash", sa.Text, nullable=False),
        sa.Column("roles", sa.Text, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.Column("uses_left", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("link_id", name="pk_share_links"),
    )
    op.create_index("ix_share_links_session_id", "share_links", ["session_id"])
