"""How calls of webhooks are signed, and what a service may take."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from aerodrome.core import webhook
from aerodrome.core.policy import Policy, names_address

SECRET = webhook.derive_secret(b"a master key for tests, 32 or more", "acme")
BODY = b'{"tool":"lookup"}'


def test_a_secret_is_one_tenants_and_follows_from_the_master_key():
    assert webhook.derive_secret(b"a master key for tests, 32 or more", "acme") == SECRET
    assert webhook.derive_secret(b"a master key for tests, 32 or more", "globex") != SECRET
    assert SECRET.startswith("whsec_")


def test_a_call_is_taken_within_the_window_and_only_as_it_was_signed():
    header = webhook.sign(SECRET, 1000.0, BODY)

    assert webhook.is_signed(SECRET, 1000.0 + webhook.WINDOW_SECONDS, BODY, header)
    assert not webhook.is_signed(SECRET, 1001.0 + webhook.WINDOW_SECONDS, BODY, header)
    assert not webhook.is_signed(SECRET, 1000.0, BODY + b" ", header)
    assert not webhook.is_signed(SECRET + "x", 1000.0, BODY, header)
    assert not webhook.is_signed(SECRET, 1000.0, BODY, header.replace("t=1000", "t=1001"))


@pytest.mark.parametrize("header", ["", "t=,v1=", "t=x,v1=y", "v1=abc", "t=1000", "t=1000,v1=\u00e9", "t=" + "9" * 99])
def test_a_header_that_is_none_is_refused(header):
    assert not webhook.is_signed(SECRET, 1000.0, BODY, header)


@pytest.mark.parametrize(
    ("allowed", "url", "is_allowed"),
    [
        ((), "https://hooks.example/a", False),
        (("https://hooks.example/a",), "https://hooks.example/a/b", True),
        (("https://hooks.example/a",), "https://hooks.example/ab", False),
        (("https://hooks.example",), "http://hooks.example", False),
        (("*",), "https://anything.example", True),
        (("*",), "http://anything.example", False),
        (("*", "http://plain.example"), "http://plain.example/x", True),
        (("*",), "https://user@anything.example", False),
    ],
)
def test_where_webhooks_may_go_is_said_by_policy(allowed, url, is_allowed):
    assert Policy(webhook_urls=allowed).allows_webhook(url) == is_allowed


def test_an_address_is_named_by_itself_and_its_port_only():
    urls = ("*", "https://hooks.internal", "http://127.0.0.1:8080/x", "https://[fd00::1]")

    assert names_address(urls, "127.0.0.1", 8080)
    assert names_address(urls, "fd00::1", 443)
    assert not names_address(urls, "127.0.0.1", 8081)
    assert not names_address(urls, "10.0.0.1", 443)


DOCUMENT = Path(__file__).parents[2] / "docs" / "webhooks.md"


def snippet(language: str) -> str:
    return DOCUMENT.read_text("utf-8").partition(f"```{language}\n")[2].partition("```")[0]


def test_the_documented_check_in_python_takes_what_the_gateway_signs_and_nothing_else():
    names: dict[str, Any] = {}
    exec(snippet("python"), names)
    is_genuine, now = names["is_genuine"], time.time()

    assert is_genuine(SECRET, webhook.sign(SECRET, now, BODY), BODY)
    assert not is_genuine(SECRET, webhook.sign(SECRET, now, BODY), BODY + b" ")
    assert not is_genuine(SECRET, webhook.sign(SECRET, now - 1000, BODY), BODY)
    assert not is_genuine(SECRET, "", BODY)


@pytest.mark.node
def test_the_documented_check_in_javascript_takes_what_the_gateway_signs_and_nothing_else():
    now = time.time()
    cases = [
        [SECRET, webhook.sign(SECRET, now, BODY), BODY.decode()],
        [SECRET, webhook.sign(SECRET, now, BODY), BODY.decode() + " "],
        [SECRET, webhook.sign(SECRET, now - 1000, BODY), BODY.decode()],
        [SECRET, "", BODY.decode()],
    ]
    program = f"""{snippet("javascript")}
    console.log(JSON.stringify({json.dumps(cases)}.map(([secret, header, body]) => isGenuine(secret, header, body))));"""
    said = subprocess.run(
        ["node", "--input-type=module", "-e", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(said.stdout) == [True, False, False, False]
