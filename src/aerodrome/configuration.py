"""Where settings are written: the TOML file, names in the environment, and where a gateway keeps its state.

What they mean is in settings.py, whose libraries take a third of a second to load. A command that only asks a running gateway
needs one of them, the state directory that its socket is in, and reads that here.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aerodrome import errors

PREFIX = "AERODROME_"
SECRETS = ("client_token", "upstream_token", "master_key", "master_key_file", "old_master_keys", "audit_key")
_STATE = "state_directory"


def read_file(path: Path) -> dict[str, Any]:
    """Return the values of a TOML file.

    Raises:
        errors.ConfigError: it cannot be read, is not TOML, or holds a secret.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise errors.ConfigError(f"cannot read {path}: {error.strerror}; name an existing file with --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise errors.ConfigError(f"{path} is not TOML: {error}") from None
    for name in SECRETS:
        if name in values:
            raise errors.ConfigError(
                f"{name} in {path}: tokens do not belong in a file; set {PREFIX}{name.upper()} instead"
            )
    return values


def state_directory(config: Path | None, option: Path | None) -> Path:
    """Return what `settings.load` takes for the state directory; a mistake in another setting is none here.

    Raises:
        errors.ConfigError: the file cannot be read, or names no path.
    """
    values = read_file(config) if config is not None else {}
    given = {name.lower(): value for name, value in os.environ.items()}.get(f"{PREFIX}{_STATE}".lower())
    found = next((value for value in (option, given, values.get(_STATE)) if value is not None), None)
    if found is None:
        return default_state_directory(os.environ)
    if not isinstance(found, str | Path):
        raise errors.ConfigError(f"{_STATE}: expected a path, found {found!r}; mend it in {config}")
    return Path(found)


def default_state_directory(environ: Mapping[str, str]) -> Path:
    """Return AERODROME_STATE_DIRECTORY, else XDG_STATE_HOME/aerodrome, else ~/.local/state/aerodrome."""
    if environ.get("AERODROME_STATE_DIRECTORY"):
        return Path(environ["AERODROME_STATE_DIRECTORY"]).expanduser().absolute()
    xdg = environ.get("XDG_STATE_HOME", "")
    root = Path(xdg) if xdg.startswith("/") else Path(environ.get("HOME") or Path.home()) / ".local" / "state"
    return root / "aerodrome"
