"""Where control groups can be made: read from a process's own view of its mounts, which differs in every container."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aerodrome.adapters.process import cgroups
from aerodrome.adapters.process.cgroups import GatewayGroups, Hierarchy
from aerodrome.ports.host import ResourceLimits

LIMITS = ResourceLimits(512, memory_bytes=300, processes=40, cpu_cores=1.5)


@pytest.fixture
def proc(tmp_path):
    """A process's directory in /proc, with mounts below a place of the test's own."""

    def made(groups: str, *mounts: str) -> Path:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc" / "cgroup").write_text(groups)
        lines = [mount.replace("@", str(tmp_path / "fs")) for mount in mounts]
        (tmp_path / "proc" / "mountinfo").write_text("21 1 0:20 / /proc rw - proc proc rw\n" + "\n".join(lines) + "\n")
        return tmp_path / "proc"

    return made


def group(tmp_path: Path, path: str, **files: str) -> Path:
    """Make a group with files; `_` in a name stands for a dot."""
    place = tmp_path / "fs" / path
    place.mkdir(parents=True)
    for name, text in files.items():
        (place / name.replace("_", ".", 1)).write_text(text)
    return place


def test_version_1_is_found_controller_by_controller_wherever_it_is_mounted(proc, tmp_path):
    pids, both = group(tmp_path, "a b/pids/mine"), group(tmp_path, "cpu,cpuacct/other")
    found = cgroups.discover(
        proc(
            "9:name=systemd:/\n8:pids:/mine\n3:cpuset:/\n1:cpu,cpuacct:/other\n",
            "36 31 0:33 / @/a\\040b/pids rw,relatime shared:9 - cgroup cgroup rw,pids",
            "32 31 0:29 / @/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct",
            "35 31 0:32 / @ rw - cgroup cgroup rw,cpuset",
        )
    )
    assert found == [Hierarchy(pids, frozenset({"pids"}), False), Hierarchy(both, frozenset({"cpu"}), False)]


@pytest.mark.parametrize(
    ("root", "path", "place"),
    [("/", "/", "."), ("/docker/1", "/docker/1", "."), ("/docker/1", "/docker/1/inner", "inner"), ("/", "/a/b", "a/b")],
)
def test_a_path_is_taken_relative_to_what_is_mounted(proc, tmp_path, root, path, place):
    made = group(tmp_path, place, cgroup_controllers="", cgroup_subtree_control="")
    found = cgroups.discover(proc(f"0::{path}\n", f"30 23 0:28 {root} @ rw - cgroup2 cgroup2 rw"))
    assert found == [Hierarchy(made, frozenset(), True)]


@pytest.mark.parametrize(
    ("groups", "mount"),
    [
        ("0::/../other\n", "30 23 0:28 /.. @ rw - cgroup2 cgroup2 rw"),
        ("0::/docker/1\n", "30 23 0:28 /docker/2 @ rw - cgroup2 cgroup2 rw"),
        ("0::/not/there\n", "30 23 0:28 / @ rw - cgroup2 cgroup2 rw"),
        ("8:pids:/\n", "30 23 0:28 / @ rw - cgroup2 cgroup2 rw"),
        ("0::/\n", "36 31 0:33 / @ rw - cgroup cgroup rw,pids"),
        ("8:pids:/\n0::/\n", "36 31 0:33 / @ rw - tmpfs cgroup rw,pids"),
    ],
)
def test_a_group_that_cannot_be_named_or_is_not_there_is_none(proc, tmp_path, groups, mount):
    (tmp_path / "fs").mkdir()
    assert cgroups.discover(proc(groups, mount)) == []


def test_without_proc_there_are_no_groups(tmp_path):
    assert cgroups.discover(tmp_path / "none") == []


def test_version_2_comes_first_with_the_controllers_it_really_hands_down(proc, tmp_path):
    group(tmp_path, "memory")
    place = group(tmp_path, "two/mine", cgroup_controllers="cpu io", cgroup_subtree_control="")
    found = cgroups.discover(
        proc(
            "4:memory:/\n0::/mine\n",
            "35 31 0:32 / @/memory rw - cgroup cgroup rw,memory",
            "41 31 0:38 / @/two rw - cgroup2 cgroup2 rw",
        )
    )
    assert [hierarchy.is_unified for hierarchy in found] == [True, False]
    assert found[0].place == place
    assert (place / "cgroup.subtree_control").read_text() == "+cpu", "asked for what is there and of use, nothing else"


@pytest.mark.parametrize("mark", [b"1", b"0", None])
def test_the_group_above_is_divided_only_if_it_was_given_to_us(proc, tmp_path, monkeypatch, mark):
    above = group(tmp_path, "svc", cgroup_controllers="memory pids", cgroup_subtree_control="memory pids ")
    own = group(tmp_path, "svc/gateway", cgroup_controllers="memory pids", cgroup_subtree_control="")
    (above / "cgroup.subtree_control").chmod(0o400)

    def getxattr(path, name):
        if Path(path) == above and name == "user.delegate" and mark is not None:
            return mark
        raise OSError

    monkeypatch.setattr(os, "getxattr", getxattr)
    monkeypatch.setattr(cgroups, "_try_write", lambda *_: False)  # the kernel refuses: processes within
    [found] = cgroups.discover(proc("0::/svc/gateway\n", "41 31 0:38 / @ rw - cgroup2 cgroup2 rw"))
    if mark == b"1":
        assert found == Hierarchy(above, frozenset({"memory", "pids"}), True)
    else:
        assert found == Hierarchy(own, frozenset(), True), "to freeze and kill needs no controller"


def test_limits_are_written_in_each_versions_own_words():
    assert list(cgroups._limit_files(LIMITS, is_unified=True)) == [
        ("memory", "memory.max", "300"),
        ("pids", "pids.max", "40"),
        ("cpu", "cpu.max", "150000 100000"),
    ]
    assert list(cgroups._limit_files(LIMITS, is_unified=False)) == [
        ("memory", "memory.limit_in_bytes", "300"),
        ("pids", "pids.max", "40"),
        ("cpu", "cpu.cfs_quota_us", "150000"),
    ]
    assert list(cgroups._limit_files(ResourceLimits(512), is_unified=True)) == []


def test_a_limit_counts_as_held_only_if_the_kernel_took_it(tmp_path):
    groups = GatewayGroups([Hierarchy(tmp_path, frozenset({"memory", "pids", "cpu"}), False)])
    made = groups.make("rt-1", LIMITS)
    assert made.held == frozenset(), "an ordinary directory has no such files"
    assert [path.name for path in made.directories] == ["rt-1"]
    assert not made.set_frozen(True)
    assert made.remove()
    assert groups.remove()
    assert list(tmp_path.iterdir()) == []


def test_only_hierarchies_that_are_of_use_are_entered(tmp_path):
    kinds = ("cpu", "freezer", "memory")
    hierarchies = [Hierarchy(tmp_path / kind, frozenset({kind}), False) for kind in kinds]
    for hierarchy in hierarchies:
        hierarchy.place.mkdir()
    groups = GatewayGroups(hierarchies)
    without = groups.make("rt-1", ResourceLimits(512)).directories
    assert [path.parent.parent.name for path in without] == ["freezer", "memory"]
    assert len(groups.make("rt-2", LIMITS).directories) == 3


def test_a_place_that_is_no_more_is_done_without(tmp_path):
    made = GatewayGroups([Hierarchy(tmp_path / "gone", frozenset({"pids"}), False)]).make("rt-1", LIMITS)
    assert (made.directories, made.held) == ((), frozenset())
    assert made.processes() == set()
    assert made.memory_bytes() is None
    assert made.remove()
