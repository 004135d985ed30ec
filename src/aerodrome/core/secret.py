"""Secrets and the references that stand for them: a configuration holds `env:NAME`, never the value.

A `Secret` does not show itself in logs, tracebacks or JSON; whoever needs the value says `reveal()`, so that a search finds every
place. Where references are resolved is ports.secrets; what each scheme means is in adapters.secrets and docs/credentials.md.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass

from aerodrome import errors

SCHEMES = ("env", "file", "exec", "vault", "k8s")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_VAULT = re.compile(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)+#[A-Za-z0-9._-]+\Z")
_FORMS = {
    "env": "env:NAME",
    "file": "file:/absolute/path",
    "exec": "exec:/absolute/command argument ...",
    "vault": "vault:MOUNT/PATH#FIELD",
    "k8s": "k8s:/absolute/path/of/a/mounted/secret/KEY",
}


class Secret:
    """A value that is printed as asterisks."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the value; keep it no longer than the call that needs it."""
        return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return "Secret(******)"

    __str__ = __repr__

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a secret is not copied, pickled or encoded; reveal it where it is needed")


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a secret is: a scheme and the rest. Says nothing of the value, so it may be logged."""

    scheme: str
    rest: str

    def __str__(self) -> str:
        # Arguments of a command are the operator's own words, and some put a password there.
        return f"exec:{self.rest.split()[0]}" if self.scheme == "exec" else f"{self.scheme}:{self.rest}"

    __repr__ = __str__


def parse(name: str, text: str) -> Reference:
    """Return the reference that a setting holds; `name` is the setting's.

    Raises:
        errors.ConfigError: it is none, so it may be a secret itself: the text is not repeated.
    """
    scheme, _, rest = text.partition(":")
    if scheme not in _FORMS:
        raise errors.ConfigError(
            f"{name}: expected a reference to a secret ({', '.join(_FORMS.values())}), found something else; a key itself "
            "does not belong in a configuration: put it into the environment and name it as env:NAME"
        )
    if not _is_formed(scheme, rest):
        raise errors.ConfigError(f"{name}: expected {_FORMS[scheme]}, found a reference of another form")
    return Reference(scheme, rest)


def _is_formed(scheme: str, rest: str) -> bool:
    if "\0" in rest or "\n" in rest:
        return False
    if scheme == "env":
        return _VARIABLE.match(rest) is not None
    if scheme == "vault":
        return _VAULT.match(rest) is not None and ".." not in rest
    return rest.startswith("/") and len(rest) > 1
