"""Webhooks: how a call of a tool is signed for the service that answers it, and how the service tells that it was.

The signature is an HMAC with SHA-256 over `TIMESTAMP.BODY`, in one header with the timestamp, so that a recorded call is worth
nothing later. The secret is a tenant's, derived from the gateway's master key: nothing of it is stored.
Pure: who sends it is http.webhooks.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

from aerodrome.core import subkeys

HEADER = "Aerodrome-Signature"
CALL_HEADER = "Aerodrome-Call-Id"
#: How old a call may be that a service takes.
WINDOW_SECONDS = 300


def derive_secret(master: bytes, tenant: str) -> str:
    """Return what a tenant's webhooks are signed with; its ASCII bytes are the HMAC key."""
    derived = subkeys.derive(master, f"webhook/1/{tenant}")
    return "whsec_" + base64.urlsafe_b64encode(derived).rstrip(b"=").decode()


def sign(secret: str, now: float, body: bytes) -> str:
    """Return the header's value for a body sent now."""
    timestamp = str(int(now))
    return f"t={timestamp},v1={_digest(secret, timestamp, body)}"


def is_signed(secret: str, now: float, body: bytes, header: str, window_seconds: float = WINDOW_SECONDS) -> bool:
    """Say whether a body came from who has the secret, within the window; what a service in Python does."""
    said = dict(part.split("=", 1) for part in header.split(",") if "=" in part)
    timestamp, digest = said.get("t", ""), said.get("v1", "")
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 16):
        return False
    is_recent = abs(now - int(timestamp)) <= window_seconds
    return is_recent and hmac.compare_digest(_digest(secret, timestamp, body).encode(), digest.encode())


def _digest(secret: str, timestamp: str, body: bytes) -> str:
    return hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
