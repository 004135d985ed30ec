"""The tables of the registry, as SQLAlchemy Core data: the one place that names columns.

Not a model layer: rows become core values in sessions.py, tenants.py and keys.py. A change here needs a migration in
`migrations/versions` and a new REVISION; a test compares the two. Times are seconds since the Unix epoch.
"""

from __future__ import annotations

import sqlalchemy as sa

#: The newest migration. Kept here so that a start on an up-to-date database need not read the migration scripts.
REVISION = "0008"

# Constraint names are fixed, because a later migration can only change what it can name.
METADATA = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

SESSIONS = sa.Table(
    "sessions",
    METADATA,
    sa.Column("session_id", sa.Text, primary_key=True),
    sa.Column("tenant_name", sa.Text, nullable=False),
    sa.Column("user_name", sa.Text, nullable=False),
    sa.Column("realm", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("used_at", sa.Double, nullable=False),
    # Without used_at, so that a touch rewrites one row and no index entry: touches outnumber lists by far.
    sa.Index(None, "tenant_name", "user_name"),
)

#: `policy` is a JSON object with the fields of core.policy.Policy.
TENANTS = sa.Table(
    "tenants",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("policy", sa.Text, nullable=False),
)

#: No foreign key to tenants: tenants defined in the configuration have keys and no row. `scopes` are words, by commas.
KEYS = sa.Table(
    "keys",
    METADATA,
    sa.Column("key_id", sa.Text, primary_key=True),
    sa.Column("tenant_name", sa.Text, nullable=False),
    sa.Column("user_name", sa.Text, nullable=False),
    sa.Column("secret_hash", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double),
    sa.Column("revoked_at", sa.Double),
    sa.Column("scopes", sa.Text, nullable=False, server_default="connect"),
    sa.Index(None, "tenant_name"),
)

#: `sealed` is opened with the master key only (core.envelope).
GITHUB_TOKENS = sa.Table(
    "github_tokens",
    METADATA,
    sa.Column("tenant_name", sa.Text, primary_key=True),
    sa.Column("user_name", sa.Text, primary_key=True),
    sa.Column("sealed", sa.Text, nullable=False),
    sa.Column("expires_at", sa.Double),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Column("can_refresh", sa.Integer, nullable=False),
)

#: Of users whose rows are gone: `digest` is core.erasure's, so that nothing here has their names.
ERASURES = sa.Table(
    "erasures",
    METADATA,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("issued_until", sa.Double, nullable=False),
    sa.Column("kept_until", sa.Double, nullable=False),
)

#: `options` is JSON as http.options has it; a session of another owner under the same id has taken it over.
HTTP_SESSIONS = sa.Table(
    "http_sessions",
    METADATA,
    sa.Column("session_id", sa.Text, primary_key=True),
    sa.Column("tenant_name", sa.Text, nullable=False),
    sa.Column("user_name", sa.Text, nullable=False),
    sa.Column("options", sa.Text, nullable=False),
    sa.Column("is_ephemeral", sa.Integer, nullable=False, server_default="0"),
    sa.Index(None, "tenant_name", "user_name"),
)

#: `day` is in UTC, as YYYY-MM-DD.
USAGE_DAYS = sa.Table(
    "usage_days",
    METADATA,
    sa.Column("tenant_name", sa.Text, primary_key=True),
    sa.Column("user_name", sa.Text, primary_key=True),
    sa.Column("day", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("input_tokens", sa.BigInteger, nullable=False),
    sa.Column("output_tokens", sa.BigInteger, nullable=False),
    sa.Column("cache_read_tokens", sa.BigInteger, nullable=False),
    sa.Column("cache_write_tokens", sa.BigInteger, nullable=False),
    sa.Column("cost", sa.Double, nullable=False),
    sa.Column("model_calls", sa.BigInteger, nullable=False),
)

#: Without a status it runs, or its gateway died. `headers` is JSON; no body beside a status: it was too large to keep.
IDEMPOTENCY_KEYS = sa.Table(
    "idempotency_keys",
    METADATA,
    sa.Column("tenant_name", sa.Text, primary_key=True),
    sa.Column("user_name", sa.Text, primary_key=True),
    sa.Column("idempotency_key", sa.Text, primary_key=True),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("resource", sa.Text, nullable=False),
    sa.Column("status", sa.Integer),
    sa.Column("headers", sa.Text),
    sa.Column("body", sa.Text),
    sa.Index(None, "created_at"),
)

#: `roles` are words, by commas.
MEMBERS = sa.Table(
    "members",
    METADATA,
    sa.Column("session_id", sa.Text, primary_key=True),
    sa.Column("tenant_name", sa.Text, primary_key=True),
    sa.Column("user_name", sa.Text, primary_key=True),
    sa.Column("roles", sa.Text, nullable=False),
    sa.Column("since", sa.Double, nullable=False),
    sa.Column("is_invited", sa.Integer, nullable=False),
    sa.Index(None, "tenant_name", "user_name"),
)

SHARINGS = sa.Table(
    "sharings",
    METADATA,
    sa.Column("session_id", sa.Text, primary_key=True),
    sa.Column("busy", sa.Text, nullable=False),
    sa.Column("billing", sa.Text, nullable=False),
)

#: Who sent the messages of shared sessions.
SENT_MESSAGES = sa.Table(
    "sent_messages",
    METADATA,
    sa.Column("session_id", sa.Text, primary_key=True),
    sa.Column("message_id", sa.Text, primary_key=True),
    sa.Column("turn_id", sa.Text, nullable=False),
    sa.Column("user_name", sa.Text, nullable=False),
    sa.Column("sent_at", sa.Double, nullable=False),
)

SHARE_LINKS = sa.Table(
    "share_links",
    METADATA,
    sa.Column("link_id", sa.Text, primary_key=True),
    sa.Column("session_id", sa.Text, nullable=False),
    sa.Column("secret_hash", sa.Text, nullable=False),
    sa.Column("roles", sa.Text, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
    sa.Column("uses_left", sa.Integer, nullable=False),
    sa.Index(None, "session_id"),
)

#: `token_hash` is of the token in the cookie; `key_id` is empty where somebody else vouched. `scopes` are words, by commas.
BROWSERS = sa.Table(
    "browsers",
    METADATA,
    sa.Column("token_hash", sa.Text, primary_key=True),
    sa.Column("tenant_name", sa.Text, nullable=False),
    sa.Column("user_name", sa.Text, nullable=False),
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("scopes", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("proved_until", sa.Double),
    sa.Column("began_at", sa.Double, nullable=False),
    sa.Column("used_at", sa.Double, nullable=False),
    sa.Column("ends_at", sa.Double, nullable=False),
    # Without used_at, as sessions.
    sa.Index(None, "tenant_name", "user_name"),
)

#: `turns` is JSON as http.open_turns has it; the user is who sends them.
OPEN_TURNS = sa.Table(
    "open_turns",
    METADATA,
    sa.Column("session_id", sa.Text, primary_key=True),
    sa.Column("tenant_name", sa.Text, primary_key=True),
    sa.Column("user_name", sa.Text, primary_key=True),
    sa.Column("turns", sa.Text, nullable=False),
)
