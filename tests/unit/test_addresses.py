"""Which hosts are public, in whatever notation: what `*` of a policy allows is none of this machine or its network."""

from __future__ import annotations

import pytest

from aerodrome.core import addresses
from aerodrome.core.policy import Policy

INNER = [
    "127.0.0.1",
    "127.1",
    "127.0.1",
    "2130706433",
    "017700000001",
    "0x7f000001",
    "0x7f.1",
    "0177.0.0.1",
    "127.0.0.1.",
    "0",
    "0.0.0.0",
    "10.0.0.1",
    "192.168.1.1",
    "172.16.0.1",
    "100.64.0.1",
    "169.254.169.254",
    "2852039166",
    "224.0.0.1",
    "255.255.255.255",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:a9fe:a9fe]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b:1::7f00:1]",
    "[::7f00:1]",
    "[::ffff:0:7f00:1]",
    "[fec0::1]",
    "[2002:7f00:1::]",
    "[fe80::1]",
    "[fd00:ec2::254]",
    "[ff02::1]",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "a.localhost",
    "metadata",
    "metadata.google.internal",
    "printer.local",
    "router.lan",
]
OUTER = [
    "api.example.com",
    "API.EXAMPLE.COM",
    "1.1.1.1",
    "[2606:4700::1111]",
    "a1.example.com",
    "3com.com",
    "x.0xe.org",
]


@pytest.mark.parametrize("host", INNER)
def test_a_host_of_this_machine_or_network_is_not_among_all_others(host):
    assert not addresses.is_public_host(host)
    assert not Policy(provider_urls=("*",), mcp_urls=("*",)).allows_provider(f"http://{host}/v1")
    assert not Policy(provider_urls=("*",), mcp_urls=("*",)).allows_mcp(f"http://{host}:8080/")


@pytest.mark.parametrize("host", OUTER)
def test_a_public_host_is(host):
    assert addresses.is_public_host(host)
    assert Policy(provider_urls=("*",)).allows_provider(f"https://{host}/v1")


def test_what_is_named_is_allowed_wherever_it_is():
    policy = Policy(provider_urls=("*", "http://127.0.0.1:11434/v1", "http://[::1]:8080"))
    assert policy.allows_provider("http://127.0.0.1:11434/v1")
    assert policy.allows_provider("http://[::1]:8080/v1")
    assert not policy.allows_provider("http://127.0.0.1:11435/v1")


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com@127.0.0.1/",
        "http://127.0.0.1#@api.example.com/",
        "http://127.0.0.1\\@api.example.com/",
        "http://127.0.0.1%2f@api.example.com/",
        "http://api.example.com:80@127.0.0.1/",
        "http://\N{FULLWIDTH DIGIT ONE}27.0.0.1/",
        "http://127\N{IDEOGRAPHIC FULL STOP}0.0.1/",
        "http://[::1%25eth0]/",
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "",
    ],
)
def test_what_parsers_could_read_in_two_ways_is_not_among_all_others(url):
    assert not Policy(provider_urls=("*",)).allows_provider(url)
