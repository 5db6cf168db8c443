"""Delta tables at an address: opening one, its files in a fixed order, and rows in the shape of its schema."""

import itertools
import json
import re
from collections.abc import Iterable, Sequence, Set
from typing import NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.fs import DeltaStorageHandler

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

_CONSTRAINT = "delta.constraints."
_RULES = ("delta.invariants", "delta.generationExpression", "delta.identity.")

OUTSIDE = "table_files_outside"
"""Code of the error for a Delta log that names files outside of its table's folder."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_PERHAPS_OUTSIDE = r"%|:|\\|^/|\.\."

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
    if version is not None and not storage.exists(f"{address}/_delta_log/{version:020d}.json"):
        # deltalake 1.6 looks for each commit up to a version, which takes 3 s for version 10,000,000.
        newest = open_delta(storage, address).version()
        if version > newest:
            raise _no_version(address, version, newest)
    try:
        table = DeltaTable(address, version=version, storage_options=storage.delta_options(address) or None)
    except TableNotFoundError as error:
        raise NotFound(f"no Delta table at {address!r}: {error}", code="table_not_found") from None
    except DeltaError as error:
        if version is None:
            raise Unavailable(f"the Delta table at {address!r} cannot be opened: {error}") from error
        raise _no_version(address, version, open_delta(storage, address).version()) from error
    _check_readable(table, address)
    paths = _file_paths(table)
    check_inside(paths.filter(pc.match_substring_regex(paths, _PERHAPS_OUTSIDE)).to_pylist(), address)
    return table


def check_inside(paths: Iterable[str], address: str) -> None:
    """Raises BadRequest for a path of a Delta log that leads out of the table's folder.

    Whoever reads the table would otherwise read, with rights of their own, what the writer of the log may not.
    """
    for path in paths:
        seen, plain = "", path
        while plain != seen:  # what is encoded twice is decoded twice by some reader
            seen, plain = plain, unquote(plain)
        parts = plain.replace("\\", "/").split("/")
        if _SCHEME.match(path) or "://" in plain or parts[0] == "" or ".." in parts:
            raise BadRequest(
                f"the Delta table at {address!r} refers to a file outside of it ({path[:200]}), as a shallow clone "
                "does; rewrite it with files of its own",
                code=OUTSIDE,
            )


def check_feed(table: DeltaTable, first: int, last: int) -> None:
    """`check_inside` for all that the change feed of these versions reads, also what later versions took away."""
    opened = DeltaStorageHandler(table.table_uri, table._storage_options)
    for version in range(first, last + 1):
        try:
            log = opened.open_input_file(f"_delta_log/{version:020d}.json").read()
        except FileNotFoundError:
            return  # the feed has a gap, as its reader says
        actions = [json.loads(line) for line in log.splitlines() if line.strip()]
        named = [action[kind] for action in actions for kind in ("add", "remove", "cdc") if kind in action]
        check_inside([one["path"] for one in named], table.table_uri)


def list_files(storage: Storage, address: str, table: DeltaTable, only: Set[str] | None = None) -> TableFiles:
    """The files of the opened version, by the time of their writing, then by name: the same at every call, anywhere.

    `only` are paths as the log has them (None: all).
    """
    found = pa.table(table.get_add_actions(flatten=True)).select(["path", "modification_time"])
    actions = [action for action in found.to_pylist() if only is None or action["path"] in only]
    # deltalake gives the newest file first; one commit of ours numbers its files in the order of their rows.
    actions.sort(key=lambda action: (action["modification_time"], action["path"]))
    addresses = [f"{address}/{unquote(action['path'])}" for action in actions]
    return TableFiles(addresses, arrow_schema(table))


def dataset(storage: Storage, address: str, table: DeltaTable, only: Set[str] | None = None) -> ds.FileSystemDataset:
    """The rows of the opened version, lazily, its files in their fixed order; `only` those (see `list_files`).

    Not deltalake's own: that takes the log's statistics for certain, which are JSON, where decimals are rounded and
    infinity is null, and leaves out NaN. What Parquet's own statistics rule out is still not read.
    """
    files = list_files(storage, address, table, only)
    filesystem, _ = storage.filesystem(address)
    parquet = ds.ParquetFileFormat(default_fragment_scan_options=ds.ParquetFragmentScanOptions(pre_buffer=True))
    paths = [storage.filesystem(file)[1] for file in files.addresses]
    fragments = [parquet.make_fragment(path, filesystem) for path in paths]
    return ds.FileSystemDataset(fragments, files.schema, parquet, filesystem)


def read_arrow(storage: Storage, address: str, table: DeltaTable, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of the opened version, in the order of its files."""
    check_columns(arrow_schema(table), columns, address)
    return dataset(storage, address, table).to_table(columns=None if columns is None else list(columns))


def arrow_schema(table: DeltaTable) -> pa.Schema:
    """The table's columns in Arrow's types."""
    return pa.schema(table.schema().to_arrow())


def check_columns(schema: pa.Schema, columns: Sequence[str] | None, name: str) -> None:
    """Raises BadRequest for a column that the table lacks."""
    unknown = [column for column in columns or [] if column not in schema.names]
    if unknown:
        raise BadRequest(f"table {name!r} has no column {unknown[0]!r}; there are {schema.names}", param="columns")


def check_plain(table: DeltaTable, name: str) -> None:
    """Raises BadRequest for a table with rules about its rows, which a commit of files does not check."""
    configuration, schema = table.metadata().configuration, table.schema().to_json()
    found = [f"the CHECK constraint {key!r}" for key in configuration if key.startswith(_CONSTRAINT)]
    found += [f"a column with {rule}" for rule in _RULES if f'"{rule}' in schema]
    if found:
        raise BadRequest(
            f"table {name!r} has {found[0]}, which a ray.data.Dataset is not checked against as it is written; write a "
            "pa.Table"
        )


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


def _no_version(address: str, version: int, newest: int) -> NotFound:
    return NotFound(
        f"the Delta table at {address!r} has no readable version {version}; the newest is {newest}",
        param="version",
        code="table_version_not_found",
    )


def _file_paths(table: DeltaTable) -> pa.ChunkedArray:
    return pa.table(table.get_add_actions(flatten=True))["path"]


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
