"""Settings of principals: the master key, what connection tokens may be, and issuers whose settings go together."""

from __future__ import annotations

import pytest

from aerodrome import errors, settings
from aerodrome.core.identity import Owner
from aerodrome.core.jwt import Terms

KEY = "0123456789abcdef0123456789abcdef"
ISSUER = {
    "issuer": "https://issuer.example",
    "audience": "app",
    "jwks": "https://issuer.example/jwks",
    "tenant": "acme",
}


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch, tmp_path):
    """Nothing of the machine's own settings."""
    import os

    for name in list(os.environ):
        if name.startswith("AERODROME_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def refusal(call) -> str:
    with pytest.raises(errors.ConfigError) as raised:
        call()
    return raised.value.message


def without(name: str, **changes: object) -> dict[str, object]:
    return {key: value for key, value in {**ISSUER, **changes}.items() if key != name}


def test_the_master_key_comes_from_the_environment_or_from_a_file_that_it_names(monkeypatch, tmp_path):
    assert settings.load().read_master_key() is None
    monkeypatch.setenv("AERODROME_MASTER_KEY", KEY)
    assert settings.load().read_master_key() == KEY.encode()
    assert KEY not in repr(settings.load())
    path = tmp_path / "master.key"
    path.write_text(f"{KEY}{KEY}\n")
    monkeypatch.setenv("AERODROME_MASTER_KEY_FILE", str(path))
    assert "both" in refusal(settings.load().read_master_key)
    monkeypatch.setenv("AERODROME_MASTER_KEY", "")
    assert settings.load().read_master_key() == f"{KEY}{KEY}".encode()


@pytest.mark.parametrize("text", ["short", KEY[:-1], f"  {KEY[:-1]}  \n"])
def test_a_master_key_that_could_be_guessed_is_refused_without_repeating_it(monkeypatch, text):
    monkeypatch.setenv("AERODROME_MASTER_KEY", text)
    message = refusal(settings.load().read_master_key)
    assert message.startswith("master_key: expected 32")
    assert text.strip() not in message


def test_a_master_key_file_that_cannot_be_read_is_named(monkeypatch, tmp_path):
    path = tmp_path / "none"
    monkeypatch.setenv("AERODROME_MASTER_KEY_FILE", str(path))
    assert str(path) in refusal(settings.load().read_master_key)
    path.write_bytes(b"\xff" * 40)
    assert str(path) in refusal(settings.load().read_master_key)


def test_an_issuer_has_safe_defaults():
    [issuer] = settings.load(issuers=[ISSUER]).configured_issuers()
    assert (issuer.name, issuer.keys_at, issuer.terms) == (ISSUER["issuer"], ISSUER["jwks"], Terms("app", 30.0))
    assert (issuer.tenants, issuer.tenant_claim, issuer.user_claim) == ({"acme"}, None, "sub")
    assert issuer.algorithms == {"RS256", "PS256", "ES256", "EdDSA"}


def test_an_issuer_may_name_tenants_by_a_claim():
    given = without("tenant", tenant_claim="org", tenants=["acme", "globex"])
    [issuer] = settings.load(issuers=[given]).configured_issuers()
    assert (issuer.tenants, issuer.tenant_claim) == ({"acme", "globex"}, "org")


@pytest.mark.parametrize("jwks", ["https://h/jwks", "http://127.0.0.1:8/jwks", "http://[::1]:8/jwks", "/etc/jwks.json"])
def test_keys_come_by_https_from_this_machine_or_from_a_file(jwks):
    assert settings.load(issuers=[{**ISSUER, "jwks": jwks}]).configured_issuers()[0].keys_at == jwks


@pytest.mark.parametrize(
    ("issuer", "key"),
    [
        (without("tenant"), "issuers.0: "),
        ({**ISSUER, "tenant_claim": "org", "tenants": ["acme"]}, "issuers.0: "),
        ({**ISSUER, "tenants": ["acme"]}, "issuers.0: "),
        (without("tenant", tenant_claim="org"), "issuers.0: "),
        ({**ISSUER, "issuer": ""}, "issuers.0: "),
        ({**ISSUER, "audience": ""}, "issuers.0: "),
        ({**ISSUER, "tenant": "A b"}, "tenant name"),
        (without("audience"), "issuers.0.audience: "),
        ({**ISSUER, "moon": 1}, "issuers.0.moon: no such setting"),
        ({**ISSUER, "skew_seconds": -1}, "issuers.0.skew_seconds: "),
        *(({**ISSUER, "algorithms": [name]}, "issuers.0.algorithms: ") for name in ("HS256", "none", "rs256", "")),
        ({**ISSUER, "algorithms": []}, "issuers.0.algorithms: "),
        *(
            ({**ISSUER, "jwks": jwks}, "issuers.0.jwks: ")
            for jwks in (
                "http://issuer.example/jwks",
                "http://127.0.0.1.evil.example/jwks",
                "http://localhost@evil.example/jwks",
                "https://user:secret@issuer.example/jwks",
                "ftp://issuer.example/jwks",
                "file:///etc/passwd",
                "https://",
                "https://[::1/jwks",
                "https://issuer.example:port/jwks",
                "jwks.json",
                "",
            )
        ),
    ],
)
def test_an_issuer_whose_settings_do_not_go_together_stops_the_start(issuer, key):
    message = refusal(lambda: settings.load(issuers=[issuer]))
    assert message.startswith(key), message
    assert "secret" not in message


@pytest.mark.parametrize("section", [{"max_seconds": 0}, {"skew_seconds": 601}])
def test_what_connection_tokens_may_be_has_bounds(section):
    assert refusal(lambda: settings.load(tokens=section)).startswith("tokens.")


def test_claims_of_another_issuer_are_nobodys_though_its_key_signed_them():
    [issuer] = settings.load(issuers=[ISSUER]).configured_issuers()
    assert issuer.read_owner({"iss": ISSUER["issuer"], "sub": "ann"}) == Owner("acme", "ann")
    for iss in (None, "https://issuer.example/", [ISSUER["issuer"]]):
        with pytest.raises(errors.AuthenticationFailed):
            issuer.read_owner({"iss": iss, "sub": "ann"})
