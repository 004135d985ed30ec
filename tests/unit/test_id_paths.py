"""Behaviour of the session id path language: what it finds, what it filters, and that nothing slips by."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome import errors
from aerodrome.protocol import id_paths

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
names = st.sampled_from(["sessionId", "sessionIds", "sessions", "status"])
session_ids = st.text(min_size=1, max_size=12)
path_texts = st.builds(
    lambda first, rest, keys, optional: ".".join([first, *rest]) + keys + optional,
    st.builds(str.__add__, names, st.sampled_from(["", "[]"])) | st.just("[]"),
    st.lists(st.builds(str.__add__, names, st.sampled_from(["", "[]"])), max_size=2),
    st.sampled_from(["", "{}"]),
    st.sampled_from(["", "?"]),
)
shaped_values = st.recursive(
    session_ids | st.none() | st.integers() | st.just(""),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=12,
)


def find(params: object, paths: str) -> list[str]:
    return id_paths.find_ids(params, id_paths.parse_list(paths))


def filtered(result: object, paths: str, *mine: str) -> object:
    return id_paths.filter_result(result, id_paths.parse_list(paths), lambda session_id: session_id in mine)


@given(path_texts)
def test_a_path_prints_as_it_was_written(text: str) -> None:
    assert str(id_paths.parse(text)) == text
    assert str(id_paths.parse("+" + text)) == "+" + text


@pytest.mark.parametrize("text", ["", "-", "a..b", "a{}.b", "?", "a?b", "a b", "{}", "sessionId,", "ä"])
def test_what_is_not_a_path_is_refused_when_the_table_is_read(text: str) -> None:
    with pytest.raises(ValueError, match="expected a path"):
        id_paths.parse(text)


def test_a_dash_is_no_path_at_all() -> None:
    assert id_paths.parse_list("-") == ()


@pytest.mark.parametrize(
    ("params", "paths", "expected"),
    [
        ({"sessionId": "a", "prompt": "hi"}, "sessionId", ["a"]),
        ({"sessionIds": ["a", "b", "a"]}, "sessionIds[]", ["a", "b", "a"]),
        ({"sessionIds": []}, "sessionIds[]", []),
        ({"sessionId": "a", "sourceSessionId": "b"}, "sessionId,sourceSessionId", ["a", "b"]),
        ({"sessions": [{"sessionId": "a"}, {"sessionId": "b"}]}, "sessions[].sessionId", ["a", "b"]),
        ({"sizes": {"a": 1, "b": 2}}, "sizes{}", ["a", "b"]),
        ({"options": {"sessionId": "a"}}, "options.sessionId?", ["a"]),
        ([{"sessionId": "a"}], "[].sessionId", ["a"]),
    ],
)
def test_ids_are_found_where_the_paths_say(params: object, paths: str, expected: list[str]) -> None:
    assert find(params, paths) == expected


@pytest.mark.parametrize("params", [{}, {"options": None}, {"options": {}}, {"options": {"sessionId": ""}}, None])
def test_an_optional_id_may_be_absent_null_or_empty(params: object) -> None:
    assert find(params, "options.sessionId?") == []


@pytest.mark.parametrize("wrong", [None, "", 7, 7.5, True, ["a"], {"a": "b"}, [], {}])
def test_a_required_id_that_is_not_a_usable_string_is_invalid(wrong: object) -> None:
    with pytest.raises(errors.InvalidParams, match="sessionId"):
        find({"sessionId": wrong}, "sessionId")


@pytest.mark.parametrize("wrong", [7, True, ["a"], {"a": "b"}, [], {}, 0, False])
def test_an_optional_id_of_another_type_is_invalid_and_not_taken_for_absent(wrong: object) -> None:
    with pytest.raises(errors.InvalidParams):
        find({"sessionId": wrong}, "sessionId?")


@pytest.mark.parametrize("wrong", ["a", {"0": "a"}, 3, [7], [None], [["a"]], [""]])
def test_a_list_of_ids_that_is_something_else_or_holds_something_else_is_invalid(wrong: object) -> None:
    with pytest.raises(errors.InvalidParams):
        find({"sessionIds": wrong}, "sessionIds[]?")


@pytest.mark.parametrize("params", [["a"], [{"sessionId": "a"}], "a", 3, True])
def test_positional_and_scalar_params_are_invalid(params: object) -> None:
    with pytest.raises(errors.InvalidParams):
        find(params, "sessionId")


def test_a_refusal_names_the_place_but_never_the_value() -> None:
    with pytest.raises(errors.InvalidParams) as caught:
        find({"sessions": [{"sessionId": ["confidential"]}]}, "sessions[].sessionId")
    assert "sessions[].sessionId" in caught.value.message
    assert "confidential" not in caught.value.message


@given(json_values | shaped_values, path_texts)
def test_finding_returns_strings_or_refuses_whatever_the_json(params: object, text: str) -> None:
    try:
        found = find(params, text)
    except errors.InvalidParams:
        return
    assert all(isinstance(item, str) and item for item in found)


def test_a_foreign_id_takes_its_whole_array_element_with_it() -> None:
    result = {
        "sessions": [{"sessionId": "a", "summary": "mine"}, {"sessionId": "b", "summary": "theirs"}],
        "more": False,
    }
    assert filtered(result, "sessions[].sessionId", "a") == {
        "sessions": [{"sessionId": "a", "summary": "mine"}],
        "more": False,
    }


def test_a_foreign_id_deep_in_an_element_takes_the_element_too() -> None:
    result = {"rows": [{"meta": {"sessionId": "b"}, "cwd": "/theirs"}, {"meta": {"sessionId": "a"}}]}
    assert filtered(result, "rows[].meta.sessionId", "a") == {"rows": [{"meta": {"sessionId": "a"}}]}


def test_foreign_map_keys_and_plain_ids_are_dropped() -> None:
    result = {"sizes": {"a": 1, "b": 2}, "sessionIds": ["b", "a", "b"]}
    assert filtered(result, "sizes{},sessionIds[]", "a") == {"sizes": {"a": 1}, "sessionIds": ["a"]}


def test_a_single_foreign_id_is_removed_with_the_member_that_holds_it() -> None:
    assert filtered({"sessionId": "b"}, "sessionId?", "a") == {}
    assert filtered({"sessionId": "a"}, "sessionId?", "a") == {"sessionId": "a"}
    result = {"status": {"sessionId": "b", "url": "theirs"}, "ok": True}
    assert filtered(result, "status.sessionId?", "a") == {"ok": True}


def test_a_result_that_is_an_array_is_filtered_like_any_array() -> None:
    assert filtered([{"sessionId": "a"}, {"sessionId": "b"}], "[].sessionId", "b") == [{"sessionId": "b"}]


@pytest.mark.parametrize("result", [{}, {"sessionId": None}, None])
def test_a_result_without_its_optional_id_stays_as_it_is(result: object) -> None:
    assert filtered(result, "sessionId?", "a") == result


def test_a_result_that_is_wholly_about_a_foreign_session_is_refused() -> None:
    with pytest.raises(errors.SessionMissing):
        filtered({"sessionId": "b", "name": "theirs"}, "sessionId", "a")


@pytest.mark.parametrize(
    "result",
    [
        None,
        [],
        {},
        {"sessions": None},
        {"sessions": {}},
        {"sessions": ["b"]},
        {"sessions": [{}]},
        {"sessions": [{"sessionId": 5}]},
    ],
)
def test_a_result_of_an_unexpected_shape_is_refused_rather_than_passed_on(result: object) -> None:
    with pytest.raises(errors.InvalidParams):
        filtered(result, "sessions[].sessionId", "a")


@given(st.lists(st.tuples(session_ids, json_values), max_size=8), st.sets(session_ids))
def test_filtering_keeps_exactly_what_is_kept_in_order_and_changes_no_input(
    entries: list[tuple[str, Any]], mine: set[str]
) -> None:
    result = {"sessions": [{"sessionId": session_id, "extra": extra} for session_id, extra in entries]}
    before = copy.deepcopy(result)
    kept = filtered(result, "sessions[].sessionId", *mine)
    assert kept == {"sessions": [entry for entry in result["sessions"] if entry["sessionId"] in mine]}
    assert result == before


@given(json_values | shaped_values, path_texts, st.sets(session_ids))
def test_after_filtering_no_foreign_id_can_be_found(result: object, text: str, mine: set[str]) -> None:
    try:
        kept = filtered(result, text, *mine)
    except (errors.InvalidParams, errors.SessionMissing):
        return
    assert set(find(kept, text)) <= mine
