"""The worked example of docs/connect.md: its commands make what the listener and its clients take."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from pathlib import Path

from aerodrome.gateway.listener import Listener
from aerodrome.gateway.settings import GatewaySettings
from aerodrome.transport import tls
from aerodrome.transport.tls import ServerCertificate, TlsFiles

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "connect.md"
WAIT_SECONDS = 20.0


async def test_the_commands_make_a_certificate_that_clients_verify_by_each_of_its_names(tmp_path):
    assert shutil.which("openssl"), "this test runs the documented commands: install openssl"
    commands = re.search(r"```sh\n(# the authority.*?)```", DOCUMENTATION.read_text("utf-8"), re.DOTALL)[1]
    done = await asyncio.to_thread(
        subprocess.run,
        ["sh", "-euc", commands],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_SECONDS,
    )
    assert done.returncode == 0, done.stderr

    reached = asyncio.Semaphore(0)

    async def serve(link):
        reached.release()
        await link.receive()

    certificate = ServerCertificate(TlsFiles(tmp_path / "gateway.pem", tmp_path / "gateway.key"))
    listener = Listener(serve, GatewaySettings(listen_port=0), certificate)
    host, port = await listener.start()
    try:
        for name in ("localhost", "127.0.0.1"):
            async with asyncio.timeout(WAIT_SECONDS):
                context = tls.client_context(tmp_path / "ca.pem")
                _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=name)
                await reached.acquire()
                writer.close()
                await writer.wait_closed()
    finally:
        await listener.aclose()
