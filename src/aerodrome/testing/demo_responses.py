"""The demo model's responses form (`POST /v1/responses`): requests in, typed events or one document out.

It keeps nothing between requests: `previous_response_id` and stored responses are deliberately not there. Pure;
`demo_chat` is the other form.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from aerodrome.testing import demo_wire
from aerodrome.testing.demo_script import Conversation, Message
from aerodrome.testing.demo_wire import Answer, Content, Events, Request

_Document = dict[str, Any]


class _Item(msgspec.Struct):
    type: str = "message"
    role: str = ""
    content: Content = None
    output: Content = None


class _Tool(msgspec.Struct):
    type: str = ""
    name: str = ""


class _Request(msgspec.Struct):
    input: str | list[_Item]
    instructions: str | None = None
    tools: list[_Tool] | None = None
    stream: bool | None = None


_decoder = msgspec.json.Decoder(_Request)


def decode(body: bytes, bearer: str) -> Request:
    """Decode a request body. Raises msgspec.MsgspecError when it is not a responses request."""
    request = _decoder.decode(body)
    messages = [Message("system", request.instructions)] if request.instructions else []
    if isinstance(request.input, str):
        messages.append(Message("user", request.input))
    else:
        messages += (message for item in request.input if (message := _message(item)))
    tools = tuple(tool.name or tool.type for tool in request.tools or ())
    return Request(Conversation(tuple(messages), tools, bearer), len(body), bool(request.stream))


def _message(item: _Item) -> Message | None:
    """Return what an item says; None for reasoning, calls and whatever else is no message."""
    if item.type == "function_call_output":
        return Message("tool", demo_wire.text_of(item.output))
    if item.type != "message":
        return None
    text = demo_wire.text_of(item.content)
    if item.role == "user":
        return Message("user", text)
    return Message("assistant" if item.role == "assistant" else "system", text)


class _Sequence:
    """Numbers the events of one answer."""

    def __init__(self) -> None:
        self._next = 0

    def reserve(self, count: int) -> int:
        first = self._next
        self._next += count
        return first

    def event(self, kind: str, **fields: Any) -> bytes:
        body = demo_wire.encode({"type": kind, "sequence_number": self.reserve(1), **fields})
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), body)


def events(answer: Answer) -> Events:
    """Return the answer as typed events, from response.created to response.completed."""
    sequence = _Sequence()
    begun = _response(answer, "in_progress", [])
    head = sequence.event("response.created", response=begun) + sequence.event("response.in_progress", response=begun)
    if answer.reply.text:
        item = {**_message_item(answer), "status": "in_progress", "content": []}
        head += sequence.event("response.output_item.added", output_index=0, item=item)
        head += sequence.event("response.content_part.added", **_place(answer), part=_text_part(""))
    pieces = answer.pieces()
    deltas = _deltas(answer, pieces, sequence.reserve(len(pieces)))
    tail = _text_end(answer, sequence) + _call_events(answer, sequence)
    done = _response(answer, "completed", _output(answer))
    return Events(head, deltas, tail + sequence.event("response.completed", response=done))


def _deltas(answer: Answer, pieces: list[str], first: int) -> Iterator[bytes]:
    kind = b"response.output_text.delta"
    before = b'event: %b\ndata: {"type":"%b","sequence_number":' % (kind, kind)
    place = b',"output_index":0,"content_index":0,"item_id":%b,"delta":' % demo_wire.encode(_message_id(answer))
    for number, piece in enumerate(pieces, first):
        yield b"%b%d%b%b}\n\n" % (before, number, place, demo_wire.encode(piece))


def _text_end(answer: Answer, sequence: _Sequence) -> bytes:
    if not answer.reply.text:
        return b""
    return (
        sequence.event("response.output_text.done", **_place(answer), text=answer.reply.text)
        + sequence.event("response.content_part.done", **_place(answer), part=_text_part(answer.reply.text))
        + sequence.event("response.output_item.done", output_index=0, item=_message_item(answer))
    )


def _call_events(answer: Answer, sequence: _Sequence) -> bytes:
    parts: list[bytes] = []
    for index, item in enumerate(_output(answer)):
        if item["type"] != "function_call":
            continue
        started = {**item, "status": "in_progress", "arguments": ""}
        place = {"item_id": item["id"], "output_index": index}
        arguments = item["arguments"]
        parts += (
            sequence.event("response.output_item.added", output_index=index, item=started),
            sequence.event("response.function_call_arguments.delta", **place, delta=arguments),
            sequence.event("response.function_call_arguments.done", **place, arguments=arguments),
            sequence.event("response.output_item.done", output_index=index, item=item),
        )
    return b"".join(parts)


def document(answer: Answer) -> bytes:
    """Return the answer as one response document."""
    return demo_wire.encode(_response(answer, "completed", _output(answer)))


def _response(answer: Answer, status: str, output: list[_Document]) -> _Document:
    return {
        "id": f"resp_{answer.ident}",
        "object": "response",
        "created_at": demo_wire.CREATED,
        "status": status,
        "model": answer.model,
        "output": output,
        "error": None,
        "usage": _usage(answer) if status == "completed" else None,
    }


def _output(answer: Answer) -> list[_Document]:
    output = [_message_item(answer)] if answer.reply.text else []
    for index, call in enumerate(answer.reply.calls):
        named = {"call_id": answer.call_id(index), "name": call.name, "arguments": call.arguments}
        output.append({"id": f"fc_{answer.ident}_{index}", "type": "function_call", "status": "completed", **named})
    return output


def _message_item(answer: Answer) -> _Document:
    content = [_text_part(answer.reply.text)]
    told = {"role": "assistant", "status": "completed", "content": content}
    return {"id": _message_id(answer), "type": "message", **told}


def _message_id(answer: Answer) -> str:
    return f"msg_{answer.ident}"


def _place(answer: Answer) -> _Document:
    return {"item_id": _message_id(answer), "output_index": 0, "content_index": 0}


def _text_part(text: str) -> _Document:
    return {"type": "output_text", "text": text, "annotations": []}


def _usage(answer: Answer) -> _Document:
    read, written = answer.input_tokens, answer.output_tokens
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + written,
    }
