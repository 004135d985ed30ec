"""`/metrics`: what happened and what is, for operators, in names of one list."""

from __future__ import annotations

import re

from prometheus_client.parser import text_string_to_metric_families

from aerodrome import observe
from aerodrome.http.site import HttpSettings


async def samples(client) -> dict[tuple[str, str], float]:
    """Return samples by name and the value of their only label."""
    answer = await client.get("/metrics")
    assert answer.status_code == 200, answer.text
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def turn(caller, prompt: str) -> None:
    await caller.post("/v1/sessions", json={"session_id": "s1"})
    await caller.post("/v1/sessions/s1/messages", json={"prompt": prompt})


async def test_what_happened_is_counted_and_what_is_is_measured(http):
    caller = await http.caller("shared", "ann")
    await turn(caller, "hello")
    await turn(caller, "[fail]")
    await (await http.bearer("aero_wrong")).get("/v1/sessions")

    found = await samples(await http.operator())

    assert found["aerodrome_turns_ended_total", "completed"] == 1
    assert found["aerodrome_turns_ended_total", "failed"] == 1
    assert found["aerodrome_turns_ended_total", "lost"] == 0
    assert found["aerodrome_calls_rejected_total", "authentication"] == 1
    assert found["aerodrome_turn_duration_seconds_count", ""] == 1
    assert found["aerodrome_turn_duration_seconds_bucket", "+Inf"] == 1
    assert 0 < found["aerodrome_turn_duration_seconds_sum", ""] < 5
    assert found["aerodrome_sessions_active", ""] == 1
    assert found["aerodrome_sessions_at_work", ""] == 0
    assert found["aerodrome_links_open", ""] == 1
    assert found["aerodrome_runtimes", "ready"] == 1


async def test_every_metric_is_of_the_list_and_every_one_of_the_list_is_there(http):
    text = (await (await http.operator()).get("/metrics")).text
    described = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.M))
    assert described == observe.METRICS
    assert list(observe.METRICS) == sorted(observe.METRICS)


async def test_no_tenant_user_or_session_is_in_it(http):
    await turn(await http.caller("shared", "ann"), "hello")
    text = (await (await http.operator()).get("/metrics")).text
    assert not re.search(r"shared|ann\b|s1\b", text)


async def test_only_an_operator_reads_it_where_it_is_not_open(http, open_http):
    assert (await (await http.stranger()).get("/metrics")).status_code == 401
    assert (await (await http.admin("shared")).get("/metrics")).status_code == 403
    opened = await open_http(HttpSettings(has_open_metrics=True))
    assert (await (await opened.stranger()).get("/metrics")).status_code == 200
