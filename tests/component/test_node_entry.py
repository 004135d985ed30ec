"""The Node entry point of the real release: runtimes load what was compiled ahead, in a sandbox and without; none changes it."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from aerodrome import errors, tailoring
from aerodrome.adapters.distribution import install, locate, release
from aerodrome.adapters.process.host import ProcessHost
from aerodrome.adapters.sandbox import probe
from aerodrome.adapters.sandbox.bubblewrap import Network
from aerodrome.adapters.sandbox.host import SandboxHost
from aerodrome.adapters.sandbox.uids import UidRange
from aerodrome.core.placement import Realm
from aerodrome.core.policy import HostTools, Isolation
from aerodrome.fleet import compiled, spec
from aerodrome.ports.host import RuntimeHost, SpawnSpec
from aerodrome.settings import Settings

pytestmark = pytest.mark.runtime
needs_bubblewrap = pytest.mark.skipif(
    shutil.which("bwrap") is None,
    reason="NOT TESTED: the sandbox, for bubblewrap is missing; install it (make setup tries to)",
)
FIRST_UID = 2_000_000_000
#: What Node says of each file that it loads from its cache, and of each that it compiles itself.
TAKEN, COMPILED = "was accepted", "was not initialized"


@pytest.fixture(scope="module")
def node() -> release.RuntimeRelease:
    environment = {name: value for name, value in os.environ.items() if name != locate.ENV_NAME}
    return install.install(None, release.Wanted("node"), environ=environment)


@asynccontextmanager
async def hosted(node: release.RuntimeRelease, is_sandboxed: bool) -> AsyncIterator[RuntimeHost]:
    host: RuntimeHost = ProcessHost()
    if is_sandboxed:
        sandbox = probe.find(None, Network.NONE, (node.package_dir, node.entry), FIRST_UID)
        uids = UidRange(FIRST_UID, 10) if sandbox.setpriv else None
        host = SandboxHost(host, replace(sandbox, compile_cache=node.compile_cache), uids)
    try:
        yield host
    finally:
        await host.aclose()


def wanted(node: release.RuntimeRelease, state: Path, is_sandboxed: bool) -> SpawnSpec:
    """What the fleet starts a runtime of one realm with, but that Node says what it does with its cache."""
    said = Settings(state_directory=state, runtime={"environment": {"NODE_DEBUG_NATIVE": "COMPILE_CACHE"}})
    held = HostTools.SANDBOXED if is_sandboxed else HostTools.UNSANDBOXED
    settings = replace(tailoring.fleet_settings(said, node), host_tools=held)
    realm = Realm("user:t/ann", Isolation.USER, has_host_tools=True)
    directories = spec.directories_of(realm, state)
    directories.create(is_confined=is_sandboxed)
    confinement = spec.confinement_of(realm, "rt-1", settings)
    compiled.link("rt-1", settings, confinement)
    return spec.spawn_spec("rt-1", "token", directories, settings, confinement)


async def last_words(host: RuntimeHost, to_spawn: SpawnSpec, *argv: str) -> str:
    process = await host.spawn(replace(to_spawn, argv=argv))
    with pytest.raises(errors.SpawnFailed) as raised:
        async with asyncio.timeout(60):
            await process.address()
    return raised.value.message


def contents(directory: Path) -> dict[str, tuple[int, int]]:
    found = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


@pytest.mark.parametrize("is_sandboxed", [pytest.param(True, marks=needs_bubblewrap), False])
async def test_all_of_its_code_comes_from_what_was_compiled_ahead(node, tmp_path: Path, is_sandboxed: bool) -> None:
    assert node.compile_cache is not None
    before = contents(node.compile_cache)
    async with hosted(node, is_sandboxed) as host:
        said = await last_words(host, wanted(node, tmp_path, is_sandboxed), str(node.entry), "--version")
    assert said.count(TAKEN) == len(before) >= 3, said
    assert COMPILED not in said
    assert f"GitHub Copilot CLI {release.VERSION}" in said
    assert contents(node.compile_cache) == before


async def test_without_it_each_runtime_compiles_for_itself(node, tmp_path: Path) -> None:
    bare = replace(node, compile_cache=None)
    async with hosted(bare, is_sandboxed=False) as host:
        said = await last_words(host, wanted(bare, tmp_path, is_sandboxed=False), str(node.entry), "--version")
    assert TAKEN not in said
    assert COMPILED in said


async def test_what_a_runtime_without_a_sandbox_compiles_itself_stays_its_own(node, tmp_path: Path) -> None:
    assert node.compile_cache is not None
    before = contents(node.compile_cache)
    async with hosted(node, is_sandboxed=False) as host:
        to_spawn = wanted(node, tmp_path, is_sandboxed=False)
        links = links_in(Path(to_spawn.environment["NODE_COMPILE_CACHE"]))
        for link in links[1:]:
            link.unlink()
        # It ends by itself, and writes what it compiled as it does.
        said = await last_words(host, to_spawn, str(node.entry), "--headless", "--port", "none")
    assert said.count(COMPILED) >= 2
    assert len([link for link in links[1:] if link.is_file()]) >= 2, said
    assert links_in(links[0].parent.parent) == links[:1]
    assert contents(node.compile_cache) == before


def links_in(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("*/*") if path.is_symlink())


@needs_bubblewrap
async def test_an_agent_in_a_sandbox_can_neither_change_nor_add_to_it(node, tmp_path: Path) -> None:
    script = (
        'cd "$NODE_COMPILE_CACHE" && cd * && set -- * && echo "files $#"; '
        'for name in "$1" new; do (echo mine > "$name") && echo "wrote $name"; rm "$name" && echo "removed $name"; done; '
        "mkdir ../v24-x64-other-0 && echo made; chmod u+w . && echo opened; true"
    )
    async with hosted(node, is_sandboxed=True) as host:
        to_spawn = wanted(node, tmp_path, is_sandboxed=True)
        said = await last_words(host, to_spawn, "/bin/sh", "-c", f"({script}) 2>/dev/null")
    assert said.rpartition(": ")[2].split(" | ") == [f"files {len(contents(node.compile_cache))}"]
