"""`system.serving.endpoint_usage`: who used which endpoint how much, in Databricks' columns and some more.

It is no table but a view of the inference table, computed for who asks: of the requests that they made themselves, and
of those to endpoints that they manage. It has no texts.
"""

import functools
import json
import operator
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from mosaic.catalog import Catalog
from mosaic.catalog.bearers import Span
from mosaic.data import Tables
from mosaic.data.delta import arrow_schema, dataset
from mosaic.data.system_tables import SystemTable
from mosaic.errors import NotFound
from mosaic.monitoring.record import INFERENCE_TABLE
from mosaic.monitoring.viewer import Viewer
from mosaic.protocol import Principal
from mosaic.storage import Storage

USAGE_TABLE = "system.serving.endpoint_usage"

_FROM = {
    "client_request_id": "client_request_id",
    "databricks_request_id": "request_id",
    "requester": "principal",
    "status_code": "status_code",
    "request_time": "request_time",
    "input_token_count": "input_tokens",
    "output_token_count": "output_tokens",
    "input_character_count": "input_characters",
    "output_character_count": "output_characters",
    "usage_context": "usage_context",
    "request_streaming": "streamed",
    "endpoint_name": "endpoint",
    "endpoint_config_version": "endpoint_config_version",
    "served_entity_name": "served_entity",
    "model": "model",
    "model_version": "model_version",
    "cached_input_token_count": "cached_input_tokens",
    "reasoning_token_count": "reasoning_tokens",
    "cost_nano_dollars": "cost_nano_dollars",
    "price_version": "price_version",
}
"""Its columns, and those of the inference table that they are; what that one lacks is null."""
_TYPES = {
    **dict.fromkeys(_FROM, pa.int64()),
    **dict.fromkeys(
        ("client_request_id", "databricks_request_id", "requester", "endpoint_name", "served_entity_name", "model"),
        pa.string(),
    ),
    "status_code": pa.int32(),
    "request_time": pa.timestamp("us", tz="UTC"),
    "request_streaming": pa.bool_(),
    "usage_context": pa.map_(pa.string(), pa.string()),
}
SCHEMA = pa.schema([*((name, _TYPES[name]) for name in _FROM), ("served_entity_id", pa.string())])


def usage_table(tables: Tables) -> SystemTable:
    """What computes it, from an inference table."""

    def read(catalog: Catalog, storage: Storage, caller: Principal) -> pa.Table:
        try:
            record, delta = tables.open(INFERENCE_TABLE)
        except NotFound:  # nothing was ever served here
            return SCHEMA.empty_table()
        there = arrow_schema(delta).names
        rows = dataset(storage, record.location, delta).to_table(
            columns=[name for name in _FROM.values() if name in there], filter=_visible(catalog, caller)
        )
        return _as_usage(rows)

    return read


def _visible(catalog: Catalog, caller: Principal) -> pc.Expression | None:
    """Which rows a caller may see; None for all."""
    viewer = Viewer(catalog, caller)
    if viewer.sees_everything:
        return None
    own = pc.field("principal") == caller.name
    managed = ((one.name, viewer.managed(one.name)) for one in catalog.endpoints.list())
    of_managed = [(pc.field("endpoint") == name) & _within(spans) for name, spans in managed if spans]
    return functools.reduce(operator.or_, of_managed, own)


def _within(spans: Iterable[Span]) -> pc.Expression:
    """The times in which the name was that of the endpoint that has it now."""
    time, either = pc.field("request_time"), []
    for first, end in spans:
        one = pc.scalar(True)
        if first is not None:
            one = one & (time >= pa.scalar(first, pa.timestamp("us", tz="UTC")))
        if end is not None:
            one = one & (time < pa.scalar(end, pa.timestamp("us", tz="UTC")))
        either.append(one)
    return functools.reduce(operator.or_, either)


def _as_usage(rows: pa.Table) -> pa.Table:
    columns = {name: _column(rows, name, source) for name, source in _FROM.items()}
    version = pc.cast(columns["endpoint_config_version"], pa.string())
    # As `payloads.served_entity_id` has it.
    at = pc.binary_join_element_wise(columns["endpoint_name"], version, "@")
    columns["served_entity_id"] = pc.binary_join_element_wise(at, columns["served_entity_name"], "/")
    return pa.table(columns, schema=SCHEMA)


def _column(rows: pa.Table, name: str, source: str) -> pa.ChunkedArray | pa.Array:
    kind = SCHEMA.field(name).type
    if source not in rows.column_names:
        return pa.nulls(rows.num_rows, kind)
    if name == "usage_context":
        told = rows[source].to_pylist()
        return pa.array([None if one is None else list(json.loads(one).items()) for one in told], kind)
    return pc.cast(rows[source], kind)
