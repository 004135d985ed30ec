"""`/playground`: the signed-in user talks to an agent in the browser. The page's modules use /v1 as any program does."""

from __future__ import annotations

from typing import NamedTuple

from fastapi import APIRouter, Request, Response

from aerodrome import errors
from aerodrome.core.policy import Trust
from aerodrome.http.pages import page
from aerodrome.http.pages.page import PageRoute, Visiting, Visitor

router = APIRouter(route_class=PageRoute, include_in_schema=False)


class Example(NamedTuple):
    """A prompt to begin with."""

    title: str
    prompt: str
    needs_tool: bool = False
    needs_trust: bool = False


_EXAMPLES = (
    Example("Learn what it can do", "What can you do here, and with which tools?"),
    Example("Write something", "Write a short poem about an aerodrome at dawn."),
    Example("Make a table", "Compare three sorting algorithms in a table."),
    Example("Think something through", "How many piano tuners are there in Paris? Show how you estimate it."),
)
#: What the demo model understands (testing.demo_model).
_DEMO_EXAMPLES = (
    Example("See an answer stream in", "[stream 40 4]"),
    Example(
        "Approve a command",
        '[tool bash {"command":"date; uname -sr","description":"See the time and the machine"}]',
        needs_trust=True,
    ),
    Example("Be asked a question", '[tool ask_user {"question":"Tea or coffee?","choices":["Tea","Coffee"]}]'),
    Example("Answer a tool yourself", '[tool lookup_order {"order":"4711"}]', needs_tool=True),
    Example(
        "See formatted text",
        "[say ## Landing checklist\n\n1. **Gear** down, three green\n2. Flaps *full*\n3. `mixture rich`\n\n"
        "| Runway | Wind | Use |\n|---|---:|---|\n| 09 | 4 kt | yes |\n| 27 | 11 kt | no |\n\n"
        "```python\ndef land(speed: int) -> str:\n    return 'touchdown' if speed < 70 else 'go around'\n```\n]",
    ),
    Example("See an error, and what to do", "[error 400]"),
)


@router.get("/playground")
async def show(request: Request, visitor: Visiting) -> Response:
    """Show the page."""
    if not visitor.caller.principal.may_connect:
        raise errors.PolicyRejected("expected a key with the scope connect: this one uses no sessions")
    is_demo = getattr(request.app.state, "is_demo", False)
    return page.render(request, "playground.html", visitor, is_demo=is_demo, examples=_examples(visitor, is_demo))


def _examples(visitor: Visitor, is_demo: bool) -> list[Example]:
    is_trusted = visitor.caller.principal.policy.trust is Trust.FULL
    wanted = _DEMO_EXAMPLES if is_demo else _EXAMPLES
    return [example for example in wanted if is_trusted or not example.needs_trust]
