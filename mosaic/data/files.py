"""A Delta table's Parquet files read and written by Ray Data tasks; versions and commits are the caller's.

Ray Data's own ways do not fit. `write_delta` neither lets a commit carry metadata nor refuses rows that do not fit the
schema (it widens the table). `read_parquet` samples files in tasks that want a whole CPU each, whatever `num_cpus`
says, and so waits for ever on a cluster with half a CPU left.
"""

import json
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import ray.data
from deltalake.transaction import AddAction, RemoveAction
from ray.data import Datasink
from ray.data.block import BlockAccessor

from mosaic.data.delta import TableFiles, fit
from mosaic.ids import new_id
from mosaic.storage import Storage

_MAX_READ_TASKS = 256


def read_files(storage: Storage, files: TableFiles, columns: list[str], *, num_cpus: float) -> ray.data.Dataset:
    """The rows of at least one file, lazily; with `preserve_order` in the order of the files."""
    rows = [{"address": address} for address in files.addresses]
    schema = files.schema

    def read(batch: pa.Table) -> Iterator[pa.Table]:
        for address in batch["address"].to_pylist():
            filesystem, path = storage.filesystem(address)
            file = ds.dataset(path, schema=schema, filesystem=filesystem, format="parquet")
            empty = True
            for piece in file.to_batches(columns=columns):
                if piece.num_rows:
                    empty = False
                    yield pa.Table.from_batches([piece])
            if empty:
                yield schema.empty_table().select(columns)

    listed = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MAX_READ_TASKS))
    return listed.map_batches(read, batch_size=None, batch_format="pyarrow", num_cpus=num_cpus)


class WrittenFile(NamedTuple):
    path: str
    size_bytes: int
    num_rows: int


class ParquetSink(Datasink[list[WrittenFile]]):
    """Writes each block that has rows as one file; after the write `files` lists them by task and block."""

    def __init__(self, storage: Storage, address: str, schema: pa.Schema, table_name: str) -> None:
        self._storage, self._address, self._schema, self._table_name = storage, address, schema, table_name
        self.write_id = new_id("part")
        self.files: list[WrittenFile] = []

    def get_name(self) -> str:
        return f"Write({self._table_name})"

    def write(self, blocks: Iterable[Any], ctx: Any) -> list[WrittenFile]:
        written = []
        for number, block in enumerate(blocks):
            rows = BlockAccessor.for_block(block).to_arrow()
            if rows.num_rows == 0:
                continue
            rows = fit(rows, self._schema, self._table_name)
            # Fresh for every attempt: a task that Ray repeats must not write into a file that is already listed.
            attempt = new_id("try")[-8:]
            name = f"{self.write_id}-{ctx.task_idx:06d}-{number:06d}-{attempt}.parquet"
            filesystem, path = self._storage.filesystem(f"{self._address}/{name}")
            pq.write_table(rows, path, filesystem=filesystem, compression="zstd")
            written.append(WrittenFile(name, filesystem.get_file_info(path).size, rows.num_rows))
        return written

    def on_write_complete(self, write_result: Any) -> None:
        self.files = sorted(file for files in write_result.write_returns for file in files)

    def add_actions(self) -> list[AddAction | RemoveAction]:
        """What to commit. One time for all, so that the order within the commit is that of the names."""
        now = time.time_ns() // 1_000_000
        return [
            AddAction(file.path, file.size_bytes, {}, now, True, json.dumps({"numRecords": file.num_rows}))
            for file in self.files
        ]
