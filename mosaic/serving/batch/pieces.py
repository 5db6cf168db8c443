"""The rows of a piece, read where they are needed: a range over the files of one version, in their fixed order."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable

from mosaic.data.delta import arrow_schema, fit, list_files
from mosaic.data.sql_engine import Engine, SqlSettings
from mosaic.data.sql_predicate import predicate
from mosaic.data.sql_tree import Parser
from mosaic.data.sql_worker import connect
from mosaic.errors import BadRequest
from mosaic.serving.batch.plan import Piece
from mosaic.storage import Storage

INPUT_ROW = "input_row"
"""Column: the row's number in the pinned version, from 0; tells rows apart that have no key."""

_PARSER = Parser(Engine(SqlSettings()).connect)
_MEMORY_BYTES, _THREADS = 512 * 2**20, 1


class _File(NamedTuple):
    address: str
    rows: int


class PieceReader:
    """Reads pieces of one version of a table; pickles, so that it travels to whoever asks.

    A piece may lie anywhere in a file, and Parquet is read by row groups: the last one is kept, so that the pieces of
    a row group, asked for in their order, read it once.
    """

    def __init__(
        self, storage: Storage, location: str, delta: DeltaTable, columns: Sequence[str], where: str | None
    ) -> None:
        """`where` has to be one that `check_where` takes."""
        self._storage, self._schema, self._columns, self._where = storage, arrow_schema(delta), list(columns), where
        counts = _row_counts(storage, location, delta)
        self._files = [_File(address, counts[address]) for address in list_files(storage, location, delta).addresses]
        self._starts = [0, *accumulate(file.rows for file in self._files)]
        self._kept: tuple[tuple[int, int], pa.Table] | None = None

    @property
    def rows(self) -> int:
        """Of the version, before `where`."""
        return self._starts[-1]

    def read(self, piece: Piece) -> pa.Table:
        """The chosen columns of the piece's rows that `where` leaves, and INPUT_ROW."""
        wanted = pa.schema([self._schema.field(name) for name in self._columns])
        parts = [wanted.empty_table()]
        at = piece.start
        while at < piece.stop:
            number = bisect_right(self._starts, at) - 1
            until = min(piece.stop, self._starts[number + 1])
            parts += self._of_file(number, at - self._starts[number], until - self._starts[number], wanted)
            at = until
        numbers = pa.array(range(piece.start, piece.stop), pa.int64())
        rows = pa.concat_tables(parts).append_column(INPUT_ROW, numbers)
        return rows if self._where is None else _filtered(rows, self._where)

    def _of_file(self, number: int, start: int, stop: int, wanted: pa.Schema) -> list[pa.Table]:
        filesystem, path = self._storage.filesystem(self._files[number].address)
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            parts, first = [], 0
            for group in range(file.metadata.num_row_groups):
                last = first + file.metadata.row_group(group).num_rows
                if first < stop and start < last:
                    rows = self._group(file, number, group, wanted)
                    parts.append(rows.slice(max(start - first, 0), min(stop, last) - max(start, first)))
                first = last
        return parts

    def _group(self, file: pq.ParquetFile, number: int, group: int, wanted: pa.Schema) -> pa.Table:
        kept = self._kept  # one look: pieces are read in several threads
        if kept is not None and kept[0] == (number, group):
            return kept[1]
        there = [name for name in wanted.names if name in file.schema_arrow.names]
        rows = file.read_row_group(group, columns=there, use_threads=False)
        if not there:  # all of them were added to the table later
            rows = pa.table({wanted.names[0]: pa.nulls(file.metadata.row_group(group).num_rows)})
        rows = fit(rows, wanted, self._files[number].address)
        self._kept = ((number, group), rows)
        return rows


def check_where(where: str, schema: pa.Schema, table: str) -> None:
    """Raises BadRequest for what is no plain condition over the table's columns; only such a text is ever run."""
    try:
        predicate(_PARSER, where, schema, {})
    except BadRequest as error:
        raise BadRequest(f"where = {where!r} on table {table!r}: {error.message}", param="where") from None


def _filtered(rows: pa.Table, where: str) -> pa.Table:
    with connect(_MEMORY_BYTES, _THREADS) as engine:
        engine.register("piece", rows)
        found: pa.Table = engine.execute(f"SELECT {INPUT_ROW} FROM piece WHERE (\n{where}\n)").to_arrow_table()
    return rows if found.num_rows == rows.num_rows else rows.filter(pc.is_in(rows[INPUT_ROW], found[INPUT_ROW]))


def _row_counts(storage: Storage, location: str, delta: DeltaTable) -> dict[str, int]:
    """By address, as the log says it, or the file itself where the log does not."""
    actions = pa.table(delta.get_add_actions(flatten=True)).select(["path", "num_records"]).to_pylist()
    counts = {}
    for action in actions:
        address = f"{location}/{unquote(action['path'])}"
        if action["num_records"] is None:
            filesystem, path = storage.filesystem(address)
            with pq.ParquetFile(path, filesystem=filesystem) as file:
                counts[address] = file.metadata.num_rows
        else:
            counts[address] = action["num_records"]
    return counts
