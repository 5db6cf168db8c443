"""SQL over the catalog's tables: start reading here. One statement, in the order in which things happen.

    read it -> check a grant on every table it names -> pin their versions -> note the run -> ask the engine

The engine (DuckDB) is handed only the tables that the statement names and that the caller may SELECT, at the versions
that are noted as the run's inputs; it reaches nothing else on the machine or the network (`sql_engine.py`). What a
statement may say is in `sql_tree.py`.
"""

import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from mosaic.catalog import Catalog
from mosaic.data.access import Opened
from mosaic.data.delta import arrow_schema, check_columns, dataset
from mosaic.data.sql_ai import AiQueries
from mosaic.data.sql_engine import Answer, Engine, Limits, SqlSettings
from mosaic.data.sql_predicate import predicate
from mosaic.data.sql_statement import Create, Delete, Insert, Reader, Show
from mosaic.data.sql_tree import Parser, Query, TableName
from mosaic.data.sql_types import Column, columns
from mosaic.data.system_tables import INFORMATION_SCHEMA, SYSTEM_TABLES, SystemTable, columns_of_show
from mosaic.data.tables import Tables
from mosaic.errors import AlreadyExists, BadRequest, TooLarge, Unavailable, not_found
from mosaic.protocol import Principal
from mosaic.storage import Storage

RUN_KIND = "sql"
MADE_BY_RUN = "mosaic.run_id"
"""The property of a table that a statement made."""

_KEPT_STATEMENT = 2_000


@dataclass(frozen=True)
class TableVersion:
    """A table, at the exact Delta version that was read or written."""

    name: str
    version: int


@dataclass(frozen=True)
class SqlResult:
    """What a statement answered; a statement that writes answers with the number of its rows."""

    rows: pa.Table
    cut_by: str | None = None
    """`rows` or `bytes`: the limit that cut them; None if they are all."""
    read: tuple[TableVersion, ...] = ()
    written: TableVersion | None = None
    run_id: str | None = None
    """The run in the catalog's lineage; None for a statement that names no Delta table."""

    @property
    def columns(self) -> list[Column]:
        """Names and types, in Databricks' words."""
        return columns(self.rows.schema)

    @property
    def truncated(self) -> bool:
        """Whether there are more rows than these."""
        return self.cut_by is not None


class Sql:
    """`sql.query("SELECT ...", principal=...)`; safe for threads."""

    def __init__(
        self,
        storage: Storage,
        tables: Tables,
        catalog: Catalog,
        settings: SqlSettings | None = None,
        *,
        base_url: str | None = None,
        system_tables: Mapping[str, SystemTable] | None = None,
    ) -> None:
        """`base_url` is the gateway's that `ai_query` asks; without it there is none to ask. `system_tables` are
        computed as they are asked, beside the catalog's own."""
        self._system_tables = {**SYSTEM_TABLES, **(system_tables or {})}
        self._storage, self._tables, self._catalog = storage, tables, catalog
        self._ai = None if base_url is None else AiQueries(catalog, base_url)
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
        PermissionDenied for a table that the principal may not use (audited) and for what no statement may do.
        """
        asked = _Asked(
            statement,
            principal,
            dict(parameters or {}),
            self._limits(row_limit, byte_limit, timeout_seconds),
            cancelled or threading.Event(),
        )
        reader = Reader(
            self._parser, caller=principal.name, catalog=catalog, schema=schema, parameters=asked.parameters
        )
        read = reader.read(statement)
        if isinstance(read, Show):
            names = self._catalog.grants.visible(principal, read.what[:-1], read.parent)
            return SqlResult(columns_of_show(read.what, read.parent, names))
        if isinstance(read, Query):
            return self._select(read, asked)
        if not writable:
            raise BadRequest(
                "the statement writes, but only reading was asked for (writable=True, `mosaic sql --write`)"
            )
        if isinstance(read, Insert):
            return self._insert(read, asked)
        return self._delete(read, asked) if isinstance(read, Delete) else self._create(read, asked)

    def _select(self, query: Query, asked: "_Asked") -> SqlResult:
        pinned = self._pin(query, asked)
        if not pinned and not query.endpoints:
            return self._answered(self._ask(query, pinned, asked), pinned, None)
        with self._run(asked, query, pinned) as run_id:
            answer = self._ask(query, pinned, asked)
            self._catalog.finish_run(run_id, "finished", metrics={"rows": answer.rows.num_rows})
        return self._answered(answer, pinned, run_id)

    def _insert(self, insert: Insert, asked: "_Asked") -> SqlResult:
        self._catalog.grants.check(asked.principal, "MODIFY", "table", insert.target, action="writeTable")
        record = self._catalog.get_table(insert.target)
        pinned = self._pin(insert.query, asked)
        with self._run(asked, insert.query, pinned) as run_id:
            rows = self._all(insert.query, pinned, asked)
            names = _names(insert.columns, [column["name"] for column in record.columns], record.name)
            if len(names) != rows.num_columns:
                raise BadRequest(
                    f"INSERT has {rows.num_columns} columns for the {len(names)} of table {record.name!r}: {names}",
                    param="statement",
                )
            tables = self._tables.acting(asked.principal, run_id)
            version = tables.append(record.name, rows.rename_columns(names))
            self._catalog.finish_run(run_id, "finished", metrics={"rows": rows.num_rows})
        return _wrote(rows.num_rows, pinned, TableVersion(record.name, version), run_id, inserted=True)

    def _create(self, create: Create, asked: "_Asked") -> SqlResult:
        """The rows are there before the name is taken; of two that make the same table at once, one is told so."""
        principal = asked.principal
        schema = create.target.rpartition(".")[0]
        self._catalog.grants.check(principal, "CREATE TABLE", "schema", schema, action="createTable")
        if self._catalog.find_table(create.target) is not None:
            raise AlreadyExists(f"table {create.target!r} already exists", param="statement")
        pinned = self._pin(create.query, asked)
        with self._run(asked, create.query, pinned) as run_id:
            rows = _storable(self._all(create.query, pinned, asked), create.target)
            tables = self._tables.acting(principal, run_id)
            made = tables.create(
                create.target,
                rows.schema,
                primary_key=None,
                owner=principal.name,
                properties={MADE_BY_RUN: run_id},
            )
            if made.properties.get(MADE_BY_RUN) != run_id:
                raise AlreadyExists(f"table {create.target!r} already exists", param="statement")
            version = tables.append(create.target, rows)
            self._catalog.finish_run(run_id, "finished", metrics={"rows": rows.num_rows})
        return _wrote(rows.num_rows, pinned, TableVersion(create.target, version), run_id, inserted=True)

    def _delete(self, delete: Delete, asked: "_Asked") -> SqlResult:
        """What a condition matches tells about the rows, so that SELECT is needed too."""
        for privilege in ("SELECT", "MODIFY"):
            self._catalog.grants.check(asked.principal, privilege, "table", delete.target, action="writeTable")
        if delete.condition is not None:
            there = self._tables.acting(asked.principal).open(delete.target)
            # Read before there is a run: what is refused never ran.
            predicate(self._parser, delete.condition, arrow_schema(there.delta), asked.parameters)
        with self._run(asked, None, {}) as run_id:
            tables = self._tables.acting(asked.principal, run_id)
            version = tables.delete_where(delete.target, delete.condition or "true", parameters=asked.parameters)
            outputs = self._catalog.get_run(run_id).outputs
            deleted = int((outputs[0].detail or {}).get("rows", 0)) if outputs else 0
            self._catalog.finish_run(run_id, "finished", metrics={"rows": deleted})
        return _wrote(deleted, {}, TableVersion(delete.target, version), run_id, inserted=False)

    def _pin(self, query: Query, asked: "_Asked") -> "_Pinned":
        """Every table that is read, at one version; raises PermissionDenied before any of them is opened, or any
        endpoint asked."""
        if query.endpoints:
            self._asked_by_ai(query, asked)
        named = [table for table in query.tables if table.name not in self._system_tables]
        for table in named:
            if table.name.startswith(INFORMATION_SCHEMA):  # everybody may know of these
                there = [one for one in self._system_tables if one.startswith(INFORMATION_SCHEMA)]
                raise not_found("table", table.name, there)
            self._catalog.grants.check(asked.principal, "SELECT", "table", table.name, action="readTable")
        acting = self._tables.acting(asked.principal)
        return {table: acting.open(table.name, table.version) for table in named}

    def _ask(self, query: Query, pinned: "_Pinned", asked: "_Asked") -> Answer:
        given: dict[str, ds.Dataset | pa.Table] = {}
        for table in query.tables:
            if table in pinned:
                record, delta = pinned[table]
                given[table.engine_name] = dataset(self._storage, record.location, delta)
            elif table.version is not None:
                raise BadRequest(f"table {table.name!r} is computed as it is asked and has no versions")
            else:
                given[table.engine_name] = self._system_tables[table.name](
                    self._catalog, self._storage, asked.principal
                )
        run = functools.partial(self._engine.run, query.sql, given, asked.parameters, asked.limits, asked.cancelled)
        if not query.endpoints or self._ai is None:
            return run(asked.principal.name)
        most, at_once = self.settings.ai_query_rows, self.settings.ai_query_concurrency
        seconds = asked.limits.seconds
        with self._ai.calls(asked.principal, seconds=seconds, most_rows=most, concurrency=at_once) as calls:
            return run(asked.principal.name, calls)

    def _asked_by_ai(self, query: Query, asked: "_Asked") -> list[tuple[str, int]]:
        if self._ai is None:
            raise Unavailable("ai_query asks endpoints, and no gateway is known here", param="statement")
        return self._ai.check(query.endpoints, asked.principal)

    def _all(self, query: Query, pinned: "_Pinned", asked: "_Asked") -> pa.Table:
        """The rows to write: all of them, or TooLarge."""
        size = self.settings.write_limit_bytes
        limits = Limits(2**62, size, asked.limits.seconds)
        answer = self._ask(query, pinned, replace(asked, limits=limits))
        if answer.cut_by is not None:
            raise TooLarge(f"the rows to write are more than {size:,} bytes; write so many with Ray Data")
        return answer.rows

    @contextmanager
    def _run(self, asked: "_Asked", query: Query | None, pinned: "_Pinned") -> Iterator[str]:
        """The run of a statement, with what it reads; whoever opens it finishes it, unless it fails."""
        params = {"statement": asked.statement[:_KEPT_STATEMENT]}
        run_id = self._catalog.start_run(RUN_KIND, "statement", principal=asked.principal.name, params=params)
        try:
            for table, opened in pinned.items():
                assert query is not None
                names = query.columns_of(arrow_schema(opened.delta).names)
                detail = {"columns": names, "predicate": None}
                self._catalog.add_input(run_id, "table", table.name, opened.delta.version(), detail=detail)
            if query is not None and query.endpoints:
                for endpoint, version in self._asked_by_ai(query, asked):
                    self._catalog.add_input(run_id, "endpoint", endpoint, version)
            yield run_id
        except BaseException:
            self._catalog.finish_run(run_id, "cancelled" if asked.cancelled.is_set() else "failed")
            raise

    def _answered(self, answer: Answer, pinned: "_Pinned", run_id: str | None) -> SqlResult:
        return SqlResult(answer.rows, answer.cut_by, _versions(pinned), None, run_id)

    def _limits(self, rows: int | None, size: int | None, seconds: float | None) -> Limits:
        given = {"row_limit": rows, "byte_limit": size, "timeout_seconds": seconds}
        for field, value in given.items():
            if value is not None and not value > 0:
                raise BadRequest(f"{field} = {value!r} must be more than 0", param=field)
        default = self.settings
        return Limits(rows or default.row_limit, size or default.byte_limit, seconds or default.timeout_seconds)


@dataclass(frozen=True)
class _Asked:
    """What the caller said."""

    statement: str
    principal: Principal
    parameters: dict[str, Any]
    limits: Limits
    cancelled: threading.Event


_Pinned = dict[TableName, Opened]


def _versions(pinned: _Pinned) -> tuple[TableVersion, ...]:
    return tuple(TableVersion(table.name, opened.delta.version()) for table, opened in pinned.items())


def _wrote(count: int, pinned: _Pinned, written: TableVersion, run_id: str, *, inserted: bool) -> SqlResult:
    """Databricks' columns for what a statement did."""
    told = {"num_affected_rows": [count], **({"num_inserted_rows": [count]} if inserted else {})}
    return SqlResult(pa.table(told), None, _versions(pinned), written, run_id)


def _names(given: Sequence[str], names: list[str], table: str) -> list[str]:
    """The table's own spelling of the columns that INSERT names, or all of them."""
    by_folded = {name.lower(): name for name in names}
    chosen = [by_folded.get(name.lower(), name) for name in given]
    check_columns(pa.schema([(name, pa.null()) for name in names]), chosen, table)
    return chosen or names


def _storable(rows: pa.Table, target: str) -> pa.Table:
    """Rows in types that a Delta table has; raises BadRequest for a column of another, or a name that comes twice."""
    folded = [name.lower() for name in rows.column_names]
    twice = sorted({name for name in folded if folded.count(name) > 1})
    if twice:
        raise BadRequest(f"table {target!r} would have the column {twice[0]!r} twice; name them with AS")
    for field in rows.schema:
        if not _is_storable(field.type):
            raise BadRequest(f"column {field.name!r} is {field.type}, which no Delta table has; CAST it")
    return rows


def _is_storable(kind: pa.DataType) -> bool:
    if pa.types.is_timestamp(kind):
        return kind.unit == "us" and kind.tz in (None, "UTC")
    if pa.types.is_nested(kind):
        return not pa.types.is_union(kind) and all(_is_storable(kind.field(at).type) for at in range(kind.num_fields))
    simple = (pa.types.is_boolean, pa.types.is_signed_integer, pa.types.is_float32, pa.types.is_float64)
    others = (pa.types.is_decimal128, pa.types.is_date32, pa.types.is_string, pa.types.is_binary)
    return any(fits(kind) for fits in (*simple, *others))
