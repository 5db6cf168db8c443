"""The rows of a table for which a predicate holds, version by version."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from mosaic.data import Tables
from mosaic.data.delta import arrow_schema
from mosaic.data.sql_engine import Engine, SqlSettings
from mosaic.data.sql_predicate import predicate as sql_predicate
from mosaic.data.sql_tree import Parser
from mosaic.errors import BadRequest, MosaicError

VERSIONS_LOOKED_AT = 32
"""So many versions of the table are searched, each costing a read of the columns that the predicate names."""

_PARSER = Parser(Engine(SqlSettings()).connect)


class Selection:
    """A predicate over one table."""

    def __init__(self, tables: Tables, table: str, predicate: str) -> None:
        """`predicate` compares columns of the table's newest version with constants; raises BadRequest."""
        self.table, self.predicate = table, predicate
        self.not_searched: set[int] = set()
        """Versions that were asked about and not searched: there were too many, or they can no longer be read."""
        self._tables = tables
        self._found: dict[tuple[int, str, str | None], pa.ChunkedArray] = {}
        self._tried: dict[int, DeltaTable | None] = {}
        newest = tables.delta(table)
        if not predicate.strip():
            raise BadRequest("where = '': name the rows, such as \"module = 'os'\", or leave it out", param="where")
        try:
            # What SQL's DELETE takes as well: a caller's own text is never run, only what was understood of it.
            self._condition = sql_predicate(_PARSER, predicate, arrow_schema(newest), {})
        except BadRequest as error:
            raise BadRequest(f"where = {predicate!r} on table {table!r}: {error.message}", param="where") from None

    def count(self, version: int, among: str | None = None) -> int | None:
        """How many rows of a version match, `among` those of another predicate; None if that is not known, also since
        that predicate is not one that can be asked here."""
        delta = self._open(version)
        if delta is None:
            return None
        understood = None if among is None else self._understood(delta, among)
        found = self._rows(delta, _any_column(delta), understood)
        if found is None or (among is not None and understood is None and len(found)):
            return None
        return len(found)

    def keys(self, version: int, column: str) -> pa.Array | None:
        """The values of a column in the matching rows of a version, as texts; None if they are not known."""
        delta = self._open(version)
        found = None if delta is None else self._rows(delta, column, None)
        return None if found is None else pc.cast(found, pa.string()).combine_chunks()

    def _understood(self, delta: DeltaTable, among: str) -> str | None:
        """A predicate that a run noted: it is anybody's text, and only what is understood of it is run."""
        try:
            return sql_predicate(_PARSER, among, arrow_schema(delta), {})
        except BadRequest:
            return None

    def _rows(self, delta: DeltaTable, column: str, among: str | None) -> pa.ChunkedArray | None:
        asked = (delta.version(), column, among)
        if asked not in self._found:
            try:
                self._found[asked] = _search(delta, self._condition, among, column)
            except (DeltaError, pa.ArrowException, OSError):
                # Its files were removed, or it has other columns than the newest version.
                self.not_searched.add(delta.version())
                return None
        return self._found[asked]

    def _open(self, version: int) -> DeltaTable | None:
        if version not in self._tried:
            if len(self._tried) >= VERSIONS_LOOKED_AT:  # those that cannot be opened count too: failing takes its time
                self.not_searched.add(version)
                return None
            try:
                self._tried[version] = self._tables.delta(self.table, version)
            except MosaicError:
                self._tried[version] = None
                self.not_searched.add(version)
        return self._tried[version]


def _any_column(delta: DeltaTable) -> str:
    return delta.schema().fields[0].name


def _search(delta: DeltaTable, predicate: str, among: str | None, column: str) -> pa.ChunkedArray:
    both = predicate if among is None else f"({predicate}) AND ({among})"
    rows: Any = pa.table(delta.scan(columns=[column], predicate=both))
    return rows[column]
