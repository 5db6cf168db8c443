"""A local append-only log that survives kill -9, with one fsync for all that wait (group commit).

A record is one line: eight hex digits of CRC-32, a space, a JSON object. Three kinds exist:

    {"kind": "open",  "key": "req_...", "row": {...}}    something began
    {"kind": "close", "key": "req_...", "row": {...}}    it ended; this row counts
    {"kind": "row",   "row": {...}}                      a row without a beginning

An opening and its closing are always in the same segment file, so that one segment alone tells what was lost. The owner
holds a flock on each of its segments until every entry in it is closed and it is full: whoever can take the lock knows
that nobody will write to that file again. `mosaic.data.ship` reads these segments.
"""

import asyncio
import fcntl
import json
import os
import re
import threading
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from mosaic.errors import BadRequest, MosaicError, Unavailable
from mosaic.ids import new_id

SUFFIX = ".log"
_OWNER = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Scan:
    """What one reading of a segment found."""

    records: list[tuple[int, dict[str, Any]]]
    """(offset just after the record, record), in order."""
    end: int
    """Offset after the last whole record."""
    unreadable_bytes: int
    """What follows `end`: a line being written, or the torn tail of a crash."""


def read_segment(path: Path, start: int = 0) -> Scan:
    """All whole records from `start` (an offset that an earlier scan gave), up to the first line that is not whole."""
    with path.open("rb") as file:
        file.seek(start)
        data = file.read()
    records, position = [], 0
    while (newline := data.find(b"\n", position)) >= 0:
        record = _decode(data[position:newline])
        if record is None:
            break
        position = newline + 1
        records.append((start + position, record))
    return Scan(records, start + position, len(data) - position)


def _encode(record: dict[str, Any]) -> bytes:
    try:
        body = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise BadRequest(f"a log record must be plain JSON: {error}; got {str(record)[:200]}") from None
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _decode(line: bytes) -> dict[str, Any] | None:
    body = line[9:]
    if len(line) < 11 or line[:9] != b"%08x " % zlib.crc32(body):
        return None
    record = json.loads(body)
    return record if isinstance(record, dict) else None


@dataclass(eq=False)
class _Segment:
    path: Path
    descriptor: int
    size: int = 0
    open_entries: int = 0
    waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = field(default_factory=list)
    holds: int = 0
    failed: bool = False
    closed: bool = False


class Entry:
    """Something that began; its closing goes to the segment that holds its opening."""

    def __init__(self, log: "Log", segment: _Segment, key: str) -> None:
        self._log, self._segment, self.key = log, segment, key
        self._closed = False

    def close(self, row: dict[str, Any]) -> None:
        """Write the closing row without waiting for the disk; raises BadRequest the second time."""
        self._log._close_entry(self, row)

    async def close_durable(self, row: dict[str, Any]) -> None:
        """Write the closing row; returns when it is on the disk."""
        await self._log._wait(self._log._close_entry(self, row, hold=True))


class Log:
    """The segments that one owner writes into `folder`; safe to use from several threads and event loops.

    Writes go to the operating system at once (they survive the process); the `_durable` ones return after fsync (they
    survive the machine). After a failed fsync a segment takes no more openings, and those who waited get Unavailable.
    """

    def __init__(self, folder: Path | str, *, owner: str, max_segment_bytes: int = 16 * 1024 * 1024) -> None:
        if not _OWNER.fullmatch(owner):
            raise BadRequest(
                f"owner = {owner!r}: up to 64 of a-z, 0-9, '_', '.', '-', beginning with a letter or digit"
            )
        if max_segment_bytes < 1:
            raise BadRequest(f"max_segment_bytes = {max_segment_bytes}: must be at least 1")
        self.folder, self.owner, self.max_segment_bytes = Path(folder), owner, max_segment_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._current: _Segment | None = None
        self._segments: set[_Segment] = set()
        self._stopping = False
        self._thread = threading.Thread(target=self._sync_forever, name=f"log-{owner}", daemon=True)
        self._thread.start()

    def open(self, key: str, row: dict[str, Any]) -> Entry:
        """Record that something began; if its closing never comes, the shipper reports it as lost."""
        return self._open(key, row)[0]

    async def open_durable(self, key: str, row: dict[str, Any]) -> Entry:
        """The same; returns when the opening is on the disk."""
        entry, segment = self._open(key, row, hold=True)
        await self._wait(segment)
        return entry

    def append(self, row: dict[str, Any]) -> None:
        """Write one row without waiting for the disk."""
        line = _encode({"kind": "row", "row": row})
        with self._lock:
            self._write(self._for_new(), line)

    async def append_durable(self, row: dict[str, Any]) -> None:
        """Write one row; returns when it is on the disk."""
        line = _encode({"kind": "row", "row": row})
        with self._lock:
            segment = self._for_new()
            self._write(segment, line)
            segment.holds += 1
        await self._wait(segment)

    def close(self) -> None:
        """Sync and unlock everything; entries still open will be shipped as lost."""
        with self._lock:
            self._stopping = True
            self._work.notify_all()
        self._thread.join()
        with self._lock:
            for segment in list(self._segments):
                if not segment.failed:
                    os.fsync(segment.descriptor)
                self._release(segment)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, key: str, row: dict[str, Any], *, hold: bool = False) -> tuple[Entry, _Segment]:
        line = _encode({"kind": "open", "key": key, "row": row})
        with self._lock:
            segment = self._for_new()
            self._write(segment, line)
            segment.open_entries += 1
            segment.holds += hold
        return Entry(self, segment, key), segment

    def _close_entry(self, entry: Entry, row: dict[str, Any], *, hold: bool = False) -> _Segment:
        line, segment = _encode({"kind": "close", "key": entry.key, "row": row}), entry._segment
        with self._lock:
            if entry._closed:
                raise BadRequest(f"entry {entry.key!r} is already closed")
            if segment.closed:
                raise Unavailable(f"the log of {self.owner!r} is closed; entry {entry.key!r} counts as lost")
            self._write(segment, line)
            entry._closed = True
            segment.open_entries -= 1
            segment.holds += hold
            self._release_if_done(segment)
        return segment

    def _for_new(self) -> _Segment:
        """The segment for a new opening; rotates. Called under the lock."""
        if self._stopping:
            raise Unavailable(f"the log of {self.owner!r} is closed")
        current = self._current
        if current is None or current.failed or current.size >= self.max_segment_bytes:
            self._current = self._new_segment()
            if current is not None:
                self._release_if_done(current)
        assert self._current is not None
        return self._current

    def _new_segment(self) -> _Segment:
        path = self.folder / f"{self.owner}-{new_id('seg')}{SUFFIX}"
        unlocked = path.with_suffix(".new")
        descriptor = os.open(unlocked, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        # Locked before it has its name: a reader that met it unlocked would take its owner for dead and delete it.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unlocked.rename(path)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        segment = _Segment(path, descriptor)
        self._segments.add(segment)
        return segment

    def _write(self, segment: _Segment, line: bytes) -> None:
        written = 0
        try:
            while written < len(line):
                written += os.write(segment.descriptor, line[written:])
        except OSError as error:
            # Half a line would hide everything after it: take it back.
            os.ftruncate(segment.descriptor, segment.size)
            raise Unavailable(f"cannot write to {segment.path}: {error}") from error
        segment.size += len(line)

    async def _wait(self, segment: _Segment) -> None:
        """Until what was written so far is on the disk; the caller has counted itself in `holds`."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._lock:
            if segment.failed:
                segment.holds -= 1
                self._release_if_done(segment)
                raise Unavailable(f"segment {segment.path.name} failed to sync")
            if segment.closed:
                return  # close() synced it between the write and here
            segment.waiting.append((loop, future))
            self._work.notify()
        await future

    def _sync_forever(self) -> None:
        while True:
            with self._lock:
                while not self._stopping and not any(segment.waiting for segment in self._segments):
                    self._work.wait()
                batches = [(segment, segment.waiting) for segment in self._segments if segment.waiting]
                if not batches and self._stopping:
                    return
                for segment, _ in batches:
                    segment.waiting = []
            for segment, waiting in batches:
                self._sync(segment, waiting)

    def _sync(self, segment: _Segment, waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]]) -> None:
        error: MosaicError | None = None
        try:
            os.fsync(segment.descriptor)
        except OSError as problem:
            # The kernel may drop dirty pages after a failed fsync, so a second one that succeeds proves nothing.
            error = Unavailable(f"cannot sync {segment.path}: {problem}")
        with self._lock:
            segment.failed = segment.failed or error is not None
            segment.holds -= len(waiting)
            self._release_if_done(segment)
        for loop, future in waiting:
            if not loop.is_closed():
                loop.call_soon_threadsafe(_resolve, future, error)

    def _release_if_done(self, segment: _Segment) -> None:
        full = segment is not self._current
        if full and not segment.closed and segment.open_entries == 0 and segment.holds == 0:
            self._release(segment)

    def _release(self, segment: _Segment) -> None:
        segment.closed = True
        self._segments.discard(segment)
        os.close(segment.descriptor)


def _resolve(future: "asyncio.Future[None]", error: MosaicError | None) -> None:
    if future.done():  # its task was cancelled
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
