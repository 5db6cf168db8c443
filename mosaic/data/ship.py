"""Rows from elsewhere into a Delta table, each exactly once, whatever is killed when.

Every commit carries, beside its rows, the position in their source that it covers (Delta's transaction identifier:
application = the source's name, version = the position). Position and rows become visible together, so a shipper that
died knows afterwards what is done. Two shippers at once: of two commits for one source, made from the same state of the
table, Delta lets one win; the other reads again. `deliver` is that, and there are two kinds of sources:

- `Shipper`: the segments of a folder of logs, whose rows go to one table or several. The position is the offset in the
  segment. A segment whose owner is gone also yields a row for every entry that was never closed.
- `SequenceShipper`: rows that are numbered in the order in which they became visible, such as the catalog's audit
  trail. The position is the number.
"""

import fcntl
import functools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
from deltalake import DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from mosaic.data.delta import commit_properties
from mosaic.data.wal import SUFFIX, read_segment
from mosaic.errors import Conflict, MosaicError

logger = logging.getLogger(__name__)

KILL_POINTS = ("before-commit", "after-commit", "after-delete")
"""What `at` is told, in this order, for a segment that is shipped and removed; a sequence has no delete."""

_ATTEMPTS = 20

Row = dict[str, Any]


def deliver(
    open_table: Callable[[], DeltaTable],
    source: str,
    pending: Callable[[DeltaTable, int], tuple[list[Row], int]],
    *,
    to_arrow: Callable[[list[Row]], pa.Table],
    at: Callable[[str], None],
) -> tuple[list[Row], int]:
    """Commit what is pending of a source; its rows, and the position that is covered then.

    `pending` is told the table as it is opened for this attempt and the position that it covers, and answers with the
    rows after that and the position after them. Raises Conflict if other writers win too often.
    """
    for _ in range(_ATTEMPTS):
        # Opened once per attempt: the position is read from the same state of the table that the commit builds on.
        table = open_table()
        rows, position = pending(table, table.transaction_version(source) or 0)
        if rows:
            at("before-commit")
            properties = commit_properties(transactions=[Transaction(source, position)])
            try:
                write_deltalake(table, to_arrow(rows), mode="append", commit_properties=properties)
            except CommitFailedError:
                continue
            at("after-commit")
        return rows, position
    raise Conflict(f"{source}: {_ATTEMPTS} commits in a row lost against other writers; its rows stay for later")


class Destinations(Protocol):
    """The tables that the rows of a folder of logs go to, by name; a row may go to several."""

    def of(self, row: Row) -> Sequence[str]:
        """The tables of a row; it is counted with the first."""

    def open(self, name: str) -> DeltaTable:
        """The newest version of one."""

    def to_arrow(self, name: str, rows: list[Row]) -> pa.Table:
        """Rows in the columns of one."""

    def gives_up(self, name: str, error: Exception) -> bool:
        """Whether rows that a table did not take for this reason are left out of it for good, since others have them;
        otherwise they are tried again."""


class OneTable:
    """All rows go to one table."""

    def __init__(self, open_table: Callable[[], DeltaTable], to_arrow: Callable[[list[Row]], pa.Table]) -> None:
        self._open, self._to_arrow = open_table, to_arrow

    def of(self, row: Row) -> Sequence[str]:
        return ("",)

    def open(self, name: str) -> DeltaTable:
        return self._open()

    def to_arrow(self, name: str, rows: list[Row]) -> pa.Table:
        return self._to_arrow(rows)

    def gives_up(self, name: str, error: Exception) -> bool:
        return False


class Shipper:
    """Carries the segments in a folder into their tables. Each table has its own position in each segment: a shipper
    that dies between two tables goes on with the second."""

    def __init__(
        self,
        folder: Path | str,
        destinations: Destinations,
        *,
        lost: Callable[[Row], Row],
        at: Callable[[str], None] = lambda point: None,
    ) -> None:
        """`lost` makes, from its opening row, the row of an entry whose owner died before closing it; `at` is told each
        of KILL_POINTS."""
        self._folder, self._destinations = Path(folder), destinations
        self._lost, self._at = lost, at
        self._shipped_bytes: dict[str, int] = {}
        self.left_out: Counter[str] = Counter()
        """Rows that a table did not take and never will, by table, since this was made."""

    def ship_once(self) -> int:
        """Ship what there is now; returns the number of rows. Safe to call from several processes at once.

        What fails for one table is raised after all others have theirs; its segments stay for the next call.
        """
        shipped, errors = 0, list[Exception]()
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            shipped += self._ship(path, errors)
        if errors:
            raise errors[0]
        return shipped

    def _ship(self, path: Path, errors: list[Exception]) -> int:
        try:
            with _claim(path) as owner_is_gone:
                return self._ship_segment(path, owner_is_gone, errors)
        except FileNotFoundError:
            return 0  # another shipper finished with it

    def _ship_segment(self, path: Path, owner_is_gone: bool, errors: list[Exception]) -> int:
        known = self._shipped_bytes.get(path.name, 0)
        if not owner_is_gone and path.stat().st_size == known:
            return 0  # nothing new: no table need even be opened
        found, end = self._lost_too(path) if owner_is_gone else self._closed(path, known)
        by_table: dict[str, list[tuple[int, Row]]] = {}
        for offset, row in found:
            for name in self._destinations.of(row):
                by_table.setdefault(name, []).append((offset, row))
        shipped, failed = 0, False
        for name, rows in by_table.items():
            try:
                done = self._deliver(path.name, name, rows, end)
                shipped += sum(self._destinations.of(row)[0] == name for row in done)
            except (MosaicError, DeltaError, OSError) as error:
                if self._destinations.gives_up(name, error):
                    self.left_out[name] += len(rows)
                    logger.warning("%d rows of %s are left out of table %s: %s", len(rows), path.name, name, error)
                else:
                    failed = True
                    errors.append(error)
        if failed:
            return shipped
        if owner_is_gone:
            self._remove(path)
            self._shipped_bytes.pop(path.name, None)
        else:
            self._shipped_bytes[path.name] = end
        return shipped

    def _deliver(self, source: str, name: str, rows: list[tuple[int, Row]], end: int) -> list[Row]:
        return deliver(
            functools.partial(self._destinations.open, name),
            source,
            lambda table, done: ([row for offset, row in rows if offset > done], end),
            to_arrow=functools.partial(self._destinations.to_arrow, name),
            at=self._at,
        )[0]

    def _closed(self, path: Path, known: int) -> tuple[list[tuple[int, Row]], int]:
        """The rows after an offset that all tables have come to, each with the offset after it, and the last one."""
        scan = read_segment(path, known)
        # A committed position must never lie beyond what a power failure leaves of the segment.
        with path.open("rb") as file:
            os.fsync(file.fileno())
        return [(offset, record["row"]) for offset, record in scan.records if record["kind"] != "open"], scan.end

    def _lost_too(self, path: Path) -> tuple[list[tuple[int, Row]], int]:
        """All rows of a segment whose owner is gone, and those of entries that it left open.

        The position after the rows of lost entries is one past the last record, so that it differs from the position of
        a shipper that saw the same records while the owner lived.
        """
        scan = read_segment(path)
        rows = [(offset, record["row"]) for offset, record in scan.records if record["kind"] != "open"]
        still_open: dict[str, list[Row]] = {}
        for _, record in scan.records:
            if record["kind"] == "open":
                still_open.setdefault(record["key"], []).append(record["row"])
            elif record["kind"] == "close":
                still_open[record["key"]].pop()
        end = scan.end + 1
        return rows + [(end, self._lost(row)) for opened in still_open.values() for row in opened], end

    def _remove(self, path: Path) -> None:
        if read_segment(path).unreadable_bytes:
            # A line cut short by a crash, or a damaged file: what could be read is shipped, the bytes stay to be seen.
            path.rename(path.with_suffix(".torn"))
        else:
            path.unlink()
        self._at("after-delete")


class SequenceShipper:
    """Carries rows that are numbered from 1 in the order in which they become visible; numbers may be missing.

    The row that was shipped last has to be there at every pass: a source that was put back to an older state gives its
    numbers a second time, and what it counts from there would never be shipped.
    """

    def __init__(
        self,
        source: str,
        read: Callable[[int, int], Sequence[Row]],
        open_table: Callable[[], DeltaTable],
        *,
        number: str,
        identity: str,
        to_arrow: Callable[[list[Row]], pa.Table],
        page_rows: int = 5_000,
        at: Callable[[str], None] = lambda point: None,
    ) -> None:
        """`read(after, limit)` gives the rows with a greater number, in order; columns `number` and `identity` of the
        rows and of the table say which row it is, the second for ever. `at` is told of KILL_POINTS the first two.
        """
        self._source, self._read, self._open_table = source, read, open_table
        self._number, self._identity = number, identity
        self._to_arrow, self._page_rows, self._at = to_arrow, page_rows, at
        self._last: _Shipped | None = None

    def ship_once(self) -> int:
        """Ship what there is now; returns the number of rows. Safe to call from several processes at once.

        Raises Conflict if the source no longer has the row that was shipped last.
        """
        shipped = 0
        while True:
            if self._last is not None and not self._rows_after(self._last, limit=1):
                return shipped  # nothing new: the table need not even be opened
            rows, _ = deliver(self._open_table, self._source, self._pending, to_arrow=self._to_arrow, at=self._at)
            shipped += len(rows)
            if rows:
                self._last = _Shipped(rows[-1][self._number], (rows[-1][self._identity],))
            if len(rows) < self._page_rows:
                return shipped

    def resume(self) -> int:
        """Go on after the source was put back: from the last row on that it has and the table has; its number.

        What the table has beyond that stays in it, beside the rows that get the same numbers from now on.
        """
        table = self._open_table()
        there = table.to_pyarrow_table(columns=[self._number, self._identity]).to_pylist()
        shipped = {(row[self._number], row[self._identity]) for row in there}
        common = 0
        while rows := self._read(common, self._page_rows):
            agreed = [row[self._number] for row in rows if (row[self._number], row[self._identity]) in shipped]
            common = agreed[-1] if agreed else common
            if len(agreed) < len(rows):
                break
        properties = commit_properties(transactions=[Transaction(self._source, common)])
        write_deltalake(table, self._to_arrow([]), mode="append", commit_properties=properties)
        self._last = None
        return common

    def _pending(self, table: DeltaTable, done: int) -> tuple[list[Row], int]:
        if done == 0:
            rows = self._read(0, self._page_rows)
        else:
            if self._last is None or self._last.number != done:
                found = table.to_pyarrow_table(columns=[self._identity], filters=[(self._number, "=", done)])
                self._last = _Shipped(done, tuple(found[self._identity].to_pylist()))
            rows = self._rows_after(self._last, limit=self._page_rows)
        return list(rows), rows[-1][self._number] if rows else done

    def _rows_after(self, last: "_Shipped", limit: int) -> Sequence[Row]:
        """The rows after the one that was shipped last, which is read with them."""
        empty: Row = {}
        first, *rows = self._read(last.number - 1, limit + 1) or [empty]
        if first.get(self._number) != last.number or first.get(self._identity) not in last.identities:
            self._last = None
            raise Conflict(
                f"{self._source} no longer has {self._identity} {' or '.join(map(repr, last.identities))} with "
                f"{self._number} {last.number}, which is in the table {self._open_table().table_uri} already: it was "
                "put back to an older state. Nothing is shipped until it is told to resume, since numbers that are "
                "given a second time would be taken for shipped",
                code="source_was_put_back",
            )
        return rows


class _Shipped(NamedTuple):
    """The row that was shipped last; after a source was put back, the table may have several of its number."""

    number: int
    identities: tuple[Any, ...]


@contextmanager
def _claim(path: Path) -> Iterator[bool]:
    """Whether the segment's owner is gone; if so nobody else can claim it meanwhile. Raises FileNotFoundError."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        if not path.exists():
            raise FileNotFoundError(path)
        yield True
    finally:
        os.close(descriptor)
