"""The answer for a session that does not exist, held against what the runtime itself answers."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from aerodrome.protocol import methods, missing
from aerodrome.protocol.methods import Verdict
from aerodrome.testing import direct_and_through
from aerodrome.transport import control
from aerodrome.transport.control import ControlLink, RemoteError

#: Calls that a guarded caller may make about a session.
NAMING = sorted(
    name
    for name, row in methods.TABLE.items()
    if row.session_ids and row.guarded in (Verdict.OWN, Verdict.POLICY) and not row.session_ids[0].optional
)
#: An id that breaks out of a template, or of JSON, if it is put there as it is.
ODD = 'a"\\b%s{}\n'


@pytest.mark.parametrize("method", ["session.send", "session.delete", "session.setForeground", "sessions.fork"])
def test_any_id_stands_in_the_answer_as_it_was_asked_for(method):
    answer = json.loads(missing.answer(7, method, ODD))
    told = answer["error"]["message"] if "error" in answer else answer["result"]["error"]
    assert ODD in told


def test_an_unknown_method_has_the_common_answer():
    assert json.loads(missing.answer("x", "session.brandNew", "s1")) == {
        "jsonrpc": "2.0",
        "id": "x",
        "error": {
            "code": -32603,
            "message": "Request session.brandNew failed with message: Session not found for sessionId: s1",
        },
    }


@pytest.mark.runtime
async def test_every_call_is_answered_as_the_runtime_answers_for_a_session_that_it_does_not_have():
    unlike = []
    async with direct_and_through.running_runtime("token") as runtime:
        link, _ = await control.open_control(runtime.endpoint.host, runtime.endpoint.port, runtime.endpoint.token)
        for method in NAMING:
            session_id = str(uuid.uuid4())
            theirs = await _ask(link, method, session_id)
            ours = _ours(method, session_id)
            if theirs != ours:
                unlike.append((method, theirs, ours))
        await link.aclose()
    assert unlike == []
    assert len(NAMING) > 150


async def _ask(link: ControlLink, method: str, session_id: str) -> Any:
    params = {"sessionIds": [session_id]} if method in missing.LISTS else {"sessionId": session_id}
    try:
        return await link.call(method, params)
    except RemoteError as error:
        return {"code": error.code_number, "message": error.message}


def _ours(method: str, session_id: str) -> Any:
    if method in missing.LISTS:
        empty: Any = {"sessions.bulkDelete": {"freedBytes": {}}, "sessions.checkInUse": {"inUse": []}}.get(method, [])
        return missing.complete(method, empty, [session_id])
    answer = json.loads(missing.answer(1, method, session_id))
    return answer["error"] if "error" in answer else answer["result"]
