"""Settings: option before environment before file before default, and errors that name the key and the fix."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pydantic
import pytest

from aerodrome import configuration, errors, settings
from aerodrome.core.policy import Isolation, Trust

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "configuration.md"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch, tmp_path):
    """Nothing of the machine's own settings."""
    import os

    for name in list(os.environ):
        if name.startswith("AERODROME_") or name == "XDG_STATE_HOME":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def write(tmp_path):
    def written(text: str) -> Path:
        path = tmp_path / "aerodrome.toml"
        path.write_text(text, "utf-8")
        return path

    return written


def refusal(*args: object, **options: object) -> str:
    with pytest.raises(errors.ConfigError) as raised:
        settings.load(*args, **options)  # type: ignore[arg-type]
    return raised.value.message


def test_without_anything_the_defaults_listen_on_loopback_for_tenants(tmp_path):
    loaded = settings.load()
    assert (loaded.listen, loaded.policy, loaded.upstream) == ("127.0.0.1:4321", "tenants", None)
    assert loaded.state_directory == tmp_path / ".local" / "state" / "aerodrome"
    assert loaded.client_token is None
    assert loaded.configured_tenants() == {}


def test_runtimes_are_limited_by_default_and_never_below_what_one_needs(write):
    runtime = settings.load().runtime
    assert (runtime.memory_bytes, runtime.processes, runtime.cpu_cores) == (2 * 1024**3, 512, None)
    for line in ("memory_bytes = 1000000", "processes = 27", "cpu_cores = 0"):
        assert refusal(write(f"[runtime]\n{line}\n")).startswith(f"runtime.{line.split()[0]}")


def test_option_goes_before_environment_before_file_before_default(write, monkeypatch):
    path = write('listen = "127.0.0.1:1"\nlog_level = "debug"\n[limits]\nmax_links = 1\nfailed_tokens = 1\n')
    assert settings.load(path).listen == "127.0.0.1:1"
    monkeypatch.setenv("AERODROME_LISTEN", "127.0.0.1:2")
    monkeypatch.setenv("AERODROME_LIMITS__MAX_LINKS", "2")
    from_environment = settings.load(path)
    assert (from_environment.listen, from_environment.log_level) == ("127.0.0.1:2", "debug")
    assert (from_environment.limits.max_links, from_environment.limits.failed_tokens) == (2, 1)
    assert settings.load(path, listen="127.0.0.1:3").listen == "127.0.0.1:3"
    assert settings.load(path, listen=None).listen == "127.0.0.1:2"


@pytest.mark.parametrize(
    ("text", "seconds"), [("3600", 3600.0), ("0.5", 0.5), ('"30d"', 2_592_000.0), ('"12h"', 43_200.0), ('"90"', 90.0)]
)
def test_a_tenants_sessions_expire_after_seconds_or_words(write, text, seconds):
    path = write(
        f"[tenants.acme]\nsession_idle_ttl = {text}\n[tenants.globex]\nsession_max_age = {text}\n[tenants.other]"
    )
    tenants = settings.load(path).configured_tenants()
    limits = {n: (t.policy.session_idle_seconds, t.policy.session_age_seconds) for n, t in tenants.items()}
    assert limits == {"acme": (seconds, None), "globex": (None, seconds), "other": (None, None)}


@pytest.mark.parametrize(
    "text", ["0", "-1", "true", "inf", "nan", '"30y"', '"0d"', '"1.5d"', '"30 d"', '"d"', '""', "[]"]
)
def test_a_time_to_live_that_is_none_is_refused_by_name(write, text):
    for name in ("session_idle_ttl", "session_max_age"):
        message = refusal(write(f"[tenants.acme]\n{name} = {text}"))
        assert message.startswith(f"tenants.acme.{name}: expected "), message


def test_times_to_live_can_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("AERODROME_TENANTS__ACME__SESSION_IDLE_TTL", "30d")
    monkeypatch.setenv("AERODROME_TENANTS__ACME__SESSION_MAX_AGE", "3600")
    policy = settings.load().configured_tenants()["acme"].policy
    assert (policy.session_idle_seconds, policy.session_age_seconds) == (2_592_000.0, 3600.0)


def test_one_load_leaves_nothing_behind_for_the_next(write):
    assert settings.load(write("log_json = true")).log_json is True
    assert settings.load().log_json is False
    refusal(write("[limits]\nmax_links = 0"))
    assert settings.load().limits.max_links == 10_000


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("AERODROME_STATE_DIRECTORY", "/srv/aerodrome", lambda s: s.state_directory == Path("/srv/aerodrome")),
        ("AERODROME_RUNTIME__PATH", "/opt/copilot", lambda s: s.runtime.path == Path("/opt/copilot")),
        ("AERODROME_RUNTIME__IDLE_SECONDS", "1.5", lambda s: s.runtime.idle_seconds == 1.5),
        ("AERODROME_RUNTIME__ENVIRONMENT", '{"A":"b"}', lambda s: s.runtime.environment == {"A": "b"}),
        ("AERODROME_LIMITS__STALL_SECONDS", "30", lambda s: s.limits.stall_seconds == 30),
        ("AERODROME_LOG_JSON", "true", lambda s: s.log_json is True),
        ("AERODROME_CLIENT_TOKEN", "t0ken", lambda s: s.client_token.get_secret_value() == "t0ken"),
    ],
)
def test_a_setting_can_come_from_the_environment(monkeypatch, name, value, read):
    monkeypatch.setenv(name, value)
    assert read(settings.load())


def test_tenants_of_the_file_become_tenants_with_their_policy(write):
    path = write(
        '[tenants.acme]\nisolation = "shared"\ntrust = "limited"\nproviders = ["https://models.example/v1"]\n'
        'mcp_servers = ["https://mcp.example"]\n[tenants.dev]\ntrust = "full"\n'
    )
    tenants = settings.load(path).configured_tenants()
    assert sorted(tenants) == ["acme", "dev"]
    acme = tenants["acme"].policy
    assert (acme.isolation, acme.trust) == (Isolation.SHARED, Trust.LIMITED)
    assert acme.allows_provider("https://models.example/v1/chat")
    assert acme.allows_mcp("https://mcp.example/x")
    assert tenants["dev"].policy.isolation is Isolation.USER
    assert tenants["dev"].source == "config"


@pytest.mark.parametrize(
    ("text", "key", "variable"),
    [
        ("[limits]\nmax_links = 0", "limits.max_links", "AERODROME_LIMITS__MAX_LINKS"),
        ('[limits]\nmax_links = "many"', "limits.max_links", "AERODROME_LIMITS__MAX_LINKS"),
        ("[limits]\nhandshake_frame_bytes = 10", "limits.handshake_frame_bytes", "LIMITS__HANDSHAKE_FRAME_BYTES"),
        ("[runtime]\nready_seconds = 0", "runtime.ready_seconds", "AERODROME_RUNTIME__READY_SECONDS"),
        ("[runtime]\nspawn_attempts = 0", "runtime.spawn_attempts", "AERODROME_RUNTIME__SPAWN_ATTEMPTS"),
        ('policy = "open"', "policy", "AERODROME_POLICY"),
        ('log_level = "loud"', "log_level", "AERODROME_LOG_LEVEL"),
        ('[tenants.acme]\nisolation = "none"', "tenants.acme.isolation", "AERODROME_TENANTS__ACME__ISOLATION"),
        ("limits = 5", "limits", "AERODROME_LIMITS"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_its_file_and_its_variable(write, text, key, variable):
    path = write(text)
    message = refusal(path)
    assert message.startswith(f"{key}: ")
    assert str(path) in message
    assert variable in message


@pytest.mark.parametrize("text", ["lissten = 1", "[limits]\nmax_linkss = 1", "[limitz]\nmax_links = 1"])
def test_an_unknown_key_is_refused_by_name(write, text):
    found = tomllib.loads(text)
    name, value = next(iter(found.items()))
    key = f"{name}.{next(iter(value))}" if isinstance(value, dict) and name == "limits" else name
    assert refusal(write(text)).startswith(f"{key}: no such setting")


def test_every_wrong_setting_is_named_at_once(write):
    message = refusal(write('log_level = "loud"\n[limits]\nmax_links = 0\nnonsense = 1'))
    assert all(key in message for key in ("log_level: ", "limits.max_links: ", "limits.nonsense: "))


def test_a_wrong_variable_is_named_without_a_file(monkeypatch):
    monkeypatch.setenv("AERODROME_LIMITS__MAX_LINKS", "-1")
    message = refusal()
    assert message.startswith("limits.max_links: ")
    assert "AERODROME_LIMITS__MAX_LINKS" in message


@pytest.mark.parametrize("name", ["client_token", "upstream_token", "master_key", "master_key_file"])
def test_a_token_in_a_file_is_refused_without_repeating_it(write, name):
    message = refusal(write(f'{name} = "hunter2"'))
    assert f"AERODROME_{name.upper()}" in message
    assert "hunter2" not in message


def test_an_empty_token_is_none_and_so_opens_nothing_beyond_loopback(monkeypatch):
    monkeypatch.setenv("AERODROME_CLIENT_TOKEN", "")
    monkeypatch.setenv("AERODROME_UPSTREAM_TOKEN", "")
    assert "no client token is set" in refusal(policy="transparent", listen="0.0.0.0:0")
    loaded = settings.load(policy="transparent", listen="127.0.0.1:0")
    assert (loaded.client_token, loaded.upstream_token) == (None, None)


def test_a_token_shows_in_no_printed_form(monkeypatch):
    monkeypatch.setenv("AERODROME_CLIENT_TOKEN", "hunter2")
    monkeypatch.setenv("AERODROME_RUNTIME__ENVIRONMENT", '{"COPILOT_GITHUB_TOKEN":"ghp_hunter3"}')
    loaded = settings.load()
    for text in (repr(loaded), str(loaded), repr(loaded.runtime)):
        assert "hunter" not in text


@pytest.mark.parametrize("listen", ["0.0.0.0:4321", "[::]:4321", "192.0.2.7:4321", "example.org:4321"])
def test_transparent_without_a_token_listens_on_loopback_only(monkeypatch, listen):
    assert "AERODROME_CLIENT_TOKEN" in refusal(policy="transparent", listen=listen)
    monkeypatch.setenv("AERODROME_CLIENT_TOKEN", "t0ken")
    assert settings.load(policy="transparent", listen=listen).listen == listen


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "127.3.2.1:0", "[::1]:0", "localhost:0", ":0"])
def test_transparent_on_loopback_needs_no_token(listen):
    assert settings.load(policy="transparent", listen=listen).client_token is None


def test_a_given_upstream_is_for_the_transparent_policy_only():
    assert "--policy transparent" in refusal(upstream="127.0.0.1:1")
    assert settings.load(policy="transparent", upstream="127.0.0.1:1").upstream == "127.0.0.1:1"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:4321", ("127.0.0.1", 4321)),
        (":0", ("127.0.0.1", 0)),
        ("[::1]:65535", ("::1", 65535)),
        ("example.org:1", ("example.org", 1)),
    ],
)
def test_an_address_is_split_into_host_and_port(text, address):
    assert settings.split_address("listen", text) == address


@pytest.mark.parametrize(
    "text", ["", "4321", "localhost", "127.0.0.1:", "127.0.0.1:65536", "::1:80", "a:b:1", "h:-1", "h:1 ", "[::1]"]
)
def test_what_is_no_address_is_refused_by_key(text):
    assert refusal(listen=text).startswith("listen: expected HOST:PORT")
    assert refusal(policy="transparent", upstream=text).startswith("upstream: expected HOST:PORT")


def test_a_file_that_is_not_there_or_not_toml_is_named(write, tmp_path):
    missing = tmp_path / "none.toml"
    assert str(missing) in refusal(missing)
    broken = write("listen = ")
    assert str(broken) in refusal(broken)
    broken.write_bytes(b"listen = '\xff'")
    assert "is not TOML" in refusal(broken)
    assert "cannot read" in refusal(tmp_path)


def test_a_tenant_name_that_could_not_be_used_is_refused(write):
    assert "tenant name" in refusal(write('[tenants."A b"]\ntrust = "full"'))


def test_settings_cannot_be_changed_after_the_parse():
    loaded = settings.load()
    with pytest.raises(pydantic.ValidationError):
        loaded.listen = "0.0.0.0:1"
    with pytest.raises(pydantic.ValidationError):
        loaded.limits.max_links = 1


def test_the_documented_file_is_accepted_and_names_every_setting(write):
    documented = re.search(r"```toml\n(.*?)```", DOCUMENTATION.read_text("utf-8"), re.DOTALL)
    assert documented is not None
    settings.load(write(documented[1]))
    text = documented[1]
    for section in (
        settings.RuntimeSection,
        settings.LimitsSection,
        settings.SessionsSection,
        settings.TenantSection,
        settings.SecretsSection,
        settings.VaultSection,
        settings.ProviderSection,
        settings.GitHubSection,
        settings.SignInSection,
        settings.TlsSection,
        settings.AuditSection,
        settings.TokensSection,
        settings.IssuerSection,
    ):
        for name in section.model_fields:
            assert name in text, name
    for name in set(settings.Settings.model_fields) - {*configuration.SECRETS, "tenants"}:
        assert name in text, name


HOUSE = '[providers.house]\nbase_url = "https://models.example.com/v1"\n'


def test_a_provider_has_its_key_by_reference(write):
    path = write(
        f'{HOUSE}api_key = "env:KEY"\nmodels = ["a", "b"]\naliases = {{ fast = "b" }}\n[tenants.t]\nprovider = "house"'
    )
    loaded = settings.load(path)
    house = loaded.configured_providers()["house"]
    assert (str(house.api_key), house.default_model) == ("env:KEY", "a")
    assert [house.wire_model(name) for name in ("a", "fast", "other")] == ["a", "b", None]
    assert loaded.configured_tenants()["t"].policy.allows_named("house")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('api_key = "sk-canary-1"', "providers.house.api_key: expected a reference"),
        ('bearer_token = "sk-canary-1"', "providers.house.bearer_token: expected a reference"),
        ('headers = { X = "sk-canary-1" }', "providers.house.headers.X: expected a reference"),
        ("", "expected api_key or bearer_token"),
        ('api_key = "env:A"\nbearer_token = "env:B"', "one of the two"),
        ('api_key = "env:A"\nmodels = ["a"]\naliases = { x = "b" }', "not among"),
        ('api_key = "env:A"\ntype = "azure"\naliases = { x = "b" }', "deployments"),
        ('api_key = "env:A"\n[tenants.t]\nprovider = "other"', "no provider 'other'"),
        ('api_key = "env:A"\n[tenants.t]\nprovider_names = ["other"]', "no provider 'other'"),
        ('api_key = "env:A"\n[secrets.vault]\naddress = "https://v"', "expected token or kubernetes_role"),
        ('api_key = "env:A"\n[secrets.vault]\naddress = "https://v"\ntoken = "sk-canary-1"', "secrets.vault.token"),
    ],
)
def test_a_provider_that_cannot_work_or_holds_a_key_is_refused_without_the_key(write, text, words):
    message = refusal(write(f"{HOUSE}{text}\n"))
    assert words in message
    assert "canary" not in message


def test_master_keys_come_from_the_environment_and_never_from_the_file(write, monkeypatch, tmp_path):
    assert settings.load().envelopes() is None
    for name in ("master_key", "old_master_keys"):
        assert "do not belong in a file" in refusal(write(f'{name} = "{"k" * 32}"'))
    monkeypatch.setenv("AERODROME_MASTER_KEY", "short")
    with pytest.raises(errors.ConfigError, match="32 random characters"):
        settings.load().envelopes()
    monkeypatch.setenv("AERODROME_MASTER_KEY", "m" * 32)
    sealed = settings.load().envelopes().seal(b"x", "c")
    monkeypatch.setenv("AERODROME_MASTER_KEY", "")
    path = tmp_path / "master"
    path.write_text("m" * 32 + "\n")
    monkeypatch.setenv("AERODROME_MASTER_KEY_FILE", str(path))
    assert settings.load().envelopes().open(sealed, "c") == b"x"


def test_stored_github_tokens_stay_out_of_runtimes_that_strangers_share(write):
    assert (
        settings.load(write('[tenants.t]\ngithub = "stored"')).configured_tenants()["t"].policy.github.value == "stored"
    )
    assert "strangers share" in refusal(write('[tenants.t]\nisolation = "shared"\ngithub = "stored"'))
    assert settings.load(write('[github]\nclient_id = "a"')).github.client_secret is None
    assert "github.client_id: expected it" in refusal(write('[github]\nclient_secret = "env:A"'))
    assert "github.host" in refusal(write('[github]\nhost = "http://git.acme.example"'))
    message = refusal(write('[github]\nclient_id = "a"\nclient_secret = "canary"'))
    assert message.startswith("github.client_secret: expected a reference")
    assert "canary" not in message


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[tls]\ncertificate = "a.pem"', "tls: expected both certificate and key"),
        ('[tls]\nclient_ca = "ca.pem"', "tls.client_ca: client certificates need TLS"),
        ('[tls]\ncertificate = "a"\nkey = "b"\nclient_names_tenant = true', "tls.client_names_tenant: needs"),
    ],
)
def test_tls_settings_that_do_not_go_together_are_refused(write, text, complaint):
    assert refusal(write(text)).startswith(complaint)


@pytest.mark.parametrize("option", [None, Path("/by/option")])
@pytest.mark.parametrize("variable", [None, "AERODROME_STATE_DIRECTORY", "aerodrome_state_directory"])
@pytest.mark.parametrize("text", [None, "", 'state_directory = "/by/file"'])
def test_commands_find_the_state_directory_where_the_gateway_does(write, monkeypatch, option, variable, text):
    if variable is not None:
        monkeypatch.setenv(variable, "/by/environment")
    config = None if text is None else write(text)
    found = configuration.state_directory(config, option)
    assert found == settings.load(config, state_directory=option).state_directory


def test_commands_find_the_state_directory_beside_mistakes_in_other_settings(write):
    config = write('state_directory = "/by/file"\nlisten = "nowhere"\nno_such = 1')
    assert configuration.state_directory(config, None) == Path("/by/file")
    with pytest.raises(errors.ConfigError, match="state_directory: expected a path, found 7; mend it in "):
        configuration.state_directory(write("state_directory = 7"), None)


OIDC = '[sign_in]\nissuer = "https://login.example.com"\nclient_id = "a"\n'
HUB = '[github]\nclient_id = "a"\nclient_secret = "env:A"\n[sign_in]\nprovider = "github"\n'


def test_browsers_sign_in_by_an_openid_provider_or_github(write):
    assert settings.load().sign_in_rules() is None
    rules = settings.load(
        write(f'{OIDC}tenant_claim = "org"\ntenants = ["t"]\nrole_claim = "groups"\nroles = {{ sre = "operator" }}')
    ).sign_in_rules()
    assert (rules.tenants, rules.tenant_claim, rules.user_claim) == ({"t"}, "org", "sub")
    assert rules.roles["sre"].value == "operator"
    rules = settings.load(write(f'{HUB}tenant = "t"\nusers = ["ann"]')).sign_in_rules()
    assert (rules.tenants, rules.user_claim, rules.users) == ({"t"}, "login", {"ann"})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (OIDC, "sign_in: expected either tenant"),
        (f'{OIDC}tenant = "t"\ntenant_claim = "org"\ntenants = ["t"]', "sign_in: expected either tenant"),
        (f'{OIDC}tenant_claim = "org"', "sign_in: expected either tenant"),
        (f'{OIDC}tenant = "T"', "tenant name"),
        (f'{OIDC}tenant = "t"\nusers = ["A"]', "user name"),
        (f'{OIDC}tenant = "t"\nrole_claim = "groups"', "sign_in: expected both role_claim and roles"),
        (f'{OIDC}tenant = "t"\nrole_claim = "groups"\nroles = {{ a = "god" }}', "sign_in.roles"),
        (f'{OIDC}tenant = "t"\nscopes = ["email"]', "sign_in: expected issuer, client_id, and 'openid'"),
        (f'{OIDC}tenant = "t"\norganizations = ["acme"]', "sign_in.organizations: only GitHub"),
        (f'{OIDC}tenant = "t"\nclient_secret = "canary"', "sign_in.client_secret: expected a reference"),
        ('[sign_in]\ntenant = "t"', "sign_in: expected issuer"),
        (
            '[sign_in]\nissuer = "http://login.example.com"\nclient_id = "a"\ntenant = "t"',
            "sign_in.issuer: expected https",
        ),
        (f'{HUB}tenant = "t"', "sign_in: provider 'github' needs users or organizations"),
        (f'{HUB}tenant = "t"\nusers = ["a"]\nclient_id = "b"', "sign_in: provider 'github' uses the app of [github]"),
        ('[sign_in]\nprovider = "github"\ntenant = "t"\nusers = ["a"]', "sign_in: provider 'github' needs client_id"),
    ],
)
def test_a_sign_in_that_would_let_in_nobody_or_anybody_is_refused(write, text, complaint):
    message = refusal(write(text))
    assert complaint in message
    assert "canary" not in message
