"""The proxy of a sandbox where no sandbox is needed to see it: what it answers to names that lead nowhere."""

from __future__ import annotations

import asyncio
import socket

import pytest

from aerodrome.adapters.sandbox.egress import Egress


class Loopback:
    """In place of a sandbox's own network: this machine's, at a free port."""

    def __init__(self) -> None:
        self.address = ("127.0.0.1", 0)

    async def listen(self, _port: int) -> socket.socket:
        listening = socket.socket()
        listening.bind(self.address)
        listening.listen()
        listening.setblocking(False)
        self.address = listening.getsockname()
        return listening


@pytest.mark.parametrize("host", ["a..example.com", f"{'x' * 70}.example.com"])
async def test_a_name_that_no_name_server_could_know_cannot_be_reached_and_is_said_to(host):
    network, egress = Loopback(), Egress(("*.example.com:443",), 3128)
    faults = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: faults.append(context))
    await egress.start(network)
    reader, writer = await asyncio.open_connection(*network.address)
    try:
        writer.write(f"CONNECT {host}:443 HTTP/1.1\r\n\r\n".encode())
        async with asyncio.timeout(30):
            answer = await reader.read()
    finally:
        writer.close()
        egress.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)

    assert answer.startswith(b"HTTP/1.1 502 ")
    assert faults == []
