"""JSON-RPC messages: which bodies are messages, which are refused with which error, and what is written."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from aerodrome import errors
from aerodrome.protocol import messages

DEEP = 100_000

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)
members = st.sampled_from(["jsonrpc", "id", "method", "params", "result", "error", "extra"])
ids = st.text() | st.integers(min_value=-(2**63), max_value=2**63 - 1)


def decode_or_refuse(body: bytes) -> messages.Envelope | None:
    """Decode; None for a refusal with one of the two errors that an edge knows how to say."""
    try:
        return messages.decode(body)
    except (errors.ParseFailed, errors.InvalidRequest):
        return None


@pytest.mark.parametrize(
    ("body", "request_id", "method"),
    [
        (b'{"jsonrpc":"2.0","id":"a","method":"ping"}', "a", "ping"),
        (b'{"jsonrpc":"2.0","id":7,"method":"ping","params":{}}', 7, "ping"),
        (b'{"jsonrpc":"2.0","id":0,"method":"ping"}', 0, "ping"),
        (b'{"jsonrpc":"2.0","id":-1,"method":"ping"}', -1, "ping"),
        (b'{"jsonrpc":"2.0","id":"","method":"ping"}', "", "ping"),
        (b' \r\n{ "method" : "ping" , "id" : "a" } \n', "a", "ping"),
        (b'{"id":1,"method":"a\\u0062c","extra":[{"id":2}]}', 1, "abc"),
        (b'{"jsonrpc":"2.0","method":"exit"}', UNSET, "exit"),
        (b'{"jsonrpc":"2.0","id":9223372036854775807,"method":"ping"}', 2**63 - 1, "ping"),
    ],
)
def test_requests_and_notifications_are_recognised(body, request_id, method):
    envelope = messages.decode(body)
    assert (envelope.id, envelope.method) == (request_id, method)


@pytest.mark.parametrize(
    ("body", "result", "error"),
    [
        (b'{"jsonrpc":"2.0","id":1,"result":{"a":[1, 2]}}', b'{"a":[1, 2]}', None),
        (b'{"jsonrpc":"2.0","id":1,"result":null}', b"null", None),
        (b'{"jsonrpc":"2.0","id":"x","error":{"code":-1,"message":"no"}}', None, b'{"code":-1,"message":"no"}'),
        (
            b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"no"}}',
            None,
            b'{"code":-32700,"message":"no"}',
        ),
    ],
)
def test_responses_are_recognised_with_result_or_error_as_they_came(body, result, error):
    envelope = messages.decode(body)
    assert envelope.method is UNSET
    assert (None if envelope.result is UNSET else bytes(envelope.result)) == result
    assert (None if envelope.error is UNSET else bytes(envelope.error)) == error


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b'[{"id":1,"method":"ping"},{"id":2,"method":"ping"}]',
        b"null",
        b"1",
        b'"ping"',
        b"{}",
        b'{"jsonrpc":"2.0"}',
        b'{"id":1}',
        b'{"id":null,"method":"ping"}',
        b'{"id":1.0,"method":"ping"}',
        b'{"id":1.5,"method":"ping"}',
        b'{"id":1e3,"method":"ping"}',
        b'{"id":true,"method":"ping"}',
        b'{"id":{},"method":"ping"}',
        b'{"id":[1],"method":"ping"}',
        b'{"id":1,"method":null}',
        b'{"id":1,"method":5}',
        b'{"id":1,"method":["ping"]}',
        b'{"result":1}',
        b'{"error":{}}',
        b'{"id":1,"result":1,"error":{}}',
        b'{"id":true,"result":1}',
    ],
)
def test_json_that_is_no_message_is_an_invalid_request(body):
    with pytest.raises(errors.InvalidRequest) as raised:
        messages.decode(body)
    assert raised.value.code == "request_invalid"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"hello",
        b'{"id":1,"method":"ping"} x',
        b'{"id":1,"method":"ping"}{"id":2,"method":"ping"}',
        b"{'id':1}",
        b'{"id":1,"method":"ping",}',
        b'{"id":1,"method":"ping","params":{"x":NaN}}',
        b'{"id":1,"method":"ping","params":{"x":01}}',
        b'{"id":1,"method":"ping","params":{"x":"\x01"}}',
        b'{"id":1,"method":"ping","params":{"x":"\\q"}}',
        b'{"id":1,"method":"ping","params":{"x":"\\ud800"}}',
        b'{"id":"\\ud800","method":"ping"}',
        b'{"id":1,"method":"\xff"}',
        b'{"id":"\xc3","method":"ping"}',
        b'\xef\xbb\xbf{"id":1,"method":"ping"}',
        '{"id":1,"method":"ping"}'.encode("utf-16"),
        b'{"id":1,"method":"ping","params":' + b"[" * DEEP,
        b'{"id":1,"method":"ping","params":' + b"[" * DEEP + b"]" * DEEP + b"}",
        b'{"x":' * DEEP + b"1" + b"}" * DEEP,
        b"\x00" * 100,
    ],
)
def test_what_is_not_json_is_a_parse_failure(body):
    with pytest.raises(errors.ParseFailed):
        messages.decode(body)


def test_a_refusal_never_repeats_what_was_sent():
    secret = "ghp_0123456789abcdef"
    for body in (f'{{"token":"{secret}"', f'["{secret}"]', f'{{"id":1.5,"method":"{secret}"}}'):
        with pytest.raises(errors.InvalidRequest) as raised:
            messages.decode(body.encode())
        assert secret not in raised.value.message


def test_of_a_doubled_member_only_one_is_read_and_forwarded():
    """Two readers of one message must not see two ids; what is forwarded is written anew."""
    envelope = messages.decode(b'{"id":1,"method":"a","id":2,"method":"b","params":{"x":1},"params":{"x":2}}')
    forwarded = messages.request(9, envelope.method, envelope.params)
    assert forwarded == b'{"jsonrpc":"2.0","id":9,"method":"b","params":{"x":2}}'


@settings(deadline=None)
@given(st.binary(max_size=200) | st.dictionaries(members, values).map(lambda found: json.dumps(found).encode()))
@example(b'{"id":' + b"9" * 5000 + b',"method":"a"}')
@example(b'{"\xff":1,"id":1,"method":"a"}')
@example(b'{"id":1,"method":"a","params":{"x":"\xff"}}')
def test_any_body_is_a_message_or_a_documented_refusal(body):
    envelope = decode_or_refuse(body)
    if envelope is None:
        return
    if envelope.method is UNSET:
        assert (envelope.result is UNSET) != (envelope.error is UNSET)
        assert envelope.id is UNSET or envelope.id is None or isinstance(envelope.id, (str, int))
    else:
        assert isinstance(envelope.method, str)
        assert envelope.id is UNSET or (isinstance(envelope.id, (str, int)) and not isinstance(envelope.id, bool))


@settings(deadline=None)
@given(ids, st.text(), values)
def test_a_request_that_is_written_reads_back(request_id, method, params):
    envelope = messages.decode(messages.request(request_id, method, messages.encode(params)))
    assert (envelope.id, envelope.method) == (request_id, method)
    assert msgspec.json.decode(envelope.params) == msgspec.json.decode(messages.encode(params))


@settings(deadline=None)
@given(ids, ids, values, st.booleans())
def test_an_answer_under_another_id_keeps_its_result_or_error_to_the_byte(own_id, other_id, value, failed):
    raw = json.dumps(value, indent=1).encode()
    body = b'{"id": %b, "%b": %b}' % (messages.encode(own_id), b"error" if failed else b"result", raw)
    forwarded = messages.response(other_id, messages.decode(body))
    again = messages.decode(forwarded)
    assert again.id == other_id
    assert bytes(again.error if failed else again.result).strip() == raw


@settings(deadline=None)
@given(st.binary(max_size=100) | values.map(lambda found: json.dumps(found).encode()))
@example(b'{"x":"\xff"}')
@example(b'{"x":"\\ud800"}')
@example(b"[" * DEEP)
@example(b'{"a":' * DEEP)
def test_any_params_are_an_object_or_a_documented_refusal(raw):
    try:
        params = messages.params_object(msgspec.Raw(raw))
    except errors.InvalidParams:
        return
    assert isinstance(params, dict)


def test_absent_and_null_params_are_an_empty_object():
    assert messages.params_object(UNSET) == {}
    assert messages.params_object(msgspec.Raw(b"null")) == {}
    assert messages.request(1, "ping") == b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{}}'
    assert messages.notification("exit") == b'{"jsonrpc":"2.0","method":"exit","params":{}}'


@pytest.mark.parametrize("raw", [b"[]", b'"x"', b"1", b"true", b'{"x":"\xff"}', b"{", b"[" * DEEP])
def test_params_that_are_no_object_are_refused(raw):
    with pytest.raises(errors.InvalidParams):
        messages.params_object(msgspec.Raw(raw))


def test_a_failure_carries_code_message_and_data():
    assert json.loads(messages.failure("a", -1, "no", {"retryable": True})) == {
        "jsonrpc": "2.0",
        "id": "a",
        "error": {"code": -1, "message": "no", "data": {"retryable": True}},
    }
    assert json.loads(messages.failure(None, -1, "no")) == {
        "jsonrpc": "2.0",
        "id": None,
        "error": {"code": -1, "message": "no"},
    }


@settings(deadline=None)
@given(st.binary(max_size=200) | st.dictionaries(members, values).map(lambda found: json.dumps(found).encode()))
@example(b'{"method":"session.event","params":{"sessionId":5}}')
@example(b'{"method":"session.event","params":[1]}')
@example(b'{"method":"session.event","params":{"event":"x"}}')
@example(b'{"method":"a","params":' + b"[" * DEEP)
def test_a_peek_sees_what_a_full_look_sees_or_says_that_it_cannot_tell(body):
    peek = messages.peek(body)
    if peek is None:
        return
    envelope = decode_or_refuse(body)
    if envelope is None:
        return
    assert (peek.id, peek.method) == (envelope.id, envelope.method)


def test_a_peek_names_the_session_and_the_event_of_a_notification():
    body = b'{"method":"session.event","params":{"sessionId":"s","event":{"type":"session.idle","data":{}}}}'
    peek = messages.peek(body)
    assert peek is not None
    assert isinstance(peek.params, messages.PeekParams)
    assert peek.params.sessionId == "s"
    assert not isinstance(peek.params.event, msgspec.UnsetType)
    assert peek.params.event.type == "session.idle"
