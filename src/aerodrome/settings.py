"""One parse of TOML and environment into frozen values; command-line options go before both.

Order: option, environment (`AERODROME_...`, nested keys with `__`), TOML file, default. Every error names the key, what was
found and what to do. Tokens come from the environment only: a configuration file is no place for secrets.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork, SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from aerodrome import configuration, errors
from aerodrome.adapters.secrets import vault_settings
from aerodrome.adapters.secrets.vault_settings import VaultSettings
from aerodrome.core import audit, egress, github, identity, places, policy_document, provider, secret
from aerodrome.core import issuer as issuer_module
from aerodrome.core import policy as policies
from aerodrome.core.envelope import Envelopes
from aerodrome.core.github import Endpoints
from aerodrome.core.identity import Role, Tenant
from aerodrome.core.issuer import Issuer
from aerodrome.core.jwt import Terms
from aerodrome.core.policy import ClientLoss, GitHubAccess, Isolation, Policy, Trust
from aerodrome.core.provider import NamedProvider
from aerodrome.core.sign_in import Rules

_MASTER_KEY_BYTES = 32
_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[^:\[\]]*)):(?P<port>[0-9]{1,5})\Z")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RuntimeSection(_Section):
    """`[runtime]`: which Copilot runtime, and what every one of them is started with."""

    path: Path | None = None
    entry: Literal["auto", "native", "node"] = "auto"
    environment: dict[str, str] = Field(default_factory=dict, repr=False)
    ready_seconds: float = Field(default=20.0, gt=0)
    stop_grace_seconds: float = Field(default=5.0, ge=0)
    freeze_seconds: float = Field(default=60.0, ge=0)
    idle_seconds: float = Field(default=300.0, gt=0)
    live_sessions: int = Field(default=50, ge=0)
    live_memory_bytes: int = Field(default=1024**3, ge=0)
    links_per_runtime: int = Field(default=120, ge=1)
    shared_runtimes: int = Field(default=4, ge=1)
    spawns_at_once: int = Field(default=4, ge=1)
    spawn_queue: int = Field(default=1000, ge=0)
    spawn_attempts: int = Field(default=5, ge=1)
    max_runtimes: int = Field(default=0, ge=0)
    warm_runtimes: int = Field(default=2, ge=0)
    warm_runtimes_max: int = Field(default=8, ge=0)
    max_open_files: int = Field(default=16384, ge=256)
    memory_bytes: int = Field(default=2 * 1024**3, ge=120 * 1024**2)
    processes: int = Field(default=512, ge=28)
    cpu_cores: float | None = Field(default=None, ge=0.01)
    health_interval_seconds: float = Field(default=5.0, ge=0)
    health_deadline_seconds: float = Field(default=5.0, gt=0)
    health_failures: int = Field(default=2, ge=1)
    recycle_memory_bytes: int = Field(default=1536 * 1024 * 1024, ge=0)
    recycle_threads: int = Field(default=2000, ge=0)
    recycle_processes: int = Field(default=256, ge=0)
    recycle_age_seconds: float = Field(default=24 * 3600.0, ge=0)
    recycle_sessions: int = Field(default=10_000, ge=0)
    recycle_ping_factor: float = Field(default=5.0, ge=0)
    recycle_ping_floor_seconds: float = Field(default=0.005, ge=0)


class LimitsSection(_Section):
    """`[limits]`: what a client link may cost."""

    max_links: int = Field(default=10_000, ge=1)
    links_per_user: int = Field(default=1000, ge=0)
    handshake_seconds: float = Field(default=10.0, gt=0)
    handshake_frame_bytes: int = Field(default=16 * 1024, ge=1024)
    failed_tokens: int = Field(default=16, ge=1)
    max_frame_bytes: int = Field(default=64 * 1024 * 1024, ge=64 * 1024)
    max_requests_in_flight: int = Field(default=10_000, ge=1)
    stall_seconds: float = Field(default=60.0, gt=0)


class TlsSection(_Section):
    """`[tls]`: how the listener is encrypted. Without a certificate it is not."""

    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    client_names_tenant: bool = False


class HttpSection(_Section):
    """`[http]`: the HTTP API. Without `listen` there is none."""

    listen: str | None = None
    max_connections: int = Field(default=4096, ge=1)
    max_body_bytes: int = Field(default=1024 * 1024, ge=1024)
    cors_origins: tuple[str, ...] = ()
    requests_per_minute: int = Field(default=0, ge=0)
    open_requests_per_user: int = Field(default=500, ge=0)
    idempotency_seconds: float = Field(default=86_400.0, gt=0)
    ask_seconds: float = Field(default=600.0, gt=0, le=3600)
    team_chat: bool = False
    idle_seconds: float = Field(default=120.0, gt=0)
    keep_alive_seconds: float = Field(default=15.0, gt=0)
    stall_seconds: float = Field(default=30.0, gt=0)
    public_url: str | None = None
    trusted_proxies: tuple[IPvAnyNetwork, ...] = ()
    signed_in_seconds: float = Field(default=12 * 3600.0, gt=0)
    signed_in_idle_seconds: float = Field(default=3600.0, gt=0)
    metrics: Literal["operator", "open"] = "operator"


class SessionsSection(_Section):
    """`[sessions]`: how expired sessions are deleted. When they expire is a tenant's policy."""

    reap_interval_seconds: float = Field(default=300.0, ge=0)
    reap_dry_run: bool = False


class TurnsSection(_Section):
    """`[turns]`: turns in shared sessions."""

    lease_seconds: float = Field(default=15.0, ge=0.5, le=3600)


class SandboxSection(_Section):
    """`[sandbox]`: in what runtimes of fully trusted tenants are kept."""

    mode: Literal["auto", "bubblewrap", "off"] = "auto"
    bubblewrap: Path | None = None
    network: Literal["egress", "none", "host"] = "egress"
    egress: tuple[str, ...] = ()
    read_only: tuple[Path, ...] = ()
    first_uid: int = Field(default=2_000_000_000, ge=1000, le=2**32 - 2)
    uids: int = Field(default=100_000, ge=1)
    unsandboxed: Literal["", "agents run commands as the gateway's user"] = ""


class VaultSection(_Section):
    """`[secrets.vault]`: the Vault that `vault:` references are read from; its own credential is a reference too."""

    address: str
    token: str | None = None
    namespace: str | None = None
    kubernetes_role: str | None = None
    kubernetes_mount: str = "kubernetes"
    kubernetes_jwt: str = str(vault_settings.SERVICE_ACCOUNT)
    timeout_seconds: float = Field(default=10.0, gt=0)


class SecretsSection(_Section):
    """`[secrets]`: how secrets are read that other settings only name."""

    cache_seconds: float = Field(default=60.0, ge=0)
    grace_seconds: float = Field(default=600.0, ge=0)
    command_seconds: float = Field(default=10.0, gt=0)
    vault: VaultSection | None = None


class ProviderSection(_Section):
    """`[providers.NAME]`: a model endpoint whose key the gateway keeps. Keys and headers are references."""

    type: Literal["openai", "azure", "anthropic"] = "openai"
    base_url: str
    wire_api: Literal["completions", "responses"] | None = None
    api_key: str | None = Field(default=None, repr=False)
    bearer_token: str | None = Field(default=None, repr=False)
    headers: dict[str, str] = Field(default_factory=dict, repr=False)
    models: tuple[str, ...] = ()
    aliases: dict[str, str] = Field(default_factory=dict)
    azure_api_version: str | None = None


class GitHubSection(_Section):
    """`[github]`: users' GitHub tokens. The app is needed where users sign in, and where tokens expire and are renewed."""

    host: str = github.DEFAULT_HOST
    api: str | None = None
    scopes: tuple[str, ...] = ()
    client_id: str | None = None
    client_secret: str | None = Field(default=None, repr=False)
    refresh_before_seconds: float = Field(default=1800.0, gt=0)
    check_seconds: float = Field(default=60.0, gt=0)


class SignInSection(_Section):
    """`[sign_in]`: how browsers sign in, and who that is here: docs/principals.md."""

    provider: Literal["oidc", "github"] = "oidc"
    issuer: str | None = None
    client_id: str | None = None
    client_secret: str | None = Field(default=None, repr=False)
    scopes: tuple[str, ...] = ("openid", "profile", "email")
    organizations: tuple[str, ...] = ()
    tenant: str | None = None
    tenant_claim: str | None = None
    tenants: tuple[str, ...] = ()
    user_claim: str | None = None
    users: tuple[str, ...] = ()
    role_claim: str | None = None
    roles: dict[str, Role] = Field(default_factory=dict)
    skew_seconds: float = Field(default=30.0, ge=0, le=600)


class AuditSection(_Section):
    """`[audit]`: the record of who did what (docs/audit.md). The key that seals it is `audit_key`, or in `key_file`."""

    enabled: bool = True
    required: bool = True
    peers: bool = True
    sync_seconds: float = Field(default=0.1, ge=0, le=10)
    segment_bytes: int = Field(default=16 * 1024**2, ge=4096)
    key_file: Path | None = None


class UserSection(_Section):
    """`[tenants.NAME.users."USER"]`: what differs for one user; only what is given counts (core.policy_document)."""

    providers: tuple[str, ...] = ()
    mcp_servers: tuple[str, ...] = ()
    webhooks: tuple[str, ...] = ()
    #: Seconds, or words such as "30d"; checked with the tenant, so that an error says so in one line.
    session_idle_ttl: Any = None
    session_max_age: Any = None
    client_loss: ClientLoss = ClientLoss.CLOSE
    provider: str | None = None
    provider_names: tuple[str, ...] = ()
    github: GitHubAccess = GitHubAccess.CLIENT
    models: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    max_sessions_per_user: int = Field(default=0, ge=0)
    max_turns_per_user: int = Field(default=0, ge=0)
    work_root: str = ""
    egress: tuple[str, ...] = ()
    host_tools: bool = False


class TenantSection(UserSection):
    """`[tenants.NAME]`: one tenant's policy."""

    isolation: Isolation = Isolation.USER
    trust: Trust = Trust.LIMITED
    max_sessions_per_tenant: int = Field(default=0, ge=0)
    max_turns_per_tenant: int = Field(default=0, ge=0)
    users: dict[str, UserSection] = Field(default_factory=dict)


class TokensSection(_Section):
    """`[tokens]`: connection tokens that backends mint for their users."""

    max_seconds: float = Field(default=3600.0, ge=1)
    skew_seconds: float = Field(default=30.0, ge=0, le=600)
    #: So long tokens made before their user's erasure are known to be; never less than connection tokens live.
    erased_seconds: float = Field(default=7 * 86400.0, ge=0)


class IssuerSection(_Section):
    """`[[issuers]]`: whose JWTs users may bring."""

    issuer: str
    audience: str
    jwks: str
    tenant: str | None = None
    tenant_claim: str | None = None
    tenants: tuple[str, ...] = ()
    user_claim: str = "sub"
    algorithms: tuple[str, ...] = issuer_module.DEFAULT_ALGORITHMS
    skew_seconds: float = Field(default=30.0, ge=0, le=600)
    refresh_seconds: float = Field(default=600.0, ge=10)
    stale_seconds: float = Field(default=86400.0, ge=0)


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        env_prefix=configuration.PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    listen: str = "127.0.0.1:4321"
    state_directory: Path = Field(default_factory=lambda: configuration.default_state_directory(os.environ))
    policy: Literal["tenants", "transparent"] = "tenants"
    upstream: str | None = None
    drain_seconds: float = Field(default=30.0, ge=0)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_json: bool = False
    runtime: RuntimeSection = RuntimeSection()
    limits: LimitsSection = LimitsSection()
    sessions: SessionsSection = SessionsSection()
    turns: TurnsSection = TurnsSection()
    sandbox: SandboxSection = SandboxSection()
    tls: TlsSection = TlsSection()
    http: HttpSection = HttpSection()
    audit: AuditSection = AuditSection()
    tokens: TokensSection = TokensSection()
    issuers: tuple[IssuerSection, ...] = ()
    tenants: dict[str, TenantSection] = Field(default_factory=dict)
    providers: dict[str, ProviderSection] = Field(default_factory=dict)
    secrets: SecretsSection = SecretsSection()
    github: GitHubSection = GitHubSection()
    sign_in: SignInSection | None = None
    client_token: SecretStr | None = None
    upstream_token: SecretStr | None = None
    #: What the gateway's own secrets are derived from or encrypted with; see `read_master_key`.
    master_key: SecretStr | None = None
    master_key_file: Path | None = None
    #: Earlier ones, by commas: they open what they sealed and seal nothing new.
    old_master_keys: SecretStr | None = None
    audit_key: SecretStr | None = None

    @pydantic.field_validator("client_token", "upstream_token", "master_key", "audit_key")
    @classmethod
    def _is_given(cls, token: SecretStr | None) -> SecretStr | None:
        """Take an empty token for none: it is what a shell makes of an unset variable, and would admit everyone."""
        return token if token is not None and token.get_secret_value() else None

    @pydantic.field_validator("master_key_file", mode="before")
    @classmethod
    def _is_named(cls, path: Any) -> Any:
        """Take an empty name for none, as with tokens."""
        return path or None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put options before environment before file (the file's values come in by `_from_file`)."""
        return init_settings, env_settings, _FileSource(settings_cls)

    @property
    def database_url(self) -> str:
        """Return where tenants, keys and session owners are kept."""
        return f"sqlite:///{self.state_directory / 'aerodrome.db'}"

    def audit_keys(self) -> tuple[bytes, ...]:
        """Return the keys that seal the audit log, the newest first; none: it is not sealed.

        Raises:
            errors.ConfigError: the key file cannot be read, or a key is too short.
        """
        if self.audit_key is not None:
            return audit.parse_keys(self.audit_key.get_secret_value())
        path = self.audit.key_file
        if path is None:
            return ()
        try:
            return audit.parse_keys(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise errors.ConfigError(f"audit.key_file: cannot read {path}: {error}") from None

    def configured_tenants(self) -> dict[str, Tenant]:
        """Return the tenants of the configuration."""
        return {name: _tenant(name, section) for name, section in self.tenants.items()}

    def configured_providers(self) -> dict[str, NamedProvider]:
        """Return the providers whose keys the gateway keeps."""
        return {name: provider.make(name, section.model_dump()) for name, section in self.providers.items()}

    def configured_issuers(self) -> list[Issuer]:
        """Return the issuers of the configuration."""
        return [_issuer(f"issuers.{number}", section) for number, section in enumerate(self.issuers)]

    def github_endpoints(self) -> Endpoints:
        """Return where GitHub is asked."""
        return github.endpoints(self.github.host, self.github.api)

    def sign_in_rules(self) -> Rules | None:
        """Return who a browser's user may be, None if browsers do not sign in."""
        return None if self.sign_in is None else _sign_in_rules(self.sign_in)

    def read_master_key(self) -> bytes | None:
        """Return the master key, from its file if one is named; None if there is none.

        Raises:
            errors.ConfigError: both are given, the file cannot be read, or it is too short to be a key.
        """
        if self.master_key is not None and self.master_key_file is not None:
            raise errors.ConfigError("master_key: expected it or master_key_file, found both; leave one out")
        if self.master_key_file is None:
            return None if self.master_key is None else _master_key("master_key", self.master_key.get_secret_value())
        try:
            text = self.master_key_file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no text"
            raise errors.ConfigError(f"master_key_file: cannot read {self.master_key_file}: {reason}") from None
        return _master_key("master_key_file", text)

    def envelopes(self, purpose: str = "tokens") -> Envelopes | None:
        """Return what stored tokens (or another purpose's values) are sealed with, None without a master key."""
        masters = self.read_master_keys()
        return Envelopes(masters, purpose) if masters else None

    def read_master_keys(self) -> tuple[bytes, ...]:
        """Return the master key and those before it; none without one. Raises errors.ConfigError, as `read_master_key`."""
        master = self.read_master_key()
        if master is None:
            return ()
        old = self.old_master_keys.get_secret_value().split(",") if self.old_master_keys is not None else []
        return master, *(_master_key("old_master_keys", key) for key in old if key.strip())

    def vault_settings(self) -> VaultSettings | None:
        """Return where Vault is and how to prove oneself there, None if none is configured."""
        section = self.secrets.vault
        if section is None:
            return None
        where = "secrets.vault"
        if (section.token is None) == (section.kubernetes_role is None):
            raise errors.ConfigError(f"{where}: expected token or kubernetes_role, one of the two")
        return VaultSettings(
            policies.check_url(f"{where}.address", section.address),
            None if section.token is None else secret.parse(f"{where}.token", section.token),
            section.namespace,
            section.kubernetes_role,
            section.kubernetes_mount,
            secret.parse(f"{where}.kubernetes_jwt", section.kubernetes_jwt),
            section.timeout_seconds,
        )

    def check_provider_names(self, where: str, policy: Policy) -> None:
        """Raise errors.ConfigError if a policy names a provider that is not configured."""
        for name in (*([policy.provider] if policy.provider else []), *policy.provider_names):
            if name not in self.providers:
                raise errors.ConfigError(f"{where}: no provider {name!r} is configured; add [providers.{name}]")

    def check_tenant_providers(self, where: str, tenant: Tenant) -> None:
        """Raise errors.ConfigError if a tenant's policy, or what differs for a user, names a provider that is not configured."""
        for policy in (tenant.policy, *(tenant.policy_for(user) for user in tenant.users)):
            self.check_provider_names(where, policy)


class _FileSource(PydanticBaseSettingsSource):
    """The values of the TOML file of this load."""

    values: dict[str, Any] = {}  # noqa: RUF012  set for the length of one load

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return self.values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return dict(self.values)


def load(config: Path | None = None, **options: Any) -> Settings:
    """Return the settings; options that are None count as not given.

    Raises:
        errors.ConfigError: a value is wrong, a key is unknown, or two settings do not go together.
    """
    _FileSource.values = configuration.read_file(config) if config is not None else {}
    try:
        settings = Settings(**{name: value for name, value in options.items() if value is not None})
    except pydantic.ValidationError as error:
        raise errors.ConfigError(_explain(error, config)) from None
    finally:
        _FileSource.values = {}
    _check(settings)
    return settings


def split_address(name: str, text: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`, `[IPv6]:PORT` or `:PORT` (loopback).

    Raises:
        errors.ConfigError: it is none of them.
    """
    match = _ADDRESS.match(text)
    if match is None or int(match["port"]) > 65535:
        raise errors.ConfigError(f"{name}: expected HOST:PORT, found {text!r}; for example 127.0.0.1:4321")
    return match["v6"] or match["host"] or "127.0.0.1", int(match["port"])


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tenant(name: str, section: TenantSection) -> Tenant:
    where = f"tenants.{name}"
    users = {
        identity.check_name("user", user): policy_document.override_of(f"{where}.users.{user}", _said(override))
        for user, override in section.users.items()
    }
    policy = policy_document.policy_of(where, _said(section))
    return policy_document.check_tenant(where, Tenant(identity.check_name("tenant", name), policy, "config", users))


def _said(section: UserSection) -> dict[str, Any]:
    return {word: getattr(section, word) for word in section.model_fields_set if word in policy_document.WORDS}


def _sign_in_rules(section: SignInSection) -> Rules:
    where = "sign_in"
    if (section.tenant is None) == (section.tenant_claim is None) or bool(section.tenants) != bool(
        section.tenant_claim
    ):
        raise errors.ConfigError(f"{where}: expected either tenant, or tenant_claim and tenants")
    if bool(section.roles) != bool(section.role_claim):
        raise errors.ConfigError(f"{where}: expected both role_claim and roles, or neither")
    tenants = section.tenants if section.tenant is None else (section.tenant,)
    return Rules(
        frozenset(identity.check_name("tenant", tenant) for tenant in tenants),
        section.tenant_claim,
        section.user_claim or ("login" if section.provider == "github" else "sub"),
        frozenset(identity.check_name("user", user) for user in section.users),
        section.role_claim,
        section.roles,
    )


def _issuer(where: str, section: IssuerSection) -> Issuer:
    if (section.tenant is None) == (section.tenant_claim is None) or bool(section.tenants) != bool(
        section.tenant_claim
    ):
        raise errors.ConfigError(f"{where}: expected either tenant, or tenant_claim and tenants")
    tenants = section.tenants if section.tenant is None else (section.tenant,)
    issuer = Issuer(
        section.issuer,
        section.jwks,
        Terms(section.audience, section.skew_seconds),
        frozenset(tenants),
        section.tenant_claim,
        section.user_claim,
        frozenset(section.algorithms),
        section.refresh_seconds,
        section.stale_seconds,
    )
    return issuer_module.check(where, issuer)


def _master_key(name: str, text: str) -> bytes:
    key = text.strip().encode()
    if len(key) < _MASTER_KEY_BYTES:
        raise errors.ConfigError(
            f"{name}: expected {_MASTER_KEY_BYTES} random characters or more, found {len(key)}; "
            "for example from: openssl rand -base64 32"
        )
    return key


def _check_tls(settings: Settings) -> None:
    tls = settings.tls
    if (tls.certificate is None) != (tls.key is None):
        raise errors.ConfigError("tls: expected both certificate and key, found one of them; name the other too")
    if tls.client_ca is not None and tls.certificate is None:
        raise errors.ConfigError("tls.client_ca: client certificates need TLS; set tls.certificate and tls.key too")
    if tls.client_names_tenant and (tls.client_ca is None or settings.policy == "transparent"):
        raise errors.ConfigError("tls.client_names_tenant: needs tls.client_ca and the policy 'tenants'")


def _check_github(settings: Settings) -> None:
    section = settings.github
    if section.client_secret is not None:
        secret.parse("github.client_secret", section.client_secret)
        if section.client_id is None:
            raise errors.ConfigError("github.client_id: expected it where there is a client_secret")
    settings.github_endpoints()


def _check_sign_in(settings: Settings) -> None:
    section = settings.sign_in
    if section is None:
        return
    settings.sign_in_rules()
    if section.provider == "github":
        if section.issuer or section.client_id or section.client_secret:
            raise errors.ConfigError("sign_in: provider 'github' uses the app of [github]; leave issuer and client out")
        if settings.github.client_id is None or settings.github.client_secret is None:
            raise errors.ConfigError("sign_in: provider 'github' needs client_id and client_secret in [github]")
        if not (section.users or section.organizations):
            # Anyone in the world has an account there.
            raise errors.ConfigError("sign_in: provider 'github' needs users or organizations: whom may it let in?")
        return
    if section.organizations:
        raise errors.ConfigError("sign_in.organizations: only GitHub has them; use tenant_claim or users")
    if not section.issuer or not section.client_id or "openid" not in section.scopes:
        raise errors.ConfigError("sign_in: expected issuer, client_id, and 'openid' among its scopes")
    places.check("sign_in.issuer", section.issuer)
    if section.client_secret is not None:
        secret.parse("sign_in.client_secret", section.client_secret)


def _check_http(settings: Settings) -> None:
    if settings.http.listen is None:
        return
    split_address("http.listen", settings.http.listen)
    if settings.policy == "transparent":
        raise errors.ConfigError("http.listen: the transparent policy has no HTTP API; leave it out, or use 'tenants'")
    if settings.http.public_url is not None:
        policies.check_url("http.public_url", settings.http.public_url)


def _check(settings: Settings) -> None:
    _check_tls(settings)
    _check_http(settings)
    host, _ = split_address("listen", settings.listen)
    settings.configured_providers()
    settings.vault_settings()
    _check_github(settings)
    _check_sign_in(settings)
    for name, tenant in settings.configured_tenants().items():
        settings.check_tenant_providers(f"tenants.{name}", tenant)
    settings.configured_issuers()
    if settings.policy == "transparent":
        if settings.client_token is None and not is_loopback(host):
            raise errors.ConfigError(
                f"listen: {settings.listen} can be reached from other machines and no client token is set; "
                f"set {configuration.PREFIX}CLIENT_TOKEN, or listen on 127.0.0.1"
            )
    elif settings.upstream is not None:
        raise errors.ConfigError(
            "upstream: a given upstream serves one trusted tenant only; add --policy transparent, or leave it out"
        )
    if settings.upstream is not None:
        split_address("upstream", settings.upstream)
    for target in settings.sandbox.egress:
        egress.check_target("sandbox.egress", target)


def _explain(error: pydantic.ValidationError, config: Path | None) -> str:
    """Return one line for each wrong setting: its key, its environment name, what is wrong."""
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        parts = [str(part) for part in problem["loc"]]
        key, variable = ".".join(parts), configuration.PREFIX + "__".join(parts).upper()
        if problem["type"] == "extra_forbidden":
            lines.append(f"{key}: no such setting; check its spelling against docs/configuration.md")
        else:
            where = f"in {config} or " if config else ""
            lines.append(f"{key}: {problem['msg'].lower()}; mend it {where}in {variable}")
    return "; ".join(lines)
