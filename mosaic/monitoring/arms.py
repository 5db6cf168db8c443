"""What the inference table has of an endpoint's arms: a row for each request that an arm was drawn for, and what people
said of its answer."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mosaic.catalog.bearers import Span
from mosaic.data import Tables
from mosaic.errors import NotFound
from mosaic.monitoring.answers import within
from mosaic.monitoring.feedback import FEEDBACK_TABLE
from mosaic.monitoring.intervals import Floats, Ints, Sample
from mosaic.monitoring.record import INFERENCE_TABLE

_COLUMNS: dict[str, pa.DataType] = {
    "request_id": pa.string(),
    "request_time": pa.timestamp("us", tz="UTC"),
    "status_code": pa.int32(),
    "endpoint_config_version": pa.int64(),
    "served_entity": pa.string(),
    "attempts": pa.string(),
    "randomization_unit": pa.string(),
    "streamed": pa.bool_(),
    "cached": pa.bool_(),
    "input_tokens": pa.int64(),
    "output_tokens": pa.int64(),
    "cost_nano_dollars": pa.int64(),
    "first_token_milliseconds": pa.float64(),
    "duration_milliseconds": pa.float64(),
}
"""What is read; a column that the table has not got is empty."""


class ArmRows:
    """Of one arm; a request counts for the arm that was drawn for it, also where another took its place: what became of
    those that it failed is its doing."""

    def __init__(self, name: str, rows: pa.Table, ratings: dict[str, float]) -> None:
        self.name = name
        self.requests = rows.num_rows
        self.versions = sorted({one for one in pc.unique(rows["endpoint_config_version"]).to_pylist() if one})
        units = pc.if_else(
            pc.is_valid(rows["randomization_unit"]), rows["randomization_unit"], rows["request_id"]
        ).combine_chunks()
        encoded = units.dictionary_encode()
        self._units: Ints = np.asarray(encoded.indices, dtype=np.int64)
        self.units = len(encoded.dictionary)
        self.is_sticky = bool(pc.any(pc.is_valid(rows["randomization_unit"])).as_py() or False)
        self._rows = rows
        self._status = np.asarray(rows["status_code"])
        self._fresh = ~np.asarray(pc.fill_null(rows["cached"], False), dtype=bool)
        self.cached = int((~self._fresh).sum())
        self._ratings = np.array([ratings.get(one, np.nan) for one in rows["request_id"].to_pylist()], dtype=np.float64)
        self.fell_back = sum(_drawn(attempts, entity) != entity for attempts, entity in self._attempted())

    def failures(self) -> Sample:
        """1 for a request that ended with an error that is not its caller's: 5xx, or a provider's 429."""
        ended = self._fresh & (self._status != 499)
        failed = (self._status >= 500) | (self._status == 429)
        return self._sample(failed.astype(np.float64), ended)

    def answered(self, column: str, *, streamed_only: bool = False) -> Sample:
        """A column of the answers that a model gave, where it has a value."""
        values = np.asarray(pc.fill_null(self._rows[column].cast(pa.float64()), np.nan), dtype=np.float64)
        there = self._fresh & (self._status == 200) & ~np.isnan(values)
        if streamed_only:
            there &= np.asarray(pc.fill_null(self._rows["streamed"], False), dtype=bool)
        return self._sample(values, there)

    def ratings(self) -> Sample:
        """What people said of answers; of several about one answer the mean."""
        return self._sample(self._ratings, ~np.isnan(self._ratings))

    def _sample(self, values: Floats, where: np.ndarray) -> Sample:
        return Sample(values[where], self._units[where])

    def _attempted(self) -> list[tuple[str, str]]:
        tried = self._rows.filter(pc.is_valid(self._rows["attempts"]))
        return list(zip(tried["attempts"].to_pylist(), tried["served_entity"].to_pylist(), strict=True))


def read_arms(tables: Tables, endpoint: str, since: datetime, spans: Sequence[Span]) -> list[ArmRows]:
    """By name, those with rows since then. `spans` are the times at which the endpoint's name meant this one."""
    try:
        delta = tables.delta(INFERENCE_TABLE)
    except NotFound:  # nothing was ever served here
        return []
    there = {field.name for field in delta.schema().fields}
    moment = since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    name = endpoint.replace("'", "''")
    predicate = f"endpoint = '{name}' AND request_time >= TIMESTAMP '{moment}' AND served_entity IS NOT NULL"
    columns = [column for column in _COLUMNS if column in there]
    batches = pa.RecordBatchReader.from_stream(delta.scan(columns=columns, predicate=predicate))
    rows = pa.concat_tables([_typed(pa.Table.from_batches([batch])) for batch in batches] or [_none()])
    rows = rows.filter(within(rows, spans))
    arms = _arms_of(rows)
    ratings = _ratings(tables, moment) if rows.num_rows else {}
    return [
        ArmRows(name, rows.filter(pc.equal(arms, name)), ratings) for name in sorted(set(pc.unique(arms).to_pylist()))
    ]


def _arms_of(rows: pa.Table) -> pa.Array:
    """The arm that was drawn: the first that was tried, which stands in `attempts` if it was not the only one."""
    tried = [
        entity if attempts is None else _drawn(attempts, entity)
        for attempts, entity in zip(rows["attempts"].to_pylist(), rows["served_entity"].to_pylist(), strict=True)
    ]
    return pa.array(tried, pa.string())


def _drawn(attempts: str, entity: str) -> str:
    told: list[dict[str, Any]] = json.loads(attempts)
    return str(told[0]["entity"]) if told else entity


def _ratings(tables: Tables, moment: str) -> dict[str, float]:
    """By request: what was said since then; nothing where nobody can say anything."""
    try:
        delta = tables.delta(FEEDBACK_TABLE)
    except NotFound:
        return {}
    stream = delta.scan(columns=["request_id", "rating"], predicate=f"time >= TIMESTAMP '{moment}'")
    found = pa.RecordBatchReader.from_stream(stream).read_all()
    found = found.cast(pa.schema([("request_id", pa.string()), ("rating", pa.float64())]))
    means = found.filter(pc.is_valid(found["rating"])).group_by("request_id").aggregate([("rating", "mean")])
    return dict(zip(means["request_id"].to_pylist(), means["rating_mean"].to_pylist(), strict=True))


def _typed(batch: pa.Table) -> pa.Table:
    """With every column, from the engine's own kinds of strings."""
    return pa.table(
        {
            name: batch[name].cast(kind) if name in batch.schema.names else pa.nulls(batch.num_rows, kind)
            for name, kind in _COLUMNS.items()
        }
    )


def _none() -> pa.Table:
    return _typed(pa.table({"request_id": pa.array([], pa.string())}))
