"""Keys made from the gateway's master key: one for each purpose, so that what is known of one says nothing of another.

Pure: who reads the master key is settings. Nothing derived is ever stored; it is derived again when it is wanted.
"""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SUBKEY_BYTES = 32


def derive(master: bytes, purpose: str) -> bytes:
    """Return 32 bytes for a purpose, by HKDF with SHA-256; the same master and purpose give the same bytes."""
    kdf = HKDF(algorithm=hashes.SHA256(), length=SUBKEY_BYTES, salt=None, info=f"aerodrome/{purpose}".encode())
    return kdf.derive(master)
