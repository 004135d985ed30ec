"""The command line of bubblewrap: what a runtime in a sandbox sees, is and may.

Paths inside are those outside: what a runtime tells its users stays true, and a session finds its directory again without a
sandbox, too. What is not named here is not there: no home but the realm's, no other realm, no state directory, no socket.

As root, bubblewrap makes the mounts with root's powers and `setpriv` then becomes the realm's user and drops all of them; no user
namespace is needed. As anyone else it makes a user namespace, and all realms are the gateway's user to the kernel outside.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from aerodrome.adapters.sandbox import seccomp
from aerodrome.core.compile_cache import directory_name
from aerodrome.ports.host import Confinement, SpawnSpec

#: Where the system is, on every distribution; links (merged /usr) stay links.
_SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
#: What programs look up in /etc and what holds no secret; the rest is written for each sandbox (`_FILES`).
_ETC = (
    "alternatives",
    "ca-certificates",
    "ca-certificates.conf",
    "crypto-policies",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "pki",
    "protocols",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
)
_SHARED_ETC = ("hosts", "resolv.conf", "gai.conf")
_TEMPORARY_BYTES = 256 * 1024 * 1024
_SECCOMP_DESCRIPTOR = "3"
#: Where a runtime finds what was compiled ahead; not where it lies outside, which may be below what is shown read-only.
_COMPILED = Path("/run/compiled")
#: Where a runtime finds the egress proxy, in its own network.
PROXY_PORT = 3128


class Network(Enum):
    """What network a sandbox has: what policy names, none, or the machine's."""

    EGRESS = "egress"
    NONE = "none"
    HOST = "host"


@dataclass(frozen=True, slots=True)
class Sandbox:
    """How sandboxes are made on this machine. `setpriv` is given where the gateway is root, and only there."""

    program: Path
    setpriv: Path | None
    network: Network
    #: The runtime's release, and what else every sandbox shows for reading.
    read_only: tuple[Path, ...] = ()
    #: Code of the Node entry point that was compiled ahead: shown for reading, to each user id as its own.
    compile_cache: Path | None = None


def wrap(spec: SpawnSpec, sandbox: Sandbox, uid: int) -> SpawnSpec:
    """Return how to start a confined runtime in a sandbox as a user id; writes what it reads at its start. Blocking.

    Raises:
        OSError: the files cannot be written.
    """
    confinement = spec.confinement
    assert confinement is not None
    files = _write_files(confinement, sandbox, uid)
    argv = [
        str(sandbox.program),
        *_namespaces(sandbox),
        *_system(),
        *_etc(files, sandbox),
        *_directories(confinement, sandbox, uid),
        *("--remount-ro", "/"),
        *("--chdir", str(spec.working_directory)),
        *("--seccomp", _SECCOMP_DESCRIPTOR),
        *_identity(sandbox),
        "--",
        *_become(sandbox, uid),
        *spec.argv,
    ]
    return replace(
        spec,
        argv=tuple(argv),
        environment={**_compiled_at(sandbox), **spec.environment, **_proxies(sandbox)},
        descriptors=(confinement.place / "seccomp",),
        is_wrapped=True,
    )


def _namespaces(sandbox: Sandbox) -> list[str]:
    names = ["pid", "ipc", "uts", *([] if sandbox.network is Network.HOST else ["net"])]
    user = [] if sandbox.setpriv else ["--unshare-user"]
    kinds = [f"--unshare-{name}" for name in names]
    return [*user, *kinds, "--unshare-cgroup-try", "--hostname", "sandbox", "--die-with-parent", "--new-session"]


def _system() -> Iterator[str]:
    yield from ("--ro-bind", "/usr", "/usr")
    for name in _SYSTEM:
        path = Path("/", name)
        if path.is_symlink():
            yield from ("--symlink", os.readlink(path), str(path))
        elif path.is_dir():
            yield from ("--ro-bind", str(path), str(path))
    yield from ("--proc", "/proc", "--dev", "/dev")
    for place in ("/dev/shm", "/tmp"):  # noqa: S108  the sandbox's own
        yield from ("--perms", "1777", "--size", str(_TEMPORARY_BYTES), "--tmpfs", place)
    yield from ("--dir", "/run", "--dir", "/var", "--symlink", "../tmp", "/var/tmp")  # noqa: S108
    yield from ("--dir", "/etc", "--dir", "/etc/ssl")


def _etc(files: dict[str, Path], sandbox: Sandbox) -> Iterator[str]:
    shared = _SHARED_ETC if sandbox.network is Network.HOST else ()
    for name in (*_ETC, *shared):
        yield from ("--ro-bind-try", f"/etc/{name}", f"/etc/{name}")
    for name, path in files.items():
        yield from ("--ro-bind", str(path), f"/etc/{name}")


def _directories(confinement: Confinement, sandbox: Sandbox, uid: int) -> Iterator[str]:
    """Bind what is the realm's for writing, the rest for reading; directories on the way are made empty, for all to pass."""
    bound = [(path, "--ro-bind", path) for path in _outermost(sandbox.read_only)]
    bound += [(path, "--ro-bind", _COMPILED / directory_name(path.name, uid)) for path in _compiled(sandbox)]
    bound += [(path, "--bind", path) for path in confinement.directories]
    there = {Path("/"), Path("/tmp"), Path("/run"), Path("/var"), Path("/etc")}  # noqa: S108
    for path, option, inside in bound:
        for parent in reversed(inside.parents):
            if parent not in there and not any(parent.is_relative_to(done) for _, _, done in bound if done in there):
                there.add(parent)
                yield from ("--dir", str(parent))
        there.add(inside)
        yield from (option, str(path), str(inside))


def _outermost(paths: Sequence[Path]) -> list[Path]:
    """Return those that are not shown already, with the system or with another one: each mount costs."""
    shown = [path for path in dict.fromkeys(paths) if not path.is_relative_to("/usr")]
    return [path for path in shown if not set(shown).intersection(path.parents)]


def _compiled_at(sandbox: Sandbox) -> dict[str, str]:
    return {} if sandbox.compile_cache is None else {"NODE_COMPILE_CACHE": str(_COMPILED)}


def _compiled(sandbox: Sandbox) -> list[Path]:
    return [] if sandbox.compile_cache is None else list(sandbox.compile_cache.iterdir())


def _identity(sandbox: Sandbox) -> list[str]:
    # Until setpriv has become the realm's user: to enter its directory, and to do that.
    keeps = ("CAP_DAC_READ_SEARCH", "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP") if sandbox.setpriv else ()
    return ["--cap-drop", "ALL", *(word for name in keeps for word in ("--cap-add", name))]


def _become(sandbox: Sandbox, uid: int) -> Sequence[str]:
    if sandbox.setpriv is None:
        return ()
    who = ("--reuid", str(uid), "--regid", str(uid), "--clear-groups")
    return (str(sandbox.setpriv), *who, "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", "--")


def _proxies(sandbox: Sandbox) -> dict[str, str]:
    """Return what has programs use the egress proxy; loopback is the sandbox's own and needs none."""
    if sandbox.network is not Network.EGRESS:
        return {}
    proxy, direct = f"http://127.0.0.1:{PROXY_PORT}", "localhost,127.0.0.1,::1"
    named = {"http_proxy": proxy, "https_proxy": proxy, "no_proxy": direct}
    return {**named, **{name.upper(): value for name, value in named.items()}}


def _write_files(confinement: Confinement, sandbox: Sandbox, uid: int) -> dict[str, Path]:
    """Write the filter and the files of /etc that are made for it; return the latter by name."""
    place = confinement.place
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    (place / "seccomp").write_bytes(seccomp.program())
    home = next((path for path in confinement.directories if path.name == "home"), Path("/"))
    texts = {
        "passwd": f"agent:x:{uid}:{uid}:agent:{home}:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
        "group": f"agent:x:{uid}:\nnogroup:x:65534:\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    }
    if sandbox.network is not Network.HOST:
        texts |= {"hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n", "resolv.conf": ""}
    written = {}
    for name, text in texts.items():
        written[name] = place / name
        written[name].write_text(text)
        written[name].chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
    return written
