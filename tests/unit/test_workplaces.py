"""Directories that sessions work in: made one below the other, whose the one above is; removed with all in them; past no link."""

from __future__ import annotations

import os

import pytest

from aerodrome import errors
from aerodrome.core.identity import Owner
from aerodrome.core.policy import Policy
from aerodrome.gateway import workplaces
from aerodrome.gateway.workplaces import Workplace

ANN = Owner("acme", "ann")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives directories away")


def below(tmp_path) -> Workplace:
    return workplaces.below_root(str(tmp_path / "root"), ANN)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_session_works_below_its_realm_or_where_policy_says_and_is_found_there_again(tmp_path):
    said = Policy(work_root=str(tmp_path / "root"))
    for policy, expected in ((Policy(), tmp_path / "s"), (said, tmp_path / "root" / "acme" / "ann" / "s")):
        place = workplaces.find(policy, ANN, tmp_path)
        assert [place.make("s"), place.make("s")] == [False, False]
        assert place.path("s") == expected
        assert expected.stat().st_mode & 0o777 == 0o700
        (expected / "notes").touch()
        assert place.make("s")


def test_where_the_gateway_did_not_spawn_the_runtime_there_is_no_directory():
    assert workplaces.find(Policy(work_root="/srv"), ANN, None) is None
    assert workplaces.find(Policy(), ANN, None) is None


@pytest.mark.parametrize("link", ["acme", "acme/ann", "acme/ann/s"])
def test_a_link_on_the_way_is_refused_and_nothing_is_made_or_removed_where_it_leads(tmp_path, link):
    there, place = tmp_path / "there", tmp_path / "root" / link
    there.mkdir()
    (there / "s").mkdir()
    (there / "ann").mkdir()
    place.parent.mkdir(parents=True)
    place.symlink_to(there)
    before = descriptors()
    with pytest.raises(errors.PolicyRejected, match="a link or a file stands in its place") as refused:
        below(tmp_path).make("s")
    assert refused.value.details == {"parameter": "workingDirectory"}
    with pytest.raises(OSError, match=r"symbolic link|Not a directory|Too many levels"):
        below(tmp_path).remove("s")
    below(tmp_path).remove_unused("s")
    assert sorted(path.name for path in there.iterdir()) == ["ann", "s"]
    assert descriptors() == before


def test_a_file_in_the_way_is_refused_and_left(tmp_path):
    (tmp_path / "root" / "acme").mkdir(parents=True)
    (tmp_path / "root" / "acme" / "ann").touch()
    with pytest.raises(errors.PolicyRejected):
        below(tmp_path).make("s")
    assert (tmp_path / "root" / "acme" / "ann").is_file()


def test_what_cannot_be_made_is_no_verdict_on_who_asked(tmp_path):
    (tmp_path / "root").touch()
    with pytest.raises(errors.RuntimeUnavailable, match="cannot be made"):
        below(tmp_path).make("s")


def test_a_directory_goes_with_all_in_it_but_not_what_its_links_lead_to(tmp_path):
    place, outside = below(tmp_path), tmp_path / "outside"
    outside.mkdir()
    place.make("s")
    (place.path("s") / "way-out").symlink_to(outside)
    (place.path("s") / "notes").touch()
    place.remove_unused("s")
    assert place.path("s").is_dir()
    assert place.remove("s")
    assert not place.remove("s")
    assert outside.is_dir()


def test_an_owners_own_directory_goes_when_nothing_is_in_it(tmp_path):
    place = below(tmp_path)
    assert place.close() == 0
    place.make("s")
    assert place.close() == 1
    place.remove_unused("s")
    assert place.close() == 0
    assert not (tmp_path / "root" / "acme" / "ann").exists()
    assert (tmp_path / "root" / "acme").is_dir()


@needs_root
def test_a_new_directory_belongs_to_whom_the_one_above_it_does_and_one_that_is_there_is_left_as_it_is(tmp_path):
    theirs, ours = tmp_path / "root" / "acme", tmp_path / "root" / "other" / "ann"
    theirs.mkdir(parents=True)
    os.chown(theirs, 4321, 4321)
    ours.mkdir(parents=True)
    os.chown(ours.parent, 4321, 4321)
    below(tmp_path).make("s")
    others = workplaces.below_root(str(tmp_path / "root"), Owner("other", "ann"))
    others.make("s")
    assert below(tmp_path).path("s").stat().st_uid == 4321
    assert others.path("s").stat().st_uid == 0
    left = descriptors()
    below(tmp_path).make("t")
    assert descriptors() == left
