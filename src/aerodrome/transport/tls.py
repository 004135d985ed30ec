"""Certificates and how links are encrypted: the listener's own certificate, and what a client of a gateway verifies.

TLS 1.2 or later, no renegotiation, no tickets worth stealing. A certificate that is renewed on disk is taken up by the next link,
without a restart; links that are open go on. Deliberately makes no connection: `doorway` and `forward.dialing` do.
"""

from __future__ import annotations

import os
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path

import structlog

from aerodrome import errors

_log = structlog.get_logger()
_State = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: a certificate chain and its key, and the authorities whose certificates clients must show (None: no need)."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> list[Path]:
        """Return the files that are there."""
        return [path for path in (self.certificate, self.key, self.client_ca) if path is not None]


class ServerCertificate:
    """What a listener shows, as it is on disk now."""

    def __init__(self, files: TlsFiles) -> None:
        """Load the files. Raises errors.ConfigError: one cannot be used; says which and why."""
        self._files = files
        self._state = _state_of(files)
        self._context = _server_context(files)

    def context(self) -> ssl.SSLContext:
        """Return the context for a new link; files that changed are loaded first, if they can be used."""
        state = _state_of(self._files)
        if state != self._state:
            self._state = state
            try:
                self._context = _server_context(self._files)
            except errors.ConfigError as error:
                # Half a renewal (certificate written, key not yet) must not stop the listener: the next change is tried too.
                _log.error("certificate.reload_failed", reason=error.message)
            else:
                _log.info("certificate.reloaded", path=str(self._files.certificate))
        return self._context

    def following_context(self) -> ssl.SSLContext:
        """Return a context for a server that takes one for its life: each handshake is made with what is on disk then."""
        first = _server_context(self._files)

        def follow(connection: ssl.SSLObject | ssl.SSLSocket, _: str | None, __: ssl.SSLContext) -> None:
            connection.context = self.context()

        # Called in every handshake, also where the client names no server.
        first.sni_callback = follow
        return first


def client_context(ca: Path | None, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """Return what verifies a gateway: its name and its chain, by `ca` or else the system's authorities.

    Raises:
        errors.ConfigError: a file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=str(ca) if ca is not None else None)
    except (OSError, ssl.SSLError) as error:
        raise errors.ConfigError(f"cannot use {ca} as certificate authorities: {_why(error)}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate is not None:
        _load_chain(context, certificate, key or certificate)
    return context


def names_in(peer_certificate: object) -> frozenset[str]:
    """Return the names a verified certificate is for: DNS and e-mail names of its SAN, and its common names."""
    if not isinstance(peer_certificate, dict):
        return frozenset()
    alternative = {value for kind, value in peer_certificate.get("subjectAltName", ()) if kind in ("DNS", "email")}
    subject = {value for part in peer_certificate.get("subject", ()) for kind, value in part if kind == "commonName"}
    return frozenset(alternative | subject)


def _server_context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A client of TLS 1.2 could have us do the costly half of handshakes for ever; 1.3 has no renegotiation.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_TICKET
    context.num_tickets = 0
    _load_chain(context, files.certificate, files.key)
    if files.client_ca is not None:
        try:
            context.load_verify_locations(cafile=str(files.client_ca))
        except (OSError, ssl.SSLError) as error:
            raise errors.ConfigError(f"tls.client_ca: cannot use {files.client_ca}: {_why(error)}") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _load_chain(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    _check_secrecy(key)
    try:
        context.load_cert_chain(str(certificate), str(key), password=_no_password)
    except (OSError, ssl.SSLError) as error:
        raise errors.ConfigError(
            f"cannot use certificate {certificate} with key {key}: {_why(error)}; expected PEM files that belong together"
        ) from None


def _check_secrecy(key: Path) -> None:
    try:
        found = key.stat()
    except OSError as error:
        raise errors.ConfigError(f"cannot read key {key}: {error.strerror}") from None
    mode = stat.S_IMODE(found.st_mode)
    # A file of root's may be lent to a group (mounted secrets are); nobody else's key may be readable to others.
    allowed = 0o640 if found.st_uid == 0 and os.geteuid() != 0 else 0o600
    if mode & 0o777 & ~(allowed | 0o100):
        raise errors.ConfigError(
            f"key {key} has mode {mode:04o}: others can read or change it; make it {allowed:04o} and consider it known"
        )


def _no_password() -> str:
    # Without this, OpenSSL would ask on the terminal and a service would hang.
    raise errors.ConfigError("the key is encrypted; expected one without a passphrase")


def _state_of(files: TlsFiles) -> _State:
    """Return what changes when a file does; a missing file is a state as well."""
    states = []
    for path in files.paths:
        try:
            found = path.stat()
            states.append((found.st_mtime_ns, found.st_size, found.st_ino))
        except OSError:
            states.append((0, 0, 0))
    return tuple(states)


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not readable as PEM").lower().replace("_", " ")
    return error.strerror or str(error)
