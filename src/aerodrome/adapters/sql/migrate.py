"""Bring a database's schema up to this code's: Alembic, driven from code and shipped with it, no alembic.ini.

Runs in one transaction that holds the write lock, so of two processes that start at once one migrates and the other finds
it done. A new database is given the tables as they are now: to import Alembic would be a fifth of a first start. Not able to go
back: a database newer than the code is refused. Neighbours: tables.py (REVISION), `migrations`.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import sqlalchemy as sa

from aerodrome import errors
from aerodrome.adapters.sql import engine, tables

if TYPE_CHECKING:
    from alembic.config import Config

# Alembic hands the migration its connection through module globals.
_ONE_AT_A_TIME = threading.Lock()
#: Alembic's own table, as it makes it.
_VERSION = sa.Table(
    "alembic_version",
    sa.MetaData(),
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)


async def migrate(database: engine.Database) -> None:
    """Create or upgrade the tables; does nothing when they are up to date.

    Raises:
        errors.ConfigError: the database is newer than this code, or holds tables of the same names that are not ours.
        errors.StoreUnavailable: the database did not answer; nothing was changed.
    """
    await database.write(lambda connection: _upgrade(connection, database.name))


def _upgrade(connection: sa.Connection, name: str) -> None:
    present = _revision(connection)
    if present == tables.REVISION:
        return
    if present is None:
        _check_ours(connection, name)
        create(connection)
    else:
        run_scripts(connection, present, name)


def create(connection: sa.Connection) -> None:
    """Create the tables of this code in a database that has none, and note their revision as the scripts would."""
    tables.METADATA.create_all(connection)
    _VERSION.create(connection, checkfirst=True)
    connection.execute(_VERSION.insert().values(version_num=tables.REVISION))


def run_scripts(connection: sa.Connection, present: str | None, name: str) -> None:
    """Run the migrations that come after the present revision.

    Raises:
        errors.ConfigError: this code does not know the present revision.
    """
    from alembic import command  # noqa: PLC0415  needed a few times in a database's life
    from alembic.config import Config  # noqa: PLC0415

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "aerodrome.adapters.sql:migrations")
    with _ONE_AT_A_TIME:
        _check_known(config, present, name)
        command.upgrade(config, "head")


def _revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return revision


def _check_ours(connection: sa.Connection, name: str) -> None:
    taken = set(sa.inspect(connection).get_table_names()) & set(tables.METADATA.tables)
    if taken:
        raise errors.ConfigError(
            f"database {name} has tables {sorted(taken)} that are not Aerodrome's: give Aerodrome a database of its own"
        )


def _check_known(config: Config, present: str | None, name: str) -> None:
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if present is not None and present not in known:
        raise errors.ConfigError(
            f"database {name} is at revision {present!r}, this Aerodrome knows up to {tables.REVISION!r}: "
            "run the newer Aerodrome that upgraded it, or restore a backup from before"
        )
