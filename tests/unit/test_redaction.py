"""Redaction: what looks like a secret is blanked out wherever it stands, and what is none stays as it is."""

from __future__ import annotations

import json
import time

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from aerodrome import observe, redaction
from aerodrome.core import identity
from aerodrome.core.identity import Owner

KEY, TOKEN = identity.create_key(Owner("acme", "ann"), 0.0)
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJlLXNpZ25hdHVyZQ"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEcanary\nlines\n-----END RSA PRIVATE KEY-----"
SECRETS = {
    "a key of ours": (TOKEN, TOKEN[18:]),
    "a JWT": (f"got {JWT}.", JWT[10:]),
    "a GitHub token": ("ghp_16C7e42F292c6912E7710c838347Ae178B4a", "16C7e42F292c"),
    "a GitHub user token": ("gho_16C7e42F292c6912E7710c838347Ae178B4a", "16C7e42F292c"),
    "a fine-grained GitHub token": ("github_pat_11ABCDEFG0abcdefghij_klmnop", "11ABCDEFG0"),
    "a bearer header": ("Authorization: Bearer canary-canary==", "canary"),
    "a basic header": ("authorization: basic Y2FuYXJ5OmNhbmFyeQ==", "Y2FuYXJ5"),
    "a header of another kind": ("X-Api-Key: canary123", "canary"),
    "an apiKey member": ('{"provider":{"apiKey":"canary1"}}', "canary"),
    "an apiKey member in escaped JSON": (r'"{\"apiKey\":\"canary1\"}"', "canary"),
    "a Python value": ("{'bearerToken': 'canary1', 'x': 1}", "canary"),
    "a query": ("https://x.invalid/?access_token=canary1&n=1", "canary"),
    "credentials in a URL": ("http://user:canary@x.invalid/path", "canary"),
    "a private key": (PEM, "canary"),
    "the beginning of a private key": (PEM[:50], "canary"),
    "a key of a model provider": ("sk-proj-canarycanarycanary", "canary"),
    "a variable": ("AERODROME_AUDIT_KEY=canarycanary", "canary"),
}
HARMLESS = (
    "runtime rt-00a88b9b2d for user:acme/alice was stopped: idle",
    "session 46128bcc-2859-46da-94b4-0d072da1d84b is not on disk any more: Session not found",
    '{"inputTokens":3648,"outputTokens":10,"cost":0.0}',
    "the runtime refuses our token; check the upstream's token",
    "https://models.example.com/v1",
    "127.0.0.1:4321",
    "expected NUMBER:HASH as aerodrome audit head prints it",
    "max_tokens: 5",
)


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_blanked_out(name):
    text, secret = SECRETS[name]
    masked = redaction.mask(f"before {text} after")
    assert secret in text
    assert secret not in masked
    assert redaction.MASK in masked
    assert masked.startswith("before ")


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text):
    assert redaction.mask(text) == text


def test_the_id_of_a_key_stays():
    assert redaction.mask(TOKEN) == f"aero_{KEY.key_id}_***"


@pytest.mark.parametrize("name", SECRETS)
def test_masking_twice_changes_nothing_more(name):
    once = redaction.mask(SECRETS[name][0])
    assert redaction.mask(once) == once


@pytest.mark.parametrize(
    ("said", "masked"),
    [
        ('{"TOKEN": 12345678}', '{"TOKEN": "***"}'),
        ('{"token":-1e+300}', '{"token":"***"}'),
        ('{"token": [12345678]}', '{"token": [12345678]}'),
        (r'{"a": "{\"token\": 12345678}"}', r'{"a": "{\"token\": \"***\"}"}'),
    ],
)
def test_a_number_in_the_place_of_a_secret_is_masked_as_a_string(said, masked):
    assert redaction.mask(said) == masked
    json.loads(masked)


@settings(max_examples=30)
@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.dictionaries(st.text(), inner) | st.lists(inner)
    )
)
def test_masked_json_is_still_json(value):
    json.loads(redaction.mask(json.dumps(value)))
    json.loads(json.dumps(redaction.mask_value(value)))


@pytest.mark.parametrize("name", [name for name in SECRETS if "JSON" not in name])
def test_json_that_holds_a_secret_is_still_json(name):
    line = redaction.mask(json.dumps({"reason": SECRETS[name][0], "n": 1}))
    assert json.loads(line)["n"] == 1
    assert SECRETS[name][1] not in line


@pytest.mark.parametrize("piece", ["token", "a" * 50, "://", "eyJ", "-----BEGIN ", "bearer ", "'\"", "x_-"])
def test_a_hostile_text_takes_no_longer_than_another(piece):
    text = piece * (200_000 // len(piece))
    began = time.process_time()  # not the clock's: a busy machine has this process wait
    redaction.mask(text)
    assert time.process_time() - began < 2.0


def test_members_named_like_secrets_are_blanked_out_whatever_they_hold():
    value = {"provider": {"apiKey": "x", "baseUrl": "http://h"}, "list": [{"token": "y"}], "tokens": 3, "api_key": None}
    assert redaction.mask_value(value) == {
        "provider": {"apiKey": "***", "baseUrl": "http://h"},
        "list": [{"token": "***"}],
        "tokens": 3,
        "api_key": None,
    }


@pytest.fixture(autouse=True)
def restored():
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("name", SECRETS)
def test_no_log_line_shows_a_secret_in_a_field_or_a_traceback(capsys, as_json, name):
    text, secret = SECRETS[name]
    observe.configure_logs("debug", as_json)
    log = structlog.get_logger()
    log.warning("link.failed", reason=text, apiKey="canary-value", nested={"details": [text]})
    try:
        raise ValueError(text)
    except ValueError:
        log.exception("link.failed")
    said = capsys.readouterr().err
    assert "link.failed" in said
    assert secret not in said
    assert "canary-value" not in said
