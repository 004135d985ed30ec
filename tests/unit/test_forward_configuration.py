"""How a program is told of its gateway: addresses, tokens and arguments, each refused by name where it is wrong."""

from __future__ import annotations

import asyncio
import builtins

import pytest

from aerodrome import errors
from aerodrome.forward import dialing, shim


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text("t0ken\n")
    return path


def refusal(environment):
    with pytest.raises(errors.ConfigError) as raised:
        dialing.open_upstream(dialing.from_environment(environment))
    return raised.value.message


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("gateway.example.com:4321", ("tls", "gateway.example.com", 4321)),
        ("tls://gateway.example.com", ("tls", "gateway.example.com", 4321)),
        ("https://gateway.example.com/", ("https", "gateway.example.com", 443)),
        ("tls://[2001:db8::1]:5000", ("tls", "2001:db8::1", 5000)),
        ("plaintext://127.0.0.1:4321", ("plaintext", "127.0.0.1", 4321)),
    ],
)
def test_an_address_means_tls_unless_it_says_plaintext(url, expected):
    assert dialing.split_url(url) == expected


@pytest.mark.parametrize(
    "url",
    ["http://gateway:1", "tcp://gateway:1", "tls://", "tls://gateway:99999", "tls://gateway:1/path", "tls://g:1?a"],
)
def test_other_addresses_are_refused(url):
    with pytest.raises(errors.ConfigError, match="expected tls://HOST:PORT"):
        dialing.split_url(url)


def test_an_address_that_holds_a_secret_is_refused_without_repeating_it():
    with pytest.raises(errors.ConfigError) as raised:
        dialing.split_url("tls://user:hunter2@gateway:1")
    assert "hunter2" not in raised.value.message


def test_a_token_comes_from_the_environment_or_a_file_and_a_file_is_read_anew_each_time(token_file):
    url = {"AERODROME_URL": "gateway:1"}
    given = dialing.open_upstream(dialing.from_environment({**url, "AERODROME_TOKEN": "given"}))
    assert given.read_token() == "given"
    read = dialing.open_upstream(dialing.from_environment({**url, "AERODROME_TOKEN_FILE": str(token_file)}))
    assert read.read_token() == "t0ken"
    token_file.write_text("rotated")
    assert read.read_token() == "rotated"


def test_what_is_missing_doubled_or_open_to_others_is_said(token_file, tmp_path):
    url, named = {"AERODROME_URL": "gateway:1"}, {"AERODROME_TOKEN_FILE": str(token_file)}
    assert refusal({}).startswith("no gateway given; set AERODROME_URL")
    assert refusal(url).startswith("no token given; set AERODROME_TOKEN_FILE")
    assert refusal({**url, **named, "AERODROME_TOKEN": "x"}).startswith("both AERODROME_TOKEN and")
    assert "cannot use" in refusal({**url, **named, "AERODROME_CA": str(tmp_path / "absent.pem")})
    token_file.chmod(0o644)
    assert "others can read" in refusal({**url, **named})


@pytest.mark.parametrize(
    ("arguments", "port"),
    [
        ("--headless --no-auto-update --log-level info --no-auto-login --stdio", None),
        ("--server --stdio", None),
        ("--headless --no-auto-update --log-level none --port 5000 --session-idle-timeout 60", 5000),
        ("--headless --no-auto-update --auth-token-env COPILOT_SDK_AUTH_TOKEN", 0),
        ("--headless --port=17", 17),
    ],
)
def test_the_arguments_of_the_sdks_are_understood(arguments, port):
    assert shim.parse(arguments.split()).port == port


@pytest.mark.parametrize("arguments", ["", "-p hello", "--stdio", "--headless --port x", "--headless --port 70000"])
def test_anything_but_serving_an_sdk_is_refused(arguments):
    with pytest.raises(errors.ConfigError):
        shim.parse(arguments.split())


async def test_a_program_that_ends_as_soon_as_it_knows_the_port_is_missed(monkeypatch, token_file):
    told: list[str] = []
    monkeypatch.setattr(builtins, "print", lambda line, **_: told.append(line))
    monkeypatch.setattr(shim.os, "getppid", lambda: 1 if told else 4321)
    environment = {"AERODROME_URL": "tls://127.0.0.1:1", "AERODROME_TOKEN_FILE": str(token_file)}
    async with asyncio.timeout(10):
        await shim.run(["--headless", "--port", "0"], environment)
    assert told[0].startswith("CLI server listening on port ")
