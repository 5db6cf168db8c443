"""Rows from elsewhere into a Delta table, each exactly once, whatever is killed when.

Every commit carries, beside its rows, the position in their source that it covers (Delta's transaction identifier:
application = the source's name, version = the position). Position and rows become visible together, so a shipper that
died knows afterwards what is done. Two shippers at once: of two commits for one source, made from the same state of the
table, Delta lets one win; the other reads again. `deliver` is that, and there are two kinds of sources:

- `Shipper`: the segments of a folder of logs. The position is the offset in the segment. A segment whose owner is gone
  also yields a row for every entry that was never closed.
- `SequenceShipper`: rows that are numbered in the order in which they became visible, such as the catalog's audit
  trail. The position is the number.
"""

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from deltalake import DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from mosaic.data.delta import commit_properties
from mosaic.data.wal import SUFFIX, read_segment
from mosaic.errors import Conflict

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


class Shipper:
    """Carries the segments in a folder into one table."""

    def __init__(
        self,
        folder: Path | str,
        open_table: Callable[[], DeltaTable],
        *,
        to_arrow: Callable[[list[Row]], pa.Table],
        lost: Callable[[Row], Row],
        at: Callable[[str], None] = lambda point: None,
    ) -> None:
        """`open_table` opens the newest version of the table, whose schema `to_arrow` matches; `lost` makes, from its
        opening row, the row of an entry whose owner died before closing it; `at` is told each of KILL_POINTS.
        """
        self._folder, self._open_table = Path(folder), open_table
        self._to_arrow, self._lost, self._at = to_arrow, lost, at
        self._shipped_bytes: dict[str, int] = {}

    def ship_once(self) -> int:
        """Ship what there is now; returns the number of rows. Safe to call from several processes at once."""
        return sum(self._ship(path) for path in sorted(self._folder.glob(f"*{SUFFIX}")))

    def _ship(self, path: Path) -> int:
        try:
            with _claim(path) as owner_is_gone:
                return self._ship_segment(path, owner_is_gone)
        except FileNotFoundError:
            return 0  # another shipper finished with it

    def _ship_segment(self, path: Path, owner_is_gone: bool) -> int:
        if not owner_is_gone and path.stat().st_size == self._shipped_bytes.get(path.name):
            return 0  # nothing new: the table need not even be opened
        rows, position = deliver(
            self._open_table,
            path.name,
            lambda table, done: self._pending(path, done, owner_is_gone),
            to_arrow=self._to_arrow,
            at=self._at,
        )
        if owner_is_gone:
            self._remove(path)
            self._shipped_bytes.pop(path.name, None)
        else:
            self._shipped_bytes[path.name] = position
        return len(rows)

    def _pending(self, path: Path, done: int, owner_is_gone: bool) -> tuple[list[Row], int]:
        """The rows after position `done`, and the position after them.

        The position after the rows of lost entries is one past the last record, so that it differs from the position of
        a shipper that saw the same records while the owner lived.
        """
        if not owner_is_gone:
            scan = read_segment(path, done)
            # A committed position must never lie beyond what a power failure leaves of the segment.
            with path.open("rb") as file:
                os.fsync(file.fileno())
            return [record["row"] for _, record in scan.records if record["kind"] != "open"], scan.end
        scan = read_segment(path)
        if done > scan.end:
            return [], done
        rows = [record["row"] for offset, record in scan.records if offset > done and record["kind"] != "open"]
        still_open: dict[str, list[Row]] = {}
        for _, record in scan.records:
            if record["kind"] == "open":
                still_open.setdefault(record["key"], []).append(record["row"])
            elif record["kind"] == "close":
                still_open[record["key"]].pop()
        return rows + [self._lost(row) for opened in still_open.values() for row in opened], scan.end + 1

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
