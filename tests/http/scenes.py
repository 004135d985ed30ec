"""What most scenes of the HTTP edge begin with."""

from __future__ import annotations


async def make(caller, session_id: str = "s1", **options) -> str:
    """Make a session; return its path."""
    made = await caller.post("/v1/sessions", json={"session_id": session_id, **options})
    assert made.status_code == 201, made.text
    return f"/v1/sessions/{session_id}"


async def say(caller, session: str, prompt: str, **more) -> dict:
    """Send a prompt; return the turn."""
    answer = await caller.post(f"{session}/messages", json={"prompt": prompt, **more})
    assert answer.status_code in (200, 202), answer.text
    return answer.json()
