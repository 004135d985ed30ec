"""The values that the demo model's two wire forms share: a decoded request, and an answer cut into server-sent events.

No form of its own: `demo_chat` speaks chat completions, `demo_responses` speaks responses; `demo_model` serves both.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from aerodrome.testing.demo_script import Conversation, Reply

#: Answers are deterministic, so their time of creation is a constant too (seconds since the Unix epoch).
CREATED = 1_767_225_600

encode = msgspec.json.Encoder().encode


class Part(msgspec.Struct):
    """A content part; only its text matters here."""

    text: str | None = None


Content = str | list[Part] | None


@dataclass(frozen=True, slots=True)
class Request:
    """A decoded request: what it says, and how its answer is to be sent."""

    conversation: Conversation
    size_bytes: int
    stream: bool
    include_usage: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply with what its wire form needs besides: an id, the model's name, token counts."""

    reply: Reply
    ident: str
    model: str
    request: Request

    @property
    def input_tokens(self) -> int:
        """Return a plausible token count of the request."""
        return max(1, self.request.size_bytes // 4)

    @property
    def output_tokens(self) -> int:
        """Return a plausible token count of the reply."""
        return max(1, (len(self.reply.text) + sum(len(call.arguments) for call in self.reply.calls)) // 4)

    def pieces(self) -> list[str]:
        """Return the reply's text in as many pieces as it asks for, of nearly equal length, none empty."""
        text = self.reply.text
        count = min(self.reply.deltas, len(text))
        ends = [len(text) * n // count for n in range(count + 1)] if count else [0]
        return [text[start:end] for start, end in itertools.pairwise(ends)]

    def call_id(self, index: int) -> str:
        """Return the id of a tool call, unique in its conversation."""
        return f"call_{self.ident}_{index}"


@dataclass(frozen=True, slots=True)
class Events:
    """A streamed answer: what comes before the text, one event per piece of text, what comes after it."""

    head: bytes
    deltas: Iterable[bytes]
    tail: bytes


class Wire(Protocol):
    """What a wire form can do; the two modules satisfy it."""

    def decode(self, body: bytes, bearer: str) -> Request:
        """Decode a request body. Raises msgspec.MsgspecError (a ValueError for bad UTF-8) when it is not one."""
        ...

    def events(self, answer: Answer) -> Events:
        """Return the answer as server-sent events."""
        ...

    def document(self, answer: Answer) -> bytes:
        """Return the answer as one JSON document."""
        ...


def text_of(content: Content) -> str:
    """Return the text of a message's content, its text parts joined by newlines."""
    if isinstance(content, str):
        return content
    return "\n".join(part.text for part in content or () if part.text)
