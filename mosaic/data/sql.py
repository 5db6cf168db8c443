"""SQL over the catalog's tables: start reading here. One statement, in the order in which things happen.

    read it -> check a grant on every table it names -> pin their versions -> note the run -> ask the engine

The engine (DuckDB) is handed only the tables that the statement names and that the caller may SELECT, at the versions
that are noted as the run's inputs; it reaches nothing else on the machine or the network (`sql_engine.py`).
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import DeltaTable

from mosaic.catalog import Catalog
from mosaic.data.sql_engine import Answer, Engine, Limits, SqlSettings
from mosaic.data.sql_statement import Create, Delete, Insert, Parser, Query, Reader, Show, TableName
from mosaic.data.tables import Tables
from mosaic.errors import BadRequest, PermissionDenied
from mosaic.protocol import Principal

RUN_KIND = "sql"
ACTION = "executeStatement"
"""The action in the audit row of a denial."""

_KEPT_STATEMENT = 2_000


@dataclass(frozen=True)
class TableRead:
    """A table, at the exact Delta version that was read or written."""

    name: str
    version: int


@dataclass(frozen=True)
class SqlResult:
    """What a statement answered."""

    rows: pa.Table
    truncated: bool
    """Whether there were more rows than these."""
    cut_by: str | None
    """`rows` or `bytes`: the limit that cut them."""
    read: tuple[TableRead, ...]
    written: TableRead | None
    run_id: str | None
    """The run in the catalog's lineage; None for a statement that names no table of data."""


class Sql:
    """`sql.query("SELECT ...", principal=...)`; safe for threads."""

    def __init__(self, tables: Tables, catalog: Catalog, settings: SqlSettings | None = None) -> None:
        self._tables, self._catalog = tables, catalog
        self.settings = settings or SqlSettings()
        self._engine = Engine(self.settings)
        self._parser = Parser(self._engine.connect)

    def query(
        self,
        statement: str,
        *,
        principal: Principal,
        parameters: Mapping[str, Any] | None = None,
        catalog: str | None = None,
        schema: str | None = None,
        row_limit: int | None = None,
        byte_limit: int | None = None,
        timeout_seconds: float | None = None,
        writable: bool = False,
        cancelled: threading.Event | None = None,
    ) -> SqlResult:
        """Run one statement as `principal`; `:name` in it is a parameter, `catalog` and `schema` complete names.

        Raises BadRequest for what is wrong with the statement or passes a limit, NotFound for a table or version,
        PermissionDenied for a table that the principal may not read (audited) and for what no statement may do.
        """
        limits = self._limits(row_limit, byte_limit, timeout_seconds)
        values = dict(parameters or {})
        reader = Reader(self._parser, caller=principal.name, catalog=catalog, schema=schema, parameters=values)
        read = reader.read(statement)
        asked = _Asked(statement, principal, values, limits, cancelled or threading.Event())
        if isinstance(read, Query):
            return self._select(read, asked)
        raise BadRequest("not yet")

    def _select(self, query: Query, asked: "_Asked") -> SqlResult:
        for table in query.tables:
            self._catalog.grants.check(asked.principal, "SELECT", "table", table.name, action=ACTION)
        pinned = {table: self._tables.delta(table.name, table.version) for table in query.tables}
        read = tuple(TableRead(table.name, delta.version()) for table, delta in pinned.items())
        run_id = self._start_run(asked, read) if read else None
        try:
            given = {table.engine_name: _dataset(table, delta) for table, delta in pinned.items()}
            answer = self._engine.run(query.sql, given, asked.parameters, asked.limits, asked.cancelled)
        except BaseException:
            if run_id is not None:
                self._catalog.finish_run(run_id, "failed")
            raise
        if run_id is not None:
            self._catalog.finish_run(run_id, "finished", metrics={"rows": answer.rows.num_rows})
        return SqlResult(answer.rows, answer.cut_by is not None, answer.cut_by, read, None, run_id)

    def _start_run(self, asked: "_Asked", read: tuple[TableRead, ...]) -> str:
        params = {"statement": asked.statement[:_KEPT_STATEMENT]}
        run_id = self._catalog.start_run(RUN_KIND, "statement", principal=asked.principal.name, params=params)
        for table in read:
            self._catalog.add_input(run_id, "table", table.name, table.version)
        return run_id

    def _limits(self, rows: int | None, size: int | None, seconds: float | None) -> Limits:
        given = {"row_limit": rows, "byte_limit": size, "timeout_seconds": seconds}
        for field, value in given.items():
            if value is not None and not value > 0:
                raise BadRequest(f"{field} = {value!r} must be more than 0", param=field)
        default = self.settings
        return Limits(rows or default.row_limit, size or default.byte_limit, seconds or default.timeout_seconds)


@dataclass(frozen=True)
class _Asked:
    """What the caller said beside the statement."""

    statement: str
    principal: Principal
    parameters: dict[str, Any]
    limits: Limits
    cancelled: threading.Event


def _dataset(table: TableName, delta: DeltaTable) -> ds.Dataset:
    """The rows of a pinned version, read as the engine asks for them; raises BadRequest for files elsewhere."""
    for path in pa.table(delta.get_add_actions(flatten=True))["path"].to_pylist():
        plain = unquote(path)
        if "://" in plain or plain.startswith("/") or ".." in plain.split("/"):
            raise BadRequest(f"table {table.name!r} refers to files outside of it, which SQL does not read")
    return delta.to_pyarrow_dataset()
