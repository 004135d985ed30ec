"""Erasing a user on the real runtime: all of theirs is gone, provably; a colleague's sessions go on as if nothing had been."""

from __future__ import annotations

from pathlib import Path

import pytest

from aerodrome import app
from aerodrome.adapters.audit.trail import AuditTrail
from aerodrome.admin import client as admin

from .place import Place, open_place, read_all
from .python_sdk import say

pytestmark = pytest.mark.runtime
ANN = "ann-of-the-north"


async def erase(place: Place, tenant: str, user: str | None) -> list[dict]:
    async with admin.open_client(place.state) as client:
        return await client.call("erase", patient=True, tenant=tenant, user=user)


def files_with(state: Path, *needles: str) -> list[str]:
    """Look for texts in every file and name below the state directory; independent of the product's own search."""
    found = []
    for path, content in sorted(read_all(state).items()):
        text = path.name.encode() + content
        found += [f"{path.relative_to(state)}: {needle}" for needle in needles if needle.encode() in text]
    return found


@pytest.mark.parametrize("isolation", ["user", "shared"])
async def test_a_user_is_erased_and_a_colleague_is_untouched(tmp_path, isolation):
    async with open_place(tmp_path) as place:
        ann, bob = await place.connect(isolation, ANN), await place.connect(isolation, "bob")
        hers, his = await ann.create(), await bob.create()
        for session in (hers, his):
            await say(session, "hello")
        second = await ann.create()
        await say(second, "hello")
        assert files_with(place.state, hers.session_id, ANN)

        (report,) = await erase(place, isolation, ANN)

        assert report["left"] == []
        assert (report["sessions"], report["links"], report["rows"]["keys"]) == (2, 1, 1)
        assert report["searched_files"] > 0
        assert files_with(place.state, hers.session_id, second.session_id, ANN) == []
        assert hers.session_id not in place.on_disk()
        assert "hello" in await say(his, "hello again")
        assert await bob.list_ids() == {his.session_id}
        trail = AuditTrail(place.state / "audit", ())
        assert trail.verify().fault is None
        await place.settled(lambda: any(r["action"] == "erase.finish" for r in trail.records()))
        (finished,) = [record for record in trail.records() if record["action"] == "erase.finish"]
        assert (finished["outcome"], finished["tenant"], finished["target"]) == ("done", isolation, report["pseudonym"])
        assert {r["user"] for r in trail.records() if r.get("user")} == {report["pseudonym"], "bob"}


async def test_where_no_gateway_runs_a_command_erases_and_says_what_it_removed(tmp_path):
    async with open_place(tmp_path) as place:
        for isolation in ("user", "shared"):
            session = await (await place.connect(isolation, ANN)).create()
            await say(session, "hello")
        settings = place.settings
    async with app.open_eraser(settings) as eraser:
        reports = [*(await eraser.erase("shared", None, "test")), *(await eraser.erase("user", ANN, "test"))]
    assert [(report.user, report.left) for report in reports] == [(ANN, []), ("(all)", []), (ANN, [])]
    assert [report.sessions for report in reports] == [1, 0, 1]
    assert files_with(tmp_path, ANN) == []
