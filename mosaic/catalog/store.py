"""The database behind the catalog: connections, transactions, and the number that grows with every write."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import Field
from sqlalchemy import event, exc
from sqlalchemy.engine import URL, make_url

from mosaic.catalog.migrate import migrate
from mosaic.catalog.schema import revision
from mosaic.errors import BadRequest, Conflict, Unavailable
from mosaic.settings import Settings

PLANNING = " ".join(
    f"-c {setting}"
    for setting in (
        *("jit=off", "enable_hashjoin=off", "enable_mergejoin=off", "enable_memoize=off"),
        "plan_cache_mode=force_generic_plan",
    )
)
"""A check walks a few rows by their keys; PostgreSQL takes its recursion for thousands, and would read whole tables."""
_DRIVERS = {"sqlite": "pysqlite", "postgresql": "psycopg"}


class StoreSettings(Settings):
    """How long a process waits for the catalog's database, and how many connections to PostgreSQL it keeps."""

    pool_size: int = Field(default=8, ge=1)
    """Connections to PostgreSQL that a process has at most; calls beyond that wait."""
    pool_timeout_seconds: float = Field(default=10, gt=0)
    """How long a call waits for one of them."""
    connect_timeout_seconds: int = Field(default=5, ge=2)
    """How long PostgreSQL may take to answer a new connection; the driver knows no less than 2."""
    lock_timeout_seconds: float = Field(default=30, gt=0)
    """How long a write waits for its turn, on SQLite too: one write happens at a time."""
    statement_timeout_seconds: float = Field(default=60, gt=0)
    """How long PostgreSQL works on one statement."""
    idle_transaction_timeout_seconds: float = Field(default=30, gt=0)
    """After how long PostgreSQL ends the write of a process that hangs, so that others get their turn."""


class Store:
    """Transactions on one database; safe for threads, and several processes may open the same one."""

    def __init__(self, url: str, settings: StoreSettings | None = None) -> None:
        parsed, settings = _checked(url), settings or StoreSettings()
        self.settings = settings
        self._shown = parsed.render_as_string(hide_password=True)
        is_sqlite = parsed.get_backend_name() == "sqlite"
        engine = _sqlite_engine(parsed, settings) if is_sqlite else _postgres_engine(parsed, settings)
        self._writing = engine.execution_options(mosaic_writes=True)
        # What a reader asks in several queries is one state of the database; SQLite has it so by itself.
        one_state = {} if is_sqlite else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        self._reading = engine.execution_options(**one_state)
        # SQLite lets one write at a time, and makes the others sleep and try; threads of one process can wait better.
        self._turn: AbstractContextManager[Any] = threading.Lock() if is_sqlite else nullcontext()
        with self._explained():
            migrate(self._reading, self._writing)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that sees one state of the database and changes nothing."""
        # Ended by a commit: after a rollback the driver forgets every plan that PostgreSQL has prepared for it.
        with self._explained(), self._reading.begin() as connection:
            yield connection

    @contextmanager
    def write(self, *, counted: bool = True) -> Iterator[sa.Connection]:
        """A transaction that is done wholly or not at all; `counted` ones make the revision grow."""
        with self._turn, self._explained(), self._writing.begin() as connection:
            if counted:
                connection.execute(revision.update().values(number=revision.c.number + 1))
            yield connection

    def close(self) -> None:
        """Close the idle connections."""
        self._writing.dispose()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except exc.IntegrityError as error:
            raise Conflict(f"somebody else changed the catalog at the same time: {error.orig}") from error
        except exc.DataError as error:
            raise BadRequest(f"the catalog cannot keep a value: {error.orig}") from error
        except exc.DBAPIError as error:
            if str(getattr(error.orig, "sqlstate", None)).startswith(_ROLLED_BACK):
                raise Conflict(f"the catalog is changed by others at the same time; try again: {error.orig}") from error
            raise Unavailable(f"the catalog's database {self._shown} failed: {error.orig}") from error
        except exc.TimeoutError as error:
            raise Unavailable(f"all connections to the catalog's database {self._shown} are in use: {error}") from error


_ROLLED_BACK = "40"
"""PostgreSQL's class of errors with which a transaction gives way to another one, such as a deadlock."""


def _checked(url: str) -> URL:
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (exc.ArgumentError, ValueError):
        raise BadRequest(
            f"catalog URL {url!r} is not one; write sqlite:////absolute/path.db or postgresql+psycopg://host/name"
        ) from None
    if backend not in ("sqlite", "postgresql"):
        raise BadRequest(f"catalog URL has the database {backend!r}; supported are ['postgresql', 'sqlite']")
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise BadRequest(
            f"catalog URL {url!r} names no file; an in-memory catalog could not be shared, so give it a path"
        )
    driver = parsed.drivername.partition("+")[2]
    if driver not in ("", _DRIVERS[backend]):
        raise BadRequest(f"catalog URL has the driver {driver!r}; write {backend}+{_DRIVERS[backend]}://...")
    return parsed.set(drivername=f"{backend}+{_DRIVERS[backend]}")


def _postgres_engine(url: URL, settings: StoreSettings) -> sa.Engine:
    limits = {
        "lock_timeout": settings.lock_timeout_seconds,
        "statement_timeout": max(settings.statement_timeout_seconds, settings.lock_timeout_seconds),
        "idle_in_transaction_session_timeout": settings.idle_transaction_timeout_seconds,
    }
    said = str(url.query.get("options", ""))
    waits = (f"-c {name}={round(seconds * 1000)}" for name, seconds in limits.items())
    options = " ".join([PLANNING, *waits, said]).strip()
    return sa.create_engine(
        url.difference_update_query(["options"]),
        # A connection that a restarted server has forgotten is found out before it is used.
        pool_pre_ping=True,
        pool_size=settings.pool_size,
        max_overflow=0,
        pool_timeout=settings.pool_timeout_seconds,
        connect_args={"options": options, "connect_timeout": settings.connect_timeout_seconds},
    )


def _sqlite_engine(url: URL, settings: StoreSettings) -> sa.Engine:
    path = Path(str(url.database))
    path.parent.mkdir(parents=True, exist_ok=True)
    arguments = {"timeout": settings.lock_timeout_seconds, "check_same_thread": False}
    engine = sa.create_engine(url, connect_args=arguments)

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say, below
        _log_ahead(connection, settings.lock_timeout_seconds)
        for pragma in ("synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # A writer takes its lock at once: one that starts as a reader could fail half-way, its state being old.
        writes = connection.get_execution_options().get("mosaic_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _log_ahead(connection: sqlite3.Connection, timeout_seconds: float) -> None:
    """Set the write-ahead log; of several that open a fresh file SQLite refuses all but one, without waiting."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
