"""Floods of refusals: the first of equal ones is recorded, the rest counted; users and addresses without end change nothing."""

from __future__ import annotations

from dataclasses import replace

from aerodrome.core.audit import Action, Entry, Outcome
from aerodrome.core.damping import OF_GROUP, OF_MEMBER, Allowance, Damper
from aerodrome.core.identity import Owner

EVE = Owner("acme", "eve")


def refusal(method: str = "m", owner: Owner | None = EVE, peer: str = "192.0.2.1:1", reason: str = "why") -> Entry:
    return Entry(
        Action.CALL, Outcome.REFUSED, owner=owner, method=method, session_id=f"s-{method}", peer=peer, reason=reason
    )


def admitted(damper: Damper, entries, now: float = 0.0) -> int:
    return sum(damper.admits(e.owner.tenant if e.owner else "", e.owner or e.peer, e, now) for e in entries)


def test_equal_refusals_are_one_record_and_a_count_for_as_long_as_the_window():
    damper = Damper()
    assert [damper.admits("acme", "eve", refusal(), 0.1) for _ in range(1000)] == [True] + [False] * 999
    assert damper.collect(5.0) == []
    (counted,) = damper.collect(10.2)
    assert (counted.method, counted.count, counted.session_id) == ("m", 999, "s-m")
    assert len(damper) == 0
    assert damper.admits("acme", "eve", refusal(), 10.3)


def test_links_of_one_user_are_no_new_sources():
    damper = Damper()
    assert admitted(damper, [refusal(peer=f"192.0.2.1:{port}") for port in range(500)]) == 1


def test_one_of_each_method_of_the_table_and_more_is_recorded_one_by_one():
    assert admitted(Damper(), [refusal(f"m{at}") for at in range(1000)]) == 1000


def test_what_is_over_a_users_budget_is_one_count_that_names_the_user_and_the_code_alone():
    damper = Damper(member=Allowance(5, 0.5))
    over = [refusal(f"m{at}", reason=f"policy_rejected: chosen.by.them{at}") for at in range(1000)]
    assert admitted(damper, over) == 5
    (counted,) = damper.collect(20.0)
    assert (counted.count, counted.target, counted.session_id, counted.method) == (995, "several", None, None)
    assert (counted.owner, counted.reason) == (EVE, "policy_rejected")


def test_a_budget_fills_again_slowly():
    damper = Damper(member=Allowance(2, 0.5))
    assert admitted(damper, [refusal(f"a{at}") for at in range(9)], 0.0) == 2
    assert admitted(damper, [refusal(f"b{at}") for at in range(9)], 4.0) == 2
    assert admitted(damper, [refusal(f"c{at}") for at in range(9)], 5.0) == 0


def test_a_tenant_that_names_users_without_end_has_one_budget_and_one_count():
    damper = Damper(group=Allowance(20, 1.0))
    users = [replace(EVE, user=f"u{at}") for at in range(5000)]
    assert admitted(damper, [refusal(owner=user) for user in users]) == 20
    (counted,) = damper.collect(20.0)
    assert (counted.owner, counted.tenant, counted.count, counted.peer) == (None, "acme", 4980, None)


def test_strangers_with_addresses_without_end_have_one_budget_and_one_count():
    damper = Damper(group=Allowance(20, 1.0))
    assert admitted(damper, [refusal(owner=None, peer=f"2001:db8::{at}") for at in range(5000)]) == 20
    (counted,) = damper.collect(20.0)
    assert (counted.owner, counted.tenant, counted.count, counted.peer) == (None, None, 4980, None)


def test_one_tenants_flood_takes_nothing_from_another():
    damper = Damper()
    admitted(damper, [refusal(f"m{at}") for at in range(10_000)])
    assert damper.admits("globex", "ann", refusal(owner=Owner("globex", "ann")), 0.0)


def test_memory_is_bounded_whatever_comes():
    damper = Damper(members=50, held=200)
    entries = [refusal(f"m{at}", owner=Owner(f"t{at % 300}", f"u{at % 7}")) for at in range(20_000)]
    recorded = admitted(damper, entries)
    assert recorded <= 200
    assert len(damper) <= 200 + 300
    assert sum(entry.count for entry in damper.collect(20.0)) == 20_000 - recorded
    damper.collect(1e9)
    assert (len(damper), len(damper._members), len(damper._groups)) == (0, 0, 0)


def test_a_day_of_flood_is_a_bounded_number_of_records():
    damper = Damper()
    day, step, records = 86_400, 50, 0
    for now in range(0, day, step):
        records += admitted(
            damper, [refusal(f"m{now}-{at}", replace(EVE, user=f"u{at}")) for at in range(60)], float(now)
        )
        records += len(damper.collect(float(now)))
    records += len(damper.collect(1e9))
    assert records <= OF_GROUP.burst + day * OF_GROUP.per_second + 2 * day / step
    assert OF_MEMBER.burst <= OF_GROUP.burst
