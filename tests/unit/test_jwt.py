"""core.jwt and core.connection_token: what is signed as agreed is taken, anything else is refused, and by one error only."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from aerodrome import errors
from aerodrome.core import connection_token, jwt, subkeys
from aerodrome.core.identity import Owner
from aerodrome.core.jwt import Terms

NOW = 1_700_000_000.0
MASTER = b"a master key of thirty-two bytes"
SECRET = connection_token.derive_secret(MASTER, "0123456789ab")
TERMS = Terms("aerodrome", skew_seconds=30.0, max_seconds=3600.0)
RSA, EC, OKP = RSAKey.generate_key(2048), ECKey.generate_key("P-256"), OKPKey.generate_key("Ed25519")
REGISTRY = jws.JWSRegistry(algorithms=list(jws.JWSRegistry.algorithms), strict_check_header=False)


def part(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def handmade(header: object, claims: object, secret: str = SECRET) -> str:
    """Make a token as a backend without any library of ours would."""
    signed = f"{part(header)}.{part(claims)}"
    return f"{signed}.{part(hmac.digest(secret.encode(), signed.encode(), hashlib.sha256))}"


def claims(**changes: object) -> dict[str, object]:
    found = {"aud": "aerodrome", "sub": "ann", "iat": NOW, "exp": NOW + 600, **changes}
    return {name: value for name, value in found.items() if value is not None}


def refusal(call, *args) -> str:
    with pytest.raises(errors.AuthenticationFailed) as raised:
        call(*args)
    assert (raised.value.message, raised.value.details) == ("AUTHENTICATION_FAILED", {})
    assert raised.value.reason
    return raised.value.reason


def test_a_token_made_by_hand_is_read_like_one_made_here():
    token = handmade({"alg": "HS256", "kid": "0123456789ab"}, claims())
    assert jwt.peek(token) == jwt.Unproved("HS256", "0123456789ab", None)
    assert connection_token.verify(token, SECRET) == claims()
    ours = connection_token.sign("0123456789ab", SECRET, "ann", NOW, NOW + 600)
    assert connection_token.verify(ours, SECRET) == claims()
    assert jwt.check_claims(claims(), TERMS, NOW) == NOW + 630


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"aud": "other"}, "audience"),
        ({"aud": None}, "audience"),
        ({"aud": ["a", "b"]}, "audience"),
        ({"aud": {"aerodrome": 1}}, "audience"),
        ({"exp": None}, "no expiry"),
        ({"exp": str(NOW)}, "no expiry"),
        ({"exp": True}, "no expiry"),
        ({"exp": 10**400}, "no expiry"),
        ({"exp": NOW - 30}, "expired"),
        ({"exp": -5}, "expired"),
        ({"iat": NOW + 31}, "not valid yet"),
        ({"nbf": NOW + 31}, "not valid yet"),
        ({"nbf": "soon"}, "no numbers"),
        ({"iat": None}, "iat"),
        ({"exp": NOW + 3601}, "longer"),
        ({"iat": NOW - 3000, "exp": NOW + 601}, "longer"),
    ],
)
def test_claims_that_are_not_as_agreed_are_refused_for_their_reason(change, reason):
    assert reason in refusal(jwt.check_claims, claims(**change), TERMS, NOW)


@pytest.mark.parametrize(
    "change",
    [
        {"aud": ["other", "aerodrome"]},
        {"exp": NOW - 29.9},
        {"iat": NOW + 30},
        {"nbf": NOW + 30},
        {"exp": NOW + 3600},
        {"iat": NOW - 3000, "exp": NOW + 600},
        {"exp": int(NOW) + 600, "jti": "x"},
    ],
)
def test_claims_within_what_is_agreed_are_taken(change):
    assert jwt.check_claims(claims(**change), TERMS, NOW) > NOW


def test_without_a_longest_lifetime_a_token_need_not_say_when_it_was_issued():
    assert jwt.check_claims(claims(iat=None, exp=NOW + 9e6), Terms("aerodrome", 0.0), NOW) == NOW + 9e6


@pytest.mark.parametrize(
    "token",
    [
        handmade({"alg": "HS256"}, claims(), SECRET[:-1] + "x"),
        handmade({"alg": "HS256"}, claims(), hashlib.sha256(SECRET.encode()).hexdigest()),
        handmade({"alg": "none"}, claims()),
        f"{part({'alg': 'none'})}.{part(claims())}.",
        handmade({"alg": "HS512"}, claims()),
        handmade({"alg": "hs256"}, claims()),
        f"{part({'alg': 'HS256'})}.{part(claims())}.",
        handmade({"alg": "HS256"}, claims())[:-4],
        handmade({"alg": "HS256"}, [claims()]),
        handmade({"alg": "HS256"}, b"not json"),
        jws.serialize_compact({"alg": "RS256"}, json.dumps(claims()), RSA, registry=REGISTRY),
    ],
)
def test_a_token_that_the_secret_did_not_sign_as_agreed_is_refused(token):
    refusal(connection_token.verify, token, SECRET)


@pytest.mark.parametrize(("algorithm", "key"), [("RS256", RSA), ("PS256", RSA), ("ES256", EC), ("Ed25519", OKP)])
def test_a_public_key_proves_what_its_private_key_signed_and_is_no_shared_secret(algorithm, key):
    token = jws.serialize_compact({"alg": algorithm}, json.dumps(claims()), key, registry=REGISTRY)
    assert jwt.verify(token, key, algorithm) == claims()
    other = type(key).generate_key(2048 if key is RSA else "P-256" if key is EC else "Ed25519")
    refusal(jwt.verify, token, other, algorithm)
    for public in (key.as_pem(private=False), key.as_pem(private=False).strip(), json.dumps(key.as_dict()).encode()):
        forged = handmade({"alg": "HS256"}, claims(), public.decode())
        refusal(jwt.verify, forged, key, algorithm)
        refusal(jwt.verify, forged, key, "HS256")


def test_eddsa_is_taken_by_its_older_name_without_a_warning():
    signed = f"{part({'alg': 'EdDSA'})}.{part(claims())}"
    token = f"{signed}.{part(OKP.private_key.sign(signed.encode()))}"
    assert jwt.verify(token, OKP, "EdDSA") == claims()


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "HS256", "crit": ["b64"], "b64": False},
        {"alg": "HS256", "crit": []},
        {"alg": 5},
        {"kid": "x"},
        [],
        b"\xff",
    ],
)
def test_a_header_that_cannot_be_read_or_wants_what_is_not_known_is_refused(header):
    refusal(jwt.peek, handmade(header, claims()))


@pytest.mark.parametrize(
    "text", ["", "a.b", "a.b.c.d", "aa.bb.cc dd", "aa.bb.cc\n", "é.bb.cc", "aa.bb." + "c" * 12_000, "..", "aero_x"]
)
def test_what_has_not_the_form_of_a_token_is_refused(text):
    assert not jwt.has_form(text)
    refusal(jwt.peek, text)


@given(st.one_of(st.text(max_size=80), st.from_regex(r"[A-Za-z0-9_-]{2,40}\.[A-Za-z0-9_-]{2,40}\.[A-Za-z0-9_-]{0,60}")))
def test_any_text_is_refused_by_the_one_error(text):
    for call in (jwt.peek, lambda token: connection_token.verify(token, SECRET)):
        try:
            call(text)
        except errors.AuthenticationFailed:
            continue
        assert call is jwt.peek


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jku", "x5c"])


@given(st.dictionaries(names, json_values | st.sampled_from(["HS256", "RS256", "none", "b64"]), max_size=5))
def test_any_header_is_taken_or_refused_by_the_one_error(header):
    token = handmade(header, claims())
    for call in (jwt.peek, lambda token: connection_token.verify(token, SECRET)):
        try:
            call(token)
        except errors.AuthenticationFailed:
            continue
        assert header.get("alg") is not None


@given(st.dictionaries(st.sampled_from(["aud", "sub", "exp", "iat", "nbf"]), json_values, max_size=5))
def test_any_claims_are_taken_or_refused_by_the_one_error(changes):
    for call in (lambda found: jwt.check_claims(found, TERMS, NOW), connection_token.read_user):
        try:
            call({**claims(), **changes})
        except errors.AuthenticationFailed:
            continue


@pytest.mark.parametrize("user", [None, "", 5, ["ann"], "Ann", "ann/..", "../x", "a" * 65, "ann\n", "é", "x\ud800"])
def test_a_claim_that_names_no_usable_user_is_refused_and_repeated_in_part_only(user):
    reason = refusal(connection_token.read_user, {"sub": user})
    assert "sub" in reason
    assert "a" * 65 not in reason


def test_secrets_differ_by_key_and_master_and_subkeys_by_purpose():
    ids, masters = ("0" * 12, "1" * 12), (MASTER, MASTER[:-1] + b"x")
    secrets = {connection_token.derive_secret(master, key_id) for master in masters for key_id in ids}
    assert len(secrets) == 4
    assert all(len(secret) == 43 for secret in secrets)
    assert len({subkeys.derive(MASTER, purpose) for purpose in ("a", "b", "connection-token/1/" + "0" * 12)}) == 3


def test_a_stored_signing_key_holds_nothing_to_sign_with():
    key, secret = connection_token.create_signing_key(MASTER, Owner("red", "backend"), NOW)
    assert secret not in repr(key)
    assert key.proves(secret, NOW)
    token = handmade({"alg": "HS256", "kid": key.key_id}, claims(), key.secret_hash)
    refusal(connection_token.verify, token, secret)
    assert isinstance(OctKey.import_key(secret).raw_value, bytes)
