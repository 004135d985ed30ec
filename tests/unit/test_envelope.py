"""Envelopes: what is sealed opens with its master key, for its owner, unchanged; or not at all."""

from __future__ import annotations

import pytest

from aerodrome import errors
from aerodrome.core import envelope, github
from aerodrome.core.envelope import Envelopes
from aerodrome.core.github import GitHubToken
from aerodrome.core.identity import Owner
from aerodrome.core.secret import Secret

OLD, NEW = b"o" * 32, b"n" * 32
CANARY = "gho_canary3f"


def test_what_is_sealed_opens_again_and_never_looks_the_same():
    envelopes = Envelopes([NEW], "tokens")
    one, other = envelopes.seal(CANARY.encode(), "a"), envelopes.seal(CANARY.encode(), "a")
    assert one != other
    assert CANARY not in one
    assert envelopes.open(one, "a") == envelopes.open(other, "a") == CANARY.encode()


def test_another_context_purpose_or_master_key_or_a_changed_letter_opens_nothing():
    sealed = Envelopes([NEW], "tokens").seal(b"value", "a")
    other_purpose = Envelopes([NEW], "other")
    for envelopes, text, context in (
        (Envelopes([NEW], "tokens"), sealed, "b"),
        (other_purpose, sealed, "a"),
        (other_purpose, sealed.replace(envelope.key_id_of(sealed), other_purpose.key_id), "a"),
        (Envelopes([OLD], "tokens"), sealed, "a"),
        (Envelopes([NEW], "tokens"), sealed[:-6] + ("A" if sealed[-6] != "A" else "B") + sealed[-5:], "a"),
        (Envelopes([NEW], "tokens"), "v1.x", "a"),
        (Envelopes([NEW], "tokens"), "", "a"),
        (Envelopes([NEW], "tokens"), f"v1.{envelope.key_id_of(sealed)}..", "a"),
    ):
        with pytest.raises(errors.SecretUnavailable):
            envelopes.open(text, context)


def test_rewrapping_moves_a_value_to_the_new_master_key_which_alone_opens_it_then():
    sealed = Envelopes([OLD], "tokens").seal(b"value", "a")
    both = Envelopes([NEW, OLD], "tokens")
    assert both.open(sealed, "a") == b"value"
    moved = both.rewrap(sealed, "a")
    assert envelope.key_id_of(moved) == both.key_id != envelope.key_id_of(sealed)
    assert moved.split(".")[3] == sealed.split(".")[3]
    assert Envelopes([NEW], "tokens").open(moved, "a") == b"value"
    with pytest.raises(errors.SecretUnavailable, match=r"needs master key \w+"):
        Envelopes([OLD], "tokens").open(moved, "a")


def test_a_token_copied_to_another_users_record_does_not_open():
    envelopes = Envelopes([NEW], "tokens")
    stored = github.seal(envelopes, Owner("t", "ann"), GitHubToken(Secret(CANARY), Secret("r"), 5.0), 1.0)
    assert CANARY not in repr(stored)
    assert github.unseal(envelopes, stored) == GitHubToken(Secret(CANARY), Secret("r"), 5.0)
    from dataclasses import replace

    with pytest.raises(errors.SecretUnavailable):
        github.unseal(envelopes, replace(stored, owner=Owner("t", "bob")))
