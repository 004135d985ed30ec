"""core.patterns: what a pattern of a model or a tool covers, and which of several decides."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome import errors
from aerodrome.core import patterns
from aerodrome.core.patterns import Decision, ServerTools

LETTERS = st.text("ab-", max_size=8)
PATTERNS = st.text("ab-*", max_size=8)
TOOLS = st.sampled_from(["custom:a", "custom:b", "mcp:s/a", "mcp:s/b", "mcp:t/a", "builtin:view"])
TOOL_PATTERNS = st.lists(
    st.sampled_from(["*", "custom:*", "custom:a", "mcp:*", "mcp:s/*", "mcp:s/a", "mcp:t*/a", "builtin:v*"]).flatmap(
        lambda pattern: st.sampled_from([pattern, f"!{pattern}"])
    ),
    max_size=5,
)


@given(PATTERNS, LETTERS)
def test_a_pattern_covers_what_a_shell_would_say_it_does(pattern, text):
    assert patterns.matches(pattern, text) == fnmatch.fnmatchcase(text, pattern)


@given(LETTERS)
def test_a_pattern_without_a_star_covers_itself_alone(text):
    assert patterns.matches(text, text)
    assert not patterns.matches(text, text + "a")


def test_many_stars_take_no_time_that_grows_with_their_number():
    assert not patterns.matches("*a" * 100 + "b", "a" * 100_000)


@pytest.mark.parametrize(
    ("given_patterns", "tool", "decision"),
    [
        (None, "custom:x", Decision(True)),
        ([], "custom:x", Decision(False)),
        (["custom:*"], "custom:x", Decision(True, "custom:*")),
        (["custom:*"], "mcp:s/x", Decision(False)),
        (["custom:*", "!custom:x"], "custom:x", Decision(False, "!custom:x")),
        (["!custom:x", "custom:x"], "custom:x", Decision(False, "!custom:x")),
        (["!custom:x"], "custom:y", Decision(True)),
        (["!custom:x"], "builtin:view", Decision(True)),
        (["mcp:github/*"], "mcp:github/get", Decision(True, "mcp:github/*")),
        (["mcp:github/*"], "mcp:github2/get", Decision(False)),
        (["mcp:git*/get"], "mcp:gitlab/get", Decision(True, "mcp:git*/get")),
        (["*", "!builtin:*"], "builtin:task", Decision(False, "!builtin:*")),
        (["custom:mcp:*"], "mcp:s/x", Decision(False)),
    ],
)
def test_the_first_denial_decides_then_the_first_that_allows(given_patterns, tool, decision):
    assert patterns.judge_tool(given_patterns, tool) == decision


@given(TOOL_PATTERNS, TOOLS)
def test_a_denial_that_covers_a_tool_denies_it_wherever_it_stands(given_patterns, tool):
    denial = f"!{tool}"
    for at in range(len(given_patterns) + 1):
        assert not patterns.judge_tool([*given_patterns[:at], denial, *given_patterns[at:]], tool).is_allowed


@given(TOOL_PATTERNS, TOOLS)
def test_order_changes_nothing_of_what_is_allowed(given_patterns, tool):
    backwards = patterns.judge_tool(given_patterns[::-1], tool)
    assert backwards.is_allowed == patterns.judge_tool(given_patterns, tool).is_allowed


@given(TOOL_PATTERNS, st.sampled_from(["s", "t", "u"]), st.sampled_from(["a", "b", "c"]))
def test_what_a_server_is_told_agrees_with_what_is_decided_of_each_tool(given_patterns, server, tool):
    told = patterns.server_tools(given_patterns, server)
    passed = (told.names is None or tool in told.names) and tool not in told.denied

    assert passed == patterns.judge_tool(given_patterns, f"mcp:{server}/{tool}").is_allowed


@given(TOOL_PATTERNS, TOOLS)
def test_a_source_that_is_denied_has_no_tool_that_is_allowed(given_patterns, tool):
    if not patterns.judge_source(given_patterns, tool.partition(":")[0]).is_allowed:
        assert not patterns.judge_tool(given_patterns, tool).is_allowed


def test_no_patterns_leave_a_server_all_its_tools():
    assert patterns.server_tools(None, "s") == ServerTools(None)


@pytest.mark.parametrize(
    "pattern",
    ["custom:*", "!custom:rm_*", "mcp:*", "mcp:github/*", "mcp:git*/get_issue", "builtin:view", "*", "!*", "!mcp:a/b"],
)
def test_a_tool_pattern_that_can_match_is_taken(pattern):
    assert patterns.check_tool("tools", pattern) == pattern


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "!",
        "fact",
        "custom:",
        "mcp:github",
        "mcp:github/get_*",
        "mcp:a/b/c",
        "shell:x",
        "custom:a b",
        "!!custom:a",
        "CUSTOM:a",
    ],
)
def test_a_tool_pattern_that_cannot_be_held_is_refused_with_the_forms_there_are(pattern):
    with pytest.raises(errors.ConfigError, match=r"tools: expected builtin:NAME, custom:NAME, mcp:SERVER/TOOL"):
        patterns.check_tool("tools", pattern)


@pytest.mark.parametrize("pattern", ["", "a b", "a\n", "x" * 201])
def test_a_model_pattern_that_matches_nothing_is_refused(pattern):
    with pytest.raises(errors.ConfigError, match="models"):
        patterns.check_model("models", pattern)


@pytest.mark.parametrize(
    ("given_patterns", "model", "is_allowed"),
    [
        (None, "any", True),
        ([], "any", False),
        (["demo"], "demo", True),
        (["demo"], "DEMO", False),
        (["gpt-*"], "gpt-5", True),
        (["gpt-*"], "evil/gpt-5", False),
        (["*/gpt-5"], "openai/gpt-5", True),
    ],
)
def test_a_model_is_allowed_by_its_whole_name(given_patterns, model, is_allowed):
    assert patterns.judge_model(given_patterns, model).is_allowed is is_allowed
