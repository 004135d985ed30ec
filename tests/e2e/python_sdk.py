"""What the end-to-end tests know of the published Python SDK: programs connect with it, recorders note what they hear.

Everything goes through the SDK's public interface; only `ask` and `overhear` reach below it, as a program that means harm
would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from copilot import CopilotClient, RuntimeConnection, ToolSet
from copilot.session import CopilotSession
from copilot.tools import Tool, ToolInvocation, ToolResult

from aerodrome.testing.demo_process import DemoProcess, Principal

#: A bound, not a pace: turns take some 30 ms.
TURN_SECONDS = 45.0


@dataclass(frozen=True, slots=True)
class Cast:
    """Who plays which part."""

    owner: Principal
    colleague: Principal
    stranger: Principal


class Program:
    """An SDK program of one user: a client, and how it asks for sessions."""

    def __init__(self, demo: DemoProcess, principal: Principal, mode: str) -> None:
        self.principal = principal
        self._model = demo.model
        self._mode = mode
        connection = RuntimeConnection.for_uri(demo.sdk, connection_token=principal.token)
        self.client = CopilotClient(connection=connection, mode=mode)  # type: ignore[arg-type]

    def _wishes(self, wishes: dict[str, Any]) -> dict[str, Any]:
        """Return what every session of this program asks for: the demo's model, and tools, which an empty one must name."""
        provider = {"type": "openai", "base_url": self._model["base_url"], "api_key": self._model["api_key"]}
        tools = {"available_tools": ToolSet().add_custom("*").add_builtin("ask_user")} if self._mode == "empty" else {}
        return {"model": self._model["name"], "provider": provider, "streaming": True, **tools, **wishes}

    async def create(self, **wishes: Any) -> CopilotSession:
        """Create a session on the demo's model."""
        return await self.client.create_session(**self._wishes(wishes))

    async def resume(self, session_id: str, **wishes: Any) -> CopilotSession:
        """Resume a session on the demo's model; a runtime keeps no keys."""
        return await self.client.resume_session(session_id, **self._wishes(wishes))

    async def list_ids(self) -> set[str]:
        """Return the ids of the sessions that this user is shown."""
        return {session.session_id for session in await self.client.list_sessions()}

    async def ask(self, method: str, params: dict[str, Any]) -> Any:
        """Make a call that the SDK has no function for."""
        assert self.client._client is not None
        async with asyncio.timeout(TURN_SECONDS):
            return await self.client._client.request(method, params)

    def overhear(self) -> list[tuple[str, str, str]]:
        """Return a list that grows with (method, session id, all of it) of what this program is told, asked for or not."""
        rpc = self.client._client
        assert rpc is not None
        heard: list[tuple[str, str, str]] = []
        usual = rpc.notification_handler
        assert usual is not None

        def note(method: str, params: dict[str, Any]) -> None:
            heard.append((method, str(params.get("sessionId")), str(params)))
            usual(method, params)

        rpc.set_notification_handler(note)
        return heard


class Connect(Protocol):
    """Connects a program for a user."""

    async def __call__(self, principal: Principal, mode: str = "copilot-cli") -> Program:
        """Return the connected program."""
        ...


class Programs:
    """The programs of one test."""

    def __init__(self, demo: DemoProcess) -> None:
        self._demo = demo
        self._running: list[Program] = []

    async def connect(self, principal: Principal, mode: str = "copilot-cli") -> Program:
        """Connect a program for a user."""
        program = Program(self._demo, principal, mode)
        self._running.append(program)
        await program.client.start()
        return program

    async def aclose(self) -> None:
        """Cut all connections; a polite stop of this SDK takes a second."""
        for program in self._running:
            await program.client.force_stop()


class Recorder:
    """Notes what it is called with (events come on the loop's thread) and lets a test wait for it."""

    def __init__(self) -> None:
        self.notes: list[tuple[float, Any]] = []
        self._noted = asyncio.Event()

    def __call__(self, event: Any) -> None:
        self.notes.append((asyncio.get_running_loop().time(), event))
        self._noted.set()

    def of(self, kind: str) -> list[Any]:
        """Return the noted events of a type."""
        return [event for _, event in self.notes if kind_of(event) == kind]

    def times(self, kind: str) -> list[float]:
        """Return when events of a type came."""
        return [at for at, event in self.notes if kind_of(event) == kind]

    async def first(self, kind: str, where: Callable[[Any], bool] = lambda _: True, at_least: int = 1) -> Any:
        """Wait for the n-th event of a type that is as wanted."""
        async with asyncio.timeout(TURN_SECONDS):
            while True:
                found = [event for event in self.of(kind) if where(event)]
                if len(found) >= at_least:
                    return found[at_least - 1]
                self._noted.clear()
                await self._noted.wait()


def kind_of(event: Any) -> str:
    """Return an event's type as the wire says it."""
    return str(getattr(event.type, "value", event.type))


async def say(session: CopilotSession, prompt: str, seconds: float = TURN_SECONDS) -> str:
    """Send a prompt and return the answer's text."""
    answer = await session.send_and_wait(prompt, timeout=seconds)
    assert answer is not None
    return str(answer.data.content)  # type: ignore[union-attr]


class FactTool:
    """A tool of the program's own; it remembers how it was called."""

    def __init__(self, **options: Any) -> None:
        self.calls: list[Any] = []
        schema = {"type": "object", "properties": {"topic": {"type": "string"}}}
        self.tool = Tool("fact", "Tell a fact.", self._tell, schema, **options)

    async def _tell(self, invocation: ToolInvocation) -> ToolResult:
        self.calls.append(invocation.arguments)
        return ToolResult(text_result_for_llm=f"a fact about {invocation.arguments['topic']}")


class SlowTool(FactTool):
    """A tool that answers when it is told to: until then, a turn that has called it goes on."""

    def __init__(self) -> None:
        super().__init__(skip_permission=True)
        self.called, self.may_answer = asyncio.Event(), asyncio.Event()

    async def _tell(self, invocation: ToolInvocation) -> ToolResult:
        self.called.set()
        await self.may_answer.wait()
        return await super()._tell(invocation)


async def begin_turn(program: Program, said: str = "") -> tuple[CopilotSession, SlowTool, asyncio.Task[str]]:
    """Begin a turn that ends once its tool may answer, with what it says then; `said` is a turn before it, if any."""
    tool = SlowTool()
    session = await program.create(tools=[tool.tool])
    if said:
        await say(session, said)
    turn = asyncio.create_task(say(session, '[tool fact {"topic": "the moon"}]', 60))
    async with asyncio.timeout(TURN_SECONDS):
        await tool.called.wait()
    return session, tool, turn
