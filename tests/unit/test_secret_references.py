"""References stand for secrets; a secret never shows itself."""

from __future__ import annotations

import copy
import json
import pickle

import pytest

from aerodrome import errors
from aerodrome.core import secret
from aerodrome.core.secret import Reference, Secret

CANARY = "sk-canary-8d1f"


@pytest.mark.parametrize(
    ("text", "scheme", "rest"),
    [
        ("env:OPENAI_KEY", "env", "OPENAI_KEY"),
        ("file:/run/keys/openai", "file", "/run/keys/openai"),
        ("exec:/usr/bin/pass show openai", "exec", "/usr/bin/pass show openai"),
        ("vault:kv/models/openai#api_key", "vault", "kv/models/openai#api_key"),
        ("k8s:/var/run/secrets/models/openai", "k8s", "/var/run/secrets/models/openai"),
    ],
)
def test_a_reference_is_a_scheme_and_where_the_secret_is(text, scheme, rest):
    assert secret.parse("providers.x.api_key", text) == Reference(scheme, rest)


@pytest.mark.parametrize(
    "text",
    [
        CANARY,
        "",
        "https://user:sk-canary-8d1f@host/",
        "env:",
        f"env:{CANARY}",
        "env:A B",
        "file:relative/sk-canary-8d1f",
        "exec:pass sk-canary-8d1f",
        "vault:kv#sk-canary-8d1f",
        "vault:kv/../sk-canary-8d1f#f",
        "vault:kv/a?x=sk-canary-8d1f#f",
        "file:/a\nsk-canary-8d1f",
    ],
)
def test_a_literal_key_or_a_wrong_form_is_refused_and_not_repeated(text):
    with pytest.raises(errors.ConfigError) as raised:
        secret.parse("providers.x.api_key", text)
    assert raised.value.message.startswith("providers.x.api_key: expected")
    assert CANARY not in raised.value.message


def test_a_secret_does_not_show_itself():
    held = Secret(CANARY)
    for shown in (repr(held), str(held), f"{held}", f"{held!r:>20}", repr({"key": held}), repr([held])):
        assert CANARY not in shown
    for leak in (pickle.dumps, copy.deepcopy, json.dumps):
        with pytest.raises(TypeError) as raised:
            leak(held)
        assert CANARY not in str(raised.value)
    assert held.reveal() == CANARY
    assert held == Secret(CANARY) != Secret("other")
    assert held != CANARY


def test_a_command_is_named_without_its_arguments():
    assert str(Reference("exec", f"/usr/bin/pass --key {CANARY}")) == "exec:/usr/bin/pass"
