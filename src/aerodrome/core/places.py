"""URLs that secrets are sent to, or trust comes from: encrypted, or of this machine."""

from __future__ import annotations

from urllib.parse import urlsplit

from aerodrome import errors

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def check(name: str, url: str) -> str:
    """Return a URL that may be one of them; `name` is the setting's.

    Raises:
        errors.ConfigError: it is not https (http to this machine is), or holds credentials.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise errors.ConfigError(f"{name}: expected an https URL, found one that cannot be read") from None
    if "@" in parts.netloc or not host or parts.fragment:
        raise errors.ConfigError(f"{name}: expected an https URL with a host and no credentials")
    if parts.scheme != "https" and not (parts.scheme == "http" and host in _LOOPBACK):
        # Whoever could change what comes from there on its way could be anyone.
        raise errors.ConfigError(f"{name}: expected https (http from this machine only), found {url!r}")
    return url
