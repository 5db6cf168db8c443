"""Tables by name: Delta tables under the storage's root, registered in the catalog, written and read with Ray Data.

Start reading here. Every write is one commit; every read is pinned to one version. How a name becomes data, who may
have it and what is written down about it is in `access.py`; what is cleaned up and when, in `vacuum.py` and
`retention.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, Schema, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from mosaic.catalog import Catalog, Table
from mosaic.catalog.names import parse_object
from mosaic.data.access import Access, Opened, Writing
from mosaic.data.columns import catalog_columns, delta_schema, shape
from mosaic.data.compact import TARGET_BYTES, optimize
from mosaic.data.delta import (
    CommitLineage,
    arrow_schema,
    check_columns,
    check_plain,
    commit_lineage,
    find_commit,
    fit,
    list_files,
    read_arrow,
)
from mosaic.data.once import append_once, position
from mosaic.data.sql_engine import Engine, SqlSettings
from mosaic.data.sql_predicate import comparable
from mosaic.data.sql_predicate import predicate as deltalake_predicate
from mosaic.data.sql_tree import Parser
from mosaic.data.vacuum import RETENTION_HOURS, Vacuumed, vacuum
from mosaic.errors import BadRequest, Conflict, MosaicError, NotFound, Unavailable
from mosaic.ids import new_id
from mosaic.protocol import Principal
from mosaic.storage import Storage

if TYPE_CHECKING:
    import ray.data

    from mosaic.data.files import ParquetSink

_PARSER = Parser(Engine(SqlSettings()).connect)
_RETRIES: dict[str, int | None] = {"append": None, "overwrite": 0}
"""deltalake 1.6 commits an `overwrite` that lost against an append all the same, and leaves the appended rows there."""
_NUM_CPUS = 0.25  # logical; the platform's own actors leave half a CPU for data on a machine with two


class Tables:
    """Create, write and read tables by their catalog name (`main.docs.entries`).

    As it is built, it acts for nobody: nothing is checked, which is for the platform's own actors. `acting` gives one
    that acts for a principal, within its grants. In a run (of `acting`, or the `run_id` of a call) every read is noted
    as an input and every write as an output, at the exact version; the run must be running. Safe for threads.

    The primary key is a promise of the writer, as in Databricks: `merge` keeps it, `append` does not look.
    """

    def __init__(self, storage: Storage, catalog: Catalog, *, at: Callable[[str], None] = lambda point: None) -> None:
        """`at` is told each of KILL_POINTS (`access.py`)."""
        self._storage, self._catalog = storage, catalog
        self._access = Access(storage, catalog, at=at)

    def acting(self, principal: Principal | None, run_id: str | None = None) -> "Tables":
        """The same tables for a principal, who then needs SELECT to read, MODIFY to write, CREATE TABLE to create.

        With a run, whatever this one reads and writes is in its lineage.
        """
        made = Tables(self._storage, self._catalog)
        made._access = self._access.acting(principal, run_id)
        return made

    @property
    def run_id(self) -> str | None:
        """The run that this acts in."""
        return self._access.run_id

    def create(
        self,
        name: str,
        schema: pa.Schema,
        *,
        primary_key: str | None,
        owner: str,
        comment: str = "",
        properties: dict[str, str] | None = None,
    ) -> Table:
        """Make a table with a change feed, or return that of this name; Conflict if schema or key differ."""
        name = parse_object(name, "table")
        if primary_key is not None:
            check_columns(schema, [primary_key], name)
        wanted = Schema.from_arrow(schema)
        by = self._access.check_create(name, owner)
        record = self._catalog.find_table(name)
        if record is None:
            # First the name, with a place that no other table ever had: the files of a dropped one are not found again.
            # Killed before the log is there, the next call of the same name makes it.
            record = self._reserve(
                name,
                columns=catalog_columns(wanted),
                primary_key=primary_key,
                comment=comment,
                properties=properties or {},
                owner=owner,
                by=by or owner,
            )
            self._access.at("after-name")
        return self._finish(record, wanted, primary_key)

    def grow(self, name: str, schema: pa.Schema) -> int:
        """Add the columns that a table lacks, after its own and null in its rows; how many they were. Raises NotFound,
        and Conflict for a column that must not be null."""
        writing = self._access.to_write(name)
        there = {field.name for field in writing.delta.schema().fields}
        new = [field for field in Schema.from_arrow(schema).fields if field.name not in there]
        required = [field.name for field in new if not field.nullable]
        if required:
            raise Conflict(f"table {name!r} has rows, which would have nothing in {required}")
        if new:
            writing.delta.alter.add_columns(new, commit_properties=writing.properties())
            by = self._access.principal or writing.record.owner
            self._catalog.update_table(name, columns=catalog_columns(writing.delta.schema()), by=by)
        return len(new)

    def append(self, name: str, data: "ray.data.Dataset | pa.Table", *, run_id: str | None = None) -> int:
        """Add rows in one commit; returns the version that has them. Raises BadRequest for rows that do not fit."""
        return self._write(name, data, "append", run_id)

    def append_once(self, name: str, rows: pa.Table, application: str, number: int, *, after: int) -> int | None:
        """Add the rows of a numbered piece of a work, unless the table has them: see `once.py`."""
        return append_once(self._access, name, rows, application, number, after=after)

    def position(self, name: str, application: str) -> int:
        """How far a work has come in this table: the number of its last piece, 0 before the first. Needs SELECT."""
        return position(self._access, name, application)

    def overwrite(self, name: str, data: "ray.data.Dataset | pa.Table", *, run_id: str | None = None) -> int:
        """Replace all rows in one commit; returns the version. Raises Conflict if somebody wrote at the same time:
        rows that were not there as this began would be neither replaced nor new.
        """
        return self._write(name, data, "overwrite", run_id)

    def delete_where(
        self, name: str, predicate: str, *, parameters: Mapping[str, Any] | None = None, run_id: str | None = None
    ) -> int:
        """Delete the rows for which a SQL predicate holds (`"module = 'os'"`, `:name` a parameter); returns the
        version. Raises BadRequest for a predicate that `sql_predicate` does not take.
        """
        writing = self._access.to_write(name, run_id=run_id)
        table, before = writing.delta, writing.delta.version()
        if not predicate.strip():
            raise BadRequest("predicate = '': name the rows to delete, or 'true' for all of them", param="predicate")
        condition = _condition(predicate, name, arrow_schema(table), parameters or {})
        try:
            told = table.delete(condition, commit_properties=writing.properties())
        except CommitFailedError as error:
            raise _failed(name, error) from error
        except DeltaError as error:
            raise BadRequest(f"predicate {predicate!r} on table {name!r}: {error}", param="predicate") from error
        if table.version() == before:
            return before
        return writing.committed(table.version(), "delete", told["num_deleted_rows"])

    def merge(self, name: str, data: pa.Table, *, run_id: str | None = None) -> int:
        """Insert rows, or replace those with the same primary key; returns the version.

        Raises BadRequest for a table without primary key, or a key that is null or comes twice in `data`.
        """
        writing = self._access.to_write(name, run_id=run_id)
        record, table = writing.record, writing.delta
        key = record.primary_key
        if key is None:
            raise BadRequest(f"table {record.name!r} has no primary key to merge by; use append or overwrite")
        rows = fit(data, arrow_schema(table), record.name)
        if rows[key].null_count:
            raise BadRequest(
                f"{rows[key].null_count} rows have no {key!r}, the primary key of {record.name!r}", param=key
            )
        keys = _keys(rows[key])
        counts = pc.value_counts(keys).field("counts")
        if len(counts) < rows.num_rows:
            twice = pc.value_counts(keys).filter(pc.greater(counts, 1)).field("values").to_pylist()
            raise BadRequest(f"primary key {key!r} of {record.name!r} comes twice: {twice[:5]}", param=key)
        if rows.num_rows == 0:
            return table.version()
        ticked = [column for column in rows.column_names if "`" in column]
        if ticked:
            raise BadRequest(
                f"column {ticked[0]!r} of table {record.name!r} has a backtick in its name, which deltalake's merge "
                "does not read; use append or overwrite",
                param=ticked[0],
            )
        kind, quoted = rows.schema.field(key).type, key.replace('"', '""')
        target, source = (comparable(f'{side}."{quoted}"', kind) for side in ("target", "source"))
        merger = table.merge(
            rows,
            predicate=f"{target} = {source}",
            source_alias="source",
            target_alias="target",
            commit_properties=writing.properties(),
        )
        try:
            merger.when_matched_update_all().when_not_matched_insert_all().execute()
        except DeltaError as error:
            raise _failed(name, error) from error
        return writing.committed(table.version(), "merge", rows.num_rows)

    def version(self, name: str) -> int:
        """The newest version; needs SELECT, and is no read of a run."""
        return self._access.peek(name).delta.version()

    def read(
        self,
        name: str,
        version: int | None = None,
        columns: Sequence[str] | None = None,
        *,
        run_id: str | None = None,
    ) -> "ray.data.Dataset":
        """The rows at a version (None: the newest now), lazily, files in a fixed order.

        Ray Data finishes blocks as they come; a consumer that needs the order sets
        `ds.context.execution_options.preserve_order = True` (for training: DataConfig(execution_options=...)).
        """
        import ray.data  # here and below, so that whoever needs no Ray does not wait for it

        from mosaic.data.files import read_files

        record, table = self.open(name, version, columns=columns, run_id=run_id)
        files = list_files(self._storage, record.location, table)
        chosen = list(columns) if columns is not None else files.schema.names
        if not files.addresses:
            return ray.data.from_blocks([files.schema.empty_table().select(chosen)])
        return read_files(self._storage, files, chosen, num_cpus=_NUM_CPUS)

    def to_arrow(
        self,
        name: str,
        version: int | None = None,
        columns: Sequence[str] | None = None,
        *,
        run_id: str | None = None,
    ) -> pa.Table:
        """The rows at a version (None: the newest) in this process, in the order of the files."""
        record, table = self.open(name, version, columns=columns, run_id=run_id)
        return read_arrow(self._storage, record.location, table, columns)

    def delta(self, name: str, version: int | None = None, *, run_id: str | None = None) -> DeltaTable:
        """deltalake's own handle to read by, for what is not offered here; raises NotFound for an unknown table or
        version, and for a table that has a name but no log yet (`table_not_written`)."""
        return self.open(name, version, run_id=run_id).delta

    def open(
        self,
        name: str,
        version: int | None = None,
        *,
        columns: Sequence[str] | None = None,
        predicate: str | None = None,
        run_id: str | None = None,
    ) -> Opened:
        """The record and the handle of one version, for readers of their own; all reads here go this way.

        `columns` (None: all) and `predicate` (SQL; None: all rows) say what will be read, for the run's lineage.
        """
        return self._access.to_read(name, version, columns=columns, predicate=predicate, run_id=run_id)

    def place(self, name: str, *, write: bool = False) -> tuple[str, dict[str, str]]:
        """A table's address and what opens it there, in deltalake's spelling, for readers that open logs by themselves.

        Needs SELECT, or MODIFY to write. Nothing is noted: `open` says which version is read.
        """
        record = self._access.find_to_write(name) if write else self._access.find(name, "SELECT", "readTable")
        return record.location, self._storage.delta_options(record.location)

    def commit_lineage(self, name: str, version: int) -> CommitLineage:
        """Who made a version, in which run and from what, as the Delta log says it, without the catalog's lineage."""
        record = self._access.find(name, "SELECT", "readTable")
        return commit_lineage(self._storage, record.location, version)

    def vacuum(
        self,
        name: str,
        *,
        retention_hours: int = RETENTION_HOURS,
        dry_run: bool = False,
        force: bool = False,
        keep_needed: bool = False,
    ) -> Vacuumed:
        """Remove the files that no version of the last `retention_hours` needs; older versions cannot be read any more.

        Raises Conflict, with who needs what, if a file would go of a version that a live model alias was made from or
        an index answers at; `keep_needed` leaves those files, `force` (which takes MANAGE) removes them all the same.
        A shorter retention than the longest write or read that goes on takes their files away under them.
        """
        how: dict[str, Any] = {"retention_hours": retention_hours, "dry_run": dry_run, "force": force}
        return vacuum(self._access, name, keep_needed=keep_needed, **how)

    def optimize(self, name: str, *, target_bytes: int = TARGET_BYTES) -> int:
        """Put files below `target_bytes` together, in one commit that changes no row; returns the version.

        Appends may go on at the same time. Raises Conflict, with nothing done, if the rows were rewritten meanwhile.
        """
        return optimize(self._access, name, target_bytes=target_bytes)

    def _reserve(self, name: str, **described: Any) -> Table:
        place = self._storage.address("managed", new_id("tbl"))
        try:
            return self._catalog.create_table(name, place, **described)
        except Conflict:
            there = self._catalog.find_table(name)
            if there is None:
                raise
            return there  # somebody was faster

    def _finish(self, record: Table, wanted: Schema, primary_key: str | None) -> Table:
        """The table of this name as it is asked for, its log made if it has none."""
        if record.primary_key != primary_key:
            raise Conflict(f"table {record.name!r} exists with primary key {record.primary_key!r}, not {primary_key!r}")
        try:
            there = self._access.peek(record.name).delta.schema()
        except NotFound as error:
            if error.code != "table_not_written":
                raise
            if not record.columns:  # registered by its name alone, through Unity Catalog's protocol
                by = self._access.check(record.name, "MODIFY", "writeTable") or record.owner
                record = self._catalog.update_table(record.name, columns=catalog_columns(wanted), by=by)
            _check_same(record, delta_schema(record), wanted)
            there = self._access.make_log(record, wanted).schema()
        _check_same(record, there, wanted)
        return record

    def _write(
        self, name: str, data: "ray.data.Dataset | pa.Table", mode: Literal["append", "overwrite"], run_id: str | None
    ) -> int:
        writing = self._access.to_write(name, run_id=run_id)
        record, table = writing.record, writing.delta
        try:
            if isinstance(data, pa.Table):
                rows = fit(data, arrow_schema(table), record.name)
                if rows.num_rows == 0 and mode == "append":
                    return table.version()
                write_deltalake(table, rows, mode=mode, commit_properties=writing.properties(retries=_RETRIES[mode]))
                return writing.committed(table.version(), mode, rows.num_rows)
            return self._write_dataset(writing, data, mode)
        except DeltaError as error:
            raise _failed(name, error) from error

    def _write_dataset(self, writing: Writing, data: "ray.data.Dataset", mode: Literal["append", "overwrite"]) -> int:
        from mosaic.data.files import ParquetSink

        record, table = writing.record, writing.delta
        check_plain(table, record.name)
        sink = ParquetSink(self._storage, record.location, arrow_schema(table), record.name)
        _run_write(data, sink)
        if not sink.files and mode == "append":
            return table.version()
        properties = writing.properties(sink.write_id, retries=_RETRIES[mode])
        table.create_write_transaction(sink.add_actions(), mode, table.schema(), commit_properties=properties)
        version = find_commit(self._storage, record.location, table.version() + 1, sink.write_id)
        return writing.committed(version, mode, sum(file.num_rows for file in sink.files))


def _check_same(record: Table, there: Schema, wanted: Schema) -> None:
    if shape(there) != shape(wanted):
        raise Conflict(f"table {record.name!r} exists with other columns: {_shown(there)}, not {_shown(wanted)}")


def _failed(name: str, error: DeltaError) -> MosaicError:
    """What a write is told that deltalake did not make."""
    if "append-only" in str(error):
        return BadRequest(f"table {name!r} has delta.appendOnly: its rows may be neither deleted nor replaced")
    if isinstance(error, CommitFailedError):
        told = f"somebody wrote to table {name!r} at the same time, and nothing was written here; try again: {error}"
        return Conflict(told)
    if "failed validation check" in str(error):
        return BadRequest(f"rows break a constraint of table {name!r}: {error}")
    return Unavailable(f"table {name!r} could not be written: {error}")


def _keys(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Keys as they are compared: 0.0 and -0.0 are one."""
    return pc.add(values, 0.0) if pa.types.is_floating(values.type) else values


def _condition(predicate: str, name: str, schema: pa.Schema, parameters: Mapping[str, Any]) -> str:
    """Not as it came: deltalake deletes all rows for `n = NULL`, and those with n = 1 for `n = 1.5`."""
    if predicate.strip().lower() == "true":
        return "true"
    try:
        return deltalake_predicate(_PARSER, predicate, schema, parameters)
    except BadRequest as error:
        message = f"predicate {predicate!r} on table {name!r}: {error.message}"
        raise BadRequest(message, param="predicate", code=error.code) from None


def _run_write(data: "ray.data.Dataset", sink: "ParquetSink") -> None:
    import ray.exceptions

    try:
        data.write_datasink(sink, ray_remote_args={"num_cpus": _NUM_CPUS})
    except ray.exceptions.RayError as error:
        raise _ours_within(error) or error from None


def _ours_within(error: BaseException) -> MosaicError | None:
    """Our own error, as it was raised in the task, without Ray's wrapping."""
    seen: BaseException | None = error
    while seen is not None:
        inner: Any = getattr(seen, "cause", None)
        if isinstance(inner, MosaicError):
            return inner
        seen = inner if isinstance(inner, BaseException) else seen.__cause__
    return None


def _shown(schema: Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in pa.schema(schema.to_arrow()))
