"""What the SQLite file adds to the registry contract: it lasts, is private, is shared by processes, and migrates."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import stat
import sys

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from aerodrome import errors
from aerodrome.adapters.sql import engine, migrate, tables
from aerodrome.adapters.sql.browsers import SqlBrowserStore
from aerodrome.adapters.sql.keys import SqlKeyStore
from aerodrome.adapters.sql.sessions import SqlSessionRegistry
from aerodrome.adapters.sql.tenants import SqlTenantStore
from aerodrome.core.browser import Browser
from aerodrome.core.identity import Key, Owner, Principal, Scope, Tenant
from aerodrome.core.policy import Isolation, Policy

from .registry_suite import ALICE, BOB, FixedClock, key, session


@pytest.fixture
def path(tmp_path):
    return tmp_path / "registry.db"


@contextlib.asynccontextmanager
async def opened(path, busy_seconds=engine.BUSY_SECONDS):
    database = await engine.open_database(f"sqlite:///{path}", busy_seconds)
    try:
        yield database
    finally:
        await database.aclose()


@contextlib.asynccontextmanager
async def migrated(path, busy_seconds=engine.BUSY_SECONDS):
    async with opened(path, busy_seconds) as database:
        await migrate.migrate(database)
        yield database


@contextlib.contextmanager
def raw(path):
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def describe(connection):
    """Return every statement that made the schema, however it is spaced, and the revision."""
    made = connection.execute(sa.text("SELECT type, name, sql FROM sqlite_master ORDER BY type, name")).all()
    revision = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return [(kind, name, "".join((sql or "").split())) for kind, name, sql in made], revision


class TestLasting:
    async def test_what_was_stored_is_there_after_reopening(self, path):
        async with migrated(path) as database:
            await SqlSessionRegistry(database).claim(session("s"))
            await SqlKeyStore(database).add(key("k"))
            await SqlTenantStore(database, FixedClock()).add(Tenant("red", Policy()))

        async with migrated(path) as database:
            assert await SqlSessionRegistry(database).find("s") == session("s")
            assert await SqlKeyStore(database).find("k") == key("k")
            assert await SqlTenantStore(database, FixedClock()).find("red") == Tenant("red", Policy())

    async def test_closing_finishes_the_writes_at_hand(self, path):
        async with migrated(path) as database:
            sessions = SqlSessionRegistry(database)
            claims = [asyncio.create_task(sessions.claim(session(f"s{number}"))) for number in range(20)]
            await claims[0]
            await database.aclose()
            assert all(claim.created for claim in await asyncio.gather(*claims))

        async with migrated(path) as database:
            assert len(await SqlSessionRegistry(database).list_owned(ALICE)) == 20

    async def test_a_store_whose_database_is_closed_answers_that_it_is_unavailable(self, path):
        async with migrated(path) as database:
            sessions = SqlSessionRegistry(database)

        await database.aclose()

        with pytest.raises(errors.StoreUnavailable, match="closed"):
            await sessions.find("s")


class TestSigningOut:
    """Browsers go with what they stand on, in the same transaction."""

    @contextlib.asynccontextmanager
    async def signed_in(self, path):
        async with migrated(path) as database:
            browsers = SqlBrowserStore(database)
            for owner, key_id in ((ALICE, "k"), (ALICE, "other"), (ALICE, ""), (Owner("", "ops"), "ops")):
                principal = Principal(owner, Policy(), key_id)
                await browsers.add(Browser(f"by {key_id}", principal, 1.0, 1.0, 100.0), 9)

            async def left():
                names = ("by k", "by other", "by ", "by ops")
                return [name for name in names if await browsers.find(name) is not None]

            yield database, left

    async def test_a_key_that_is_revoked_takes_its_browsers_along(self, path):
        async with self.signed_in(path) as (database, left):
            await SqlKeyStore(database).add(key("k"))
            await SqlKeyStore(database).revoke("k", 5.0)
            assert await left() == ["by other", "by ", "by ops"]

            with pytest.raises(errors.KeyMissing):
                await SqlKeyStore(database).revoke("nothing", 5.0)
            assert await left() == ["by other", "by ", "by ops"]

    async def test_a_tenant_that_is_removed_takes_its_browsers_along(self, path):
        async with self.signed_in(path) as (database, left):
            tenants = SqlTenantStore(database, FixedClock())
            with pytest.raises(errors.TenantMissing):
                await tenants.remove("red")
            assert len(await left()) == 4

            await tenants.add(Tenant("red", Policy()))
            await tenants.remove("red")
            assert await left() == ["by ops"]

    async def test_a_browser_with_a_role_of_a_newer_aerodrome_is_refused(self, path):
        async with self.signed_in(path) as (database, _):
            with raw(path) as connection:
                connection.execute("UPDATE browsers SET role = 'pilot'")
            with pytest.raises(errors.ConfigError, match="upgrade"):
                await SqlBrowserStore(database).find("by k")


class TestPrivacy:
    async def test_a_new_database_and_its_new_directory_are_the_users_alone(self, tmp_path):
        async with migrated(tmp_path / "made" / "registry.db"):
            files = list((tmp_path / "made").iterdir())

            assert len(files) == 3  # the database, its write-ahead log, the log's index
            assert {mode(file) for file in files} == {0o600}
            assert mode(tmp_path / "made") == 0o700

    async def test_a_directory_that_was_there_keeps_its_mode(self, tmp_path, path):
        tmp_path.chmod(0o755)

        async with migrated(path):
            assert mode(tmp_path) == 0o755

    async def test_a_database_open_to_others_is_closed_to_them(self, path):
        async with migrated(path):
            pass
        path.chmod(0o644)

        async with migrated(path):
            assert mode(path) == 0o600


class TestOpening:
    @pytest.mark.parametrize(
        "url",
        [
            "",
            "registry.db",
            "sqlite://",
            "sqlite:///",
            "sqlite:///:memory:",
            "sqlite:///file:registry.db",
            "sqlite:///registry.db?mode=ro",
            "sqlite://host/registry.db",
            "mysql://host/db",
        ],
    )
    async def test_a_url_that_names_no_file_is_refused_with_the_form_expected(self, url):
        with pytest.raises(errors.ConfigError, match="expected sqlite:///PATH"):
            await engine.open_database(url)

    @pytest.mark.parametrize("scheme", ["postgresql", "nothing", "sqlite"])
    async def test_a_refused_url_never_shows_its_password(self, scheme):
        with pytest.raises(errors.ConfigError) as refusal:
            await engine.open_database(f"{scheme}://user:hunter2@host/db")

        assert "hunter2" not in str(refusal.value)

    async def test_the_driver_may_be_named_in_the_url(self, path):
        database = await engine.open_database(f"sqlite+aiosqlite:///{path}")
        await database.aclose()

        assert path.exists()

    async def test_a_file_that_is_not_a_database_is_refused_and_left_alone(self, path):
        path.write_text("notes " * 1000)

        with pytest.raises(errors.ConfigError, match=r"registry\.db cannot be used"):
            await engine.open_database(f"sqlite:///{path}")

        assert path.read_text() == "notes " * 1000

    async def test_a_path_under_a_file_is_refused_by_name(self, path):
        path.touch()

        with pytest.raises(errors.ConfigError, match=str(path / "registry.db")):
            await engine.open_database(f"sqlite:///{path / 'registry.db'}")

    async def test_a_path_of_a_directory_is_refused_and_the_directory_left_alone(self, tmp_path):
        tmp_path.chmod(0o755)

        with pytest.raises(errors.ConfigError, match=str(tmp_path)):
            await engine.open_database(f"sqlite:///{tmp_path}")

        assert mode(tmp_path) == 0o755

    async def test_a_database_without_tables_answers_that_it_is_unavailable(self, path):
        async with opened(path) as database:
            with pytest.raises(errors.StoreUnavailable, match="no such table"):
                await SqlSessionRegistry(database).find("s")


class TestContention:
    async def test_a_write_that_waits_too_long_is_unavailable_while_reads_go_on(self, path):
        async with migrated(path, busy_seconds=0.5) as database:
            sessions = SqlSessionRegistry(database)
            await sessions.claim(session("s"))
            with raw(path) as other:
                other.execute("BEGIN IMMEDIATE")

                with pytest.raises(errors.StoreUnavailable, match="locked"):
                    await sessions.claim(session("t"))
                assert await sessions.find("s") == session("s")

            assert (await sessions.claim(session("t", BOB))).created

    async def test_writes_queued_behind_a_long_wait_do_not_wait_their_turn_over_again(self, path):
        async with migrated(path):
            pass
        async with opened(path, busy_seconds=0.2) as database:
            sessions = SqlSessionRegistry(database)
            with raw(path) as other:
                other.execute("BEGIN IMMEDIATE")
                async with asyncio.timeout(5):  # thirty turns would take six seconds
                    outcomes = await asyncio.gather(
                        *(sessions.claim(session(f"s{number}")) for number in range(30)), return_exceptions=True
                    )

            assert {type(outcome) for outcome in outcomes} == {errors.StoreUnavailable}

    async def test_a_write_waits_for_a_short_one_of_another_process(self, path):
        async with migrated(path) as database:
            with raw(path) as other:
                other.execute("BEGIN IMMEDIATE")
                claim = asyncio.create_task(SqlSessionRegistry(database).claim(session("s")))
                assert await SqlSessionRegistry(database).find("s") is None
                other.execute("COMMIT")

                assert (await claim).created

    async def test_several_processes_start_at_once_on_a_new_file_and_all_their_writes_are_kept(self, path):
        processes = [await self._start_writer(path, name) for name in ("one", "two", "three")]
        try:
            for process in processes:
                assert await process.stdout.readline() == b"ready\n"
            for process in processes:
                process.stdin.write(b"go\n")
            async with asyncio.timeout(100):
                output = [await process.communicate() for process in processes]
        finally:
            for process in processes:
                if process.returncode is None:
                    process.kill()
                    await process.wait()

        assert [(process.returncode, *out) for process, out in zip(processes, output, strict=True)] == [
            (0, b"", b"")
        ] * 3
        async with migrated(path) as database:
            assert len(await SqlKeyStore(database).list_all()) == 3 * 40
            assert len(await SqlSessionRegistry(database).list_owned(ALICE)) == 1

    async def _start_writer(self, path, name):
        pipe = asyncio.subprocess.PIPE
        arguments = (sys.executable, "-c", WRITER, str(path), name)
        return await asyncio.create_subprocess_exec(*arguments, stdin=pipe, stdout=pipe, stderr=pipe)


WRITER = """
import asyncio, sys
from aerodrome.adapters.sql import engine, keys, migrate, sessions
from aerodrome.core.identity import Key, Owner
from aerodrome.core.session import SessionRecord

async def main(path, name):
    database = await engine.open_database(f"sqlite:///{path}", 60.0)
    await migrate.migrate(database)
    store, registry = keys.SqlKeyStore(database), sessions.SqlSessionRegistry(database)
    for number in range(40):
        await store.add(Key(f"{name}{number}", Owner("red", name), "0" * 64, 1.0))
        await registry.claim(SessionRecord("s", Owner("red", "alice"), "user:red/alice", 1.0, 1.0))
    await database.aclose()

print("ready", flush=True)
sys.stdin.readline()
asyncio.run(main(*sys.argv[1:]))
"""


class TestMigration:
    async def test_a_new_database_is_to_the_letter_what_all_migrations_make(self, tmp_path):
        async with migrated(tmp_path / "new.db") as new, opened(tmp_path / "old.db") as old:
            await old.write(lambda connection: migrate.run_scripts(connection, None, old.name))
            assert await new.read(describe) == await old.read(describe)

    async def test_a_database_that_is_migrated_has_exactly_the_tables_the_code_expects(self, path):
        async with opened(path) as database:
            await database.write(lambda connection: migrate.run_scripts(connection, None, database.name))
            differences = await database.read(
                lambda connection: compare_metadata(MigrationContext.configure(connection), tables.METADATA)
            )

        assert differences == []

    def test_the_revision_the_code_names_is_the_newest_script(self):
        config = Config()
        config.set_main_option("script_location", "aerodrome.adapters.sql:migrations")

        assert ScriptDirectory.from_config(config).get_current_head() == tables.REVISION

    async def test_migrating_again_keeps_everything(self, path):
        async with migrated(path) as database:
            await SqlSessionRegistry(database).claim(session("s"))

            await migrate.migrate(database)

            assert await SqlSessionRegistry(database).find("s") == session("s")

    async def test_keys_from_before_there_were_scopes_may_connect(self, path):
        with raw(path) as connection:
            connection.executescript(
                "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY);"
                "INSERT INTO alembic_version VALUES ('0001');"
                "CREATE TABLE sessions (session_id TEXT NOT NULL, tenant_name TEXT NOT NULL, user_name TEXT NOT NULL, "
                "realm TEXT NOT NULL, created_at DOUBLE NOT NULL, used_at DOUBLE NOT NULL, "
                "CONSTRAINT pk_sessions PRIMARY KEY (session_id));"
                "CREATE TABLE tenants (name TEXT NOT NULL, policy TEXT NOT NULL, CONSTRAINT pk_tenants PRIMARY KEY (name));"
                "CREATE TABLE keys (key_id TEXT NOT NULL, tenant_name TEXT NOT NULL, user_name TEXT NOT NULL, "
                "secret_hash TEXT NOT NULL, created_at DOUBLE NOT NULL, expires_at DOUBLE, revoked_at DOUBLE, "
                "CONSTRAINT pk_keys PRIMARY KEY (key_id));"
                "INSERT INTO keys VALUES ('k', 'red', 'alice', 'h', 1.0, NULL, NULL);"
            )

        async with migrated(path) as database:
            assert await SqlKeyStore(database).find("k") == Key("k", ALICE, "h", 1.0, scopes=frozenset({Scope.CONNECT}))

    async def test_a_key_with_a_scope_of_a_newer_aerodrome_is_refused(self, path):
        async with migrated(path) as database:
            await SqlKeyStore(database).add(key("k"))
            with raw(path) as connection:
                connection.execute("UPDATE keys SET scopes = 'connect,fly'")

            with pytest.raises(errors.ConfigError, match="upgrade"):
                await SqlKeyStore(database).find("k")

    async def test_two_engines_of_one_process_migrate_at_once(self, path):
        async with opened(path) as one, opened(path) as other:
            await asyncio.gather(migrate.migrate(one), migrate.migrate(other))

            assert (await SqlSessionRegistry(one).claim(session("s"))).created

    async def test_databases_of_their_own_migrate_at_once_in_one_process(self, tmp_path):
        async with opened(tmp_path / "one.db") as one, opened(tmp_path / "other.db") as other:
            await asyncio.gather(migrate.migrate(one), migrate.migrate(other))

            for database in (one, other):
                assert (await SqlSessionRegistry(database).claim(session("s"))).created

    async def test_a_database_newer_than_the_code_is_refused_and_left_alone(self, path):
        async with migrated(path):
            pass
        with raw(path) as connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")

        async with opened(path) as database:
            with pytest.raises(errors.ConfigError, match=r"registry\.db is at revision '9999', .* knows up to"):
                await migrate.migrate(database)

        with raw(path) as connection:
            assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]

    async def test_a_database_with_somebody_elses_tables_of_the_same_name_is_refused(self, path):
        with raw(path) as connection:
            connection.execute("CREATE TABLE keys (x)")

        async with opened(path) as database:
            with pytest.raises(errors.ConfigError, match=r"'keys'.*database of its own"):
                await migrate.migrate(database)

            tables_found = await database.read(lambda connection: sa.inspect(connection).get_table_names())
        assert tables_found == ["keys"]


class TestPolicies:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"isolation": "user", "max_turns": 3}', "max_turns.*upgrade"),
            ('{"isolation": "moon"}', "red is not readable"),
            ("{", "red is not readable"),
            ("[]", "red is not readable"),
        ],
    )
    async def test_a_policy_this_code_cannot_read_in_full_is_refused(self, path, text, message):
        async with migrated(path) as database:
            tenants = SqlTenantStore(database, FixedClock())
            await tenants.add(Tenant("red", Policy()))
            with raw(path) as connection:
                connection.execute("UPDATE tenants SET policy = ?", (text,))

            with pytest.raises(errors.ConfigError, match=message):
                await tenants.find("red")

    async def test_a_page_of_stale_sessions_is_found_by_an_index(self, path):
        async with migrated(path) as database:
            await SqlSessionRegistry(database).claim(session("s"))
        with raw(path) as connection:
            plan = connection.execute(
                "EXPLAIN QUERY PLAN SELECT * FROM sessions WHERE tenant_name = 'red' AND (used_at <= 1 OR created_at <= 1) "
                "AND (user_name, session_id) > ('a', 's') ORDER BY user_name, session_id LIMIT 10"
            ).fetchall()

        assert "USING INDEX ix_sessions_tenant_name_user_name" in str(plan)

    async def test_a_policy_from_before_a_rule_existed_takes_that_rules_default(self, path):
        async with migrated(path) as database:
            tenants = SqlTenantStore(database, FixedClock())
            await tenants.add(Tenant("red", Policy()))
            with raw(path) as connection:
                connection.execute("""UPDATE tenants SET policy = '{"isolation": "shared"}'""")

            assert await tenants.find("red") == Tenant("red", Policy(Isolation.SHARED))
