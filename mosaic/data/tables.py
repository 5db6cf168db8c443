"""Tables by name: Delta tables under the storage's root, registered in the catalog, written and read with Ray Data.

Start reading here. Every write is one commit; every read is pinned to one version. A run that writes names itself in
the commit (`mosaic.run_id`), so that the table alone tells who made a version.
"""

from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import ray.exceptions
from deltalake import DeltaTable, Schema, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from mosaic.catalog import Catalog, Table
from mosaic.catalog.names import parse_object
from mosaic.data.delta import (
    CONFIGURATION,
    arrow_schema,
    check_columns,
    commit_properties,
    find_commit,
    fit,
    list_files,
    open_delta,
    read_arrow,
)
from mosaic.data.files import ParquetSink, read_files
from mosaic.errors import BadRequest, Conflict, MosaicError, NotFound
from mosaic.storage import Storage

_NUM_CPUS = 0.25  # logical; the platform's own actors leave half a CPU for data on a machine with two


class Tables:
    """Create, write and read tables by their catalog name (`main.docs.entries`).

    The primary key is a promise of the writer, as in Databricks: `merge` keeps it, `append` does not look.
    """

    def __init__(self, storage: Storage, catalog: Catalog) -> None:
        self._storage, self._catalog = storage, catalog

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
        address = self._storage.address("tables", *name.split("."))
        existing = self._catalog.find_table(name)
        if existing is not None:
            self._check_same(existing, wanted, primary_key)
            return existing
        # First the table, then its name: killed between the two, the next call finds the table and only registers it.
        DeltaTable.create(
            address,
            schema=wanted,
            mode="ignore",
            name=name,
            configuration=CONFIGURATION,
            storage_options=self._storage.delta_options(address) or None,
        )
        if open_delta(self._storage, address).schema().to_json() != wanted.to_json():
            raise Conflict(
                f"there is already a Delta table with another schema at {address!r}; table {name!r} not made"
            )
        return self._catalog.create_table(
            name,
            address,
            columns=[{"name": f.name, "type": str(f.type), "nullable": f.nullable} for f in schema],
            primary_key=primary_key,
            comment=comment,
            properties=properties or {},
            owner=owner,
        )

    def append(self, name: str, data: ray.data.Dataset | pa.Table, *, run_id: str | None = None) -> int:
        """Add rows in one commit; returns the version that has them. Raises BadRequest for rows that do not fit."""
        return self._write(name, data, "append", run_id)

    def overwrite(self, name: str, data: ray.data.Dataset | pa.Table, *, run_id: str | None = None) -> int:
        """Replace all rows in one commit; returns the version. Raises Conflict if somebody wrote at the same time."""
        return self._write(name, data, "overwrite", run_id)

    def delete_where(self, name: str, predicate: str, *, run_id: str | None = None) -> int:
        """Delete the rows for which a SQL predicate holds (`"module = 'os'"`); returns the version."""
        table = self.delta(name)
        if not predicate.strip():
            raise BadRequest("predicate = '': name the rows to delete, or 'true' for all of them", param="predicate")
        try:
            table.delete(predicate, commit_properties=commit_properties(run_id))
        except CommitFailedError as error:
            raise Conflict(f"table {name!r} was changed at the same time: {error}") from error
        except DeltaError as error:
            raise BadRequest(f"predicate {predicate!r} on table {name!r}: {error}", param="predicate") from error
        return table.version()

    def merge(self, name: str, data: pa.Table, *, run_id: str | None = None) -> int:
        """Insert rows, or replace those with the same primary key; returns the version.

        Raises BadRequest for a table without primary key, or a key that is null or comes twice in `data`.
        """
        record, table = self._catalog.get_table(name), self.delta(name)
        key = record.primary_key
        if key is None:
            raise BadRequest(f"table {record.name!r} has no primary key to merge by; use append or overwrite")
        rows = fit(data, arrow_schema(table), record.name)
        if rows[key].null_count:
            raise BadRequest(
                f"{rows[key].null_count} rows have no {key!r}, the primary key of {record.name!r}", param=key
            )
        counts = pc.value_counts(rows[key]).field("counts")
        if len(counts) < rows.num_rows:
            twice = pc.value_counts(rows[key]).filter(pc.greater(counts, 1)).field("values").to_pylist()
            raise BadRequest(f"primary key {key!r} of {record.name!r} comes twice: {twice[:5]}", param=key)
        if rows.num_rows == 0:
            return table.version()
        merger = table.merge(
            rows,
            predicate=f'target."{key}" = source."{key}"',
            source_alias="source",
            target_alias="target",
            commit_properties=commit_properties(run_id),
        )
        try:
            merger.when_matched_update_all().when_not_matched_insert_all().execute()
        except CommitFailedError as error:
            raise Conflict(f"table {name!r} was changed at the same time: {error}") from error
        return table.version()

    def version(self, name: str) -> int:
        """The newest version."""
        return self.delta(name).version()

    def read(self, name: str, version: int | None = None, columns: Sequence[str] | None = None) -> ray.data.Dataset:
        """The rows at a version (None: the newest now), lazily, files in a fixed order.

        Ray Data finishes blocks as they come; a consumer that needs the order sets
        `ds.context.execution_options.preserve_order = True` (for training: DataConfig(execution_options=...)).
        """
        record, table = self._catalog.get_table(name), self.delta(name, version)
        files = list_files(self._storage, record.location, table)
        check_columns(files.schema, columns, record.name)
        chosen = list(columns) if columns is not None else files.schema.names
        if not files.addresses:
            return ray.data.from_blocks([files.schema.empty_table().select(chosen)])
        return read_files(self._storage, files, chosen, num_cpus=_NUM_CPUS)

    def to_arrow(self, name: str, version: int | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows at a version (None: the newest) in this process, in the order of the files."""
        record, table = self._catalog.get_table(name), self.delta(name, version)
        return read_arrow(self._storage, record.location, table, columns)

    def delta(self, name: str, version: int | None = None) -> DeltaTable:
        """deltalake's own handle, for what is not offered here; raises NotFound for an unknown table or version."""
        if version is not None and version < 0:
            raise NotFound(f"table {name!r} has no version {version}; versions start at 0", param="version")
        return open_delta(self._storage, self._catalog.get_table(name).location, version)

    def _check_same(self, existing: Table, wanted: Schema, primary_key: str | None) -> None:
        schema = open_delta(self._storage, existing.location).schema()
        if schema.to_json() != wanted.to_json():
            raise Conflict(f"table {existing.name!r} exists with other columns: {_shown(schema)}, not {_shown(wanted)}")
        if existing.primary_key != primary_key:
            raise Conflict(
                f"table {existing.name!r} exists with primary key {existing.primary_key!r}, not {primary_key!r}"
            )

    def _write(
        self, name: str, data: ray.data.Dataset | pa.Table, mode: Literal["append", "overwrite"], run_id: str | None
    ) -> int:
        record, table = self._catalog.get_table(name), self.delta(name)
        properties = commit_properties(run_id)
        try:
            if isinstance(data, pa.Table):
                rows = fit(data, arrow_schema(table), record.name)
                if rows.num_rows == 0 and mode == "append":
                    return table.version()
                write_deltalake(table, rows, mode=mode, commit_properties=properties)
                return table.version()
            sink = ParquetSink(self._storage, record.location, arrow_schema(table), record.name)
            _run_write(data, sink)
            if not sink.files and mode == "append":
                return table.version()
            properties = commit_properties(run_id, write_id=sink.write_id)
            table.create_write_transaction(sink.add_actions(), mode, table.schema(), commit_properties=properties)
            return find_commit(self._storage, record.location, table.version() + 1, sink.write_id)
        except CommitFailedError as error:
            raise Conflict(f"table {name!r} was changed at the same time: {error}") from error


def _run_write(data: ray.data.Dataset, sink: ParquetSink) -> None:
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
