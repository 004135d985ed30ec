"""Shared sessions over HTTP: two people, one conversation, in order, attributed; and what each may do."""

from __future__ import annotations

import asyncio

import pytest

from aerodrome.core.identity import Owner
from aerodrome.testing.http_rig import WAIT_SECONDS, read_events

from .scenes import make, say


async def share(http, tenant: str, **roles: list[str]):
    """Return an owner, the session's path, and members' callers who have accepted."""
    owner = await http.caller(tenant, "ann")
    session = await make(owner)
    members = {}
    for user, given in roles.items():
        invited = await owner.post(f"{session}/members", json={"user": user, "roles": given})
        assert invited.status_code == 201, invited.text
        members[user] = await http.caller(tenant, user)
        accepted = await members[user].post(f"{session}/members/accept")
        assert accepted.json()["is_invited"] is False, accepted.text
    return owner, session, members


async def until_running(caller, session: str) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while (await caller.get(f"{session}/queue")).json()["running"] is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("tenant", ["alone", "team", "shared"])
async def test_two_people_talk_in_one_session_and_each_gets_the_answer_to_their_own(http, tenant):
    owner, session, members = await share(http, tenant, ben=["driver"])

    answers = await asyncio.gather(
        *(
            say(caller, session, f"{name} {n}")
            for n in range(3)
            for name, caller in (("ann", owner), ("ben", members["ben"]))
        )
    )

    assert [(turn["status"], turn["content"]) for turn in answers] == [
        ("completed", f"{name} {n}") for n in range(3) for name in ("ann", "ben")
    ]
    assert {turn["sender"] for turn in answers} == {"ann", "ben"}
    for caller in (owner, members["ben"]):
        history = (await caller.get(f"{session}/history")).json()["events"]
        said = [(one["data"]["content"], one["sender"]) for one in history if one["type"] == "user.message"]
        assert sorted(said) == sorted((f"{name} {n}", name) for n in range(3) for name in ("ann", "ben"))


async def test_who_sent_a_message_is_in_the_history_also_while_that_is_still_being_written(http, monkeypatch):
    owner, session, members = await share(http, "shared", ben=["driver"])
    sharings, may_write = http.rig.sharing.stores.sharings, asyncio.Event()
    add_sent = sharings.add_sent

    async def write_late(sent) -> None:
        await may_write.wait()
        await add_sent(sent)

    async def senders() -> list[str | None]:
        history = (await owner.get(f"{session}/history")).json()["events"]
        return [one.get("sender") for one in history if one["type"] == "user.message"]

    monkeypatch.setattr(sharings, "add_sent", write_late)
    await say(members["ben"], session, "from ben")
    assert await senders() == ["ben"]

    may_write.set()
    await http.rig.settled(lambda: not http.rig.turns._keeping)
    assert await senders() == ["ben"]


async def test_a_turn_that_waits_for_somebody_elses_is_queued_until_it_is_granted_and_can_be_taken_back(http):
    owner, session, members = await share(http, "shared", ben=["driver"])
    ben = members["ben"]
    await say(owner, session, "[hold]", wait_seconds=0)
    await until_running(owner, session)

    waiting = await say(ben, session, "later", wait_seconds=0)
    assert waiting["status"] == "queued"
    queue = (await owner.get(f"{session}/queue")).json()
    assert (queue["running"]["sender"], [one["sender"] for one in queue["queue"]]) == ("ann", ["ben"])
    assert queue["queue"][0]["turn_id"] == waiting["turn_id"]
    assert queue["queue"][0]["waiting_seconds"] >= 0

    assert (await ben.delete(f"{session}/turns/{waiting['turn_id']}")).json()["status"] == "withdrawn"
    assert (await owner.get(f"{session}/queue")).json()["queue"] == []
    assert (await ben.post(f"{session}/abort")).json() == {"aborted": True}
    again = await say(ben, session, "now")
    assert (again["status"], again["content"]) == ("completed", "now")


async def test_who_waits_for_somebody_elses_turn_does_not_wait_for_what_that_one_is_asked(http):
    owner, session, members = await share(http, "shared", ben=["driver"])
    await say(members["ben"], session, "[permit]", wait_seconds=0)
    async with asyncio.timeout(WAIT_SECONDS):
        while not (asked := (await owner.get(f"{session}/requests")).json()["requests"]):
            await (await owner.get(f"{session}/history")).aread()

    waiting = asyncio.create_task(say(owner, session, "mine"))
    async with asyncio.timeout(WAIT_SECONDS):
        while not (await owner.get(f"{session}/queue")).json()["queue"]:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    approve = {"kind": "permission", "decision": "approve"}
    assert (await owner.post(f"{session}/requests/{asked[0]['request_id']}", json=approve)).status_code == 200

    turn = await waiting
    assert (turn["status"], turn["content"]) == ("completed", "mine")


async def test_roles_are_judged_over_http_as_everywhere(http):
    owner, session, members = await share(http, "shared", cat=["approver"], eve=["observer"])
    turn = await say(owner, session, "[permit]")
    (asked,) = turn["pending"]
    approve = {"kind": "permission", "decision": "approve"}

    refused = await members["eve"].post(f"{session}/messages", json={"prompt": "x"})
    assert (refused.status_code, refused.json()["code"]) == (403, "policy_rejected")
    assert (await members["eve"].delete(session)).status_code == 403
    assert (await members["eve"].post(f"{session}/members", json={"user": "x", "roles": ["driver"]})).status_code == 403
    async with asyncio.timeout(WAIT_SECONDS):
        for user in ("eve", "cat"):
            while not (await members[user].get(f"{session}/requests")).json()["requests"]:
                await (await members[user].get(f"{session}/history")).aread()
    denied = await members["eve"].post(f"{session}/requests/{asked['request_id']}", json=approve)
    assert denied.status_code == 403
    assert (await members["cat"].post(f"{session}/requests/{asked['request_id']}", json=approve)).status_code == 200

    async with asyncio.timeout(WAIT_SECONDS):
        # The owner's link may hear later than the one that answered that the request is not open any more.
        while (over := (await owner.get(f"{session}/turns/{turn['turn_id']}")).json())["status"] != "completed":
            await (await owner.get(f"{session}/history")).aread()
    assert over["content"] == "approve-once"


async def test_a_members_change_of_options_is_refused_and_the_owners_stay(http):
    owner, session, members = await share(http, "shared", ben=["driver", "approver"], eve=["observer"])
    wanted = {"title": "mine", "permissions": "reject", "metadata": {"a": "b"}}
    kept = (await owner.patch(session, json=wanted)).json()["options"]

    for member in members.values():
        refused = await member.patch(session, json={"title": "theirs", "permissions": "approve"})
        assert (refused.status_code, refused.json()["code"]) == (403, "policy_rejected")

    assert (await owner.get(session)).json()["options"] == kept
    assert {name: kept[name] for name in wanted} == wanted


async def test_who_joins_late_hears_all_of_it_once_in_the_same_order(http):
    owner, session, members = await share(http, "shared", ben=["observer"])
    for number in range(3):
        await say(owner, session, f"early {number}")
    heard: dict[str, list] = {"ann": [], "ben": []}

    async def listen(name, caller):
        async with caller.stream("GET", f"{session}/events", params={"start": "beginning"}) as answer:
            async for event in read_events(answer):
                heard[name].append(event)
                if sum(one.kind == "assistant.message" for one in heard[name]) == 5:
                    return

    listening = [asyncio.create_task(listen(*one)) for one in (("ann", owner), ("ben", members["ben"]))]
    for number in range(2):
        await say(owner, session, f"late {number}")
    async with asyncio.timeout(WAIT_SECONDS):
        await asyncio.gather(*listening)

    def kept(name):
        return [(one.kind, one.data["data"].get("content")) for one in heard[name] if not one.data.get("ephemeral")]

    assert kept("ann") == kept("ben")
    said = [text for kind, text in kept("ben") if kind == "assistant.message"]
    assert said == [*(f"early {n}" for n in range(3)), *(f"late {n}" for n in range(2))]
    assert any(one.kind == "aerodrome.presence" for one in heard["ann"] + heard["ben"])


async def test_a_share_link_lets_a_colleague_in_and_the_session_is_in_their_list(http):
    owner, session, _ = await share(http, "team")
    made = (await owner.post(f"{session}/links", json={"roles": ["driver"]})).json()
    zoe = await http.caller("team", "zoe")
    assert (await zoe.get(session)).status_code == 404

    joined = await zoe.post("/v1/share", json={"token": made["token"]})
    assert (joined.status_code, joined.json()["roles"]) == (200, ["driver"])

    (listed,) = (await zoe.get("/v1/sessions")).json()["sessions"]
    assert (listed["session_id"], listed["owner"]) == ("s1", "ann")
    assert (await say(zoe, session, "hi"))["content"] == "hi"
    assert (await zoe.post("/v1/share", json={"token": made["token"]})).status_code == 403


async def test_a_list_that_is_older_than_a_deletion_names_no_session_that_has_the_id_now(http, monkeypatch):
    owner, session, members = await share(http, "shared", ben=["driver"])
    store, stranger = http.rig.sharing.stores.members, await http.caller("other", "eve")
    list_for = store.list_for

    async def meanwhile(person):
        found = await list_for(person)
        assert (await owner.delete(session)).status_code == 204
        await make(stranger)
        return found

    monkeypatch.setattr(store, "list_for", meanwhile)

    assert (await members["ben"].get("/v1/sessions")).json()["sessions"] == []


async def test_a_removed_member_is_told_what_one_is_told_of_a_missing_session(http):
    owner, session, members = await share(http, "shared", ben=["driver"])
    await say(members["ben"], session, "hi")

    assert (await owner.delete(f"{session}/members/ben")).status_code == 200

    for path in ("", "/history", "/turns", "/requests", "/sharing", "/events"):
        answer = await members["ben"].get(session + path)
        assert (answer.status_code, answer.json()["code"]) == (404, "session_missing"), path


@pytest.mark.parametrize("roles", [["driver"], ["observer"]], ids=["driver", "observer"])
async def test_a_removed_members_streams_and_turns_end(http, roles):
    owner, session, members = await share(http, "shared", ben=roles)
    await say(owner, session, "hi")
    ben, turn, heard = members["ben"], None, []
    async with asyncio.timeout(WAIT_SECONDS), ben.stream("GET", f"{session}/events?start=beginning") as answer:
        async for event in read_events(answer):
            heard.append(event.kind)
            if event.kind == "assistant.message":
                if roles == ["driver"]:
                    turn = asyncio.create_task(ben.post(f"{session}/messages", json={"prompt": "[hold]"}))
                    await until_running(owner, session)
                assert (await owner.delete(f"{session}/members/ben")).status_code == 200

    assert "aerodrome.member_removed" in heard
    if turn is not None:
        assert (await turn).json()["status"] == "failed"
    user = http.edge.users.peek(Owner("shared", "ben"))
    assert user is not None
    assert user.conversations == {}
    async with asyncio.timeout(WAIT_SECONDS):
        while await http.edge.users.open_turns.find("s1", user.owner) is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_lease_is_held_for_several_messages_and_a_stale_one_is_refused(http):
    owner, session, members = await share(http, "shared", ben=["driver"])
    ben = members["ben"]
    lease = (await ben.post(f"{session}/lease", json={"ttl_seconds": 5})).json()
    waiting = asyncio.create_task(say(owner, session, "ann"))
    for prompt in ("one", "two"):
        assert (await say(ben, session, prompt, lease=lease["token"]))["content"] == prompt
    assert (await ben.delete(f"{session}/lease", params={"token": lease["token"]})).status_code == 204
    assert (await waiting)["content"] == "ann"

    late = await ben.post(f"{session}/messages", json={"prompt": "late", "lease": lease["token"]})
    assert (late.status_code, late.json()["code"]) == (409, "lease_lost")
    history = (await owner.get(f"{session}/history")).json()["events"]
    assert [one["data"]["content"] for one in history if one["type"] == "user.message"] == ["one", "two", "ann"]


async def test_busy_policy_reject_is_409_with_who_holds_the_turn(http):
    owner, session, members = await share(http, "shared", ben=["driver"])
    assert (await owner.patch(f"{session}/sharing", json={"busy": "reject"})).json()["busy"] == "reject"
    await say(owner, session, "[hold]", wait_seconds=0)
    await until_running(owner, session)

    keyed = {"json": {"prompt": "x"}, "headers": {"Idempotency-Key": "k1"}}
    busy = await members["ben"].post(f"{session}/messages", **keyed)

    assert (busy.status_code, busy.json()["code"], busy.json()["holder"]) == (409, "session_busy", "ann")
    # Nothing came of it: under the same key it may be tried again.
    assert (await owner.post(f"{session}/abort")).json() == {"aborted": True}
    async with asyncio.timeout(WAIT_SECONDS):
        while (await owner.get(f"{session}/queue")).json()["running"] is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    again = await members["ben"].post(f"{session}/messages", **keyed)
    assert (again.status_code, again.json().get("content")) == (200, "x"), again.text


async def test_a_member_joins_a_session_of_http_while_its_owner_is_away(http):
    owner, session, members = await share(http, "alone", ben=["driver"])
    await say(owner, session, "kept")
    (ann,) = [user for user in http.edge.users.users if user.owner.user == "ann"]
    await http.edge.users.close_user(ann.owner)

    assert (await say(members["ben"], session, "alone here"))["content"] == "alone here"


async def test_members_links_and_the_queue_come_page_by_page(http):
    owner, session, _ = await share(http, "shared", ben=["driver"], cat=["observer"], dan=["approver"])
    for _ in range(3):
        await owner.post(f"{session}/links", json={"roles": ["driver"]})
    await say(owner, session, "[hold]", wait_seconds=0)
    await until_running(owner, session)
    ben, eve = await http.caller("shared", "ben"), await http.caller("shared", "eve")
    await say(ben, session, "later", wait_seconds=0)

    async def pages(path: str, name: str, key: str) -> list[list[str]]:
        found, after = [], {}
        while True:
            answer = await owner.get(session + path, params={"limit": 2, **after})
            said = answer.json()
            found.append([one[key] for one in said[name]])
            if said["next"] is None:
                return found
            after = {"after": said["next"]}

    assert await pages("/members", "members", "user") == [["ben", "cat"], ["dan"]]
    first, second = await pages("/links", "links", "link_id")
    assert (len(first), len(second), first + second) == (2, 1, sorted(first + second))
    assert [len(page) for page in await pages("/queue", "queue", "turn_id")] == [1]
    for path in ("/members", "/links", "/queue"):
        gone = await owner.get(session + path, params={"after": "nobody"})
        assert (gone.status_code, gone.json()["code"]) == (400, "params_invalid"), path
        assert (await eve.get(session + path)).status_code == 404, path
    await owner.post(f"{session}/abort")
