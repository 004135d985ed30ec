"""Envelope encryption: each value under a data key of its own, the data key under a key made from the master key.

AES-256-GCM for both. What a value belongs to is bound to it as associated data, so that a record copied to another owner does not
open. Changing the master key means wrapping the small data keys anew. Pure; who reads master keys is settings.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from aerodrome import errors
from aerodrome.core import subkeys

_FORM = "v1"
_NONCE_BYTES = 12


class Envelopes:
    """Seals values with the first master key and opens what any of them sealed; one purpose's values only."""

    def __init__(self, masters: Sequence[bytes], purpose: str) -> None:
        self._keys = {_key_id(key): key for key in (subkeys.derive(master, purpose) for master in masters)}
        #: Which key new values are sealed with; says nothing of it.
        self.key_id = next(iter(self._keys))

    def seal(self, value: bytes, context: str) -> str:
        """Return a value as it may be stored."""
        data_key = AESGCM.generate_key(bit_length=256)
        return self._pack(data_key, _encrypt(data_key, value, context), context)

    def open(self, sealed: str, context: str) -> bytes:
        """Return a sealed value.

        Raises:
            errors.SecretUnavailable: its master key is not here, or it is not what was sealed in this context.
        """
        data_key, body = self._unpack(sealed, context)
        return _decrypt(data_key, body, context)

    def rewrap(self, sealed: str, context: str) -> str:
        """Return a sealed value under the first master key, its content untouched.

        Raises:
            errors.SecretUnavailable: its master key is not here, or it is not what was sealed in this context.
        """
        data_key, body = self._unpack(sealed, context)
        return self._pack(data_key, body, context)

    def _pack(self, data_key: bytes, body: bytes, context: str) -> str:
        wrapped = _encrypt(self._keys[self.key_id], data_key, context)
        return ".".join((_FORM, self.key_id, _text(wrapped), _text(body)))

    def _unpack(self, sealed: str, context: str) -> tuple[bytes, bytes]:
        try:
            form, key_id, wrapped, body = sealed.split(".")
            parts = base64.urlsafe_b64decode(wrapped), base64.urlsafe_b64decode(body)
        except ValueError:
            raise errors.SecretUnavailable("a stored secret has not the form of one; set it again") from None
        if form != _FORM or key_id not in self._keys:
            raise errors.SecretUnavailable(
                f"a stored secret needs master key {key_id}, which is not given; name it in AERODROME_OLD_MASTER_KEYS"
            )
        return _decrypt(self._keys[key_id], parts[0], context), parts[1]


def key_id_of(sealed: str) -> str:
    """Return which key a value was sealed with."""
    return sealed.split(".")[1] if sealed.count(".") == 3 else ""


def _key_id(key: bytes) -> str:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(b"aerodrome key id\0" + key)
    return digest.finalize().hex()[:12]


def _encrypt(key: bytes, value: bytes, context: str) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, value, context.encode())


def _decrypt(key: bytes, data: bytes, context: str) -> bytes:
    try:
        return AESGCM(key).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], context.encode())
    except (InvalidTag, ValueError):
        raise errors.SecretUnavailable("a stored secret was changed, or is another owner's; set it again") from None


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode()
