"""Delta tables at an address: opening one, its files in a fixed order, and rows in the shape of its schema."""

import itertools
import json
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import DeltaError, TableNotFoundError

from mosaic.errors import BadRequest, NotFound, Unavailable
from mosaic.protocol import Wire
from mosaic.storage import Storage

RUN_ID = "mosaic.run_id"
"""Key of the run's id in a commit's metadata."""

PRINCIPAL = "mosaic.principal"
"""Key of the name of whoever made the commit."""

INPUTS = "mosaic.inputs"
"""Key of what the run had read when it committed: a JSON list such as `["table:main.docs.entries@3"]`."""

WRITE_ID = "mosaic.write_id"
"""Key of a mark that tells one commit from all others."""

CONFIGURATION = {"delta.enableChangeDataFeed": "true"}
"""How tables are made: with a change feed, for indexes to follow; without column mapping or deletion vectors."""

LOG_IS_KEPT = {"delta.enableExpiredLogCleanup": "false"}
"""For tables whose past versions somebody may need: otherwise Delta forgets, at the first checkpoint after 30 days, how
they were, whatever a vacuum spares."""

_UNSUPPORTED = {"columnMapping": "column mapping", "deletionVectors": "deletion vectors"}


_MAX_INPUTS_BYTES = 16_384


class CommitLineage(Wire):
    """What one commit of a table says about its origin."""

    version: int
    run_id: str | None
    principal: str | None
    inputs: list[str]
    """`kind:name@version`, or `kind:name` for what has no versions; the last may say how many were left out."""


class TableFiles(NamedTuple):
    """The Parquet files of one version, in their fixed order."""

    addresses: list[str]
    schema: pa.Schema


def open_delta(storage: Storage, address: str, version: int | None = None) -> DeltaTable:
    """The table at an address, at a version (None: the newest); raises NotFound, or BadRequest for unreadable ones."""
    try:
        table = DeltaTable(address, version=version, storage_options=storage.delta_options(address) or None)
    except TableNotFoundError as error:
        raise NotFound(f"no Delta table at {address!r}: {error}", code="table_not_found") from None
    except DeltaError as error:
        if version is None:
            raise Unavailable(f"the Delta table at {address!r} cannot be opened: {error}") from error
        newest = open_delta(storage, address).version()
        raise NotFound(
            f"the Delta table at {address!r} has no readable version {version}; the newest is {newest}",
            param="version",
            code="table_version_not_found",
        ) from error
    _check_readable(table, address)
    return table


def list_files(storage: Storage, address: str, table: DeltaTable) -> TableFiles:
    """The files of the opened version, by the time of their writing, then by name: the same at every call, anywhere."""
    found = pa.table(table.get_add_actions(flatten=True))
    actions = found.select(["path", "modification_time"]).to_pylist()
    for action in actions:
        if "://" in action["path"] or action["path"].startswith("/"):
            raise BadRequest(
                f"the table at {address!r} refers to a file outside of it ({action['path']}): a shallow clone"
            )
    # deltalake gives the newest file first; one commit of ours numbers its files in the order of their rows.
    actions.sort(key=lambda action: (action["modification_time"], action["path"]))
    addresses = [f"{address}/{action['path']}" for action in actions]
    return TableFiles(addresses, arrow_schema(table))


def read_arrow(storage: Storage, address: str, table: DeltaTable, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of the opened version, in the order of its files."""
    files = list_files(storage, address, table)
    check_columns(files.schema, columns, address)
    if not files.addresses:
        empty = files.schema.empty_table()
        return empty if columns is None else empty.select(list(columns))
    filesystem, _ = storage.filesystem(address)
    paths = [storage.filesystem(file)[1] for file in files.addresses]
    dataset = ds.dataset(paths, schema=files.schema, filesystem=filesystem, format="parquet")
    return dataset.to_table(columns=None if columns is None else list(columns))


def arrow_schema(table: DeltaTable) -> pa.Schema:
    """The table's columns in Arrow's types."""
    return pa.schema(table.schema().to_arrow())


def check_columns(schema: pa.Schema, columns: Sequence[str] | None, name: str) -> None:
    """Raises BadRequest for a column that the table lacks."""
    unknown = [column for column in columns or [] if column not in schema.names]
    if unknown:
        raise BadRequest(f"table {name!r} has no column {unknown[0]!r}; there are {schema.names}", param="columns")


def fit(rows: pa.Table, schema: pa.Schema, name: str) -> pa.Table:
    """The rows with exactly the table's columns and types; raises BadRequest naming the column that does not fit.

    A column that is missing becomes null where that is allowed; one that the table lacks is refused, never dropped.
    """
    unknown = [column for column in rows.column_names if column not in schema.names]
    if unknown:
        raise BadRequest(f"table {name!r} has no column {unknown[0]!r}; there are {schema.names}", param=unknown[0])
    columns = []
    for column in schema:
        if column.name not in rows.column_names:
            if not column.nullable:
                raise BadRequest(f"column {column.name!r} of table {name!r} is required", param=column.name)
            columns.append(pa.nulls(rows.num_rows, column.type))
            continue
        values = rows[column.name]
        if not column.nullable and values.null_count:
            raise BadRequest(
                f"column {column.name!r} of table {name!r} may not be null; {values.null_count} of {rows.num_rows} are",
                param=column.name,
            )
        try:
            columns.append(values if values.type == column.type else values.cast(column.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise BadRequest(
                f"column {column.name!r} of table {name!r} is {column.type}, not {values.type}: {error}",
                param=column.name,
            ) from None
    return pa.Table.from_arrays(columns, schema=schema)


def commit_properties(
    run_id: str | None = None,
    *,
    transactions: list[Transaction] | None = None,
    write_id: str | None = None,
    principal: str | None = None,
    inputs: Sequence[str] | None = None,
    retries: int | None = None,
) -> CommitProperties:
    """A commit's metadata: who made it, in which run, from what (see INPUTS); the positions of logs that it covers; a
    mark to find it by. `retries` is how often deltalake tries again after it lost against another commit."""
    shown = None if inputs is None else _bounded(inputs)
    metadata = {RUN_ID: run_id, PRINCIPAL: principal, INPUTS: shown, WRITE_ID: write_id}
    return CommitProperties(
        custom_metadata={key: value for key, value in metadata.items() if value is not None},
        app_transactions=transactions,
        max_commit_retries=retries,
    )


def commit_lineage(storage: Storage, address: str, version: int) -> CommitLineage:
    """What the commit of a version says about its origin, by the Delta log alone; raises NotFound.

    Not by deltalake's `history()`, which counts from the handle's version, wrongly once somebody else has committed.
    """
    try:
        lines = storage.read_bytes(f"{address}/_delta_log/{version:020d}.json").splitlines()
    except NotFound:
        raise NotFound(
            f"the Delta log at {address!r} has no commit {version}, or no longer",
            param="version",
            code="table_version_not_found",
        ) from None
    said: dict[str, str] = next((json.loads(line)["commitInfo"] for line in lines if b'"commitInfo"' in line), {})
    inputs = json.loads(said.get(INPUTS, "[]"))
    return CommitLineage(version=version, run_id=said.get(RUN_ID), principal=said.get(PRINCIPAL), inputs=inputs)


def find_commit(storage: Storage, address: str, first: int, write_id: str) -> int:
    """The version, `first` or later, that the commit with this mark became.

    Read from the log itself: deltalake's handle does not move with `create_write_transaction`, and its `history()`
    counts from the handle's version, which is wrong once somebody else has committed.
    """
    for version in itertools.count(first):
        if write_id.encode() in storage.read_bytes(f"{address}/_delta_log/{version:020d}.json"):
            return version
    raise AssertionError("count() does not end")


def _bounded(inputs: Sequence[str]) -> str:
    """As JSON; those for which a commit has no room are counted in a last entry. The catalog has all."""
    kept: list[str] = []
    size = 0
    for name in inputs:
        size += len(json.dumps(name)) + 2
        if size > _MAX_INPUTS_BYTES:
            kept.append(f"... {len(inputs) - len(kept)} more")
            break
        kept.append(name)
    return json.dumps(kept)


def _check_readable(table: DeltaTable, address: str) -> None:
    features = table.protocol().reader_features or []
    configuration = table.metadata().configuration
    found = [words for feature, words in _UNSUPPORTED.items() if feature in features]
    if configuration.get("delta.columnMapping.mode", "none") != "none":
        found.append("column mapping")
    if found:
        raise BadRequest(f"the Delta table at {address!r} uses {found[0]}, which is not supported; rewrite it without")
    if table.metadata().partition_columns:
        raise BadRequest(f"the Delta table at {address!r} is partitioned, which is not supported; rewrite it without")
