"""The locked engine: an in-memory DuckDB for one statement, that sees only what it is handed, under limits."""

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

from mosaic.errors import BadRequest, MosaicError, RateLimited, Unavailable
from mosaic.settings import Settings

logger = logging.getLogger(__name__)

_BATCH_ROWS = 8192
_LOOK_SECONDS = 0.02

_USERS_FAULT = (
    duckdb.ParserException,
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.ConversionException,
    duckdb.OutOfRangeException,
    duckdb.TypeMismatchException,
    duckdb.InvalidTypeException,
    duckdb.InvalidInputException,
    duckdb.NotImplementedException,
    duckdb.SyntaxException,
    duckdb.ConstraintException,
)


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
    """Runs statements, each in a DuckDB of its own."""

    def __init__(self, settings: SqlSettings) -> None:
        self._settings = settings
        self._turns = threading.BoundedSemaphore(settings.max_running)

    def connect(self) -> duckdb.DuckDBPyConnection:
        """An empty database that reaches no file, no network, no Python variable, and cannot be told otherwise."""
        connection = duckdb.connect(
            ":memory:",
            config={
                "enable_external_access": "false",
                "allow_community_extensions": "false",
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
                "python_enable_replacements": "false",
                "temp_directory": "",
                "memory_limit": f"{self._settings.memory_limit_bytes}B",
                "threads": str(self._settings.threads),
            },
        )
        connection.execute("SET TimeZone = 'UTC'; SET lock_configuration = true").fetchall()
        return connection

    def run(
        self,
        sql: str,
        given: Mapping[str, ds.Dataset | pa.Table],
        parameters: Mapping[str, Any],
        limits: Limits,
        cancelled: threading.Event,
    ) -> Answer:
        """The rows of one SELECT over the given tables; raises BadRequest for the user's faults and for limits."""
        deadline = time.monotonic() + limits.seconds
        if not self._turns.acquire(timeout=limits.seconds):
            raise RateLimited(
                f"{self._settings.max_running} statements are running; none ended in {limits.seconds:g} s", code="busy"
            )
        try:
            connection = self.connect()
            try:
                for name, rows in given.items():
                    connection.register(name, rows)
                with _stopped(connection, deadline, cancelled):
                    return _fetch(connection, sql, parameters, limits)
            except (duckdb.Error, pa.ArrowException, OSError, RuntimeError) as error:
                raise _explained(error, self._settings, limits, deadline, cancelled) from None
            finally:
                connection.close()
        finally:
            self._turns.release()


def _fetch(connection: duckdb.DuckDBPyConnection, sql: str, parameters: Mapping[str, Any], limits: Limits) -> Answer:
    """Batches as they come, until a limit; what the engine has beyond it is never computed."""
    reader = connection.sql(sql, params=dict(parameters) or None).to_arrow_reader(_BATCH_ROWS)
    batches: list[pa.RecordBatch] = []
    rows = size = 0
    cut_by: Literal["rows", "bytes"] | None = None
    for batch in reader:
        if rows + batch.num_rows > limits.rows:
            batch, cut_by = batch.slice(0, limits.rows - rows), "rows"
        size += batch.nbytes
        if size > limits.bytes:
            fitting = int(batch.num_rows * (1 - (size - limits.bytes) / batch.nbytes))
            batch, cut_by = batch.slice(0, fitting), "bytes"
        batches.append(batch)
        rows += batch.num_rows
        if cut_by is not None:
            break
    return Answer(pa.Table.from_batches(batches, schema=reader.schema), cut_by)


@contextmanager
def _stopped(connection: duckdb.DuckDBPyConnection, deadline: float, cancelled: threading.Event) -> Iterator[None]:
    """Interrupts the engine at the deadline or when cancelled, again and again, since one could come too early."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_LOOK_SECONDS):
            if cancelled.is_set() or time.monotonic() > deadline:
                connection.interrupt()

    watcher = threading.Thread(target=watch, name="sql-limit", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _explained(
    error: Exception, settings: SqlSettings, limits: Limits, deadline: float, cancelled: threading.Event
) -> MosaicError:
    """What the caller is told: the engine's words for its own faults, never what is in this machine."""
    if "INTERRUPT" in str(error) or isinstance(error, duckdb.InterruptException):
        if cancelled.is_set():
            return BadRequest("the statement was cancelled", code="cancelled")
        return BadRequest(
            f"the statement was stopped after its time limit of {limits.seconds:g} s (timeout_seconds)",
            param="timeout_seconds",
            code="timeout",
        )
    if isinstance(error, duckdb.OutOfMemoryException) or "Out of Memory" in str(error):
        mib = settings.memory_limit_bytes // 2**20
        return BadRequest(f"the statement needs more than its {mib} MiB of memory; ask for less", code="out_of_memory")
    if isinstance(error, _USERS_FAULT) and "Python exception" not in str(error):
        return BadRequest(str(error).replace("\n\n", "\n"), param="statement")
    if isinstance(error, duckdb.PermissionException):
        return BadRequest("the statement asks for files or settings, which SQL here does not reach", param="statement")
    logger.error("SQL engine failed", exc_info=error)
    return Unavailable("the engine failed on this statement; the log has the reason")
