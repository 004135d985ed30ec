"""Messages that are none, refused in the runtime's own words (measured on release 1.0.102; tests/e2e compares them with it)."""

from __future__ import annotations

import pytest

from aerodrome import errors
from aerodrome.protocol import refusals

NO_MESSAGE = "not a recognizable JSON-RPC request, notification, or response"
ODD_ID = "data did not match any variant of untagged enum RequestId"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[]", NO_MESSAGE),
        (b"5", NO_MESSAGE),
        (b"{}", NO_MESSAGE),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', NO_MESSAGE),
        (b'{"jsonrpc":"2.0","id":true,"method":"ping"}', NO_MESSAGE),
        (b'{"jsonrpc":"2.0","id":1}', NO_MESSAGE),
        (b'{"jsonrpc":"2.0","result":1}', NO_MESSAGE),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', ODD_ID),
        (b'{"jsonrpc":"2.0","id":9223372036854775808,"method":"ping"}', ODD_ID),
        (b'{"id":1.5,"jsonrpc":"1.0","method":"ping"}', ODD_ID),
        (b'{"jsonrpc":"1.0","id":1.5,"method":"ping"}', 'unsupported jsonrpc version: expected "2.0", got "1.0"'),
        (b'{"id":1,"method":"ping"}', "missing field `jsonrpc`"),
        (b'{"jsonrpc":2,"id":1,"method":"ping"}', "invalid type: integer `2`, expected a string"),
        (b'{"jsonrpc":null,"id":1,"method":"ping"}', "invalid type: null, expected a string"),
    ],
)
def test_json_that_is_no_message_is_refused_in_the_runtimes_words(body: bytes, words: str) -> None:
    with pytest.raises(errors.InvalidRequest) as refused:
        refusals.check(body)
    assert refused.value.message == words
    assert not isinstance(refused.value, errors.ParseFailed)


@pytest.mark.parametrize("body", [b"", b"{nope", b'{"a":\xff}', b"[" * 100_000])
def test_what_is_not_json_is_refused_as_that(body: bytes) -> None:
    with pytest.raises(errors.ParseFailed):
        refusals.check(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"jsonrpc":"2.0","id":1,"method":"ping"}',
        b'{"jsonrpc":"2.0","id":"","method":"","params":5}',
        b'{"jsonrpc":"2.0","method":"ping"}',
        b'{"jsonrpc":"2.0","id":null,"result":{}}',
        b'{"jsonrpc":"2.0","id":-9223372036854775808,"error":{}}',
    ],
)
def test_messages_pass(body: bytes) -> None:
    refusals.check(body)
