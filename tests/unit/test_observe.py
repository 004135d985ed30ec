"""Log events: the code and the list of their names agree, and what is written is for machines or people as asked."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from aerodrome import observe

SOURCE = Path(observe.__file__).parent
LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}
#: Names under which loggers are held; a test below holds the code to them.
LOGGERS = {"_log", "log"}


@pytest.fixture(autouse=True)
def restored():
    yield
    structlog.reset_defaults()


def log_calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
                held = node.func.value
                name = held.attr if isinstance(held, ast.Attribute) else getattr(held, "id", "")
                if name in LOGGERS:
                    yield f"{path.relative_to(SOURCE)}:{node.lineno}", node


def test_every_event_is_a_literal_name_of_the_list():
    wrong = {}
    for place, call in log_calls():
        event = call.args[0] if call.args else None
        name = event.value if isinstance(event, ast.Constant) else None
        if name not in observe.EVENTS or len(call.args) != 1:
            wrong[place] = name
    assert wrong == {}


def test_every_name_of_the_list_is_logged_somewhere():
    used = {call.args[0].value for _, call in log_calls() if isinstance(call.args[0], ast.Constant)}
    assert set(observe.EVENTS) == used


def test_names_are_a_noun_and_a_verb_in_order_and_explained():
    assert list(observe.EVENTS) == sorted(observe.EVENTS)
    for name, meaning in observe.EVENTS.items():
        assert re.fullmatch(r"[a-z]+\.[a-z]+(_[a-z]+)*", name)
        assert meaning


def test_nobody_logs_past_the_list():
    """The standard logger, print, and structlog under another name would escape the test above."""
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text("utf-8")
        made = re.findall(r"(\w+)(?:: \w+)? = structlog\.get_logger\(", text)
        assert set(made) <= LOGGERS, path
        if path.name != "observe.py" and "testing" not in path.parts:
            assert "logging.getLogger" not in text, path


def test_no_field_of_an_event_is_named_like_a_secret_or_a_payload():
    forbidden = {"token", "secret", "password", "api_key", "key", "params", "body", "prompt", "result", "environment"}
    fields = {place: {word.arg for word in call.keywords} & forbidden for place, call in log_calls()}
    assert {place: found for place, found in fields.items() if found} == {}


def test_json_lines_go_to_standard_error_with_level_and_time(capsys):
    observe.configure_logs("info", as_json=True)
    structlog.get_logger().bind(link=7).warning("link.rejected", reason="max_links")
    captured = capsys.readouterr()
    line = json.loads(captured.err)
    assert captured.out == ""
    assert (line["event"], line["level"], line["link"], line["reason"]) == ("link.rejected", "warning", 7, "max_links")
    assert line["timestamp"].endswith("Z")


@pytest.mark.parametrize(("level", "heard"), [("debug", 3), ("info", 2), ("warning", 1), ("error", 0)])
def test_levels_below_the_wanted_one_are_silent(capsys, level, heard):
    observe.configure_logs(level, as_json=True)
    log = structlog.get_logger()
    log.debug("link.failed")
    log.info("link.failed")
    log.warning("link.failed")
    assert len(capsys.readouterr().err.splitlines()) == heard


def test_an_exception_is_one_json_line_with_its_traceback(capsys):
    observe.configure_logs("info", as_json=True)
    try:
        raise ValueError("broken")
    except ValueError:
        structlog.get_logger().exception("link.failed", peer="?")
    line = json.loads(capsys.readouterr().err)
    assert "ValueError: broken" in line["exception"]


@pytest.mark.parametrize("as_json", [True, False])
def test_a_traceback_shows_where_and_why_but_no_variable_of_any_frame(capsys, as_json):
    def fail(token: str) -> None:
        raise ValueError(f"no good, {len(token)} characters")

    observe.configure_logs("info", as_json=as_json)
    try:
        fail("hunter" + str(2))
    except ValueError:
        structlog.get_logger().exception("link.failed")
    text = capsys.readouterr().err
    assert "no good" in text
    assert "in fail" in text
    assert "hunter2" not in text


def test_people_get_a_line_with_the_event_and_its_fields(capsys):
    observe.configure_logs("info", as_json=False)
    structlog.get_logger().info("gateway.started", port=4321)
    text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().err)
    assert "gateway.started" in text
    assert "port=4321" in text
