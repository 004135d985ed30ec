"""One parse of TOML and environment into frozen values; command-line options go before both.

Order: option, environment (`AERODROME_...`, nested keys with `__`), TOML file, default. Every error names the key, what was
found and what to do. Tokens come from the environment only: a configuration file is no place for secrets.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from aerodrome import errors
from aerodrome.adapters.distribution import surroundings
from aerodrome.core import identity, policy_document
from aerodrome.core.identity import Tenant
from aerodrome.core.policy import ClientLoss, Isolation, Trust

_PREFIX = "AERODROME_"
_SECRETS = ("client_token", "upstream_token")
_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[^:\[\]]*)):(?P<port>[0-9]{1,5})\Z")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RuntimeSection(_Section):
    """`[runtime]`: which Copilot runtime, and what every one of them is started with."""

    path: Path | None = None
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
    handshake_seconds: float = Field(default=10.0, gt=0)
    handshake_frame_bytes: int = Field(default=16 * 1024, ge=1024)
    failed_tokens: int = Field(default=16, ge=1)
    max_frame_bytes: int = Field(default=64 * 1024 * 1024, ge=64 * 1024)
    max_requests_in_flight: int = Field(default=10_000, ge=1)
    stall_seconds: float = Field(default=60.0, gt=0)


class SessionsSection(_Section):
    """`[sessions]`: how expired sessions are deleted. When they expire is a tenant's policy."""

    reap_interval_seconds: float = Field(default=300.0, ge=0)
    reap_dry_run: bool = False


class UserSection(_Section):
    """`[tenants.NAME.users."USER"]`: what differs for one user; only what is given counts (core.policy_document)."""

    providers: tuple[str, ...] = ()
    mcp_servers: tuple[str, ...] = ()
    #: Seconds, or words such as "30d"; checked with the tenant, so that an error says so in one line.
    session_idle_ttl: Any = None
    session_max_age: Any = None
    client_loss: ClientLoss = ClientLoss.CLOSE
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


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    listen: str = "127.0.0.1:4321"
    state_directory: Path = Field(default_factory=lambda: surroundings.default_state_directory(os.environ))
    policy: Literal["tenants", "transparent"] = "tenants"
    upstream: str | None = None
    drain_seconds: float = Field(default=30.0, ge=0)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_json: bool = False
    runtime: RuntimeSection = RuntimeSection()
    limits: LimitsSection = LimitsSection()
    sessions: SessionsSection = SessionsSection()
    tenants: dict[str, TenantSection] = Field(default_factory=dict)
    client_token: SecretStr | None = None
    upstream_token: SecretStr | None = None

    @pydantic.field_validator("client_token", "upstream_token")
    @classmethod
    def _is_given(cls, token: SecretStr | None) -> SecretStr | None:
        """Take an empty token for none: it is what a shell makes of an unset variable, and would admit everyone."""
        return token if token is not None and token.get_secret_value() else None

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

    def configured_tenants(self) -> dict[str, Tenant]:
        """Return the tenants of the configuration."""
        return {name: _tenant(name, section) for name, section in self.tenants.items()}


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
    _FileSource.values = _read_file(config) if config is not None else {}
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


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise errors.ConfigError(f"cannot read {path}: {error.strerror}; name an existing file with --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise errors.ConfigError(f"{path} is not TOML: {error}") from None
    for name in _SECRETS:
        if name in values:
            raise errors.ConfigError(
                f"{name} in {path}: tokens do not belong in a file; set {_PREFIX}{name.upper()} instead"
            )
    return values


def _check(settings: Settings) -> None:
    host, _ = split_address("listen", settings.listen)
    settings.configured_tenants()
    if settings.policy == "transparent":
        if settings.client_token is None and not is_loopback(host):
            raise errors.ConfigError(
                f"listen: {settings.listen} can be reached from other machines and no client token is set; "
                f"set {_PREFIX}CLIENT_TOKEN, or listen on 127.0.0.1"
            )
    elif settings.upstream is not None:
        raise errors.ConfigError(
            "upstream: a given upstream serves one trusted tenant only; add --policy transparent, or leave it out"
        )
    if settings.upstream is not None:
        split_address("upstream", settings.upstream)


def _explain(error: pydantic.ValidationError, config: Path | None) -> str:
    """Return one line for each wrong setting: its key, its environment name, what is wrong."""
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        parts = [str(part) for part in problem["loc"]]
        key, variable = ".".join(parts), _PREFIX + "__".join(parts).upper()
        if problem["type"] == "extra_forbidden":
            lines.append(f"{key}: no such setting; check its spelling against docs/configuration.md")
        else:
            where = f"in {config} or " if config else ""
            lines.append(f"{key}: {problem['msg'].lower()}; mend it {where}in {variable}")
    return "; ".join(lines)
