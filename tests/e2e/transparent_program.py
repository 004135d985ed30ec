"""What every scenario of the transparent policy uses: a program of the published Python SDK, and notes of all it hears."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from copilot import CopilotClient, RuntimeConnection, SessionEvent
from copilot.session import CopilotSession, PermissionHandler

from aerodrome.testing.direct_and_through import Endpoint

Model = dict[str, str]
#: Runs against one endpoint and returns what a program can tell about it.
Scenario = Callable[[Endpoint, Model], Awaitable[Any]]

#: A bound, not a pace: turns take some 30 ms through the gateway, 140 ms directly.
WAIT_SECONDS = 45.0

#: The last that the runtime tells of the model in a turn.
LAST_OF_A_TURN = "model.messages_snapshot"

#: Members of events and answers that differ between any two runs.
VARYING = frozenset({"context_current_tokens", "currentTokens", "duration", "systemTokens"})


class Notes:
    """Events of a session in the order they came."""

    def __init__(self) -> None:
        self.events: list[SessionEvent] = []
        self._came = asyncio.Event()

    def __call__(self, event: SessionEvent) -> None:
        self.events.append(event)
        self._came.set()

    def kinds(self) -> list[str]:
        """Return the types of all events."""
        return [kind_of(event) for event in self.events]

    async def kinds_of_turns(self, count: int) -> list[str]:
        """Return the types of all events, sorted, once so many turns have said all they say.

        The runtime sends what it tells of the model (`model.*`, which this SDK does not know) beside the session's own events, in
        no fixed order with them: the last of it may come after `session.idle`, which is where a `send_and_wait` ends.
        """
        await self._until(lambda: len([e for e in self.events if e.raw_type == LAST_OF_A_TURN]) >= count)
        return sorted(self.kinds())

    def durable(self) -> list[dict[str, Any]]:
        """Return all events that the runtime keeps, whole: their order is part of the protocol, the others' is not."""
        return [event.to_dict() for event in self.events if not event.ephemeral]

    def durable_ids(self) -> list[str]:
        """Return the ids of all events that the runtime keeps, in order."""
        return [str(event.id) for event in self.events if not event.ephemeral]

    def passing(self) -> list[str]:
        """Return which other types of events came."""
        return sorted({kind_of(event) for event in self.events if event.ephemeral})

    async def first(self, kind: str, at_least: int = 1) -> SessionEvent:
        """Wait for the n-th event of a type."""

        def found() -> list[SessionEvent]:
            return [event for event in self.events if kind_of(event) == kind]

        await self._until(lambda: len(found()) >= at_least)
        return found()[at_least - 1]

    async def _until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not holds():
                self._came.clear()
                await self._came.wait()


def kind_of(event: SessionEvent) -> str:
    """Return an event's type as the wire says it."""
    return str(getattr(event.type, "value", event.type))


class Program:
    """A connected SDK client of one scenario."""

    def __init__(self, client: CopilotClient, model: Model) -> None:
        self.client = client
        self._model = model

    @property
    def provider(self) -> dict[str, Any]:
        """Return the demo model as a provider."""
        return {"type": "openai", "base_url": self._model["base_url"], "api_key": self._model["api_key"]}

    def _wishes(self, wishes: dict[str, Any]) -> dict[str, Any]:
        return {
            "model": self._model["name"],
            "provider": self.provider,
            "streaming": True,
            "on_permission_request": PermissionHandler.approve_all,
            **wishes,
        }

    async def create(self, **wishes: Any) -> CopilotSession:
        """Create a session on the demo model."""
        return await self.client.create_session(**self._wishes(wishes))

    async def resume(self, session_id: str, **wishes: Any) -> CopilotSession:
        """Resume a session on the demo model."""
        return await self.client.resume_session(session_id, **self._wishes(wishes))

    async def ask(self, method: str, params: dict[str, Any] | None = None) -> Any:
        """Make a call that the SDK has no function for; an error is an answer too."""
        assert self.client._client is not None
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                return await self.client._client.request(method, params or {})
        except TimeoutError:
            raise
        except Exception as error:
            return {"error": str(error), "kind": type(error).__name__}


@asynccontextmanager
async def program(endpoint: Endpoint, model: Model, **options: Any) -> AsyncIterator[Program]:
    """Connect an SDK client for the length of a block."""
    connection = RuntimeConnection.for_uri(endpoint.address, connection_token=endpoint.token)
    client = CopilotClient(connection=connection, **options)
    try:
        await client.start()
        yield Program(client, model)
    finally:
        await client.force_stop()


async def say(session: CopilotSession, prompt: str, **options: Any) -> str:
    """Send a prompt and return the answer's text."""
    answer = await session.send_and_wait(prompt, timeout=WAIT_SECONDS, **options)
    assert answer is not None
    return str(answer.data.content)  # type: ignore[union-attr]
