"""Which runtimes may serve whom: two principals share a realm only where policy says so."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome import errors
from aerodrome.core import placement
from aerodrome.core.identity import Owner
from aerodrome.core.policy import Isolation, Policy, Trust

ALICE, BOB, EVE = Owner("acme", "alice"), Owner("acme", "bob"), Owner("globex", "alice")
names = st.from_regex(r"[a-z0-9]([a-z0-9_.@-]{0,10}[a-z0-9])?", fullmatch=True)
owners = st.builds(Owner, names, names)


def realm(owner: Owner, isolation: Isolation) -> placement.Realm:
    return placement.realm_of(owner, Policy(isolation))


@pytest.mark.parametrize(
    ("isolation", "colleagues_share", "strangers_share"),
    [(Isolation.USER, False, False), (Isolation.TENANT, True, False), (Isolation.SHARED, True, True)],
)
def test_who_shares_a_realm_follows_from_the_isolation(isolation, colleagues_share, strangers_share):
    assert realm(ALICE, isolation) == realm(ALICE, isolation)
    assert (realm(ALICE, isolation) == realm(BOB, isolation)) is colleagues_share
    assert (realm(ALICE, isolation) == realm(EVE, isolation)) is strangers_share


def test_no_two_isolations_ever_share_a_realm():
    for one, other in itertools.combinations(Isolation, 2):
        for first, second in itertools.product((ALICE, BOB, EVE), repeat=2):
            assert realm(first, one).key != realm(second, other).key


@given(owners, owners)
def test_different_users_never_share_a_realm_under_user_isolation(one, other):
    assert (realm(one, Isolation.USER).key == realm(other, Isolation.USER).key) is (one == other)


@given(owners, owners)
def test_different_tenants_never_share_a_realm_under_tenant_isolation(one, other):
    assert (realm(one, Isolation.TENANT).key == realm(other, Isolation.TENANT).key) is (one.tenant == other.tenant)


@given(owners, st.sampled_from(Isolation))
def test_a_realms_key_says_which_realm_it_is(owner, isolation):
    made = realm(owner, isolation)

    assert placement.realm_of_key(made.key) == made


@pytest.mark.parametrize("key", ["", "user", "user:", "tenant:", "tenant", "shared:x", "pool:acme", "SHARED", ":"])
def test_a_key_that_no_isolation_makes_is_refused(key):
    with pytest.raises(errors.ConfigError, match="expected a realm"):
        placement.realm_of_key(key)


@pytest.mark.parametrize("isolation", Isolation)
def test_trust_does_not_move_anyone_to_another_realm(isolation):
    limited, full = Policy(isolation, Trust.LIMITED), Policy(isolation, Trust.FULL, ("*",))
    assert placement.realm_of(ALICE, limited) == placement.realm_of(ALICE, full)


def test_a_realm_knows_its_tenant_and_whether_its_users_may_rely_on_what_a_runtime_starts_with():
    policy = Policy(Isolation.USER, Trust.FULL)
    assert placement.realm_of(ALICE, policy).is_open
    assert placement.realm_of(ALICE, policy) == realm(ALICE, Isolation.USER)
    assert not realm(ALICE, Isolation.USER).is_open
    assert not placement.realm_of(ALICE, Policy(Isolation.TENANT, Trust.FULL)).is_open
    assert [realm(EVE, isolation).tenant for isolation in Isolation] == ["globex", "globex", ""]


def test_a_realm_has_host_tools_and_a_working_root_where_its_own_isolation_gives_them():
    policy = Policy(Isolation.TENANT, host_tools=True, work_root="/srv", egress=("x.example",))
    own = placement.realm_of(ALICE, policy)
    assert (own.has_host_tools, own.work_root, own.egress, own.user) == (True, "/srv", ("x.example",), None)
    assert realm(ALICE, Isolation.USER).user == "alice"
    for key in ("user:acme/alice", "shared"):
        other = placement.under(placement.realm_of_key(key), policy)
        assert (other.has_host_tools, other.is_open, other.work_root) == (False, False, None), key
    assert placement.realm_of_key("shared").egress is None, "a stored key says nothing of what policy lets out"
