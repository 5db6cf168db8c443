"""Where the rows of the gateways' logs go: a request's into the inference table and perhaps into a table of its
endpoint's own, feedback into its own."""

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, SchemaMismatchError

from mosaic.data import Tables
from mosaic.data.delta import arrow_schema
from mosaic.errors import BadRequest, NotFound
from mosaic.monitoring import feedback, payloads, record
from mosaic.monitoring.feedback import FEEDBACK, FEEDBACK_TABLE
from mosaic.monitoring.keeping import PAYLOAD, counts
from mosaic.monitoring.record import INFERENCE_TABLE
from mosaic.storage import Storage

_OURS = (INFERENCE_TABLE, FEEDBACK_TABLE)
_REFUSALS = ("failed validation check", "invariant", "append-only")
"""In deltalake's words: rules that an owner has put on a table, which no later try passes."""


class Destinations:
    """See `mosaic.data.ship.Destinations`."""

    def __init__(self, tables: Tables, storage: Storage, *, at: Callable[[str], None] = lambda point: None) -> None:
        """`at` is told `payloads.OBJECT_WRITTEN`."""
        self._tables, self._storage, self._at = tables, storage, at
        self._locations: dict[str, str] = {}

    def of(self, row: dict[str, Any]) -> Sequence[str]:
        if FEEDBACK in row:
            return (FEEDBACK_TABLE,)
        own = row.get(PAYLOAD)
        return (INFERENCE_TABLE,) if own is None else (INFERENCE_TABLE, own["table"])

    def open(self, name: str) -> DeltaTable:
        opened = self._tables.open(name)
        if name not in _OURS:
            payloads.check_columns(name, arrow_schema(opened.delta))
        self._locations[name] = opened.record.location
        return opened.delta

    def to_arrow(self, name: str, rows: list[dict[str, Any]]) -> pa.Table:
        if name == FEEDBACK_TABLE:
            return feedback.to_arrow(rows)
        if name == INFERENCE_TABLE:
            rows = [{**row, **counts(row)} for row in rows]
        rows = payloads.with_objects(rows, self._storage, self._locations[name], self._at)
        return record.to_arrow(rows) if name == INFERENCE_TABLE else payloads.to_arrow(rows)

    def gives_up(self, name: str, error: Exception) -> bool:
        """A table that belongs to somebody may be gone, or changed so that rows do not fit. All have their row in the
        inference table, and must not wait for that one."""
        if name in _OURS:
            return False
        if isinstance(error, DeltaError):
            return isinstance(error, SchemaMismatchError) or any(told in str(error) for told in _REFUSALS)
        return isinstance(error, NotFound | BadRequest)
