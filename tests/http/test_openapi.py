"""The OpenAPI document: current, served, honest: whatever is sent, what is answered is in it, and is no failure of ours."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.failures import FailureGroup

from aerodrome.core.identity import Scope
from aerodrome.http import application

ROOT = Path(__file__).parents[2]

#: Streams without end would hold the caller; they are asked for sessions that are not there only.
ENDLESS = {"streamEvents"}
EXAMPLES = 10
load_all_checks()
NAMES = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
]
DOCUMENT = application.describe()
OPERATIONS = {
    operation["operationId"]: f"{method.upper()} {path}"
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}
TAGS = {
    tag["name"]: [
        operation["operationId"]
        for methods in DOCUMENT["paths"].values()
        for operation in methods.values()
        if operation["tags"] == [tag["name"]]
    ]
    for tag in DOCUMENT["tags"]
}


def load(name: str):
    """Return a program of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_copy_in_the_docs_is_current():
    copy = json.loads(load("write_openapi").PATH.read_text("utf-8"))
    assert copy == json.loads(json.dumps(application.describe())), "run: .venv/bin/python tools/write_openapi.py"


def test_every_operation_says_what_it_is_who_may_and_how_it_fails():
    document = application.describe()
    assert document["openapi"] == "3.1.0"
    seen = set()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            assert operation["description"], where
            assert operation["security"], where
            assert operation["operationId"] not in seen, where
            seen.add(operation["operationId"])
            assert {"400", "401", "403", "413", "429", "503"} <= set(operation["responses"]), where
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    assert list(answer["content"]) == ["application/problem+json"], where
            if method == "post" and not path.startswith("/v1/admin/"):
                assert any(one["name"] == "Idempotency-Key" for one in operation["parameters"]), where
                assert {"409", "415", "422"} <= set(operation["responses"]), where


async def test_the_document_is_served_to_everyone(http):
    served = await (await http.stranger()).get("/v1/openapi.json")
    assert served.json() == json.loads(json.dumps(application.describe()))


def exercise(url: str, token: str, operation_id: str, mode: GenerationMode, examples: int) -> None:
    """Send an operation what its description allows, or what it does not; check what is answered against it."""
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    schema.config.update(base_url=url)
    operation = schema.find_operation_by_label(OPERATIONS[operation_id])
    checks = list(CHECKS.get_by_names(NAMES))
    known = {one["name"] for one in operation.definition.raw.get("parameters", []) if one["in"] == "query"}
    headers = {"Authorization": f"Bearer {token}"}

    @seed(1)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case) -> None:
        if mode is GenerationMode.POSITIVE and operation_id not in ENDLESS and "session_id" in case.path_parameters:
            # One that is there, most times.
            is_other = len(case.path_parameters["session_id"]) % 3 == 0
            case.path_parameters["session_id"] = "none" if is_other else operation_id
            if operation_id == "acquireLease" and isinstance(case.body, dict):
                case.body["wait_seconds"] = 0  # the one before it has the lease
        answer = case.call(headers=headers, timeout=20)
        # What is too large, or in a parameter that nobody reads or that is said twice, is wrong in no way that we say.
        is_twice = any(isinstance(value, list) for value in (case.query or {}).values())
        is_odd = answer.status_code == 413 or is_twice or not set(case.query or {}) <= known
        wanted = [check for check in checks if not (is_odd and check.__name__ == "negative_data_rejection")]
        case.validate_response(answer, checks=wanted, headers=headers, transport_kwargs={"headers": headers})

    send()


@pytest.mark.parametrize("tag", TAGS)
async def test_whatever_is_sent_is_answered_as_described(http, tag):
    caller = await http.caller("shared")
    is_operators = tag == "admin"
    token = await (http.token_with("", "ops", Scope.OPERATE) if is_operators else http.rig.token("shared", "user"))
    examples = 4 if is_operators else EXAMPLES
    wrong = {}
    for operation_id in TAGS[tag]:
        await caller.post("/v1/sessions", json={"session_id": operation_id})
        await caller.post(f"/v1/sessions/{operation_id}/messages", json={"prompt": "hello"})
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            try:
                await asyncio.to_thread(exercise, http.url, token, operation_id, mode, examples)
            except FailureGroup as group:
                wrong[operation_id, mode.value] = str(group)
    assert wrong == {}
