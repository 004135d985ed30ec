"""The audit chain as values: what a record holds, how it is written, how each is bound to the one before.

A record is one line `{"hash":...,"previous":...,"record":{...}}` of JSON with sorted keys. `hash` is SHA-256 over the previous
hash and the record's bytes; with a key it is an HMAC, which whoever steals or rewrites the files cannot make. Users and
sessions are in it as pseudonyms under a salt of each user: when the salt is dropped (an erasure) nothing in the record leads to
the person, and the chain still holds. No I/O: adapters.audit keeps the lines, gateway.audit says what is recorded,
core.damping how much of a flood.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import msgspec

from aerodrome import errors
from aerodrome.core.identity import Owner

GENESIS = "0" * 64
#: Whatever a client or an operator chose is cut here: a line stays far below a disk's page cache, whoever writes it.
MAX_FIELD_CHARACTERS = 200
MIN_KEY_CHARACTERS = 32


class Action(Enum):
    """What was done, or asked for."""

    LINK_AUTHENTICATE = "link.authenticate"
    LINK_FRAME = "link.frame"
    LINK_CLOSE = "link.close"
    SESSION_CREATE = "session.create"
    SESSION_RESUME = "session.resume"
    SESSION_CLAIM = "session.claim"
    SESSION_DELETE = "session.delete"
    SESSION_SHARE = "session.share"
    SESSION_RESTRICT = "session.restrict"
    TURN_SEND = "turn.send"
    TURN_ABORT = "turn.abort"
    TURN_WITHDRAW = "turn.withdraw"
    TURN_TAKEOVER = "turn.takeover"
    CALL = "call"
    TOOL = "tool"
    OPERATE = "operate"
    KEY_CREATE = "key.create"
    KEY_REVOKE = "key.revoke"
    KEY_ROTATE = "key.rotate"
    TOKEN_MINT = "token.mint"  # noqa: S105  (not a password)
    TOKEN_STORE = "token.store"  # noqa: S105  a word
    TOKEN_REMOVE = "token.remove"  # noqa: S105  a word
    TENANT_ADD = "tenant.add"
    TENANT_SET = "tenant.set"
    TENANT_REMOVE = "tenant.remove"
    POLICY_RELOAD = "policy.reload"
    ERASE_BEGIN = "erase.begin"
    ERASE_FINISH = "erase.finish"
    GATEWAY_START = "gateway.start"
    GATEWAY_STOP = "gateway.stop"
    LOG_REPAIR = "log.repair"
    LOG_LOSE = "log.lose"


class Outcome(Enum):
    """What became of it."""

    DONE = "done"
    #: An operator's verb, as it begins; if it fails, another record says so.
    ASKED = "asked"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Entry:
    """What is to be recorded, with names as they are; `by` is `user`, `gateway`, or who operates.

    `owner` is who did it, `session_owner` whose session it is where that is someone else, `whose` to whom it was done: a member
    who was removed, the sender of a turn.
    """

    action: Action
    outcome: Outcome = Outcome.DONE
    by: str = "user"
    owner: Owner | None = None
    session_id: str | None = None
    session_owner: Owner | None = None
    whose: Owner | None = None
    tenant: str | None = None
    key_id: str | None = None
    peer: str | None = None
    method: str | None = None
    reason: str | None = None
    target: str | None = None
    count: int = 1


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is kept: `user`, `whose` and `session` are pseudonyms, `at` is seconds since the Unix epoch, `seal` names the key."""

    number: int
    at: float
    action: str
    outcome: str
    by: str
    tenant: str | None = None
    user: str | None = None
    session: str | None = None
    whose: str | None = None
    key_id: str | None = None
    peer: str | None = None
    method: str | None = None
    reason: str | None = None
    target: str | None = None
    count: int = 1
    seal: str | None = None


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    hash: str
    previous: str
    record: Record


_encode = msgspec.json.Encoder(order="sorted").encode
_decode = msgspec.json.Decoder(_Line).decode


@dataclass(frozen=True, slots=True)
class Head:
    """The last record of a chain: its number and hash; before the first, number 0 and a hash of zeros."""

    number: int = 0
    hash: str = GENESIS
    is_sealed: bool = False

    def __str__(self) -> str:
        return f"{self.number}:{self.hash}"


class Broken(Exception):
    """The chain does not hold from this record on."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(f"record {number}: {what}")
        self.number = number
        self.what = what


def parse_keys(text: str) -> tuple[bytes, ...]:
    """Return the keys of a setting: the first seals, those after a comma are earlier ones that still verify.

    Raises:
        errors.ConfigError: one is too short to be a secret.
    """
    keys = [part.strip() for part in text.split(",")]
    if any(len(key) < MIN_KEY_CHARACTERS for key in keys):
        raise errors.ConfigError(
            f"audit key: expected {MIN_KEY_CHARACTERS} characters or more; make one with: openssl rand -hex 32"
        )
    return tuple(key.encode() for key in keys)


def parse_anchor(text: str) -> Head:
    """Return the head that `aerodrome audit head` printed.

    Raises:
        errors.ConfigError: it has not the form NUMBER:HASH.
    """
    number, _, digest = text.strip().partition(":")
    if not (number.isascii() and number.isdigit() and len(digest) == 64 and set(digest) <= set("0123456789abcdef")):
        raise errors.ConfigError("anchor: expected NUMBER:HASH as aerodrome audit head prints it")
    return Head(int(number), digest)


def fingerprint(key: bytes) -> str:
    """Return a name for a key that does not lead to it."""
    return hashlib.sha256(b"aerodrome audit key\0" + key).hexdigest()[:16]


def pseudonym(salt: bytes, kind: str, name: str) -> str:
    """Return what stands for a user (`u`) or a session (`s`) while the salt is kept, and for nobody after."""
    digest = hmac.new(salt, f"{kind}:{name}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
    return f"{kind}_{digest[:24]}"


def cut(text: str | None) -> str | None:
    """Return a field's text, shortened if it is too long, without what breaks a line or cannot be encoded."""
    if text is None:
        return None
    clean = "".join(c if c.isprintable() else "?" for c in text[: MAX_FIELD_CHARACTERS + 1])
    return clean if len(clean) <= MAX_FIELD_CHARACTERS else f"{clean[: MAX_FIELD_CHARACTERS - 3]}..."


def append(head: Head, record: Record, keys: Sequence[bytes]) -> tuple[bytes, Head]:
    """Return the line that binds a record to the chain, and the chain's new head; the record's number is set here.

    Raises:
        errors.ConfigError: the chain is sealed and no key is given: one unsealed record would end what the key proves.
    """
    if head.is_sealed and not keys:
        raise errors.ConfigError("the audit log is sealed with a key: set AERODROME_AUDIT_KEY as the gateway has it")
    seal = fingerprint(keys[0]) if keys else None
    numbered = msgspec.structs.replace(record, number=head.number + 1, seal=seal)
    digest = _digest(head.hash, numbered, keys[0] if keys else None)
    line = _encode(_Line(digest, head.hash, numbered)) + b"\n"
    return line, Head(numbered.number, digest, seal is not None)


def check(head: Head, line: bytes, keys: Sequence[bytes]) -> tuple[Record, Head]:
    """Return the record of the line after `head`, and the new head.

    Raises:
        Broken: it is not that record, or not as it was written.
        errors.ConfigError: it is sealed with a key that is not among `keys`.
    """
    expected = head.number + 1
    found = _parse(line, expected)
    record = found.record
    if record.number != expected:
        raise Broken(expected, f"is missing; record {record.number} stands in its place")
    if found.previous != head.hash:
        raise Broken(expected, f"does not follow record {head.number}: one of the two was put in or written anew")
    if record.seal is None and head.is_sealed:
        raise Broken(expected, "is not sealed, though records before it are")
    if found.hash != _digest(head.hash, record, _key_of(record, keys)):
        raise Broken(expected, "was changed")
    return record, Head(record.number, found.hash, record.seal is not None)


def head_before(line: bytes) -> Head:
    """Return the head that a line says it follows: where a log whose beginning was put away starts.

    Raises:
        Broken: it is no record.
    """
    found = _parse(line, 1)
    return Head(found.record.number - 1, found.previous)


def _parse(line: bytes, expected: int) -> _Line:
    try:
        found = _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Broken(expected, "is not a record") from None
    if _encode(found) + b"\n" != line:
        raise Broken(expected, "was changed: it is not written as records are")
    return found


def _key_of(record: Record, keys: Sequence[bytes]) -> bytes | None:
    if record.seal is None:
        return None
    for key in keys:
        if fingerprint(key) == record.seal:
            return key
    raise errors.ConfigError(
        f"record {record.number} is sealed with the key {record.seal}, which is not given: set AERODROME_AUDIT_KEY "
        "(earlier keys after a comma)"
    )


def _digest(previous: str, record: Record, key: bytes | None) -> str:
    text = previous.encode() + b"\n" + _encode(record)
    return (hashlib.sha256(text) if key is None else hmac.new(key, text, hashlib.sha256)).hexdigest()
