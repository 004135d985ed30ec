"""What a browser holds for us, sealed, so that any gateway of the registry can go on with it and none has to keep it.

Two things are: a sign-in that it has begun at a provider, sealed with the master key; and what its next page says first (a new
key's token among it, shown once), sealed with a key made from its own session's cookie, so that it opens for that session alone.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import msgspec

from aerodrome import errors
from aerodrome.core import sign_in
from aerodrome.core.envelope import Envelopes
from aerodrome.core.sign_in import Kept

#: A browser keeps 4096 characters of a cookie, its name and attributes among them.
MOST_COOKIE_CHARACTERS = 3800
#: A notice that nobody has come for is no news any more.
NOTICE_SECONDS = 600
_MOST_NOTICES = 5
_MOST_TEXT_BYTES = 1500


@dataclass(frozen=True, slots=True)
class Notice:
    """What the next page says first: of what was just done, or why it was not."""

    text: str
    is_error: bool = False
    #: Shown this once, to be copied: a token.
    secret: str | None = field(default=None, repr=False)


def seal_notices(token: str, notices: Sequence[Notice]) -> str:
    """Return notices as the browser of a token keeps them: the last ones, as many as a cookie holds."""
    envelopes = Envelopes([token.encode()], "notices")
    kept = [replace(notice, text=_cut(notice.text)) for notice in notices[-_MOST_NOTICES:]]
    while True:
        sealed = envelopes.seal(msgspec.msgpack.encode(kept), "notices")
        if len(sealed) <= MOST_COOKIE_CHARACTERS:
            return sealed
        del kept[0]


def open_notices(token: str, sealed: str | None) -> list[Notice]:
    """Return notices that were sealed for the browser of a token; none where something else is in the cookie."""
    if not sealed:
        return []
    try:
        opened = Envelopes([token.encode()], "notices").open(sealed, "notices")
    except errors.SecretUnavailable:
        return []
    return msgspec.msgpack.decode(opened, type=list[Notice])


def _cut(text: str) -> str:
    return text.encode()[:_MOST_TEXT_BYTES].decode(errors="ignore")


class BegunSignIns:
    """Sign-ins that browsers have begun at a provider, each for the browser with its cookie.

    Without a master key they are sealed with one of this process, and no other gateway can go on with them. How long one is good
    is core.sign_in's to say; that it is good once, the provider's, whose code is.
    """

    def __init__(self, masters: Sequence[bytes]) -> None:
        self._envelopes = Envelopes(masters or [secrets.token_bytes(32)], "begun sign-in")

    def begin(self, kept: Kept, following: str) -> str:
        """Return what the cookie of a browser is to be, which goes on to a page of ours afterwards."""
        return sign_in.seal(self._envelopes, replace(kept, following=following))

    def find(self, cookie: str) -> Kept:
        """Return what a browser has begun. Raises errors.SignInFailed: nothing."""
        return sign_in.unseal(self._envelopes, cookie)
