"""Directories that sessions work in: made one below the other, whose the one above is, past no link."""

from __future__ import annotations

import os

import pytest

from aerodrome import errors
from aerodrome.core.identity import Owner
from aerodrome.core.policy import Policy
from aerodrome.gateway import workplaces

ANN = Owner("acme", "ann")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives directories away")


def test_a_session_works_below_its_realm_or_where_policy_says_and_is_found_there_again(tmp_path):
    below = Policy(work_root=str(tmp_path / "root"))
    for policy, expected in ((Policy(), tmp_path / "s"), (below, tmp_path / "root" / "acme" / "ann" / "s")):
        for _ in range(2):
            assert workplaces.make(policy, ANN, tmp_path, "s") == expected
        assert expected.is_dir()
        assert expected.stat().st_mode & 0o777 == 0o700
        assert workplaces.directory_of(policy, ANN, tmp_path) == expected.parent


def test_where_the_gateway_did_not_spawn_the_runtime_there_is_no_directory():
    assert workplaces.directory_of(Policy(work_root="/srv"), ANN, None) is None
    with pytest.raises(errors.PolicyRejected, match="the upstream was given"):
        workplaces.make(Policy(), ANN, None, "s")


@pytest.mark.parametrize("link", ["acme", "acme/ann", "acme/ann/s"])
def test_a_link_on_the_way_is_refused_and_nothing_is_made_where_it_leads(tmp_path, link):
    there, place = tmp_path / "there", tmp_path / "root" / link
    there.mkdir()
    place.parent.mkdir(parents=True)
    place.symlink_to(there)
    with pytest.raises(errors.PolicyRejected, match="not a link"):
        workplaces.make(Policy(work_root=str(tmp_path / "root")), ANN, tmp_path, "s")
    assert list(there.iterdir()) == []


@needs_root
def test_a_new_directory_belongs_to_whom_the_one_above_it_does_and_one_that_is_there_is_left_as_it_is(tmp_path):
    theirs, ours = tmp_path / "acme", tmp_path / "other" / "ann"
    theirs.mkdir()
    os.chown(theirs, 4321, 4321)
    ours.mkdir(parents=True)
    os.chown(ours.parent, 4321, 4321)
    policy = Policy(work_root=str(tmp_path))
    assert workplaces.make(policy, ANN, tmp_path, "s").stat().st_uid == 4321
    assert workplaces.make(policy, Owner("other", "ann"), tmp_path, "s").stat().st_uid == 0
    left = len(os.listdir("/proc/self/fd"))
    workplaces.make(policy, ANN, tmp_path, "t")
    assert len(os.listdir("/proc/self/fd")) == left
