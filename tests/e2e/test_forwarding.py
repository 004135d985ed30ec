"""Unchanged SDK programs and a gateway behind TLS, by the forwarder and by the copilot-shaped program that SDKs spawn.

In between the gateway is stopped and another one started over the same state: conversations go on.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from copilot import CopilotClient, RuntimeConnection

from aerodrome import app, demo
from aerodrome import settings as settings_module
from aerodrome.core import identity
from aerodrome.core.identity import Owner
from aerodrome.forward import dialing
from aerodrome.forward.server import Forwarder
from aerodrome.testing import direct_and_through, peer
from aerodrome.testing.certificates import Authority

from .place import UNSANDBOXED
from .python_sdk import Recorder, say

pytestmark = pytest.mark.runtime

NODE_TESTS = Path(__file__).with_name("node")
WAIT_SECONDS = 60.0


class TlsPlace:
    """A gateway behind TLS that can be started again, and what programs need to come to it."""

    def __init__(self, state, model, authority, port):
        self.state = state
        self.model = model
        self.authority = authority
        self.server = authority.issue("127.0.0.1")
        self.port = port  # for every start
        self.token_file = state / "token"
        self._running = AsyncExitStack()

    @property
    def environment(self):
        """What moves a program here."""
        return {
            "AERODROME_URL": f"tls://127.0.0.1:{self.port}",
            "AERODROME_CA": str(self.authority.certificate),
            "AERODROME_TOKEN_FILE": str(self.token_file),
        }

    async def start(self):
        settings = settings_module.load(
            None,
            listen=f"127.0.0.1:{self.port}",
            state_directory=self.state,
            drain_seconds=0,
            tls={"certificate": self.server.certificate, "key": self.server.key},
            runtime={"warm_runtimes": 0, "environment": {"COPILOT_OFFLINE": "true", **demo._node_offline(self.model)}},
            sandbox=UNSANDBOXED,
            tenants={"acme": {"isolation": "user", "trust": "full", "providers": [self.model["base_url"]]}},
        )
        application = await self._running.enter_async_context(app.open_application(settings))
        if not self.token_file.exists():
            key, token = identity.create_key(Owner("acme", "ann"), time.time())
            await application.stores.keys.add(key)
            self.token_file.touch(mode=0o600)
            self.token_file.write_text(token)

    async def stop(self):
        await self._running.aclose()

    async def restart(self):
        await self.stop()
        await self.start()


@pytest.fixture
async def place(tmp_path):
    with direct_and_through.reserved_port() as port:
        async with demo.open_model() as model:
            found = TlsPlace(tmp_path, model, Authority(tmp_path), port)
            await found.start()
            yield found
            await found.stop()


@pytest.fixture
def shim(tmp_path):
    """The program as an installation has it."""
    path = tmp_path / "aerodrome-copilot"
    path.write_text(f"#!{sys.executable}\nfrom aerodrome.cli.copilot import main\nmain()\n")
    path.chmod(0o755)
    return path


@asynccontextmanager
async def forwarder(place, *arguments):
    """Run `aerodrome connect`; yield where it listens."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aerodrome", "connect", "--listen", "127.0.0.1:0", *arguments),
        env={**os.environ, **place.environment},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            line = (await process.stdout.readline()).decode()
        yield re.fullmatch(r"listening on (.+)\n", line)[1]
    finally:
        process.terminate()
        async with asyncio.timeout(WAIT_SECONDS):
            assert await process.stdout.read() == b""
            assert await process.wait() == 0


@asynccontextmanager
async def client_by(kind, place, shim):
    """Yield a client, which is told nothing of the gateway but how the SDK is to connect, or its environment."""
    if kind == "forwarder":
        async with forwarder(place) as address:
            yield CopilotClient(connection=RuntimeConnection.for_uri(address))
        return
    environment = {**os.environ, **place.environment, "COPILOT_CLI_PATH": str(shim)}
    connection = RuntimeConnection.for_stdio() if kind == "stdio" else RuntimeConnection.for_tcp()
    yield CopilotClient(connection=connection, env=environment)


def wishes(model):
    provider = {"type": "openai", "base_url": model["base_url"], "api_key": model["api_key"]}
    return {"model": model["name"], "provider": provider, "streaming": True}


async def fails_at_once_when_cut(place, session):
    heard = Recorder()
    session.on(heard)
    turn = asyncio.create_task(session.send_and_wait("[stream 1000 300]", timeout=60))
    await heard.first("assistant.message_delta")
    began_at = time.monotonic()
    await place.stop()
    with pytest.raises(Exception, match="try again"):
        await turn
    assert time.monotonic() - began_at < 20
    await place.start()


@pytest.mark.parametrize("kind", ["forwarder", "stdio", "tcp"])
async def test_a_python_program_goes_on_with_its_conversation_after_the_gateway_was_restarted(place, shim, kind):
    async with client_by(kind, place, shim) as client:
        await client.start()
        session = await client.create_session(**wishes(place.model))
        fresh = await client.create_session(**wishes(place.model))
        assert await say(session, "remember the moon") == "You said: remember the moon"

        await place.restart()
        assert (await say(session, "[recall]")).startswith("remember the moon | ")
        assert await say(fresh, "hello") == "You said: hello"

        if kind == "stdio":
            await fails_at_once_when_cut(place, session)
            assert (await say(session, "[recall]")).startswith("remember the moon | ")
        process = client._cli_process
        await client.stop()
        for pipe in (process.stdout, process.stderr) if process is not None else ():
            pipe.close()  # the SDK leaves them to the collector, which warns
        assert process is None or process.returncode == 0


@pytest.mark.node
@pytest.mark.parametrize("kind", ["uri", "stdio"])
async def test_a_node_program_goes_on_with_its_conversation_after_the_gateway_was_restarted(place, shim, kind):
    async with AsyncExitStack() as stack:
        environment = {**os.environ, "MODEL": json.dumps(place.model)}
        if kind == "uri":
            here = Forwarder(dialing.open_upstream(dialing.from_environment(place.environment)))
            stack.push_async_callback(here.aclose)
            environment["FORWARDER"] = await here.start("127.0.0.1:0")
        else:
            environment |= {**place.environment, "COPILOT_CLI_PATH": str(shim)}
        program = await asyncio.create_subprocess_exec(
            *("node", "forwarded.mjs", kind),
            cwd=NODE_TESTS,
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )

        async def ask(line):
            program.stdin.write(f"{line}\n".encode())
            return await answer()

        async def answer():
            async with asyncio.timeout(WAIT_SECONDS):
                return (await program.stdout.readline()).decode().rstrip()

        try:
            assert await ask("say remember the moon") == "said You said: remember the moon"
            await place.restart()
            assert (await ask("say [recall]")).startswith("said remember the moon | ")
            if kind == "uri":
                assert await ask("break [stream 1000 300]") == "streaming"
                await place.restart()
                assert re.match(r"failed .*try again", await answer())
                assert (await ask("say [recall]")).startswith("said remember the moon | ")
            program.stdin.close()
            async with asyncio.timeout(WAIT_SECONDS):
                assert await program.stdout.read() == b""
                assert await program.wait() == 0
        finally:
            if program.returncode is None:
                program.kill()
                await program.wait()


async def run_shim(shim, environment, *arguments):
    process = await asyncio.create_subprocess_exec(
        *(str(shim), *arguments),
        env={name: value for name, value in os.environ.items() if not name.startswith("AERODROME_")} | environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(WAIT_SECONDS):
        said, complained = await process.communicate()
    return process.returncode, said.decode(), complained.decode()


async def test_a_spawned_port_is_given_up_when_the_program_that_spawned_it_is_gone(place, shim):
    program = f"import os, subprocess; subprocess.Popen([{str(shim)!r}, '--headless']); os.read(0, 1); os._exit(0)"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program),
        env={**os.environ, **place.environment},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(WAIT_SECONDS):
        assert re.fullmatch(rb"CLI server listening on port \d+\n", await process.stdout.readline())
        process.stdin.close()
        await process.wait()
        assert await process.stdout.read() == b""  # its end: the spawned one held it too


@pytest.mark.parametrize("argument", ["--version", "--help"])
async def test_the_copilot_shaped_program_says_what_it_is(shim, argument):
    code, said, _ = await run_shim(shim, {}, argument)
    assert code == 0
    assert said.startswith("aerodrome-copilot")


@pytest.mark.parametrize(
    ("missing", "complaint"),
    [
        ("AERODROME_URL", "no gateway given; set AERODROME_URL"),
        ("AERODROME_TOKEN_FILE", "no token given; set AERODROME_TOKEN_FILE"),
    ],
)
async def test_without_its_configuration_it_says_on_standard_error_what_is_missing(place, shim, missing, complaint):
    environment = {name: value for name, value in place.environment.items() if name != missing}
    code, said, complained = await run_shim(shim, environment, "--headless", "--stdio")
    assert (code, said) == (1, "")
    assert complained.startswith(f"aerodrome-copilot: {complaint}")
    assert "Traceback" not in complained


async def test_a_gateway_that_cannot_prove_itself_is_told_no_token(place, tmp_path):
    stranger = Authority(tmp_path, "other authority")
    environment = {**place.environment, "AERODROME_CA": str(stranger.certificate)}
    here = Forwarder(dialing.open_upstream(dialing.from_environment(environment)))
    try:
        host, _, port = (await here.start("127.0.0.1:0")).rpartition(":")
        with pytest.raises(peer.RpcError, match="cannot prove that it is 127"):
            await peer.open_client(host, int(port), None)
    finally:
        await here.aclose()
