"""Bringing a database to the shape that this version of the code knows, once, however many processes open it."""

import threading
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from mosaic.errors import Conflict

# alembic keeps the running migration in module globals, so threads that open different databases take turns.
_TURN = threading.Lock()

_OTHERWISE_SORTED = sa.text(
    """
    SELECT c.relname AS table_name, a.attname AS column_name, format_type(a.atttypid, a.atttypmod) AS full_type
    FROM pg_attribute a
    JOIN pg_class c ON c.oid = a.attrelid
    JOIN pg_collation o ON o.oid = a.attcollation
    WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r' AND o.collname <> 'C'
    ORDER BY c.relname, a.attnum
    """
)
_LOCK_NUMBER = 0x6D6F73616963  # "mosaic"; any number that PostgreSQL's other users do not lock


def migrate(reading: sa.Engine, writing: sa.Engine) -> None:
    """Run the missing steps in one transaction; raises Conflict for a database that a newer version has written."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    with reading.connect() as connection:
        if _revision(connection, scripts) == scripts.get_current_head():
            return
    with _TURN, writing.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK_NUMBER)))
        # Again, under the lock: another process may have been first.
        if _revision(connection, scripts) == scripts.get_current_head():
            return
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        if connection.dialect.name == "postgresql":
            _sort_as_sqlite(connection)


def _sort_as_sqlite(connection: sa.Connection) -> None:
    """Texts are compared by their code points, whatever language the server sorts in: pages of names rely on it."""
    for column in connection.execute(_OTHERWISE_SORTED):
        connection.exec_driver_sql(
            f'ALTER TABLE "{column.table_name}" ALTER COLUMN "{column.column_name}" TYPE {column.full_type} COLLATE "C"'
        )


def _revision(connection: sa.Connection, scripts: ScriptDirectory) -> str | None:
    found = MigrationContext.configure(connection).get_current_revision()
    known = [script.revision for script in scripts.walk_revisions()]
    if found is not None and found not in known:
        raise Conflict(
            f"the catalog's database is at revision {found!r}, which this version does not know "
            f"(it knows {sorted(known)}); it was written by a newer mosaic: "
            "use that version, or a copy of the database from before"
        )
    return found
