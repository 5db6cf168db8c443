"""The program of an engine's child process: it runs statements one after another, each in a locked DuckDB made for it.

    parent -> child   a request (`Request`, pickled), ANSWERS to its ASK, or STOP; the end of the pipe ends the child
    child -> parent   READY once, then per statement SCHEMA and BATCH (Arrow IPC) and DONE or FAILED (JSON); ASK
                      (Arrow IPC) between them, for what `ai_query` is to be answered

What a statement does to this process (a crash, memory without end, a loop that no interrupt reaches) stays here: the
parent ends the child (`sql_pool.py`). Nothing that a child says is ever unpickled.
"""

import ctypes
import json
import os
import pickle
import queue
import resource
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, Literal, NamedTuple

import deltalake.fs  # noqa: F401  (what datasets of Delta tables are unpickled with: loaded ahead)
import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

STOP, RUN, ANSWERS = b"X", b"Q", b"A"
READY, SCHEMA, BATCH, DONE, FAILED, ASK = b"R", b"S", b"B", b"D", b"F", b"K"
HEADER = struct.Struct("<cQ")
"""A message's kind and the bytes that follow."""

_SENDING = threading.Lock()
"""A message is not interrupted by another: `ai_query` is called in the engine's own threads."""

_BATCH_ROWS = 8192
_LOOK_SECONDS = 0.02
_ADDRESS_SPACE_BEYOND = 4 * 2**30
"""Of address space beyond the memory limit: allocators reserve much more than they use."""
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG

_TEXT_TYPES = ("time with time zone", "bit", "bignum", "varint")

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

Fault = Literal["stopped", "out_of_memory", "users", "not_permitted", "engine"]


class Request(NamedTuple):
    """One SELECT, what it may see, and where it is cut."""

    sql: str
    given: Mapping[str, ds.Dataset | pa.Table]
    parameters: Mapping[str, Any]
    rows: int
    bytes: int
    seconds: float
    """Left until its deadline."""
    asks: bool = False
    """Whether it calls `ai_query`."""


class _Frugal(ds.FileSystemDataset):
    """A dataset of which two files' rows, and two batches of each, are held at once: Arrow's own are four and sixteen.

    What Arrow holds counts toward the memory of the process, but the engine does not know of it.
    """

    @classmethod
    def of(cls, rows: ds.FileSystemDataset) -> "_Frugal":
        return cls(list(rows.get_fragments()), rows.schema, rows.format, rows.filesystem)

    def scanner(self, **asked: Any) -> ds.Scanner:
        """Called by the engine, with columns and a filter."""
        return super().scanner(**{"fragment_readahead": 1, "batch_readahead": 2, **asked})


def connect(memory_limit_bytes: int, threads: int) -> duckdb.DuckDBPyConnection:
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
            "memory_limit": f"{memory_limit_bytes}B",
            "threads": str(threads),
        },
    )
    connection.execute("SET TimeZone = 'UTC'; SET lock_configuration = true").fetchall()
    return connection


def main(parent: int, memory_limit_bytes: int, threads: int) -> None:
    """Serve requests from standard input until it ends."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    _hold(parent, memory_limit_bytes)
    requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
    stopped = threading.Event()
    asking = _Asking(answers)
    threading.Thread(target=_listen, args=(requests, stopped, asking), name="sql-listen", daemon=True).start()
    connection = connect(memory_limit_bytes, threads)
    _send(answers, READY)
    while True:
        request = requests.get()
        try:
            if request.asks:
                asking.register(connection)
            _run(connection, request, stopped, answers)
        except (duckdb.Error, pa.ArrowException, OSError, RuntimeError, MemoryError) as error:
            _send(answers, FAILED, json.dumps(_fault(error)).encode())
        connection.close()
        pa.default_memory_pool().release_unused()
        # The next statement need not wait for its database.
        connection = connect(memory_limit_bytes, threads)


def _hold(parent: int, memory_limit_bytes: int) -> None:
    """The parent's end is this process's end, and there is a bound to what it can take even if nobody watches it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the parent decides
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
            score.write("500")  # where the machine has no memory left, this goes before the server
        with open("/proc/self/statm") as sizes:
            used = int(sizes.read().split()[0]) * resource.getpagesize()
        bound = used + memory_limit_bytes + _ADDRESS_SPACE_BEYOND
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.getppid() != parent:
        os._exit(0)


class _Asking:
    """`ai_query` in the engine: each lot of rows goes to the parent, and whoever asked waits for it."""

    def __init__(self, answers: BinaryIO) -> None:
        self._answers, self._turn = answers, threading.Lock()
        self.replies: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def register(self, connection: duckdb.DuckDBPyConnection) -> None:
        texts = ["VARCHAR"] * 3
        # Each call is one, also of the same prompt; of NULL there is none.
        connection.create_function("ai_query", self._ask, texts, "VARCHAR", type="arrow", side_effects=True)  # type: ignore[call-overload]

    def _ask(self, endpoint: pa.ChunkedArray, prompt: pa.ChunkedArray, options: pa.ChunkedArray) -> pa.Array:
        asked = pa.table({"endpoint": endpoint, "prompt": prompt, "options": options})
        if asked.num_rows == 0:
            return pa.array([], pa.string())
        with self._turn:
            _send(self._answers, ASK, _stream(asked.schema, *asked.to_batches()))
            reply = json.loads(self.replies.get())
        if reply is None:
            raise RuntimeError("ai_query was not answered")  # the parent knows why
        return pa.array(reply, pa.string())


def _listen(requests: "queue.SimpleQueue[Request]", stopped: threading.Event, asking: _Asking) -> None:
    with os.fdopen(0, "rb") as source:
        while len(header := source.read(HEADER.size)) == HEADER.size:
            kind, size = HEADER.unpack(header)
            payload = source.read(size)
            if kind == STOP:
                stopped.set()
            elif kind == ANSWERS:
                asking.replies.put(payload)
            elif len(payload) == size:
                stopped.clear()
                requests.put(pickle.loads(payload))
    os._exit(0)


def _send(answers: BinaryIO, kind: bytes, payload: bytes | memoryview = b"") -> None:
    with _SENDING:
        for piece in (memoryview(HEADER.pack(kind, len(payload))), memoryview(payload)):
            while piece:
                piece = piece[os.write(answers.fileno(), piece) :]


def _run(connection: duckdb.DuckDBPyConnection, request: Request, stopped: threading.Event, answers: BinaryIO) -> None:
    """Batches as they come, until a limit; what the engine has beyond it is never computed."""
    for name, rows in request.given.items():
        connection.register(name, _Frugal.of(rows) if isinstance(rows, ds.FileSystemDataset) else rows)
    with _interrupted(connection, time.monotonic() + request.seconds, stopped):
        found = connection.sql(request.sql, params=dict(request.parameters) or None)
        reader = _exported(found).to_arrow_reader(_BATCH_ROWS)
        _send(answers, SCHEMA, _stream(reader.schema))
        count = size = 0
        cut_by = None
        for batch in reader:
            if count + batch.num_rows > request.rows:
                batch, cut_by = batch.slice(0, request.rows - count), "rows"
            size += batch.nbytes
            if size > request.bytes:
                fitting = int(batch.num_rows * (1 - (size - request.bytes) / batch.nbytes))
                batch, cut_by = batch.slice(0, fitting), "bytes"
            _send(answers, BATCH, _stream(reader.schema, batch))
            count += batch.num_rows
            if cut_by is not None:
                break
    _send(answers, DONE, json.dumps({"cut_by": cut_by}).encode())


def _exported(found: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """With the texts of what Arrow has no type for, instead of the engine's internals or less than the value."""
    changed = [_in_arrow(kind) for kind in found.types]
    if not any(changed):
        return found
    return found.project(
        ", ".join(
            (f"#{at}" if new is None else f"CAST(#{at} AS {new})") + f" AS {_quoted(name)}"
            for at, (new, name) in enumerate(zip(changed, found.columns, strict=True), start=1)
        )
    )


def _in_arrow(kind: Any) -> str | None:
    """The type to cast to; None where the type may stay."""
    if kind.id in _TEXT_TYPES:
        return "VARCHAR"
    if kind.id not in ("list", "array", "map", "struct"):
        return None
    parts = [(name, part) for name, part in kind.children if not isinstance(part, int)]
    changed = [_in_arrow(part) for _, part in parts]
    if not any(changed):
        return None
    texts = [new or str(part) for new, (_, part) in zip(changed, parts, strict=True)]
    if kind.id == "map":
        return f"MAP({', '.join(texts)})"
    if kind.id == "struct":
        named = zip(parts, texts, strict=True)
        return f"STRUCT({', '.join(f'{_quoted(name)} {text}' for (name, _), text in named)})"
    return texts[0] + ("[]" if kind.id == "list" else str(kind)[str(kind).rindex("[") :])


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _stream(schema: pa.Schema, *batches: pa.RecordBatch) -> memoryview:
    """A whole IPC stream for each batch, since only a stream carries dictionaries."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return memoryview(sink.getvalue())


@contextmanager
def _interrupted(connection: duckdb.DuckDBPyConnection, deadline: float, stopped: threading.Event) -> Iterator[None]:
    """Interrupts the engine at the deadline or when stopped, again and again, since one could come too early."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_LOOK_SECONDS):
            if stopped.is_set() or time.monotonic() > deadline:
                connection.interrupt()

    watcher = threading.Thread(target=watch, name="sql-limit", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _fault(error: Exception) -> dict[str, str]:
    """Whose fault it was, and the engine's words."""
    text, fault = str(error), "engine"
    if "INTERRUPT" in text or isinstance(error, duckdb.InterruptException):
        fault = "stopped"
    elif isinstance(error, duckdb.OutOfMemoryException | MemoryError) or any(
        said in text for said in ("Out of Memory", "bad_alloc")
    ):
        fault = "out_of_memory"
    elif isinstance(error, _USERS_FAULT) and not any(
        said in text
        for said in ("Python exception", "reading the stream registered")  # a file, by its path
    ):
        fault = "users"
    elif isinstance(error, duckdb.PermissionException):
        fault = "not_permitted"
    return {"fault": fault, "text": "".join(traceback.format_exception(error)) if fault == "engine" else text}


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
