"""Whether a browser's request comes from our own pages, and what of it is bound to TLS: cookies' names, where we are reached.

A cookie goes along with requests that other sites' pages make; so what changes something must say that it comes from here:
`Sec-Fetch-Site`, or `Origin` where a browser does not send that (Fetch Metadata, W3C). What says neither is refused.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import Request

from aerodrome import errors

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


def origin_of(request: Request, public_url: str | None) -> str:
    """Return the origin that browsers know us by: the one of the settings, else that of the request."""
    if public_url is not None:
        parts = urlsplit(public_url)
        return f"{parts.scheme}://{parts.netloc}"
    return f"{request.url.scheme}://{request.headers.get('host', '')}"


def is_secure(request: Request, public_url: str | None) -> bool:
    """Say whether browsers reach us over TLS."""
    return origin_of(request, public_url).startswith("https://")


def cookie_name(request: Request, public_url: str | None) -> str:
    """Return the cookie's name: over TLS one that no other host and no plain connection can set."""
    return "__Host-aerodrome" if is_secure(request, public_url) else "aerodrome"


def begun_cookie_name(request: Request, public_url: str | None) -> str:
    """Return the name of the cookie that binds a sign-in at a provider to its browser."""
    return f"{cookie_name(request, public_url)}-begun"


def notices_cookie_name(request: Request, public_url: str | None) -> str:
    """Return the name of the cookie with what the browser's next page says first."""
    return f"{cookie_name(request, public_url)}-notices"


def check_same_origin(request: Request, public_url: str | None) -> None:
    """Check that a request which may change something comes from our own pages.

    Raises:
        errors.PolicyRejected: it comes from elsewhere, or does not say.
    """
    if request.method in SAFE:
        return
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    is_ours = site == "same-origin" if site is not None else origin == origin_of(request, public_url)
    if not is_ours:
        raise errors.PolicyRejected(
            "expected a request of this gateway's own pages (Sec-Fetch-Site, Origin); programs use Authorization: Bearer TOKEN"
        )
