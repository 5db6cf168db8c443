"""Putting a table's small files together, in one commit that changes no row.

Not by deltalake 1.6's own way: that commits over a compaction which it has not seen, and every row is there twice. Here
a commit lands only right after the version that was looked at; one that loses looks again, and goes on as long as all
the files that it read are still there. So appends do not stop it, and two at a time cost work but no row.
"""

import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction

from mosaic.data.access import Access, Writing
from mosaic.data.delta import dataset, open_delta
from mosaic.errors import Conflict, Unavailable
from mosaic.ids import new_id
from mosaic.storage import Storage

TARGET_BYTES = 128 * 1024**2
"""Files of less are put together until they have as much."""

_ROW_GROUP_BYTES = 64 * 1024**2
"""In Arrow's memory; what one compaction holds at a time."""


class _File(NamedTuple):
    modification_time: int
    path: str
    size_bytes: int


def optimize(access: Access, name: str, *, target_bytes: int = TARGET_BYTES) -> int:
    """See `Tables.optimize`."""
    writing = access.to_maintain(name, "MODIFY", "optimizeTable")
    storage, address, table = access.storage, writing.record.location, writing.delta
    bins = list(_bins(_files(table), target_bytes))
    if not bins:
        return table.version()
    actions = [action for files in bins for action in _together(storage, address, table, files)]
    access.at("compacted")
    return _commit(storage, writing, actions, {file.path for files in bins for file in files})


def _files(table: DeltaTable) -> list[_File]:
    """In the order in which readers have them."""
    found = pa.table(table.get_add_actions(flatten=True))
    return sorted(_File(row["modification_time"], row["path"], row["size_bytes"]) for row in found.to_pylist())


def _bins(files: list[_File], target_bytes: int) -> Iterator[list[_File]]:
    """Neighbours that are put together: at least two files, each below the target, and hardly more than it in sum."""
    gathered: list[_File] = []
    for file in files:
        fits = file.size_bytes < target_bytes
        if gathered and (not fits or sum(one.size_bytes for one in gathered) + file.size_bytes > target_bytes):
            if len(gathered) > 1:
                yield gathered
            gathered = []
        if fits:
            gathered.append(file)
    if len(gathered) > 1:
        yield gathered


def _together(
    storage: Storage, address: str, table: DeltaTable, files: list[_File]
) -> Iterator[AddAction | RemoveAction]:
    """What makes one file of several; it has the time of the first, so that the rows keep their order."""
    made = f"{new_id('part')}.parquet"
    filesystem, path = storage.filesystem(f"{address}/{made}")
    rows = dataset(storage, address, table, {file.path for file in files})
    count = 0
    with pq.ParquetWriter(path, rows.schema, filesystem=filesystem, compression="zstd") as writer:
        for group in _groups(rows.to_batches()):
            writer.write_table(group, row_group_size=group.num_rows)
            count += group.num_rows
    size = filesystem.get_file_info(path).size
    yield AddAction(made, size, {}, files[0].modification_time, False, json.dumps({"numRecords": count}))
    now = time.time_ns() // 1_000_000
    yield from (RemoveAction(file.path, False, now, file.size_bytes, {}) for file in files)


def _groups(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    gathered: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        if batch.num_rows:
            gathered.append(batch)
            size += batch.nbytes
        if size >= _ROW_GROUP_BYTES:
            yield pa.Table.from_batches(gathered)
            gathered, size = [], 0
    if gathered:
        yield pa.Table.from_batches(gathered)


def _commit(storage: Storage, writing: Writing, actions: list[Any], read: set[str]) -> int:
    """Commit right after a version that still has all the files that were read; raises Conflict if one is gone."""
    address, name = writing.record.location, writing.record.name
    properties = writing.properties(retries=0)
    table = writing.delta
    while True:
        if not read <= {file.path for file in _files(table)}:
            raise Conflict(f"rows of table {name!r} were rewritten at the same time, and nothing was done; try again")
        try:
            table.create_write_transaction(actions, "append", table.schema(), commit_properties=properties)
            return table.version() + 1
        except CommitFailedError as error:
            newer = open_delta(storage, address)
            if newer.version() == table.version():
                raise Unavailable(f"table {name!r} could not be written: {error}") from error
            if newer.schema() != table.schema():
                raise Conflict(f"the columns of table {name!r} changed at the same time; try again") from error
            table = newer
        except DeltaError as error:
            raise Unavailable(f"table {name!r} could not be written: {error}") from error
