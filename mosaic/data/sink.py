"""Rows of a Ray Data dataset as Parquet files of a Delta table, written where the rows are; the commit is the caller's.

Ray Data's own `write_delta` neither lets a commit carry metadata nor refuses rows that do not fit the schema (it widens the
table), so the files are written here and committed in one transaction by `Tables`.
"""

import json
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from deltalake.transaction import AddAction
from ray.data.block import BlockAccessor

from mosaic.data.delta import fit
from mosaic.ids import new_id
from mosaic.storage import Storage


class WrittenFile(NamedTuple):
    path: str
    size_bytes: int
    num_rows: int


class ParquetSink(ray.data.Datasink[list[WrittenFile]]):
    """Writes each block that has rows as one file; after the write `files` lists them by task and block."""

    def __init__(self, storage: Storage, address: str, schema: pa.Schema, table_name: str) -> None:
        self._storage, self._address, self._schema, self._table_name = storage, address, schema, table_name
        self._write_id = new_id("part")
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
            name = f"{self._write_id}-{ctx.task_idx:06d}-{number:06d}-{attempt}.parquet"
            filesystem, path = self._storage.filesystem(f"{self._address}/{name}")
            pq.write_table(rows, path, filesystem=filesystem, compression="zstd")
            written.append(WrittenFile(name, filesystem.get_file_info(path).size, rows.num_rows))
        return written

    def on_write_complete(self, write_result: Any) -> None:
        self.files = sorted(file for files in write_result.write_returns for file in files)

    def add_actions(self) -> list[AddAction]:
        """What to commit. One time for all, so that the order within the commit is that of the names."""
        now = time.time_ns() // 1_000_000
        return [
            AddAction(file.path, file.size_bytes, {}, now, True, json.dumps({"numRecords": file.num_rows}))
            for file in self.files
        ]
