"""Behaviour of the method table: its shape, the rules that every row keeps, and the verdicts that must never drift."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.core.policy import Access
from aerodrome.protocol import methods
from aerodrome.protocol.methods import Direction, Kind, Method, Scope, Verdict

EVERY = [*methods.TABLE.values(), *methods.CALLBACKS.values()]
CALLS = list(methods.TABLE.values())


def broken(rows: list[Method]) -> list[str]:
    return [f"{row.direction.value} {row.name}" for row in rows]


def test_the_table_is_found_by_name_and_direction() -> None:
    assert methods.lookup("session.send") is methods.TABLE["session.send"]
    assert methods.lookup("session.send", Direction.S2C) is None
    assert methods.lookup("hooks.invoke", Direction.S2C) is methods.CALLBACKS["hooks.invoke"]
    assert methods.lookup("hooks.invoke") is None


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        methods.TABLE["session.send"] = methods.TABLE["ping"]  # type: ignore[index]


def test_every_session_scoped_method_needs_its_session_id() -> None:
    rows = [row for row in EVERY if row.scope is Scope.SESSION]
    assert broken([row for row in rows if not row.session_ids or row.session_ids[0].optional]) == []


def test_no_method_forwards_a_session_that_its_paths_do_not_name() -> None:
    unnamed = [row for row in EVERY if row.guarded is Verdict.OWN and not row.session_ids]
    unnamed += [row for row in EVERY if row.open is Verdict.OWN and not row.session_ids]
    assert broken(unnamed) == []


def test_guarded_calls_that_name_a_session_are_never_just_passed() -> None:
    assert broken([row for row in EVERY if row.guarded is Verdict.PASS and (row.session_ids or row.result_ids)]) == []


def test_what_is_filtered_can_be_filtered_away() -> None:
    def removable(row: Method) -> bool:
        return all(path.optional or "[]" in path.steps or "{}" in path.steps for path in row.result_ids)

    rows = [row for row in CALLS if Verdict.FILTER in (row.guarded, row.open)]
    assert len(rows) >= 4
    assert broken([row for row in rows if not row.result_ids or not removable(row)]) == []


def test_sessions_are_born_only_where_a_result_names_them() -> None:
    assert [str(path) for path in methods.TABLE["session.create"].born_ids] == ["+sessionId"]
    assert [str(path) for path in methods.TABLE["sessions.fork"].born_ids] == ["+sessionId"]
    assert broken([row for row in EVERY if any(path.born for path in row.session_ids)]) == []
    guarded = [row.name for row in CALLS if row.born_ids and row.guarded is not Verdict.DENY]
    assert guarded == ["session.create", "sessions.fork"]


def test_open_access_refuses_only_what_touches_supervision() -> None:
    refused = {row.name for row in CALLS if row.open is Verdict.DENY}
    assert {"runtime.shutdown", "host.start", "agentRegistry.spawn"} <= refused
    assert {name for name in refused if not name.startswith("host.")} == {"runtime.shutdown", "agentRegistry.spawn"}


def test_open_access_is_never_narrower_than_guarded_access() -> None:
    rows = [row for row in EVERY if row.open is Verdict.DENY and row.guarded is not Verdict.DENY]
    assert broken(rows) == []


def test_every_refusal_and_every_condition_gives_its_reason() -> None:
    rows = [row for row in EVERY if row.guarded in (Verdict.DENY, Verdict.POLICY, Verdict.VIRTUAL)]
    assert broken([row for row in rows if not row.reason]) == []


@pytest.mark.parametrize(
    "name",
    [
        "session.shell.exec",
        "session.shell.executeUserRequested",
        "session.mcp.startServer",
        "session.mcp.reloadWithConfig",
        "session.debug.collectLogs",
        "session.workspaces.updateMetadata",
        "session.permissions.folderTrust.addTrusted",
        "session.permissions.locations.addToolApproval",
        "persistence.writeRawJsonLocked",
        "user.settings.set",
        "mcp.config.add",
        "plugins.install",
        "account.login",
        "secrets.addFilterValues",
        "sessionFs.setProvider",
        "llmInference.setProvider",
        "llmInference.httpResponseChunk",
        "runtime.shutdown",
        "sessions.open",
        "sessions.connect",
        "sessions.delete",
        "sessions.pruneOld",
        "sessions.findByPrefix",
    ],
)
def test_what_reaches_the_host_or_other_sessions_is_refused_when_guarded(name: str) -> None:
    assert methods.judge(name, Access.GUARDED, has_session=True) is Verdict.DENY


@pytest.mark.parametrize(
    "name",
    [
        "session.create",
        "session.resume",
        "session.send",
        "session.sendMessages",
        "session.sendAndWait",
        "session.queue.insertAt",
        "session.queue.appendSteering",
        "session.options.update",
        "session.mode.set",
        "session.model.switchTo",
        "session.provider.add",
        "session.provider.sync",
        "session.permissions.handlePendingPermissionRequest",
        "session.commands.invoke",
    ],
)
def test_calls_with_dangerous_parameters_go_through_policy_when_guarded(name: str) -> None:
    assert methods.judge(name, Access.GUARDED, has_session=True) is Verdict.POLICY


@pytest.mark.parametrize("name", ["session.list", "sessions.list", "sessions.getSizes", "sessions.findByTaskId"])
def test_lists_of_sessions_are_filtered_when_guarded_and_passed_when_open(name: str) -> None:
    assert methods.judge(name, Access.GUARDED, has_session=False) is Verdict.FILTER
    assert methods.judge(name, Access.OPEN, has_session=False) is Verdict.PASS


@pytest.mark.parametrize("access", list(Access))
@pytest.mark.parametrize("name", ["connect", "ping", "status.get"])
def test_the_gateway_itself_answers_the_handshake(name: str, access: Access) -> None:
    assert methods.judge(name, access, has_session=False) is Verdict.VIRTUAL


@pytest.mark.parametrize("name", ["session.getLastId", "session.getForeground", "auth.getStatus"])
def test_process_wide_answers_are_the_gateways_own_only_when_guarded(name: str) -> None:
    assert methods.judge(name, Access.GUARDED, has_session=False) is Verdict.VIRTUAL
    assert methods.judge(name, Access.OPEN, has_session=False) is Verdict.PASS


@pytest.mark.parametrize("name", ["session.abort", "session.getMessages", "session.detach", "session.eventLog.read"])
@pytest.mark.parametrize("access", list(Access))
def test_everyday_session_calls_need_ownership_whatever_the_access(name: str, access: Access) -> None:
    assert methods.judge(name, access, has_session=True) is Verdict.OWN


def test_every_session_that_a_call_names_is_in_its_paths() -> None:
    assert [str(path) for path in methods.TABLE["session.mode.set"].session_ids] == [
        "sessionId",
        "inheritPlanBaseFromSessionId?",
    ]
    assert [str(path) for path in methods.TABLE["sessions.bulkDelete"].session_ids] == ["sessionIds[]"]
    assert [str(path) for path in methods.TABLE["session.create"].session_ids] == ["sessionId?"]


def test_process_wide_callbacks_reach_clients_only_when_open() -> None:
    for name in ("sessionFs.readFile", "llmInference.httpRequestStart", "uiThread.run", "gitHubTelemetry.event"):
        assert methods.judge(name, Access.GUARDED, True, Direction.S2C) is Verdict.DENY
        assert methods.judge(name, Access.OPEN, True, Direction.S2C) is Verdict.PASS


def test_lifecycle_notifications_are_filtered_when_guarded() -> None:
    lifecycle = methods.CALLBACKS["session.lifecycle"]
    assert lifecycle.kind is Kind.NOTIFICATION
    assert lifecycle.guarded is Verdict.FILTER


@given(st.text().filter(lambda name: name not in methods.TABLE and name not in methods.CALLBACKS))
def test_unknown_methods_pass_only_when_open_and_naming_a_session(name: str) -> None:
    for direction in Direction:
        assert methods.judge(name, Access.OPEN, True, direction) is Verdict.OWN
        assert methods.judge(name, Access.OPEN, False, direction) is Verdict.DENY
        assert methods.judge(name, Access.GUARDED, True, direction) is Verdict.DENY
        assert methods.judge(name, Access.GUARDED, False, direction) is Verdict.DENY


@pytest.mark.parametrize("name", ["Session.abort", "session.abort ", "session.abort\x00", "session..abort"])
def test_a_name_that_only_resembles_a_method_is_unknown(name: str) -> None:
    assert methods.judge(name, Access.GUARDED, has_session=True) is Verdict.DENY


HEADER = "\t".join(methods.COLUMNS)
ROW = "a.b\tc2s\trequest\tsession\tsessionId\t-\tpublic\tOWN\tOWN\town session\tno"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "header"),
        ("method\tdirection\n", "header"),
        (f"{HEADER}\n{ROW}\textra\n", "line 2: expected 11 columns"),
        (f"{HEADER}\n{ROW}\n{ROW}\n", "line 3: a.b is there twice"),
        (f"{HEADER}\n{ROW.replace('OWN', 'MAYBE', 1)}\n", "line 2.*MAYBE"),
        (f"{HEADER}\n{ROW.replace('sessionId', 'session id')}\n", "line 2: expected a path"),
    ],
)
def test_a_malformed_table_is_refused_with_its_line(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        methods.load(text)
