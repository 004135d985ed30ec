"""Which hosts and addresses a sandbox may reach, by policy."""

from __future__ import annotations

import pytest

from aerodrome import errors
from aerodrome.adapters.sandbox import seccomp
from aerodrome.core import egress
from aerodrome.core.policy import Policy


def test_a_policys_endpoints_count_by_host_and_port():
    policy = Policy(
        provider_urls=("https://Models.example/v1", "http://127.0.0.1:8080/v1", "https://models.example/v2"),
        mcp_urls=("http://[fd00::1]:9/mcp", "http://mcp.example"),
    )
    assert egress.targets_of(policy) == (
        "127.0.0.1:8080",
        "[fd00::1]:9",
        "mcp.example:80",
        "models.example:443",
    )
    assert egress.targets_of(Policy(provider_urls=("*",))) == ("*",)
    assert egress.targets_of(Policy(provider_urls=("http://a.example",), egress=("*.b.example",))) == (
        "*.b.example",
        "a.example:80",
    )
    assert egress.loopback_ports(egress.targets_of(policy)) == [8080]


def test_a_host_is_allowed_with_its_port_only():
    targets = ("models.example:443", "[fd00::1]:9")
    assert egress.is_allowed("MODELS.example", 443, targets)
    assert egress.is_allowed("fd00::1", 9, targets)
    for host, port in (("models.example", 80), ("example", 443), ("x.models.example", 443), ("models.example.", 443)):
        assert not egress.is_allowed(host, port, targets)
    assert egress.is_allowed("anything.example", 1, ("*",))
    assert not egress.is_named("anything.example", 1, ("*",))


PATTERNS = (
    "any-port.example",
    "one.example:443",
    "*.below.example",
    "*.git.example:22",
    "10.0.0.5",
    "10.0.0.6:80",
    "[fd00::2]",
)


@pytest.mark.parametrize(
    ("host", "port", "is_allowed", "is_named"),
    [
        ("any-port.example", 8443, True, False),
        ("ANY-port.example", 1, True, False),
        ("x.any-port.example", 443, False, False),
        ("one.example", 443, True, True),
        ("one.example", 80, False, False),
        ("a.b.below.example", 80, True, False),
        ("below.example", 80, False, False),
        ("notbelow.example", 80, False, False),
        ("below.example.evil.example", 80, False, False),
        ("x.git.example", 22, True, False),
        ("x.git.example", 443, False, False),
        ("10.0.0.5", 8080, True, True),
        ("10.0.0.6", 80, True, True),
        ("10.0.0.6", 81, False, False),
        ("fd00::2", 9, True, True),
        ("localhost", 80, False, False),
    ],
)
def test_egress_words_cover_a_port_or_all_and_a_host_or_all_below(host, port, is_allowed, is_named):
    targets = egress.targets_of(Policy(egress=PATTERNS))
    assert egress.is_allowed(host, port, targets) is is_allowed
    assert egress.is_named(host, port, targets) is is_named


def test_a_name_without_a_port_leads_to_no_address_of_this_machine_or_network_and_one_with_a_port_does():
    assert egress.may_reach("any-port.example", 80, "93.184.216.34", PATTERNS)
    assert not egress.may_reach("any-port.example", 80, "127.0.0.1", PATTERNS)
    assert not egress.may_reach("x.below.example", 80, "10.1.2.3", PATTERNS)
    assert egress.may_reach("one.example", 443, "10.1.2.3", PATTERNS)
    assert not egress.may_reach("other.example", 443, "93.184.216.34", PATTERNS)
    # Said of itself in a target that no configuration takes (policy_document): still not this machine.
    assert not egress.may_reach("127.0.0.1", 80, "127.0.0.1", ("127.0.0.1", "localhost"))
    assert not egress.may_reach("localhost", 80, "127.0.0.1", ("127.0.0.1", "localhost"))


@pytest.mark.parametrize("host", ["localhost", "a.localhost", "127.9.9.9", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1"])
def test_a_name_of_this_machine_is_known_as_one(host):
    assert egress.is_loopback(host)
    assert not egress.is_loopback(f"x{host}.example")


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1"])
def test_an_address_of_the_internet_is_public(address):
    assert egress.is_public(address)


LOCAL = """
127.0.0.1 0.0.0.0 10.1.2.3 172.16.0.1 192.168.0.1 169.254.169.254 100.64.0.1 224.0.0.1 255.255.255.255 name
:: ::1 fe80::1%eth0 fd00::1 ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 2002:7f00:1:: 64:ff9b::7f00:1
"""


@pytest.mark.parametrize("address", LOCAL.split())
def test_an_address_of_this_machine_or_network_is_not(address):
    assert not egress.is_public(address)


@pytest.mark.parametrize(
    "text", ["example.com", "example.com:0", "example.com:70000", "http://example.com:80", "a b:80", ":80", "[::1:80"]
)
def test_a_setting_that_is_no_target_is_refused(text):
    with pytest.raises(errors.ConfigError, match=r"expected HOST:PORT"):
        egress.check_target("sandbox.egress", text)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_is_a_program_that_the_kernel_takes(machine):
    """Whole instructions, jumps that land inside, a verdict at the end: what the kernel checks before it takes one."""
    made = seccomp.program(machine)
    assert len(made) % 8 == 0
    instructions = [made[at : at + 8] for at in range(0, len(made), 8)]
    assert len(instructions) < 4096
    for number, instruction in enumerate(instructions):
        if instruction[0] & 0x07 == 0x05:
            assert number + 1 + max(instruction[2], instruction[3]) < len(instructions)
    assert instructions[-1][0] == 0x06
