"""Tiny stand-ins for a Copilot release on disk: package, single executable, npm and a runtime that answers.

They have the form of the real ones and a few hundred bytes; every execution leaves a line in a file, so that a test
can count. Not a scripted runtime for gateway tests: the runtime here only knows how to say who it is.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aerodrome.adapters.distribution import manifest
from aerodrome.adapters.distribution.release import Pin

PLATFORM = "linux-x64"
PACKAGE = f"@github/copilot-{PLATFORM}"
FUSE = "NODE_SEA_FUSE_fce680ab2cc467b6e072b8b5df1996b2:1"

Behaviour = Literal["well", "old_protocol", "exits", "silent", "mute"]

#: A runtime in the standard library alone: one connection, three methods. It refuses to start with a foreign environment.
_RUNTIME = """\
    #!{python}
    import json, os, socket, subprocess, sys, time
    behaviour, trace = {behaviour!r}, {trace!r}
    child = subprocess.Popen(["sleep", "60"])
    with open(trace, "a") as stream:
        print(os.getpid(), child.pid, file=stream)
    if behaviour == "exits" or "CANARY" in os.environ or os.environ["COPILOT_CONNECTION_TOKEN"] in sys.argv:
        sys.exit("cannot start here")
    server = socket.create_server(("127.0.0.1", 0))
    if behaviour == "silent":
        time.sleep(60)
    print("CLI server listening on port", server.getsockname()[1], flush=True)
    link, _ = server.accept()
    stream = link.makefile("rwb")
    while line := stream.readline():
        stream.readline()
        request = json.loads(stream.read(int(line.split(b":")[1])))
        if behaviour == "mute":
            time.sleep(60)
        result = {{"version": {version!r}, "protocolVersion": 2 if behaviour == "old_protocol" else 3}}
        reply = {{"jsonrpc": "2.0", "id": request["id"], "result": result}}
        if request["method"] == "connect" and request["params"]["token"] != os.environ["COPILOT_CONNECTION_TOKEN"]:
            reply = {{"jsonrpc": "2.0", "id": request["id"], "error": {{"code": -32002}}}}
        body = json.dumps(reply).encode()
        stream.write(b"Content-Length: %d\\r\\n\\r\\n%b" % (len(body), body))
        stream.flush()
"""

_EXECUTABLE = """\
    #!/bin/sh
    # {fuse}
    if [ "$COPILOT_SEA_EXTRACT_ONLY" != 1 ]; then
        [ -n "$NODE_COMPILE_CACHE" ] && [ -f "$COPILOT_CLI_DIST_DIR/package.json" ] || exit 9
        compiled="$NODE_COMPILE_CACHE/v24.0.0-x64-0a1b2c3d-$(id -u)"
        mkdir -p "$compiled"
        echo code > "$compiled/4e5f6a7b"
        exec '{runtime}' "$@"
    fi
    echo unpacked >> '{trace}'
    {before}
    home="$COPILOT_PKG_CACHE_HOME/pkg/{platform}/{version}"
    mkdir -p "$home/{native}" "$home/schemas"
    echo '{{}}' > "$home/schemas/api.schema.json"
    echo '{{"name": "@github/copilot", "version": "{version}"}}' > "$home/package.json"
    {natives}
    find "$home" -type f -exec touch -t 198510260815 {{}} +
"""

_NPM = """\
    #!/bin/sh
    echo "$@" >> '{trace}'
    {before}
    while [ $# -gt 0 ]; do [ "$1" = --prefix ] && prefix="$2"; shift; done
    home="$prefix/node_modules/{package}"
    mkdir -p "$home"
    cp '{binary}' "$home/copilot"
"""


@dataclass(frozen=True, slots=True)
class FakeRelease:
    """Builds stand-ins below one directory; `trace` collects what was executed."""

    root: Path
    version: str = "7.7.7"

    @property
    def trace(self) -> Path:
        """The file in which every executed stand-in leaves a line."""
        return self.root / "trace"

    def executed(self) -> list[str]:
        """Return the lines that executed stand-ins left."""
        return self.trace.read_text().splitlines() if self.trace.exists() else []

    def executable(
        self, name: str = "copilot", before: str = "", *, native: bool = True, node: Behaviour = "well"
    ) -> Path:
        """Write a single executable that unpacks itself; `before` is shell run first, `node` how it starts as a runtime."""
        natives = (
            'for file in copilot-runtime runtime.node; do echo native > "$home/{0}/$file"; done\nchmod +x "$home/{0}/"*'
        )
        text = _EXECUTABLE.format(
            fuse=FUSE,
            trace=self.trace,
            before=before,
            platform=PLATFORM,
            version=self.version,
            runtime=self._runtime(self.root / "node-runtime", node),
            native=f"prebuilds/{PLATFORM}",
            natives=natives.format(f"prebuilds/{PLATFORM}").replace("\n", "; ") if native else "",
        )
        return _script(self.root / name, text)

    def npm_packages(self, node_modules: Path, binary: Path) -> Path:
        """Lay out what npm makes of `@github/copilot`; return the link that goes onto PATH."""
        wrapper = node_modules / "@github" / "copilot"
        _json(wrapper / "package.json", {"name": "@github/copilot", "version": self.version})
        loader = _script(wrapper / "npm-loader.js", "#!/usr/bin/env node\n")
        platform = node_modules / PACKAGE
        _json(platform / "package.json", {"name": PACKAGE, "version": self.version})
        (platform / "copilot").write_bytes(binary.read_bytes())
        (platform / "copilot").chmod(0o755)
        link = node_modules / ".bin" / "copilot"
        link.parent.mkdir()
        link.symlink_to(loader)
        return link

    def package(self, name: str = "package", behaviour: Behaviour = "well") -> Path:
        """Write an unpacked package with a native runtime that can be started; return its directory."""
        directory = self.root / name
        _json(directory / "package.json", {"name": "@github/copilot", "version": self.version})
        _json(directory / "schemas" / "api.schema.json", {})
        native = self._runtime(directory / "prebuilds" / PLATFORM / "copilot-runtime", behaviour)
        (native.parent / "runtime.node").write_text("native\n")
        return directory

    def _runtime(self, path: Path, behaviour: Behaviour) -> Path:
        text = _RUNTIME.format(python=sys.executable, behaviour=behaviour, trace=str(self.trace), version=self.version)
        return _script(path, text)

    def npm(self, binary: Path, before: str = "") -> Path:
        """Write an `npm` that installs this executable; return the directory to put onto PATH."""
        script = _NPM.format(trace=self.trace, before=before, package=PACKAGE, binary=binary)
        return _script(self.root / "npm-bin" / "npm", script).parent

    def pin(self, binary: Path, version: str | None = None) -> Pin:
        """Return a pin that this executable satisfies."""
        return Pin(PLATFORM, PACKAGE, manifest.sha256(binary), binary.stat().st_size, {}, version or self.version)


def environment(*path: Path, **more: str) -> dict[str, str]:
    """Return an environment with these directories first on the path."""
    return {"PATH": os.pathsep.join([*map(str, path), "/usr/bin", "/bin"]), **more}


def _script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    path.chmod(0o755)
    return path


def _json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
