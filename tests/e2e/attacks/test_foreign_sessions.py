"""Strangers who share a runtime, and mean harm: what they can send, what they get, and that its owner notices nothing.

The attacker speaks raw JSON-RPC, so nothing of an SDK stands between it and the gateway. Every call of the method table is tried
on someone else's session, at every place where a session can be named. `test_hostile_parameters` is about what they ask
for in sessions of their own.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import pytest

from aerodrome.core.policy import Access
from aerodrome.protocol import methods
from aerodrome.protocol.id_paths import IdPath
from aerodrome.protocol.methods import Kind, Method, Verdict

from .client import Program, Programs, is_refusal, leaks
from .site import Site, key_id_of

pytestmark = pytest.mark.runtime

PROMPT_CANARY = "marmalade-in-the-prompt"
ANSWER_CANARY = "porcupine-in-the-answer"
#: Answered by making a session: for these a foreign id is taken, not missing.
_CREATES = ("session.create",)
_POLICY_REJECTED = -32010
_NONE = "session-that-nobody-has"


#: Victim and attacker: two tenants, two users of one tenant, and every mix of who shares and who does not.
PAIRS = [
    pytest.param("shared 0 0", "shared 1 0", id="strangers that share"),
    pytest.param("shared 0 0", "shared 0 1", id="users of one tenant that share"),
    pytest.param("user 0 0", "user 2 0", id="strangers alone"),
    pytest.param("user 0 0", "user 0 1", id="users of one tenant alone"),
    pytest.param("shared 0 0", "user 2 0", id="a stranger alone against one that shares"),
    pytest.param("user 0 0", "shared 1 0", id="a stranger that shares against one alone"),
]


class Victim:
    """Someone at work: a live session with a history that nobody else may see or change."""

    def __init__(self, program: Program, session_id: str) -> None:
        self.program = program
        self.session_id = session_id
        self.history: list[dict[str, Any]] = []

    @classmethod
    async def at_work(cls, program: Program, **more: Any) -> Victim:
        victim = cls(program, await program.open_session(**more))
        said = await program.turn(victim.session_id, f"[say {ANSWER_CANARY}] {PROMPT_CANARY}")
        assert said == ANSWER_CANARY
        victim.history = await program.history(victim.session_id)
        return victim

    async def check_unharmed(self) -> None:
        """Hold that its history is as it was, that its next turn works, and that its tools are its own."""
        assert await self.program.history(self.session_id) == self.history
        said = await self.program.turn(self.session_id, f"[tool fact {{}}][then][say still {ANSWER_CANARY}]")
        assert said == f"still {ANSWER_CANARY}"


def params_with(path: IdPath, named: str, row: Method, own: str) -> dict[str, Any]:
    """Return params that name a session at one place, and the caller's own wherever else one is required."""
    params: dict[str, Any] = {}
    for other in row.session_ids:
        if other is path or not other.optional:
            _put(params, other.steps, named if other is path else own)
    return params


def _put(params: dict[str, Any], steps: tuple[str, ...], named: str) -> None:
    name, *rest = steps
    if not rest:
        params[name] = named
    elif rest[0] == "[]":
        element: dict[str, Any] = {}
        if rest[1:]:
            _put(element, tuple(rest[1:]), named)
        params[name] = [element or named]
    else:
        _put(params.setdefault(name, {}), tuple(rest), named)


async def outcomes(attacker: Program, method: str, make: Any, foreign: str) -> tuple[Any, Any]:
    """Return how a call ends on a foreign session and on one that never was, but for the id."""
    both = []
    for named in (foreign, str(uuid.uuid4())):
        answer = await attacker.ask(method, make(named))
        both.append(json.loads(json.dumps(answer).replace(named, _NONE)))
    return both[0], both[1]


@pytest.mark.parametrize(("victim_part", "attacker_part"), PAIRS)
async def test_no_call_tells_a_foreign_session_from_a_missing_one_and_its_owner_notices_nothing(
    site: Site, programs: Programs, victim_part: str, attacker_part: str
) -> None:
    mallory = await site.part(attacker_part)
    bystander, attacker = await programs.connect(mallory), await programs.connect(mallory)
    own = await attacker.open_session()
    await attacker.turn(own, "[say mine]")
    victim = await Victim.at_work(await programs.connect(await site.part(victim_part)))
    access = Access.OPEN if attacker_part.startswith("user") else Access.GUARDED
    told_apart, named = [], set()
    for name, row in methods.TABLE.items():
        if row.kind is not Kind.REQUEST or name in _CREATES or row.verdict(access) is Verdict.DENY:
            continue
        for path in row.session_ids:
            foreign, missing = await outcomes(
                attacker, name, lambda named, path=path, row=row: params_with(path, named, row, own), victim.session_id
            )
            if foreign != missing:
                told_apart.append((name, str(path), foreign, missing))
            named.add(name)
    assert told_apart == []
    assert leaks(attacker.received, PROMPT_CANARY, ANSWER_CANARY) == []
    assert leaks(attacker.unasked, victim.session_id) == []
    assert leaks(bystander.received, PROMPT_CANARY, ANSWER_CANARY, victim.session_id) == []
    await victim.check_unharmed()
    assert len(named) > 150
    await site.refused(mallory, *((name, "session_foreign") for name in named))
    hers = (victim.session_id, victim.program.principal)
    recorded = [r for r in site.refusals(mallory, hers) if r["reason"] == "session_foreign"]
    assert {r["session"] for r in recorded} == {victim.session_id}
    assert {r["key_id"] for r in recorded} == {key_id_of(mallory.token)}


@pytest.mark.parametrize("attacker_part", ["shared 1 0", "shared 0 1", "user 2 0"])
async def test_every_other_call_of_the_table_is_refused_or_tells_nothing_of_foreign_sessions(
    site: Site, programs: Programs, attacker_part: str
) -> None:
    mallory = await site.part(attacker_part)
    attacker = await programs.connect(mallory)
    victim = await Victim.at_work(await programs.connect(await site.part("shared 0 0")))
    access = Access.OPEN if attacker_part.startswith("user") else Access.GUARDED
    refused, unlike = set(), []
    for name, row in methods.TABLE.items():
        is_denied = row.verdict(access) is Verdict.DENY
        if row.kind is not Kind.REQUEST or (row.session_ids and not is_denied) or name in ("connect", "ping"):
            continue
        if access is Access.OPEN and not is_denied:
            continue  # of a runtime that is the caller's alone, and knows of nobody
        foreign, missing = await outcomes(
            attacker,
            name,
            lambda named: {"sessionId": named, "taskId": named, "filter": {"cwd": "/"}},
            victim.session_id,
        )
        if is_denied:
            assert foreign["error"]["code"] == _POLICY_REJECTED, name
            refused.add(name)
        if foreign != missing:
            unlike.append((name, foreign, missing))
    assert unlike == []
    assert "runtime.shutdown" in refused
    assert ("session.shell.exec" in refused) is (access is Access.GUARDED)
    assert leaks(attacker.unasked, victim.session_id) == []
    assert leaks(attacker.received, PROMPT_CANARY, ANSWER_CANARY) == []
    await victim.check_unharmed()
    await site.refused(mallory, *((name, "policy_rejected") for name in refused))


@pytest.mark.parametrize("attacker_part", ["shared 1 0", "shared 0 1", "user 1 0"])
async def test_lists_and_lifecycle_notices_name_nobody_elses_session(
    site: Site, programs: Programs, attacker_part: str
) -> None:
    attacker = await programs.connect(await site.part(attacker_part))
    victim = await Victim.at_work(await programs.connect(await site.part("shared 0 0")))
    own = await attacker.open_session()
    await attacker.turn(own, "[say mine]")
    listed = [session["sessionId"] for session in (await attacker.get("session.list"))["sessions"]]
    assert own in listed
    assert own in (await attacker.get("sessions.getSizes"))["sizes"]
    await attacker.get("sessions.list", {"includeDetached": True, "metadataLimit": 1000})
    assert (await attacker.get("session.getLastId")).get("sessionId") == own
    await victim.program.turn(victim.session_id, "[say once more]")
    await attacker.turn(own, "[say once more]")  # whatever was sent about the victim's turn has come before this ended
    assert leaks(attacker.received, PROMPT_CANARY, ANSWER_CANARY, victim.session_id) == []


@pytest.mark.parametrize("attacker_part", ["shared 1 0", "shared 0 1", "user 1 0"])
async def test_the_id_of_a_foreign_session_cannot_be_taken(site: Site, programs: Programs, attacker_part: str) -> None:
    mallory = await site.part(attacker_part)
    attacker = await programs.connect(mallory)
    victim = await Victim.at_work(
        await programs.connect(await site.part("shared 0 0")), sessionId=f"mine-{uuid.uuid4()}"
    )
    answer = await attacker.ask("session.create", attacker.opening(sessionId=victim.session_id))
    assert is_refusal(answer)
    assert is_refusal(await attacker.ask("session.getMessages", {"sessionId": victim.session_id}))
    assert leaks(attacker.received, PROMPT_CANARY, ANSWER_CANARY) == []
    await victim.check_unharmed()
    await site.refused(mallory, ("session.create", "already_exists"), ("session.getMessages", "session_foreign"))


async def test_of_two_who_make_a_session_of_one_id_at_once_one_has_it_and_the_other_nothing(
    site: Site, programs: Programs
) -> None:
    pair = [await site.stranger(), await site.stranger()]
    both = [await programs.connect(principal) for principal in pair]
    for _ in range(5):
        session_id = str(uuid.uuid4())
        answers = await asyncio.gather(*(p.ask("session.create", p.opening(sessionId=session_id)) for p in both))
        ((winner, loser),) = [
            (both[at], both[1 - at]) for at, answer in enumerate(answers) if "result" in answer
        ]  # one, and only one
        assert await winner.turn(session_id, f"[say {ANSWER_CANARY}] {PROMPT_CANARY}") == ANSWER_CANARY
        assert is_refusal(await loser.ask("session.getMessages", {"sessionId": session_id}))
        assert leaks(loser.received, PROMPT_CANARY, ANSWER_CANARY) == []
        await site.refused(loser.principal, ("session.create", "already_exists"))
        both = [await programs.connect(principal) for principal in pair]


def abbreviations(session_id: str) -> list[str]:
    """Return the beginnings of an id, and forms of it that a careless reader would take for it."""
    beginnings = [session_id[:length] for length in range(1, len(session_id))]
    return [*beginnings, session_id.upper(), session_id[:13].upper(), session_id.replace("-", ""), session_id[:8] + "-"]


async def test_the_beginning_of_a_foreign_id_leads_nowhere(site: Site, programs: Programs) -> None:
    """A runtime takes 7 characters of a UUID for the whole, at resume and at delete: nobody may own an id that reads so."""
    attacker = await programs.connect(await site.part("shared 1 0"))
    victim = await Victim.at_work(await programs.connect(await site.part("shared 0 0")))
    taken = []
    for short in abbreviations(victim.session_id):
        answer = await attacker.ask("session.create", attacker.opening(sessionId=short))
        if "result" in answer:
            taken.append(short)
            # A session without a turn is gone once it is let go: now the runtime would look further.
            await attacker.get("session.detach", {"sessionId": short})
        resumed = await attacker.ask("session.resume", attacker.opening(sessionId=short, tools=[]))
        assert is_refusal(resumed), short
        await attacker.ask("session.delete", {"sessionId": short})
    assert leaks(attacker.received, victim.session_id, PROMPT_CANARY, ANSWER_CANARY) == []
    await victim.check_unharmed()
    assert victim.session_id[:6] in taken  # what cannot be misread is the client's to choose
    assert victim.session_id[:7] not in taken


async def test_a_request_of_one_session_is_not_answered_in_the_name_of_another(site: Site, programs: Programs) -> None:
    """Pending permission requests and cursors are the session's own, even for one who knows their names."""
    attacker = await programs.connect(await site.part("shared 1 0"))
    own = await attacker.open_session()
    await attacker.turn(own, "[say mine]")
    program = await programs.connect(await site.part("shared 0 0"))
    tool = {"name": "asks", "description": "asks first", "parameters": {"type": "object", "properties": {}}}
    victim = await Victim.at_work(program, tools=[tool], requestPermission=True)
    cursor = (await program.get("session.eventLog.tail", {"sessionId": victim.session_id}))["cursor"].split("|")[
        0
    ] + "|0"
    persisted = (await program.get("sessions.readPersistedEvents", {"sessionId": victim.session_id, "max": 1}))[
        "cursor"
    ]
    await program.get("session.send", {"sessionId": victim.session_id, "prompt": "[tool asks {}][then][say done]"})
    pending = (await program.wait_for_event(victim.session_id, "permission.requested"))["requestId"]
    decision = {"sessionId": own, "requestId": pending, "result": {"kind": "approve-once"}}
    method = "session.permissions.handlePendingPermissionRequest"
    assert (await attacker.get(method, decision))["success"] is False
    await attacker.ask("session.eventLog.read", {"sessionId": own, "cursor": cursor})
    await attacker.ask("sessions.readPersistedEvents", {"sessionId": own, "cursor": persisted})
    assert (await program.get(method, {**decision, "sessionId": victim.session_id}))["success"] is True
    assert await program.finish_turn(victim.session_id) == "done"
    assert leaks(attacker.received, PROMPT_CANARY, ANSWER_CANARY, victim.session_id) == []


def doubled(mine: str, theirs: str) -> list[tuple[str, str]]:
    """Return params that one reader takes for a call on a session of one's own and another for a call on a foreign one."""
    return [
        ("doubled, theirs last", f'{{"sessionId":"{mine}","sessionId":"{theirs}"}}'),
        ("doubled, theirs first", f'{{"sessionId":"{theirs}","sessionId":"{mine}"}}'),
        ("an escaped name", f'{{"sessionId":"{mine}","session\\u0049d":"{theirs}"}}'),
        ("an escaped name first", f'{{"session\\u0049d":"{theirs}","sessionId":"{mine}"}}'),
        ("only an escaped name", f'{{"session\\u0049d":"{theirs}"}}'),
        ("another case", f'{{"sessionID":"{theirs}","SessionId":"{theirs}","session_id":"{theirs}"}}'),
        ("a list", f'{{"sessionId":["{theirs}"]}}'),
        ("an object", f'{{"sessionId":{{"sessionId":"{theirs}"}}}}'),
        ("null", '{"sessionId":null}'),
        ("a number", '{"sessionId":7}'),
        ("true", '{"sessionId":true}'),
        ("nothing", "{}"),
        ("empty", '{"sessionId":""}'),
        ("by position", f'[{{"sessionId":"{theirs}"}}]'),
        ("by position, bare", f'["{theirs}"]'),
        ("a string", f'"{theirs}"'),
        ("blanks round it", f'{{"sessionId":" {theirs} "}}'),
        ("a NUL behind it", f'{{"sessionId":"{theirs}\\u0000"}}'),
        ("a path to it", f'{{"sessionId":"../session-state/{theirs}"}}'),
        ("a lone surrogate", f'{{"sessionId":"{theirs}\\ud800"}}'),
        ("a number too large", f'{{"sessionId":"{mine}","x":{10**400}}}'),
        ("deep nesting", f'{{"sessionId":"{mine}","x":{"[" * 5000}{"]" * 5000}}}'),
        ("deep nesting before it", f'{{"x":{"[" * 900}{"]" * 900},"sessionId":"{theirs}"}}'),
    ]


@pytest.mark.parametrize("attacker_part", ["shared 1 0", "user 1 0"])
@pytest.mark.parametrize(
    "method",
    ["session.getMessages", "session.abort", "session.delete", "session.detach", "sessions.fork", "session.resume"],
)
async def test_no_way_to_write_an_id_reaches_a_foreign_session(
    site: Site, programs: Programs, method: str, attacker_part: str
) -> None:
    attacker = await programs.connect(await site.part(attacker_part))
    victim = await Victim.at_work(await programs.connect(await site.part("shared 0 0")))
    for way, params in doubled(await attacker.open_session(), victim.session_id):
        answer = json.loads(await attacker.ask_raw(method, params.encode()))
        assert leaks(attacker.received, PROMPT_CANARY, ANSWER_CANARY) == [], way
        assert "result" in answer or "error" in answer, way
    assert (await attacker.get("ping", {"message": "still here"}))["message"] == "pong: still here"
    await victim.check_unharmed()


@pytest.mark.parametrize(
    "method",
    [
        "session.nothing",
        "session.GetMessages",
        "session.getMessages ",
        "session/getMessages",
        "sessions.steal",
        "",
        "rpc.on",
    ],
)
async def test_a_method_that_the_table_does_not_know_goes_nowhere_where_strangers_share(
    site: Site, programs: Programs, method: str
) -> None:
    mallory = await site.part("shared 1 0")
    attacker = await programs.connect(mallory)
    victim = await Victim.at_work(await programs.connect(await site.part("shared 0 0")))
    answer = await attacker.ask(method, {"sessionId": victim.session_id})
    assert answer["error"]["code"] == -32601
    await victim.check_unharmed()
    await site.refused(mallory, (method, "method_unknown"))


async def test_words_that_nobody_asked_for_change_nothing(site: Site, programs: Programs) -> None:
    """Notifications in place of calls, cancellations of others' calls, answers to questions that were put to others."""
    mallory = await site.part("shared 1 0")
    attacker = await programs.connect(mallory)
    program = await programs.connect(await site.part("shared 0 0"))
    victim = await Victim.at_work(program, requestUserInput=True)
    prompt = '[tool ask_user {"question":"which?"}]'
    await program.get("session.send", {"sessionId": victim.session_id, "prompt": prompt})
    asked = await program.wait_for_request("userInput.request")
    for number in [*range(100), asked["id"], str(asked["id"])]:
        for body in (
            {"id": number, "result": {"answer": "forged", "wasFreeform": True}},
            {"method": "$/cancelRequest", "params": {"id": number}},
        ):
            attacker.send(json.dumps({"jsonrpc": "2.0", **body}).encode())
    said = ("session.abort", "session.delete", "sessions.close", "session.destroy", "runtime.shutdown")
    for method in said:
        notice = {"jsonrpc": "2.0", "method": method, "params": {"sessionId": victim.session_id}}
        attacker.send(json.dumps(notice).encode())
    assert (await attacker.get("ping", {"message": "heard"}))["message"] == "pong: heard"
    program.answer(asked["id"], {"answer": "the real one", "wasFreeform": True})
    heard = await program.finish_turn(victim.session_id)
    assert "the real one" in heard
    assert "forged" not in heard
    assert leaks(attacker.received, PROMPT_CANARY, ANSWER_CANARY, victim.session_id) == []
    await site.refused(mallory, *((method, "not_a_request") for method in said))
