"""core.identity: keys prove their owner and nothing else does; names that may stand in paths, logs and tables."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome import errors
from aerodrome.core import identity
from aerodrome.core.identity import Owner

NOW = 1_000_000.0
ALICE = Owner("red", "alice")


def opens(key: identity.Key, token: str, now: float = NOW) -> bool:
    parts = identity.split_token(token)
    return parts is not None and parts[0] == key.key_id and key.proves(parts[1], now)


def test_a_new_token_names_its_key_and_opens_it():
    key, token = identity.create_key(ALICE, NOW)

    assert opens(key, token)
    assert (key.owner, key.created_at, key.expires_at, key.revoked_at) == (ALICE, NOW, None, None)


def test_every_key_is_another():
    keys = [identity.create_key(ALICE, NOW) for _ in range(20)]

    assert len({key.key_id for key, _ in keys}) == 20
    assert len({key.secret_hash for key, _ in keys}) == 20


def test_the_key_holds_nothing_of_the_secret():
    key, token = identity.create_key(ALICE, NOW)

    assert token.split("_", 2)[2] not in repr(key)


def test_the_secret_of_another_key_does_not_open_this_one():
    key, _ = identity.create_key(ALICE, NOW)
    _, other = identity.create_key(ALICE, NOW)

    assert not key.proves(other.split("_", 2)[2], NOW)


@given(st.text(max_size=60))
def test_no_other_text_opens_a_key(text):
    key, _ = identity.create_key(ALICE, NOW)

    assert not key.proves(text, NOW)


def test_the_stored_hash_does_not_open_its_key():
    key, _ = identity.create_key(ALICE, NOW)

    assert not key.proves(key.secret_hash, NOW)


def test_a_key_opens_until_the_moment_it_expires():
    key, token = identity.create_key(ALICE, NOW, expires_at=NOW + 60)

    assert opens(key, token, NOW + 59.9)
    assert not opens(key, token, NOW + 60)
    assert not opens(key, token, NOW + 61)


def test_a_revoked_key_opens_nothing():
    key, token = identity.create_key(ALICE, NOW)

    assert not opens(replace(key, revoked_at=NOW), token)


@pytest.mark.parametrize("now", [-1.0, 0.0, NOW])
def test_the_stand_in_for_a_missing_key_is_never_opened(now):
    _, token = identity.create_key(ALICE, NOW)

    assert not identity.NO_KEY.proves(token.split("_", 2)[2], now)
    assert not identity.NO_KEY.proves("", now)


@pytest.mark.parametrize(
    "change",
    [
        lambda token: "",
        lambda token: token[:-1],
        lambda token: token + "A",
        lambda token: token + "\n",
        lambda token: " " + token,
        lambda token: token.upper(),
        lambda token: token.replace("aero_", "aero-"),
        lambda token: token.removeprefix("aero_"),
        lambda token: "aero_" + "A" * 12 + token[17:],
        lambda token: token[:-1] + "é",
        lambda token: token[:-1] + "\N{FULLWIDTH DIGIT ONE}",
        lambda token: token[:-1] + "\ud800",
        lambda token: token[:-1] + "=",
    ],
)
def test_what_has_not_the_form_of_a_token_is_not_split(change):
    _, token = identity.create_key(ALICE, NOW)

    assert identity.split_token(token) is not None
    assert identity.split_token(change(token)) is None


@pytest.mark.parametrize("name", ["a", "7", "red", "red-team", "alice@example.com", "a_b.c-d", "a" * 64])
def test_a_usable_name_is_returned_as_it_is(name):
    assert identity.check_name("tenant", name) == name


@pytest.mark.parametrize(
    "name",
    ["", "a" * 65, "Red", "-red", "red-", ".", "..", ".red", "@", "red/blue", "red\\blue", "red blue", "red\n", "a:b"],
)
def test_an_unusable_name_is_refused_with_the_rule(name):
    with pytest.raises(errors.ConfigError, match=r"tenant name .* is not usable: expected 1 to 64"):
        identity.check_name("tenant", name)


@pytest.mark.parametrize("name", ["réd", "\N{FULLWIDTH LATIN SMALL LETTER A}", "a\x00b", "red\N{ZERO WIDTH SPACE}x"])
def test_a_name_with_a_look_alike_or_invisible_character_is_refused(name):
    with pytest.raises(errors.ConfigError):
        identity.check_name("user", name)
