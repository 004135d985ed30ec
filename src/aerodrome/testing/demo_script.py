"""The prompt script of the demo model: what a conversation asks for, as a value.

The last user message with words of its own is the script; the module docstring of `demo_model` lists the directives. Pure: no
I/O, no clock, no wire form (`demo_chat`, `demo_responses`), no pacing or counting (`demo_model`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

MAX_ANSWER_BYTES = 16 * 1024 * 1024
MAX_DELTAS = 10_000
MAX_SECONDS = 600.0
MAX_ECHO_CHARS = 200
MAX_RESULT_CHARS = 500
MAX_SYSTEM_CHARS = 2000
DELTAS = 8
#: Longer answers are cut into more deltas, so that no event is unreasonably large.
MAX_DELTA_CHARS = 16 * 1024

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation; the text is all of its text parts."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a request says, without its wire form."""

    messages: tuple[Message, ...]
    tools: tuple[str, ...] = ()
    bearer: str = ""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the model asks for; `arguments` is JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Failure:
    """An HTTP error; `attempts` says for how many attempts, None for all."""

    status: int
    attempts: int | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What to answer, and how: `deltas` pieces over `stream_seconds`, the first after `delay_seconds`."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    deltas: int = DELTAS
    delay_seconds: float = 0.0
    stream_seconds: float = 0.0
    failure: Failure | None = None
    drop: bool = False


@dataclass(frozen=True, slots=True)
class Directive:
    """One bracketed directive with its arguments as written."""

    name: str
    arguments: tuple[str, ...] = ()


Step = list[Directive]

_OPENING = re.compile(r"\[(say|tool|then|error|delay|stream|size|count|recall|drop|who|tools|system)(?=[\s\]])")
_SECONDS = r"(\d{1,9}(?:\.\d{1,9})?)"
_FORMS = {
    "error": re.compile(r"\s+([45]\d\d)(?:\s+x(\d{1,6}))?\s*\]"),
    "delay": re.compile(rf"\s+{_SECONDS}\s*\]"),
    "stream": re.compile(rf"\s+(\d{{1,9}})\s+{_SECONDS}\s*\]"),
    "size": re.compile(r"\s+(\d{1,12})\s*\]"),
}
_BARE = re.compile(r"\s*\]")
_TOOL = re.compile(r"\s+([^\s\[\]{}]+)\s*")
_BRACKETS = re.compile(r"[\[\]]")
_JSON = json.JSONDecoder()

# The runtime puts blocks such as <current_datetime>..</current_datetime> around a prompt; no HTML element has such a name.
_BLOCK = r"((?:[a-z]+[_-])*reminder|[a-z]+(?:[_-][a-z]+)+)"
_LEADING = re.compile(rf"\s*<{_BLOCK}(?:\s[^<>]*)?>")
_TRAILING = re.compile(rf"</{_BLOCK}>\Z")


def words(text: str) -> str:
    """Return the user's own words: the text without the blocks a runtime put before and after it."""
    while opening := _LEADING.match(text):
        closing = f"</{opening[1]}>"
        end = text.find(closing, opening.end())
        if end < 0:
            break
        text = text[end + len(closing) :]
    text = text.strip()
    while text.endswith(">") and (closing_tag := _TRAILING.search(text, text.rfind("<"))):
        start = text.rfind(f"<{closing_tag[1]}", 0, closing_tag.start())
        if start < 0:
            break
        text = text[:start].rstrip()
    return text


def steps(prompt: str) -> list[Step]:
    """Return the directives of a prompt, one list per [then]; what is not a well-formed directive is text and left out."""
    found: list[Step] = [[]]
    position = 0
    while opening := _OPENING.search(prompt, position):
        arguments, position = _arguments(opening[1], prompt, opening.end())
        if arguments is None:
            continue
        if opening[1] == "then":
            found.append([])
        else:
            found[-1].append(Directive(opening[1], arguments))
    return found


def _arguments(name: str, prompt: str, start: int) -> tuple[tuple[str, ...] | None, int]:
    """Return the arguments of a directive and where it ends; None for no directive, and where to go on."""
    if name == "say":
        return _say(prompt, start)
    if name == "tool":
        return _tool(prompt, start)
    form = _FORMS.get(name, _BARE).match(prompt, start)
    return (tuple(group or "" for group in form.groups()), form.end()) if form else (None, start)


def _say(prompt: str, start: int) -> tuple[tuple[str, ...] | None, int]:
    depth = 1
    for bracket in _BRACKETS.finditer(prompt, start):
        depth += 1 if bracket[0] == "[" else -1
        if depth == 0:
            return (prompt[start + 1 : bracket.start()],), bracket.end()
    return None, start


def _tool(prompt: str, start: int) -> tuple[tuple[str, ...] | None, int]:
    named = _TOOL.match(prompt, start)
    if named is None:
        return None, start
    arguments, end = "{}", named.end()
    if prompt.startswith("{", end):
        try:
            end = _JSON.raw_decode(prompt, end)[1]
        except (ValueError, RecursionError):
            return None, start
        arguments = prompt[named.end() : end]
    closing = _BARE.match(prompt, end)
    return ((named[1], arguments), closing.end()) if closing else (None, start)


def answer(conversation: Conversation) -> Reply:
    """Return the reply that the conversation's script asks for at this point of the turn."""
    prompt, results = _turn(conversation)
    script = steps(prompt)
    at, last = 0, len(results)
    pending = len(results)
    while pending > 0 and at < len(script) and (calls := _count_calls(script[at])):
        last = min(pending, calls)
        pending -= calls
        at += 1
    said = "tool said: " + " | ".join(results[len(results) - last :])[:MAX_RESULT_CHARS]
    if at == len(script) or (results and at == 0):
        return Reply(said)
    return _reply(script[at], conversation, said if at else f"You said: {prompt[:MAX_ECHO_CHARS]}")


def _turn(conversation: Conversation) -> tuple[str, list[str]]:
    """Return the words of the last user message that has any, and the tool results after it, in order."""
    results: list[str] = []
    for message in reversed(conversation.messages):
        if message.role == "tool":
            results.append(message.text)
        elif message.role == "user" and (prompt := words(message.text)):
            return prompt, results[::-1]
    return "", results[::-1]


def _count_calls(step: Step) -> int:
    return sum(directive.name == "tool" for directive in step)


def _reply(step: Step, conversation: Conversation, otherwise: str) -> Reply:
    texts: list[str] = []
    room = MAX_ANSWER_BYTES
    calls: list[ToolCall] = []
    reply = Reply()
    for directive in step:
        if directive.name == "tool":
            calls.append(ToolCall(*directive.arguments))
        elif source := _TEXTS.get(directive.name):
            if room > 0:  # else a short prompt could ask for more memory than there is
                texts.append(source(directive.arguments, conversation))
                room -= len(texts[-1])
        else:
            reply = replace(reply, **_manner(directive))
    text = "\n".join(texts)[:MAX_ANSWER_BYTES]
    if not texts and not calls:
        numbered = any(directive.name == "stream" for directive in step)
        text = " ".join(map(str, range(1, reply.deltas + 1))) if numbered else otherwise
    deltas = max(reply.deltas, -(-len(text) // MAX_DELTA_CHARS))
    return replace(reply, text=text, calls=tuple(calls), deltas=deltas)


def _manner(directive: Directive) -> dict[str, Any]:
    """Return what a directive about the manner of the answer changes in the reply."""
    arguments = directive.arguments
    match directive.name:
        case "error":
            return {"failure": Failure(int(arguments[0]), int(arguments[1]) if arguments[1] else None)}
        case "delay":
            return {"delay_seconds": min(float(arguments[0]), MAX_SECONDS)}
        case "stream":
            deltas = max(1, min(int(arguments[0]), MAX_DELTAS))
            return {"deltas": deltas, "stream_seconds": min(float(arguments[1]), MAX_SECONDS)}
        case _:
            return {"drop": True}


def _filler(size_bytes: int) -> str:
    line = "the quick brown fox jumps over the lazy dog 0123456789 abcdefg\n"
    return (line * (size_bytes // len(line) + 1))[:size_bytes]


def _user_words(conversation: Conversation) -> list[str]:
    """Return the words of every user message that has any; a runtime's own notices have none."""
    said = (words(message.text) for message in conversation.messages if message.role == "user")
    return [text for text in said if text]


def _system_text(conversation: Conversation) -> str:
    return "\n".join(message.text for message in conversation.messages if message.role == "system")


_TEXTS: dict[str, Callable[[tuple[str, ...], Conversation], str]] = {
    "say": lambda arguments, _: arguments[0],
    "size": lambda arguments, _: _filler(min(int(arguments[0]), MAX_ANSWER_BYTES)),
    "count": lambda _, conversation: f"user messages: {len(_user_words(conversation))}",
    "recall": lambda _, conversation: " | ".join(_user_words(conversation)),
    "who": lambda _, conversation: hashlib.sha256(conversation.bearer.encode()).hexdigest()[:8],
    "tools": lambda _, conversation: ",".join(sorted(conversation.tools)),
    "system": lambda _, conversation: _system_text(conversation)[:MAX_SYSTEM_CHARS],
}
