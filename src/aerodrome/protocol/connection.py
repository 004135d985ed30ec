"""One side of a framed JSON-RPC connection, without I/O: bytes in, messages out, and back.

    connection.receive_data(b"...") -> [Envelope, ...]
    connection.send_request("ping") -> id;  connection.data_to_send() -> bytes

Used by tests and tools. The relay works on framing, messages and correlation directly, because it forwards bodies between two
peers without decoding them.
"""

from __future__ import annotations

from typing import Any

from aerodrome import errors
from aerodrome.protocol import framing, messages
from aerodrome.protocol.correlation import Correlation
from aerodrome.protocol.messages import Envelope, RequestId

#: A message, or why a body was none: to be answered with an error, after which the connection goes on.
Received = Envelope | errors.InvalidRequest


class Connection:
    """The protocol state of one side: what is half received, what is to be sent, which answers are owed to us."""

    def __init__(self, max_frame_bytes: int) -> None:
        self._decoder = framing.FrameDecoder(max_frame_bytes)
        self._outgoing: list[bytes] = []
        self._owed: Correlation[str] = Correlation()

    @property
    def fault(self) -> errors.InvalidRequest | None:
        """Return what broke the framing; nothing can be received after it."""
        return self._decoder.fault

    def receive_data(self, data: bytes) -> list[Received]:
        """Take received bytes; return the messages completed by them, in order, each body that is none as its error.

        Raises:
            errors.InvalidRequest: the framing is broken and no body came before that; else it is left in `fault`.
        """
        return [_decoded(body) for body in self._decoder.feed(data)]

    def send_request(self, method: str, params: Any = None) -> int:
        """Queue a request; return the id its answer will carry."""
        request_id = self._owed.open(method)
        self._queue(messages.request(request_id, method, messages.encode(params if params is not None else {})))
        return request_id

    def send_notification(self, method: str, params: Any = None) -> None:
        """Queue a notification."""
        self._queue(messages.notification(method, messages.encode(params if params is not None else {})))

    def send_result(self, request_id: RequestId, value: Any) -> None:
        """Queue the answer to a request of the peer."""
        self._queue(messages.result(request_id, value))

    def send_failure(self, request_id: RequestId, code: int, message: str) -> None:
        """Queue an error answer to a request of the peer."""
        self._queue(messages.failure(request_id, code, message))

    def accept_answer(self, envelope: Envelope) -> bool:
        """Say whether this response answers an open request of ours, and close it: each is accepted once."""
        request_id = envelope.id
        return isinstance(request_id, int) and self._owed.close(request_id) is not None

    def data_to_send(self) -> bytes:
        """Return the queued bytes and forget them."""
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        return data

    def _queue(self, body: bytes) -> None:
        self._outgoing.append(framing.encode(body))


def _decoded(body: bytes) -> Received:
    try:
        return messages.decode(body)
    except errors.InvalidRequest as error:
        return error
