"""core.policy: when the method table opens, and which provider URLs a tenant may name."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.core.policy import Access, Isolation, Policy, Trust

SEGMENTS = st.text("abcxyzABC0189-_~.", min_size=1, max_size=8).filter(lambda text: ".." not in text)


def allows(allowed: str, url: str) -> bool:
    return Policy(provider_urls=(allowed,)).allows_provider(url)


@pytest.mark.parametrize("isolation", Isolation)
@pytest.mark.parametrize("trust", Trust)
def test_access_opens_only_for_a_fully_trusted_tenant_whose_users_have_their_own_runtimes(isolation, trust):
    opened = Policy(isolation, trust).access is Access.OPEN

    assert opened == (isolation is Isolation.USER and trust is Trust.FULL)


def test_a_policy_that_says_nothing_is_the_strictest():
    policy = Policy()

    assert (policy.isolation, policy.trust, policy.access) == (Isolation.USER, Trust.LIMITED, Access.GUARDED)
    assert not policy.allows_provider("https://api.example.com")


@pytest.mark.parametrize(
    ("allowed", "url"),
    [
        ("https://api.example.com", "https://api.example.com"),
        ("https://api.example.com", "https://api.example.com/"),
        ("https://api.example.com/", "https://api.example.com"),
        ("https://api.example.com", "https://api.example.com/v1/chat"),
        ("https://api.example.com/v1", "https://api.example.com/v1"),
        ("https://api.example.com/v1", "https://api.example.com/v1/"),
        ("https://api.example.com/v1/", "https://api.example.com/v1"),
        ("https://api.example.com/v1", "https://api.example.com/v1/chat"),
        ("https://api.example.com/v1", "https://api.example.com/v1/~a!$&'()*+,;=:-_."),
        ("https://api.example.com", "https://api.example.com:443/v1"),
        ("https://api.example.com:443", "https://api.example.com"),
        ("http://api.example.com", "http://api.example.com:80"),
        ("http://api.example.com", "http://api.example.com:080"),
        ("http://127.0.0.1:8080/v1", "http://127.0.0.1:8080/v1"),
        ("http://[::1]:8080", "http://[::1]:8080/v1"),
        ("http://[FE80::1]", "http://[fe80::1]"),
        ("http://model_server:9000", "http://model_server:9000/v1"),
        ("https://API.example.com", "https://api.EXAMPLE.com"),
        ("HTTPS://api.example.com", "https://api.example.com"),
        ("https://api.example.com", "hTTps://api.example.com"),
        ("https://api.example.com.", "https://api.example.com./v1"),
    ],
)
def test_a_url_at_the_allowed_origin_and_under_the_allowed_path_is_allowed(allowed, url):
    assert allows(allowed, url)


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com/v1",  # another scheme
        "ftp://api.example.com/v1",
        "//api.example.com/v1",
        "api.example.com/v1",
        "https:api.example.com/v1",
        "https:/api.example.com/v1",
        "https:///api.example.com/v1",
        "https://api.example.com:8443/v1",  # another port
        "https://api.example.com:80/v1",
        "https://api.example.com:0/v1",
        "https://api.example.com:65979/v1",  # 443 modulo 65536
        "https://api.example.com:4_43/v1",
        "https://api.example.com:+443/v1",
        "https://api.example.com:443:443/v1",
        "https://api.example.com.evil.com/v1",  # another host
        "https://evil.com/api.example.com/v1",
        "https://evilapi.example.com/v1",
        "https://example.com/v1",
        "https://api.example.com./v1",
        "https://api.example.com[::1]/v1",
        "https://[api.example.com]/v1",
        "https://api.example.com;evil.com/v1",
        "https://api.example.com,evil.com/v1",
        "https://api.example.com@evil.com/v1",  # a user part
        "https://api.example.com:443@evil.com/v1",
        "https://user:secret@api.example.com/v1",
        "https://evil.com#@api.example.com/v1",
        "https://evil.com?@api.example.com/v1",
        "https://evil.com\\@api.example.com/v1",
        "https://evil.com\\.api.example.com/v1",
        "https:\\\\api.example.com\\v1",
        "https://api.example.com/v1evil",  # beside the path
        "https://api.example.com/",
        "https://api.example.com/V1",
        "https://api.example.com//v1",
        "https://api.example.com/v1/../admin",
        "https://api.example.com/v1/..",
        "https://api.example.com/v1/..;x/admin",
        "https://api.example.com/v1\\..\\admin",
        "https://api.example.com/v1/%2e%2e/admin",
        "https://api.example.com/v1%2f..%2fadmin",
        "https://api.example.com/%76%31",
        "https://api.example.com%2fv1",
        "https://api%2eexample.com/v1",
        "https://api.example.com/v1?x=y",
        "https://api.example.com/v1#x",
        "https://api.example.com/v1/\N{FULLWIDTH FULL STOP}./admin",  # look-alikes and invisible characters
        "https://api\N{IDEOGRAPHIC FULL STOP}example.com/v1",
        "https://ap\N{CYRILLIC SMALL LETTER BYELORUSSIAN-UKRAINIAN I}.example.com/v1",
        "http\N{LATIN SMALL LETTER LONG S}://api.example.com/v1",
        "https://api.example.com:\N{FULLWIDTH DIGIT FOUR}43/v1",
        "https://api.example.com/v1/\N{ZERO WIDTH SPACE}",
        " https://api.example.com/v1",
        "https://api.example.com/v1\n",
        "https://api.example.com/v1\r\nHost: evil.com",
        "https://api.exam\tple.com/v1",
        "https://api.example.com/v1/\x00",
        "https://api.example.com/v1/\x7f",
        "",
        "*",
    ],
)
def test_a_url_elsewhere_or_one_that_parsers_could_read_in_two_ways_is_refused(url):
    assert not allows("https://api.example.com/v1", url)


def test_a_foreign_host_cannot_pass_for_an_allowed_ipv6_address():
    assert not allows("http://[::1]:8080", "http://evil.com[::1]:8080/")
    assert not allows("http://[::1]:8080", "http://[::1]evil.com:8080/")


@pytest.mark.parametrize(
    "allowed", ["", "api.example.com", "https://", "https://*.example.com", "https://a@b.com", "**"]
)
def test_an_entry_that_is_not_a_plain_url_allows_nothing(allowed):
    assert not allows(allowed, "https://api.example.com")
    assert not allows(allowed, allowed)


def test_any_of_several_entries_is_enough():
    policy = Policy(provider_urls=("https://one.example", "https://two.example"))

    assert policy.allows_provider("https://two.example/v1")
    assert not policy.allows_provider("https://three.example")


def test_a_star_allows_every_public_url():
    assert allows("*", "https://api.example.com:8443/v1")
    assert not allows("*", "http://127.0.0.1:1234/v1")
    assert not allows("*", "https://api.example.com/v1?x=y")


@given(st.lists(SEGMENTS, max_size=4), st.lists(SEGMENTS, max_size=4), st.integers(1, 65535))
def test_whatever_continues_an_allowed_path_by_whole_segments_is_allowed(prefix, rest, port):
    base = "/".join([f"http://host.example:{port}", *prefix])

    assert allows(base, "/".join([base, *rest]))


@given(SEGMENTS, SEGMENTS)
def test_whatever_continues_an_allowed_path_inside_a_segment_is_refused(last, more):
    assert not allows(f"http://host.example/{last}", f"http://host.example/{last}{more}")


@given(st.text("@:/\\?#%.[];80xé ", max_size=12))
def test_no_text_after_the_allowed_host_leads_to_another_origin(text):
    url = f"http://host.example{text}"

    if allows("http://host.example", url):
        split = urlsplit(url)
        assert (split.hostname, split.port or 80, split.username) == ("host.example", 80, None)
