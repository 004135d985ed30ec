"""The demo model's chat completions form (`POST /v1/chat/completions`): requests in, chunks or one document out.

Everything but the text itself is encoded once per answer, because benchmarks run against this
server. Pure; `demo_responses` is the other form.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import msgspec

from aerodrome.testing import demo_wire
from aerodrome.testing.demo_script import Conversation, Message, Role
from aerodrome.testing.demo_wire import Answer, Content, Events, Request

_ROLES: dict[str, Role] = {role: role for role in get_args(Role)} | {"developer": "system", "function": "tool"}


class _Message(msgspec.Struct):
    role: str
    content: Content = None


class _Function(msgspec.Struct):
    name: str = ""


class _Tool(msgspec.Struct):
    function: _Function = msgspec.field(default_factory=_Function)


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Request(msgspec.Struct):
    messages: list[_Message]
    tools: list[_Tool] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


_decoder = msgspec.json.Decoder(_Request)


def decode(body: bytes, bearer: str) -> Request:
    """Decode a request body. Raises msgspec.MsgspecError when it is not a chat completions request."""
    request = _decoder.decode(body)
    messages = tuple(
        Message(_ROLES.get(message.role, "system"), demo_wire.text_of(message.content)) for message in request.messages
    )
    tools = tuple(tool.function.name for tool in request.tools or ())
    usage = request.stream_options is not None and bool(request.stream_options.include_usage)
    return Request(Conversation(messages, tools, bearer), len(body), bool(request.stream), usage)


def events(answer: Answer) -> Events:
    """Return the answer as chunks, each one server-sent event, ended by [DONE]."""
    prefix = b'data: {"id":"chatcmpl-%b","object":"chat.completion.chunk","created":%d,"model":%b,"choices":' % (
        answer.ident.encode(),
        demo_wire.CREATED,
        demo_wire.encode(answer.model),
    )
    opening = prefix + b'[{"index":0,"delta":'
    closing = b',"finish_reason":null}]}\n\n'
    head = opening + b'{"role":"assistant","content":""}' + closing
    return Events(head, _deltas(answer, opening, closing), _tail(answer, prefix, opening, closing))


def _deltas(answer: Answer, opening: bytes, closing: bytes) -> Iterator[bytes]:
    before, after = opening + b'{"content":', b"}" + closing
    for piece in answer.pieces():
        yield before + demo_wire.encode(piece) + after


def _tail(answer: Answer, prefix: bytes, opening: bytes, closing: bytes) -> bytes:
    parts: list[bytes] = []
    for index, call in enumerate(answer.reply.calls):
        started = {"index": index, "id": answer.call_id(index), "type": "function"}
        for entry in (
            {**started, "function": {"name": call.name, "arguments": ""}},
            {"index": index, "function": {"arguments": call.arguments}},
        ):
            parts += opening, demo_wire.encode({"tool_calls": [entry]}), closing
    parts += opening, b'{},"finish_reason":', demo_wire.encode(_finish_reason(answer)), b"}]}\n\n"
    if answer.request.include_usage:
        parts += prefix, b'[],"usage":', demo_wire.encode(_usage(answer)), b"}\n\n"
    parts.append(b"data: [DONE]\n\n")
    return b"".join(parts)


def document(answer: Answer) -> bytes:
    """Return the answer as one chat.completion document."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.reply.text or None}
    if answer.reply.calls:
        message["tool_calls"] = [
            {
                "id": answer.call_id(index),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for index, call in enumerate(answer.reply.calls)
        ]
    return demo_wire.encode(
        {
            "id": f"chatcmpl-{answer.ident}",
            "object": "chat.completion",
            "created": demo_wire.CREATED,
            "model": answer.model,
            "choices": [{"index": 0, "message": message, "finish_reason": _finish_reason(answer)}],
            "usage": _usage(answer),
        }
    )


def _finish_reason(answer: Answer) -> str:
    return "tool_calls" if answer.reply.calls else "stop"


def _usage(answer: Answer) -> dict[str, int]:
    read, written = answer.input_tokens, answer.output_tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
