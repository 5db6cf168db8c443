"""Local logs into a Delta table, each row exactly once, whatever is killed when.

Every commit carries, beside its rows, the position in the segment that it covers (Delta's transaction identifier:
application = the segment's file name, version = the offset). Position and rows become visible together, so a shipper
that died knows afterwards what is done. Two shippers at once: of two commits for one segment, made from the same state
of the table, Delta lets one win; the other reads again. A segment whose owner is gone also yields a row for every entry
that was never closed.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from mosaic.data.delta import commit_properties
from mosaic.data.wal import SUFFIX, read_segment
from mosaic.errors import Conflict

KILL_POINTS = ("before-commit", "after-commit", "after-delete")
"""What `at` is told, in this order, for a segment that is shipped and removed."""

_ATTEMPTS = 20


class Shipper:
    """Carries the segments in a folder into one table."""

    def __init__(
        self,
        folder: Path | str,
        open_table: Callable[[], DeltaTable],
        *,
        to_arrow: Callable[[list[dict[str, Any]]], pa.Table],
        lost: Callable[[dict[str, Any]], dict[str, Any]],
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
        for _ in range(_ATTEMPTS):
            # Opened once per attempt: the position is read from the same state of the table that the commit builds on.
            table = self._open_table()
            done = table.transaction_version(path.name) or 0
            rows, position = self._pending(path, done, owner_is_gone)
            if rows:
                self._at("before-commit")
                try:
                    write_deltalake(
                        table,
                        self._to_arrow(rows),
                        mode="append",
                        commit_properties=commit_properties(transactions=[Transaction(path.name, position)]),
                    )
                except CommitFailedError:
                    continue
                self._at("after-commit")
            if owner_is_gone:
                self._remove(path)
                self._shipped_bytes.pop(path.name, None)
            else:
                self._shipped_bytes[path.name] = position
            return len(rows)
        raise Conflict(
            f"segment {path.name}: {_ATTEMPTS} commits in a row lost against other writers; it stays for later"
        )

    def _pending(self, path: Path, done: int, owner_is_gone: bool) -> tuple[list[dict[str, Any]], int]:
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
        still_open: dict[str, list[dict[str, Any]]] = {}
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
