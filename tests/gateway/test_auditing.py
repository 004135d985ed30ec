"""What the gateway has recorded: decisions about links, sessions and calls, bounded under a flood; never what a call carries."""

from __future__ import annotations

import pytest

from aerodrome.core.audit import Action, Entry, Outcome
from aerodrome.core.identity import Owner
from aerodrome.testing.peer import RpcError

ANN = Owner("shared", "ann")


def entries(rig, *found: Action) -> list[Entry]:
    return [entry for entry in rig.audit_log.entries if entry.action in found]


async def test_a_link_that_proves_who_it_is_is_recorded_with_its_key(rig):
    client = await rig.client("shared", "ann")
    await client.call("ping")
    (entry,) = entries(rig, Action.LINK_AUTHENTICATE)
    assert (entry.outcome, entry.owner, entry.by) == (Outcome.DONE, ANN, "user")
    assert entry.key_id == (await rig.token("shared", "ann")).split("_")[1]
    assert entry.peer.startswith("127.0.0.1:")


async def test_a_wrong_token_is_recorded_by_its_keys_id_and_never_itself(rig):
    token = await rig.token("shared", "ann")
    wrong = token[:-4] + "AAAA"
    stranger = await rig.stranger()
    for _ in range(5):
        with pytest.raises(RpcError):
            await stranger.call("connect", {"token": wrong})
    (entry,) = entries(rig, Action.LINK_AUTHENTICATE)
    assert (entry.outcome, entry.reason, entry.owner) == (Outcome.REFUSED, "authentication_failed", None)
    assert (entry.key_id, entry.peer, entry.by) == (token.split("_")[1], "127.0.0.1", "stranger")
    rig.services.audit.close()
    assert [entry.count for entry in entries(rig, Action.LINK_AUTHENTICATE)] == [1, 4]
    assert wrong not in str(rig.audit_log.entries)


async def test_sessions_that_begin_and_end_are_recorded(rig):
    client = await rig.client("shared", "ann")
    await client.call("session.create", {"sessionId": "mine", "model": "demo"})
    await client.call("session.resume", {"sessionId": "mine", "model": "demo"})
    await client.call("session.delete", {"sessionId": "mine"})
    found = entries(rig, Action.SESSION_CREATE, Action.SESSION_RESUME, Action.SESSION_DELETE)
    assert [(entry.action.value, entry.session_id, entry.owner) for entry in found] == [
        ("session.create", "mine", ANN),
        ("session.resume", "mine", ANN),
        ("session.delete", "mine", ANN),
    ]


async def test_allowed_calls_are_not_recorded(rig):
    client = await rig.client("shared", "ann")
    await client.call("session.create", {"sessionId": "mine", "model": "demo"})
    before = len(rig.audit_log.entries)
    for _ in range(10):
        await client.call("ping")
        await client.call("session.send", {"sessionId": "mine", "prompt": "x"})
    assert len(rig.audit_log.entries) == before


async def test_a_session_of_someone_else_is_recorded_as_foreign_whatever_the_caller_is_told(rig):
    owner, other = await rig.client("shared", "ann"), await rig.client("other", "eve")
    await owner.call("session.create", {"sessionId": "hers", "model": "demo"})
    for method in ("session.resume", "session.send", "session.abort"):
        with pytest.raises(RpcError):
            await other.call(method, {"sessionId": "hers", "prompt": "x"})
    with pytest.raises(RpcError):
        await other.call("session.send", {"sessionId": "nobodys", "prompt": "x"})
    with pytest.raises(RpcError):
        await other.call("session.create", {"sessionId": "hers", "model": "demo"})
    found = entries(rig, Action.CALL)
    assert {entry.owner for entry in found} == {Owner("other", "eve")}
    assert [(entry.method, entry.reason, entry.session_id, entry.session_owner) for entry in found] == [
        ("session.resume", "session_foreign", "hers", ANN),
        ("session.send", "session_foreign", "hers", ANN),
        ("session.abort", "session_foreign", "hers", ANN),
        ("session.send", "session_missing", "nobodys", None),
        ("session.create", "already_exists", "hers", None),
    ]


async def test_a_refused_method_and_a_refused_parameter_are_recorded_with_the_reason_and_no_value(rig):
    client = await rig.client("shared", "ann")
    await client.call("session.create", {"sessionId": "mine", "model": "demo"})
    provider = {"type": "openai", "baseUrl": "http://canary.invalid/secret", "apiKey": "canary-key"}
    for method, params in (
        ("session.shell.exec", {"sessionId": "mine", "command": "canary"}),
        ("session.create", {"sessionId": "second", "provider": provider}),
        ("no.such.method", {"canary": 1}),
    ):
        with pytest.raises(RpcError):
            await client.call(method, params)
    found = [(entry.method, entry.reason) for entry in entries(rig, Action.CALL)]
    assert found[0][0] == "session.shell.exec"
    assert found[0][1].startswith("policy_rejected: ")
    assert found[1:] == [
        ("session.create", "policy_rejected: provider.baseUrl"),
        ("no.such.method", "method_unknown"),
    ]
    assert "canary" not in str(rig.audit_log.entries)


async def test_a_flood_of_refusals_over_many_links_is_a_bounded_number_of_records_with_counts(rig):
    asked, sent = [], 0
    for _ in range(4):
        client = await rig.client("shared", "ann")
        asked = [client.ask(f"no.such.method{at % 1500}", {}) for at in range(2500)]
        for answer in asked:
            with pytest.raises(RpcError):
                await answer
        sent += len(asked)
        await client.aclose()
    rig.services.audit.close()
    found = entries(rig, Action.CALL)
    assert len(found) <= 2 * 1000 + 20
    assert sum(entry.count for entry in found) == sent
    assert {entry.owner for entry in found} == {ANN}


async def test_while_nothing_can_be_recorded_nothing_begins_and_what_runs_goes_on(rig):
    client = await rig.client("shared", "ann")
    await client.call("session.create", {"sessionId": "mine", "model": "demo"})
    rig.audit_log.is_failing = True
    with pytest.raises(RpcError, match="audit log cannot be written"):
        await client.call("session.create", {"sessionId": "second", "model": "demo"})
    stranger = await rig.stranger()
    with pytest.raises(RpcError, match="audit log cannot be written"):
        await stranger.call("connect", {"token": await rig.token("shared", "ann")})
    await client.call("session.send", {"sessionId": "mine", "prompt": "x"})
    rig.audit_log.is_failing = False
    await client.call("session.create", {"sessionId": "second", "model": "demo"})
