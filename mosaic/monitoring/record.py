"""One request as the inference table keeps it: the columns, and how a row of the log becomes a row of the table."""

import json
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

INFERENCE_TABLE = "system.serving.inference"

SCHEMA = pa.schema(
    [
        pa.field("request_id", pa.string(), nullable=False),
        ("client_request_id", pa.string()),
        ("parent_request_id", pa.string()),
        pa.field("request_time", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("request_date", pa.date32(), nullable=False),
        pa.field("status_code", pa.int32(), nullable=False),
        ("error", pa.string()),
        ("method", pa.string()),
        ("path", pa.string()),
        ("principal", pa.string()),
        ("token_id", pa.string()),
        ("endpoint", pa.string()),
        ("endpoint_config_version", pa.int64()),
        ("served_entity", pa.string()),
        ("model", pa.string()),
        ("model_version", pa.int64()),
        ("model_alias", pa.string()),
        ("adapter", pa.string()),
        ("streamed", pa.bool_()),
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("first_token_milliseconds", pa.float64()),
        ("duration_milliseconds", pa.float64()),
        ("request", pa.string()),
        ("response", pa.string()),
        ("retrieved_index", pa.string()),
        ("retrieved_version", pa.int64()),
        ("retrieved_ids", pa.list_(pa.string())),
        ("gateway", pa.string()),
        ("guardrails", pa.string()),
        ("attempts", pa.string()),
        ("cached_input_tokens", pa.int64()),
        ("cost_nano_dollars", pa.int64()),
        ("price_version", pa.int64()),
        ("gpu_seconds", pa.float64()),
        ("usage_context", pa.string()),
        ("reasoning_tokens", pa.int64()),
        ("input_characters", pa.int64()),
        ("output_characters", pa.int64()),
        ("randomization_unit", pa.string()),
        ("cached", pa.bool_()),
    ]
)
"""Column for column what Databricks' inference tables hold, with the exact versions that they lack."""

LOST_STATUS = 599
"""A request whose gateway died before it ended: what its client saw is not known."""


def to_arrow(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows of the log, as the table's columns; what begins with `_` is for whoever ships them, and another unknown key
    is our own bug and raises."""
    unknown = {key for row in rows for key in row if key[0] != "_"} - set(SCHEMA.names)
    assert not unknown, f"columns that the inference table lacks: {sorted(unknown)}"
    columns: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in SCHEMA.names}
    times = [datetime.fromtimestamp(microseconds / 1e6, UTC) for microseconds in columns["request_time"]]
    columns["request_time"] = times
    columns["request_date"] = [time.date() for time in times]
    return pa.Table.from_pydict(columns, schema=SCHEMA)


def lost(opened: dict[str, Any]) -> dict[str, Any]:
    """The row of a request that was opened and never closed, because its gateway was killed."""
    return {**opened, "status_code": LOST_STATUS, "error": "the gateway ended before the request did"}


def compact_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
