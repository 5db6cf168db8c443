"""Child processes that run statements (`sql_worker.py`), and what ends one: time, memory, or the end of its parent."""

import functools
import json
import os
import pickle
import queue
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import psutil
import pyarrow as pa

from mosaic.data import sql_worker as worker
from mosaic.data.sql_ai import AiCalls, Answering

LOOK_SECONDS = 0.02
GRACE_SECONDS = 1.0
"""From the interrupt that a statement should have heard to the end of its process."""
MEMORY_SLACK_BYTES = 2**30
"""Beyond the engine's own limit: rows that Arrow reads ahead of it, which the engine does not count.

Measured: 90 MiB at most in `benchmarks/sql.py`; 860 MiB for files of one row group of 178 MiB, of which two are read.
"""
_WORN_BYTES = 128 * 2**20
"""A child that keeps so much more than at its birth runs no further statement."""

_ROOT = Path(__file__).parents[2]
"""Where the package is found."""

_Cut = Literal["rows", "bytes"] | None


class Ended(Exception):
    """A statement did not run to its end; `why` is one of the worker's faults, `timeout`, `cancelled` or `crashed`."""

    def __init__(self, why: str, text: str = "") -> None:
        super().__init__(why, text)
        self.why, self.text = why, text


class Watch(NamedTuple):
    """What may end a statement while it runs."""

    deadline: float
    cancelled: threading.Event


class Pool:
    """Children that wait for statements; one more than run is kept warm, up to `most`. Safe for threads."""

    def __init__(self, memory_limit_bytes: int, threads: int, most: int) -> None:
        self._make: Callable[[], Child] = functools.partial(Child, memory_limit_bytes, threads)
        self._most = most
        self._lock = threading.Lock()
        self._idle: list[Child] = []
        self._alive = 0
        """Idle, running, or asked for."""
        weakref.finalize(self, _end_all, self._idle)

    def run(self, request: worker.Request, watch: Watch, calls: AiCalls | None = None) -> tuple[pa.Table, _Cut]:
        """The rows of a request, and what cut them; raises Ended. At most `most` callers may be here at once."""
        child = self._take()
        try:
            return child.run(request, watch, calls)
        finally:
            self._put(child)

    def _take(self) -> "Child":
        worn: list[Child] = []
        with self._lock:
            while self._idle and self._idle[0].is_worn:
                worn.append(self._idle.pop(0))
            self._alive -= len(worn)
            child = self._idle.pop(0) if self._idle else None
            self._alive += child is None
            ahead = not self._idle and self._alive < self._most
            self._alive += ahead
        _end_all(worn)
        if ahead:
            _starter(os.getpid()).start(self._make).add_done_callback(self._came)
        if child is not None:
            return child
        try:
            return _starter(os.getpid()).start(self._make).result()
        except BaseException:
            with self._lock:
                self._alive -= 1
            raise

    def _came(self, started: "Future[Child]") -> None:
        with self._lock:
            if started.exception() is None:
                self._idle.append(started.result())
            else:
                self._alive -= 1

    def _put(self, child: "Child") -> None:
        with self._lock:
            if not child.is_lost:
                self._idle.append(child)
                return
            self._alive -= 1
        child.end()


class Child:
    """One child process; used by one thread at a time."""

    def __init__(self, memory_limit_bytes: int, threads: int) -> None:
        arguments = [str(number) for number in (os.getpid(), memory_limit_bytes, threads)]
        places = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", worker.__name__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(place for place in places if place)},
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        os.set_blocking(self._requests.fileno(), False)
        self._sizes = psutil.Process(self._process.pid)
        self._most_memory = memory_limit_bytes + MEMORY_SLACK_BYTES
        self._born_with: int | None = None
        """Its memory when it was ready; None until then."""
        self._stopping_since: float | None = None
        self._looked_at = 0.0
        self.is_lost = False
        """Whether it must be ended: nobody knows what it is doing."""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_worn(self) -> bool:
        """Whether it has ended, or keeps too much memory."""
        if self._process.poll() is not None:
            return True
        return self._born_with is not None and self._memory() > self._born_with + _WORN_BYTES

    def end(self) -> None:
        """Ends the process and reaps it."""
        self._process.kill()
        self._process.wait()
        self._requests.close()
        self._answers.close()

    def run(self, request: worker.Request, watch: Watch, calls: AiCalls | None = None) -> tuple[pa.Table, _Cut]:
        """The rows of a request, and what cut them; raises Ended. `calls` answers its `ai_query`."""
        self._stopping_since = None
        self._await_ready(watch)
        self.is_lost = True  # until it says that it has done with this statement
        left = request._replace(seconds=watch.deadline - time.monotonic())
        self._write(worker.RUN, pickle.dumps(left, protocol=pickle.HIGHEST_PROTOCOL), watch)
        schema: pa.Schema | None = None
        batches: list[pa.RecordBatch] = []
        while True:
            kind, payload = self._message(watch)
            if kind in (worker.DONE, worker.FAILED):
                self.is_lost = False
                told = json.loads(payload)
                if kind == worker.FAILED:
                    raise Ended(_why(told["fault"], watch), told["text"])
                return pa.Table.from_batches(batches, schema=schema), told["cut_by"]
            if kind == worker.ASK:
                self._answer(payload, watch, calls)
                continue
            with pa.ipc.open_stream(payload) as stream:
                schema = stream.schema
                batches += list(stream)

    def _answer(self, payload: bytes, watch: Watch, calls: AiCalls | None) -> None:
        assert calls is not None, "only a request that asks has the function"
        with pa.ipc.open_stream(payload) as stream:
            going = Answering(calls, stream.read_all())
        try:
            while not going.wait(LOOK_SECONDS):
                self._look(watch)
        finally:
            going.stop()
        self._write(worker.ANSWERS, json.dumps(going.answers).encode(), watch)

    def _await_ready(self, watch: Watch) -> None:
        """A child that only needs longer than this statement has is not lost."""
        if self._born_with is not None:
            return
        while not _is_ready(self._answers.fileno(), select.POLLIN):
            if watch.cancelled.is_set() or time.monotonic() > watch.deadline:
                raise Ended(_why("stopped", watch))
        self.is_lost = True
        kind, _ = self._message(watch)
        if kind != worker.READY:
            raise Ended("crashed", f"{kind!r} came where it should say that it is ready")
        self._born_with = self._memory()
        self.is_lost = False

    def _message(self, watch: Watch) -> tuple[bytes, bytes]:
        kind, size = worker.HEADER.unpack(self._read(worker.HEADER.size, watch))
        return kind, self._read(size, watch)

    def _read(self, size: int, watch: Watch) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            if _is_ready(self._answers.fileno(), select.POLLIN):
                piece = os.read(self._answers.fileno(), min(size - len(parts), 2**20))
                if not piece:
                    raise self._crashed()
                parts += piece
            self._look(watch)
        return bytes(parts)

    def _write(self, kind: bytes, payload: bytes, watch: Watch) -> None:
        left = memoryview(worker.HEADER.pack(kind, len(payload)) + payload)
        while left:
            try:
                left = left[os.write(self._requests.fileno(), left) :]
            except BlockingIOError:
                _is_ready(self._requests.fileno(), select.POLLOUT)
                self._look(watch)
            except OSError:
                raise self._crashed() from None

    def _look(self, watch: Watch) -> None:
        """Raises Ended where the statement heard no interrupt, or takes more memory than it may."""
        now = time.monotonic()
        if now < self._looked_at + LOOK_SECONDS:
            return
        self._looked_at = now
        if watch.cancelled.is_set() and self._stopping_since is None:
            self._stopping_since = now
            with suppress(OSError):  # full, or closed: it is ended soon
                os.write(self._requests.fileno(), worker.HEADER.pack(worker.STOP, 0))
        if self._stopping_since is not None and now > self._stopping_since + GRACE_SECONDS:
            raise Ended("cancelled")
        if now > watch.deadline + GRACE_SECONDS:
            raise Ended("timeout")
        if self._born_with is not None and self._memory() > self._born_with + self._most_memory:
            raise Ended("out_of_memory")

    def _memory(self) -> int:
        """What is resident and this process's own; 0 of one that has ended."""
        try:
            sizes = self._sizes.memory_info()
        except psutil.Error:
            return 0
        return int(sizes.rss) - int(getattr(sizes, "shared", 0))

    def _crashed(self) -> Ended:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_SECONDS)
        return Ended("crashed", f"the engine's process {self.pid} ended with {self._process.returncode}")


class _Starter:
    """Starts children, all from one thread that lives as long as the process.

    Linux ends a child with the thread that started it (PR_SET_PDEATHSIG), and threads of statements are short.
    """

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[tuple[Callable[[], Child], Future[Child]]] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="sql-starter", daemon=True).start()

    def start(self, make: Callable[[], Child]) -> "Future[Child]":
        future: Future[Child] = Future()
        self._asked.put((make, future))
        return future

    def _serve(self) -> None:
        while True:
            make, future = self._asked.get()
            try:
                future.set_result(make())
            except Exception as error:
                # Raised to whoever asked.
                future.set_exception(error)
            del make, future  # or the pool of the last one would live on


@functools.cache
def _starter(process: int) -> _Starter:
    """That of this process: a thread does not survive a fork."""
    return _Starter()


def _end_all(children: list[Child]) -> None:
    while children:
        children.pop().end()


def _is_ready(descriptor: int, event: int) -> bool:
    """Waits for a moment; `poll`, since `select` takes no descriptor above 1,023."""
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(LOOK_SECONDS * 1000))


def _why(fault: str, watch: Watch) -> str:
    if fault == "stopped":
        return "cancelled" if watch.cancelled.is_set() else "timeout"
    return fault
