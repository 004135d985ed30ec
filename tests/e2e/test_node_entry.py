"""A gateway whose runtimes are those of the Node entry point: warm, shared, a user's own; one is killed; none unpacks itself."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from .place import open_place

pytestmark = pytest.mark.runtime


async def test_a_gateway_on_the_node_entry_point_serves_all_isolations(tmp_path: Path) -> None:
    tenants = {"user": {"isolation": "user"}, "shared": {"isolation": "shared"}}
    async with open_place(tmp_path / "state", runtime={"entry": "node"}, tenants=tenants) as place:
        ann, ben = await place.connect("user"), await place.connect("shared", "ben")
        mine, shared = await asyncio.gather(ann.create(), ben.create())
        for session in (mine, shared):
            assert (await session.send_and_wait("[say served]", timeout=30)).data.content == "served"
        handles = {handle.realm.key: handle for handle in place.application.fleet.handles()}
        links = list((place.state / "runtimes").glob("*/compiled/*/*"))
        assert len(links) >= 3 * len(handles)
        assert all(link.is_symlink() for link in links)
        views = {view.runtime_id: view for view in place.application.fleet.describe()}
        killed = handles["shared"]
        assert "node" in Path(os.readlink(f"/proc/{views[killed.runtime_id].pid}/exe")).parts
        os.kill(views[killed.runtime_id].pid, 9)
        await asyncio.wait_for(asyncio.shield(killed.lost), 30)
        assert (await shared.send_and_wait("[say again]", timeout=30)).data.content == "again"
        unpacked = [where for where, _, names in os.walk(place.state) if "cli-main.js" in names]
        assert unpacked == []
