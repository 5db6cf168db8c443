"""The database behind the catalog: connections, transactions, and the number that grows with every write."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.engine import URL, make_url

from mosaic.catalog.migrate import migrate
from mosaic.catalog.schema import revision
from mosaic.errors import BadRequest, Conflict, Unavailable

_BUSY_SECONDS = 30


class Store:
    """Transactions on one database; safe for threads, and several processes may open the same one."""

    def __init__(self, url: str) -> None:
        parsed = _checked(url)
        self._shown = parsed.render_as_string(hide_password=True)
        if parsed.get_backend_name() == "sqlite":
            self._reading = _sqlite_engine(parsed)
        else:
            self._reading = sa.create_engine(parsed, pool_pre_ping=True)
        self._writing = self._reading.execution_options(mosaic_writes=True)
        # SQLite lets one write at a time, and makes the others sleep and try; threads of one process can wait better.
        self._turn: AbstractContextManager[Any] = (
            threading.Lock() if parsed.get_backend_name() == "sqlite" else nullcontext()
        )
        with self._explained():
            migrate(self._reading, self._writing)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that sees one state of the database and changes nothing."""
        with self._explained(), self._reading.connect() as connection:
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
        self._reading.dispose()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except exc.IntegrityError as error:
            raise Conflict(f"somebody else changed the catalog at the same time: {error.orig}") from error
        except exc.DBAPIError as error:
            raise Unavailable(f"the catalog's database {self._shown} failed: {error.orig}") from error


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
    return parsed


def _sqlite_engine(url: URL) -> sa.Engine:
    path = Path(str(url.database))
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args={"timeout": _BUSY_SECONDS, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say, below
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # A writer takes its lock at once: one that starts as a reader could fail half-way, its state being old.
        writes = connection.get_execution_options().get("mosaic_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
