"""The locked engine: an in-memory DuckDB for one statement, that sees only what it is handed, under limits.

It runs in a child process (`sql_pool.py`, `sql_worker.py`): DuckDB can be made to crash, to take memory that it does
not count, and to loop where it looks at no interrupt.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
from pydantic import Field

from mosaic.data.sql_ai import AiCalls
from mosaic.data.sql_pool import LOOK_SECONDS, Ended, Pool, Watch
from mosaic.data.sql_worker import Request, connect
from mosaic.errors import BadRequest, MosaicError, RateLimited, Unavailable
from mosaic.settings import Settings

logger = logging.getLogger(__name__)


class SqlSettings(Settings):
    """How much one statement may take."""

    threads: int = Field(default=2, ge=1)
    """Threads of one statement."""
    memory_limit_bytes: int = Field(default=512 * 1024 * 1024, ge=32 * 1024 * 1024)
    """Memory of one statement; there is no spilling to disk."""
    max_running: int = Field(default=4, ge=1)
    """Statements at the same time in one process; a further one waits, within its time limit."""
    row_limit: int = Field(default=10_000, ge=1)
    """Rows of a result, unless the caller says otherwise."""
    byte_limit: int = Field(default=16 * 1024 * 1024, ge=1)
    """Bytes of a result in Arrow's form, unless the caller says otherwise."""
    write_limit_bytes: int = Field(default=256 * 1024 * 1024, ge=1)
    """Bytes that one statement may write."""
    ai_query_rows: int = Field(default=1_000, ge=1)
    """Rows for which one statement may ask endpoints (`ai_query`)."""
    ai_query_concurrency: int = Field(default=16, ge=1)
    """Of these, at the same time."""
    timeout_seconds: float = Field(default=60, gt=0)
    """Time of a statement, unless the caller says otherwise."""


class Answer(NamedTuple):
    """The rows of a statement, perhaps not all."""

    rows: pa.Table
    cut_by: Literal["rows", "bytes"] | None


class Limits(NamedTuple):
    rows: int
    bytes: int
    seconds: float


class Engine:
    """Runs statements, each in a DuckDB of its own in a child process, which it cannot outlive or outgrow."""

    def __init__(self, settings: SqlSettings) -> None:
        self._settings = settings
        self._turns = Turns(settings.max_running)
        self._pool = Pool(settings.memory_limit_bytes, settings.threads, settings.max_running)

    def connect(self) -> duckdb.DuckDBPyConnection:
        """An empty database in this process, as locked as those of statements; for texts, not for statements."""
        return connect(self._settings.memory_limit_bytes, self._settings.threads)

    def run(
        self,
        sql: str,
        given: Mapping[str, ds.Dataset | pa.Table],
        parameters: Mapping[str, Any],
        limits: Limits,
        cancelled: threading.Event,
        caller: str = "",
        calls: AiCalls | None = None,
    ) -> Answer:
        """The rows of one SELECT over the given tables; raises BadRequest for the user's faults and for limits.

        `calls` answers its `ai_query`; what they raise is raised here.
        """
        bounds = (limits.rows, limits.bytes, limits.seconds)
        request = Request(sql, dict(given), dict(parameters), *bounds, asks=calls is not None)
        watch = Watch(time.monotonic() + limits.seconds, cancelled)
        try:
            with self._turns.taken(caller, watch):
                return Answer(*self._pool.run(request, watch, calls))
        except NoTurn as error:
            raise RateLimited(f"{error}; none ended in {limits.seconds:g} s", code="busy") from None
        except Ended as ended:
            if calls is not None and calls.error is not None and ended.why in ("engine", "users"):
                raise calls.error from None
            raise _explained(ended, self._settings, limits) from None


class NoTurn(Exception):
    """Too many statements run, of all or of the caller."""


class Turns:
    """Who may run: in the order of asking, but nobody holds all turns. Safe for threads."""

    def __init__(self, most: int) -> None:
        self._most, self._most_each = most, max(1, most - 1)
        self._changed = threading.Condition()
        self._running: list[str] = []
        self._waiting: list[tuple[str, object]] = []

    @contextmanager
    def taken(self, caller: str, watch: Watch) -> Iterator[None]:
        """Raises NoTurn at the deadline, Ended when cancelled."""
        self._take(caller, watch)
        try:
            yield
        finally:
            with self._changed:
                self._running.remove(caller)
                self._changed.notify_all()

    def _take(self, caller: str, watch: Watch) -> None:
        me = (caller, object())
        with self._changed:
            self._waiting.append(me)
            try:
                while self._next() is not me:
                    if watch.cancelled.is_set():
                        raise Ended("cancelled")
                    if time.monotonic() > watch.deadline:
                        raise NoTurn(self._full(caller))
                    self._changed.wait(LOOK_SECONDS)
                self._running.append(caller)
            finally:
                self._waiting.remove(me)
                self._changed.notify_all()

    def _next(self) -> tuple[str, object] | None:
        """The first that waits and is not at its own bound."""
        if len(self._running) >= self._most:
            return None
        return next((one for one in self._waiting if self._running.count(one[0]) < self._most_each), None)

    def _full(self, caller: str) -> str:
        mine = self._running.count(caller)
        if mine >= self._most_each and len(self._running) < self._most:
            return f"{mine} statements of {caller!r} are running, as many as one may have"
        return f"{len(self._running)} statements are running"


def _explained(ended: Ended, settings: SqlSettings, limits: Limits) -> MosaicError:
    """What the caller is told: the engine's words for its own faults, never what is in this machine."""
    match ended.why:
        case "cancelled":
            return BadRequest("the statement was cancelled", code="cancelled")
        case "timeout":
            return BadRequest(
                f"the statement was stopped after its time limit of {limits.seconds:g} s (timeout_seconds)",
                param="timeout_seconds",
                code="timeout",
            )
        case "out_of_memory":
            mib = settings.memory_limit_bytes // 2**20
            return BadRequest(
                f"the statement needs more than its {mib} MiB of memory; ask for less", code="out_of_memory"
            )
        case "users":
            return BadRequest(ended.text.replace("\n\n", "\n"), param="statement")
        case "not_permitted":
            return BadRequest(
                "the statement asks for files or settings, which SQL here does not reach", param="statement"
            )
    logger.error("SQL engine failed: %s", ended.text)
    return Unavailable("the engine failed on this statement; the log has the reason")
