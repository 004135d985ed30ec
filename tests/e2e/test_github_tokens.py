"""A live session of the real runtime takes a new GitHub token from the gateway.

GitHub itself is asked when a session is created with a token, so that half is shown on scripted runtimes (tests/gateway).
"""

from __future__ import annotations

import time

import pytest

from aerodrome.core import github
from aerodrome.core.github import GitHubToken
from aerodrome.core.identity import Owner
from aerodrome.core.secret import Secret
from aerodrome.gateway.github_tokens import TokenCourier

from . import place as places
from .python_sdk import say

pytestmark = pytest.mark.runtime

CANARY = "gho_canary0000000000000000000000000091ab"


async def test_a_new_token_reaches_a_session_that_is_live_and_nobody_elses(tmp_path, monkeypatch):
    monkeypatch.setenv("AERODROME_MASTER_KEY", "m" * 32)
    async with places.open_place(tmp_path / "state") as place:
        services, envelopes = place.application.services, places.settings_module.load().envelopes()
        ann, ben = await place.connect("user", "ann"), await place.connect("user", "ben")
        session, other = await ann.create(), await ben.create()
        for program, one in ((ann, session), (ben, other)):
            await say(one, "hello")
            status = await program.ask("session.gitHubAuth.getStatus", {"sessionId": one.session_id})
            assert status["isAuthenticated"] is False
        token = github.seal(envelopes, Owner("user", "ann"), GitHubToken(Secret(CANARY)), time.time())
        await place.application.stores.tokens.put(token)
        # As if it had been opened with an earlier one.
        (resident,) = [one for one in services.residents if one.session_id == session.session_id]
        services.supplier.supplied[(resident.realm, session.session_id)] = Secret("earlier")

        await TokenCourier(services.supplier, services.residents, "https://github.com", 60.0).visit()

        status = await ann.ask("session.gitHubAuth.getStatus", {"sessionId": session.session_id})
        assert (status["isAuthenticated"], status["authType"]) == (True, "token")
        status = await ben.ask("session.gitHubAuth.getStatus", {"sessionId": other.session_id})
        assert status["isAuthenticated"] is False
        assert await say(session, "goes on") == "You said: goes on"
        assert [path for path, text in places.read_all(place.state).items() if CANARY.encode() in text] == []
