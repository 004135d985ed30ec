"""The method table covers the schema of the installed runtime, and the tool that keeps it so works as its page says.

AERODROME_SCHEMA points the comparison at another schema file.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from aerodrome.protocol import methods

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("regenerate_methods", ROOT / "tools/regenerate_methods.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def schema_path() -> Path:
    if os.environ.get("AERODROME_SCHEMA"):
        return Path(os.environ["AERODROME_SCHEMA"])
    from aerodrome.adapters.distribution import locate

    path = locate.locate().schema
    assert path is not None, "the installed runtime has no api.schema.json"
    return path


@pytest.fixture
def schema(schema_path: Path) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(schema_path.read_text("utf-8"))
    return schema


@pytest.mark.runtime
def test_the_table_has_every_method_of_the_installed_runtime(
    tool: ModuleType, schema: dict[str, Any], schema_path: Path
) -> None:
    version = tool.version_of(schema_path)
    _, changes = tool.merge(tool.read(tool.TABLE.read_text("utf-8")), tool.derive(schema), version)
    listed = "\n".join(changes)
    assert not changes, f"runtime {version} differs; run tools/regenerate_methods.py and review:\n{listed}"


SENT = re.compile(r"""\b(?:request|notify)\(\s*["']([^"']+)["']""")
HANDLED = re.compile(r"""\bset_(?:request|notification_method)_handler\(\s*["']([^"']+)["']""")


def test_the_table_has_every_method_that_the_installed_python_sdk_sends_or_handles() -> None:
    spec = importlib.util.find_spec("copilot")
    assert spec is not None
    assert spec.origin is not None
    sources = [path.read_text("utf-8") for path in Path(spec.origin).parent.rglob("*.py")]
    sent = {name for source in sources for name in SENT.findall(source)}
    handled = {name for source in sources for name in HANDLED.findall(source)}
    assert len(sent) > 300
    assert len(handled) > 20
    assert sorted(sent - methods.TABLE.keys()) == []
    assert sorted(handled - methods.CALLBACKS.keys()) == []


@pytest.mark.runtime
def test_a_method_that_a_newer_runtime_adds_is_named_and_comes_in_refused(
    tool: ModuleType, schema: dict[str, Any]
) -> None:
    newer = copy.deepcopy(schema)
    params = {"type": "object", "properties": {"sessionId": {"type": "string"}}, "required": ["sessionId"]}
    newer["session"]["brandNew"] = {"act": {"rpcMethod": "session.brandNew.act", "params": params, "result": None}}
    newer["server"]["brandNew"] = {"rpcMethod": "brandNew", "params": None, "result": None}
    before = tool.read(tool.TABLE.read_text("utf-8"))
    merged, changes = tool.merge(before, tool.derive(newer), "9.9.9")
    assert changes == ["+ c2s brandNew", "+ c2s session.brandNew.act"]
    added = merged["c2s", "session.brandNew.act"]
    assert (added["guarded"], added["open"], added["session_ids"]) == ("DENY", "OWN", "sessionId")
    assert added["reason"] == "new in 9.9.9: not reviewed"
    assert (merged["c2s", "brandNew"]["guarded"], merged["c2s", "brandNew"]["open"]) == ("DENY", "PASS")


@pytest.mark.runtime
def test_a_method_that_leaves_the_schema_stays_marked_until_it_returns(
    tool: ModuleType, schema: dict[str, Any]
) -> None:
    older = copy.deepcopy(schema)
    del older["session"]["abort"]
    before = tool.read(tool.TABLE.read_text("utf-8"))
    merged, changes = tool.merge(before, tool.derive(older), "9.9.9")
    assert changes == ["- c2s session.abort"]
    assert merged["c2s", "session.abort"]["reason"].endswith("(gone)")
    assert merged["c2s", "session.abort"]["guarded"] == before["c2s", "session.abort"]["guarded"]
    again, _ = tool.merge(merged, tool.derive(schema), "9.9.9")
    assert again == before


@pytest.mark.runtime
def test_a_new_place_of_a_session_id_is_taken_over_and_reported(tool: ModuleType, schema: dict[str, Any]) -> None:
    newer = copy.deepcopy(schema)
    newer["session"]["abort"]["params"]["properties"]["forSessionIds"] = {"type": "array", "items": {"type": "string"}}
    newer["server"]["sessions"]["fork"]["params"] = {
        "type": "object",
        "properties": {"sessionId": {"type": "string"}, "intoSessionId": {"type": "string"}},
        "required": ["sessionId"],
    }
    merged, changes = tool.merge(tool.read(tool.TABLE.read_text("utf-8")), tool.derive(newer), "9.9.9")
    assert merged["c2s", "session.abort"]["session_ids"] == "sessionId,forSessionIds[]?"
    assert merged["c2s", "sessions.fork"]["session_ids"] == "sessionId"
    assert sorted(changes) == [
        "! c2s sessions.fork: the schema also has intoSessionId?",
        "~ c2s session.abort: session_ids sessionId -> sessionId,forSessionIds[]?",
    ]
