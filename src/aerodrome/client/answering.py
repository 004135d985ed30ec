"""What a program answers an agent: handlers for permissions, questions, forms and plans, and functions as tools.

Pure but for the functions it is given: which answer goes to which request is said here, sending it is for `sessions`.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, TypeVar, get_type_hints

import msgspec

from aerodrome.client.shapes import Pending

Decision = Literal["approve", "approve_for_session", "reject"]
Answer = TypeVar("Answer")
OnPermission = Callable[[Pending], Decision | bool | Awaitable[Decision | bool]]
OnQuestion = Callable[[Pending], str | Awaitable[str]]
OnForm = Callable[[Pending], dict[str, Any] | Awaitable[dict[str, Any] | None] | None]
OnPlan = Callable[[Pending], bool | Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool of this program's: `run` takes its arguments by name; what it returns, or raises, is told to the agent."""

    name: str
    run: Callable[..., Any]
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    #: What its arguments are read as, so that `run` gets the types it names; None: as they come.
    shape: type[msgspec.Struct] | None = None

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Tool:
        """Return a function as a tool: its name, its docstring, and its parameters' types as JSON Schema."""
        hints = get_type_hints(function)
        fields: list[Any] = []
        for parameter in inspect.signature(function).parameters.values():
            kind = hints.get(parameter.name, Any)
            is_required = parameter.default is inspect.Parameter.empty
            fields.append((parameter.name, kind) if is_required else (parameter.name, kind, parameter.default))
        name = getattr(function, "__name__", "tool")
        shape = msgspec.defstruct(name, fields, kw_only=True)
        (schema,), definitions = msgspec.json.schema_components([shape], ref_template="#/$defs/{name}")
        schema = definitions.pop(name, schema)
        if definitions:
            schema = {**schema, "$defs": definitions}
        return cls(name, function, inspect.getdoc(function) or "", schema, shape)

    def describe(self) -> dict[str, Any]:
        """Return it as the gateway is told of it."""
        return {"name": self.name, "description": self.description, "parameters": self.parameters}

    async def call(self, arguments: Any) -> dict[str, Any]:
        """Call it; return the answer to its request."""
        try:
            given = arguments if isinstance(arguments, dict) else {}
            if self.shape is not None:
                given = msgspec.structs.asdict(msgspec.convert(given, self.shape))
            result = self.run(**given)
            if inspect.isawaitable(result):
                result = await result
            return {"result": msgspec.to_builtins(result)}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}


class Handlers(TypedDict, total=False):
    """What a session of this program's answers by itself; what has no handler waits for `Session.answer`."""

    on_permission: OnPermission
    on_question: OnQuestion
    on_form: OnForm
    on_plan: OnPlan
    tools: Sequence[Tool | Callable[..., Any]]


@dataclass(frozen=True, slots=True)
class Answers:
    """The handlers of a session."""

    on_permission: OnPermission | None = None
    on_question: OnQuestion | None = None
    on_form: OnForm | None = None
    on_plan: OnPlan | None = None
    tools: tuple[Tool, ...] = ()

    @classmethod
    def of(cls, handlers: Handlers) -> Answers:
        """Return handlers as they are kept."""
        given: dict[str, Any] = dict(handlers)
        tools = tuple(one if isinstance(one, Tool) else Tool.of(one) for one in given.pop("tools", ()))
        return cls(tools=tools, **given)

    async def answer(self, asked: Pending) -> dict[str, Any] | None:
        """Return the answer to a request, without its kind; None where nobody here answers it."""
        match asked.kind:
            case "tool":
                tool = next((one for one in self.tools if one.name == asked.tool), None)
                return None if tool is None else await tool.call(asked.data.get("arguments"))
            case "permission" if self.on_permission is not None:
                decision = await _said(self.on_permission(asked))
                return {"decision": _DECISIONS.get(decision, decision)}
            case "question" if self.on_question is not None:
                return {"answer": await _said(self.on_question(asked))}
            case "form" if self.on_form is not None:
                content = await _said(self.on_form(asked))
                return {"action": "decline"} if content is None else {"action": "accept", "content": content}
            case "plan" if self.on_plan is not None:
                return {"approved": await _said(self.on_plan(asked))}
            case _:
                return None


_DECISIONS: dict[Any, Any] = {True: "approve", False: "reject"}


async def _said(answer: Answer | Awaitable[Answer]) -> Answer:
    return await answer if inspect.isawaitable(answer) else answer
