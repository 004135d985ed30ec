"""`aerodrome github-token sign-in`: by a code entered anywhere or by a browser of this machine; the token is stored sealed."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import re
import subprocess
import sys
import threading
from contextlib import suppress

import httpx
import pytest
import structlog
from typer.testing import CliRunner

from aerodrome import app as application
from aerodrome import errors, settings, signing_in
from aerodrome.cli.main import app
from aerodrome.core import github
from aerodrome.core.identity import Owner
from aerodrome.testing import fake_github
from aerodrome.testing.fake_github import FakeGitHub

MASTER_KEY = "master-key-" + "m" * 32
ANN = Owner("acme", "ann")


class Site:
    """A GitHub on a thread of its own, for as long as a command runs here."""

    def __init__(self) -> None:
        self.hub = FakeGitHub()
        self._loop = asyncio.new_event_loop()
        self._spawned: list[concurrent.futures.Future] = []
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.run(self.hub.start())

    def run(self, work):
        """Run it where GitHub is."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def spawn(self, work) -> None:
        """Have it run there, and go on."""
        self._spawned.append(asyncio.run_coroutine_threadsafe(work, self._loop))

    def close(self) -> None:
        for spawned in self._spawned:
            spawned.result(20)
        self.run(self.hub.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    found = Site()
    yield found
    found.close()


class Command:
    """The command, with a state directory and a configuration of its own."""

    def __init__(self, directory, site: Site) -> None:
        self.state = directory / "state"
        self.config = directory / "aerodrome.toml"
        self.site = site
        self.write('client_id = "Iv1.demo"\nclient_secret = "env:APP_SECRET"\n')

    def write(self, github_section: str) -> None:
        tenants = '[tenants.acme]\nisolation = "user"\ngithub = "stored"\n'
        self.config.write_text(f'{tenants}[github]\nhost = "{self.site.hub.host}"\n{github_section}')

    def run(self, *words: str) -> str:
        options = ["--config", str(self.config), "--state-directory", str(self.state)]
        result = CliRunner().invoke(app, [*words, *options])
        assert "canary" not in result.output
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            assert "canary" not in repr(result.exception)
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    def sign_in(self, *words: str, user: str = "ann") -> str:
        return self.run("github-token", "sign-in", "acme", user, *words)

    def token_of(self, owner: Owner) -> str:
        """Return whose token is stored, by its login at GitHub."""
        loaded = settings.load(self.config, state_directory=self.state)

        async def read() -> str:
            async with application.open_stores(loaded) as stores:
                stored = await stores.tokens.find(owner)
            assert stored is not None
            return github.unseal(loaded.envelopes(), stored).access.reveal()

        return self.site.hub.tokens[asyncio.run(read())]


@pytest.fixture
def command(tmp_path, site, monkeypatch):
    monkeypatch.setenv("AERODROME_MASTER_KEY", MASTER_KEY)
    monkeypatch.setenv("APP_SECRET", fake_github.CLIENT_SECRET)
    yield Command(tmp_path, site)
    structlog.reset_defaults()


@pytest.fixture
def quick(monkeypatch, site):
    """Devices wait no time, and GitHub lets them ask as often as they like; `at_sleep` is called at each waiting."""
    done = []

    async def sleep(_: float) -> None:
        for device in site.hub.devices.values():
            device.interval = 0
        for act in done:
            act()
        await asyncio.sleep(0)

    opened = signing_in.open_granter
    monkeypatch.setattr(signing_in, "open_granter", lambda *given: opened(*given, sleep))
    return done


def test_a_person_enters_the_code_elsewhere_and_the_token_is_stored_sealed(command, site, quick):
    quick.append(lambda: [site.hub.enter(code) for code in site.hub.devices])
    said = command.sign_in()
    assert re.search(rf"open {site.hub.host}/login/device in any browser and enter the code WDJB-\d+\n", said)
    assert said.splitlines()[2:] == ["token of ann in acme stored; it is of the GitHub account octocat"]
    assert command.token_of(ANN) == "Octocat"
    (listed,) = json.loads(command.run("github-token", "list", "--json"))
    assert (listed["user"], listed["renewed"]) == ("ann", "by the gateway")
    files = [path for path in command.state.rglob("*") if path.is_file()]
    assert files
    assert not any(b"canary" in path.read_bytes() for path in files)
    actions = [json.loads(line)["action"] for line in command.run("audit", "export", "--json").splitlines()]
    assert actions == ["token.store"]


@pytest.mark.parametrize(("verdict", "words"), [("access_denied", "denied"), ("expired_token", "expired")])
def test_a_code_that_is_denied_or_expires_stores_nothing_and_says_so(command, site, quick, verdict, words):
    quick.append(lambda: [site.hub.enter(code, verdict) for code in site.hub.devices])
    with pytest.raises(errors.SignInFailed, match=words):
        command.sign_in()
    assert json.loads(command.run("github-token", "list", "--json")) == []


def test_a_browser_of_this_machine_comes_back_to_loopback(command, site, monkeypatch):
    opened = []

    def browse(url: str) -> bool:
        opened.append(url)
        redirect = re.search(r"redirect_uri=(http[^&]+)", url)[1].replace("%3A", ":").replace("%2F", "/")
        # Whoever else is on this machine knows no state, and ends nothing.
        site.spawn(strangers_then_user(redirect, url))
        return True

    monkeypatch.setattr("webbrowser.open", browse)
    said = command.sign_in("--web")
    assert opened[0] in said.replace("\n", "")
    assert "http%3A%2F%2F127.0.0.1%3A" in opened[0]
    assert "account octocat" in said
    assert command.token_of(ANN) == "Octocat"


async def strangers_then_user(redirect: str, url: str) -> None:
    async with fake_github.new_browser() as stranger:
        for query in ("", "?code=evil", "?code=evil&state=guess", "?error=access_denied&state=x"):
            assert (await stranger.get(f"{redirect}{query}")).status_code == 400
    await fake_github.browse(url, follows=True)


def test_a_browser_that_is_a_program_of_the_terminal_is_answered_while_it_runs(command, site, monkeypatch):
    monkeypatch.setattr("webbrowser.open", lambda url: site.run(browse_to_the_end(url)))
    assert "account octocat" in command.sign_in("--web")
    assert command.token_of(ANN) == "Octocat"


async def browse_to_the_end(url: str) -> None:
    async with fake_github.new_browser() as browser:
        answer = await browser.get(url)
        with suppress(httpx.NetworkError, httpx.RemoteProtocolError):  # the command may end before its page is read
            await browser.get(answer.headers["location"], timeout=60)


def test_a_browser_sign_in_that_is_denied_stores_nothing(command, site, monkeypatch):
    site.hub.denies = True
    monkeypatch.setattr("webbrowser.open", lambda url: site.spawn(fake_github.browse(url, follows=True)))
    with pytest.raises(errors.SignInFailed, match="denied"):
        command.sign_in("--web")
    assert json.loads(command.run("github-token", "list", "--json")) == []


def test_what_is_missing_is_said_before_anybody_is_asked_for_anything(command, site, monkeypatch):
    command.write('client_id = "Iv1.demo"\n')
    with pytest.raises(errors.ConfigError, match=r"github\.client_secret.*device flow"):
        command.sign_in("--web")
    command.write("")
    with pytest.raises(errors.ConfigError, match="AERODROME_GITHUB__CLIENT_ID"):
        command.sign_in()
    command.write('client_id = "Iv1.demo"\n')
    with pytest.raises(errors.TenantMissing, match="tenant add other"):
        command.run("github-token", "sign-in", "other", "ann")
    with pytest.raises(errors.ConfigError, match="user name"):
        command.sign_in(user="a/b")
    monkeypatch.delenv("AERODROME_MASTER_KEY")
    with pytest.raises(errors.ConfigError, match="AERODROME_MASTER_KEY_FILE"):
        command.sign_in()
    assert site.hub.heard == []


def test_other_commands_do_not_wait_for_what_only_sign_ins_need():
    code = "import sys, aerodrome.cli.main; print([name for name in sys.modules if name.split('.')[0] == 'authlib'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
