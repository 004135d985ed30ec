"""What the demo prints for people: its users, and a Python and a Node program to copy and paste."""

from __future__ import annotations

import textwrap

from aerodrome.demo import Demo

_PYTHON = """
# pip install github-copilot-sdk; save as hello.py; python hello.py
import asyncio
from copilot import CopilotClient, RuntimeConnection

async def main():
    connection = RuntimeConnection.for_uri("{sdk}", connection_token="{token}")
    async with CopilotClient(connection=connection) as client:
        session = await client.create_session(
            model="{model}",
            provider={{"type": "openai", "base_url": "{base_url}", "api_key": "{api_key}"}},
        )
        answer = await session.send_and_wait("Hello from Python!")
        print(answer.data.content)

asyncio.run(main())
"""

_NODE = """
// npm install @github/copilot-sdk; save as hello.mjs; node hello.mjs
import {{ CopilotClient, RuntimeConnection }} from "@github/copilot-sdk";

const connection = RuntimeConnection.forUri("{sdk}", {{ connectionToken: "{token}" }});
const client = new CopilotClient({{ connection }});
const session = await client.createSession({{
  model: "{model}",
  provider: {{ type: "openai", baseUrl: "{base_url}", apiKey: "{api_key}" }},
}});
const answer = await session.sendAndWait({{ prompt: "Hello from Node!" }});
console.log(answer.data.content);
await client.stop();
"""

_HTTP = """
# a session, then a prompt whose answer is read as it is made (server-sent events)
auth() {{ echo 'Authorization: Bearer {token}'; }}
auth | curl -sS {http}/v1/sessions -H @- --json '{{"session_id": "hello"}}'
auth | curl -sSN {http}/v1/sessions/hello/messages -H @- -H 'Accept: text/event-stream' --json '{{"prompt": "Hello from curl!"}}'
"""


def describe(demo: Demo) -> str:
    """Return the text that `aerodrome demo` prints when it is ready."""
    first, other = demo.principals[0], demo.principals[2]
    rows = [f"  {p['tenant']:<10}{p['user']:<8}{p['isolation']:<11}{p['token']}" for p in demo.principals]
    return "\n".join(
        [
            f"Aerodrome is listening on {demo.sdk} (Copilot runtime {demo.runtime['version']}, demo model at "
            f"{demo.model['base_url']}).",
            "",
            f"In a browser: {demo.playground} (as any of these users, or as the operator)",
            "",
            "  tenant    user    isolation  connection token",
            *rows,
            f"  {'the operator':<29}{demo.operator}",
            "",
            f"HTTP, as {first['user']} of {first['tenant']}:",
            textwrap.indent(http_program(demo, first["token"]), "    "),
            f"Python, as {first['user']} of {first['tenant']}:",
            textwrap.indent(python_program(demo, first["token"]), "    "),
            f"Node, as {other['user']} of {other['tenant']} (who sees nothing of {first['tenant']}):",
            textwrap.indent(node_program(demo, other["token"]), "    "),
            f"Look inside: aerodrome show runtimes --state-directory {demo.state_directory}",
            "Ctrl-C ends the demo and leaves nothing behind.",
        ]
    )


def python_program(demo: Demo, token: str) -> str:
    """Return a Python program that talks to this demo."""
    return _fill(_PYTHON, demo, token)


def node_program(demo: Demo, token: str) -> str:
    """Return a Node program that talks to this demo."""
    return _fill(_NODE, demo, token)


def http_program(demo: Demo, token: str) -> str:
    """Return shell commands that talk to this demo's HTTP API."""
    return _fill(_HTTP, demo, token)


def _fill(program: str, demo: Demo, token: str) -> str:
    model = demo.model
    return program.format(
        sdk=demo.sdk,
        http=demo.http,
        token=token,
        model=model["name"],
        base_url=model["base_url"],
        api_key=model["api_key"],
    )
