"""A proxy before the HTTP listener: its word counts only where the settings trust it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse

from aerodrome import errors, tailoring
from aerodrome import settings as settings_module
from aerodrome.transport.asgi import AsgiServer

SAID = {"x-forwarded-for": "203.0.113.9", "x-forwarded-proto": "https"}


async def tell(scope: Any, receive: Any, send: Any) -> None:
    request = Request(scope, receive)
    assert request.client is not None
    await JSONResponse([request.client.host, request.url.scheme])(scope, receive, send)


@pytest.mark.parametrize(
    ("trusted", "heard"),
    [
        ([], ["127.0.0.1", "http"]),
        (["10.0.0.0/8", "::1"], ["127.0.0.1", "http"]),
        (["127.0.0.0/8"], ["203.0.113.9", "https"]),
        (["127.0.0.1"], ["203.0.113.9", "https"]),
    ],
)
async def test_where_a_request_comes_from_is_a_trusted_proxys_to_say(
    trusted: list[str], heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    settings = settings_module.load(None, http={"listen": "127.0.0.1:0", "trusted_proxies": trusted})
    server = AsgiServer(tell, 16, trusted_proxies=tailoring.http_settings(settings).trusted_proxies)
    port = await server.start()
    try:
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"http://127.0.0.1:{port}/", headers=SAID)).json() == heard
    finally:
        await server.aclose()


def test_a_proxy_is_named_by_its_address_or_network() -> None:
    with pytest.raises(errors.ConfigError, match=r"http\.trusted_proxies.*not a valid ipv4 or ipv6 network"):
        settings_module.load(None, http={"trusted_proxies": ["proxy.example.com"]})
