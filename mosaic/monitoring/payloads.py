"""The inference table of one endpoint, in Databricks' columns and with more; and texts that are too large for a column.

A text over 1 MiB is an object in the folder of the table that has its row, and the column says where. The object is
there before the row is: whoever ships writes it under a name that only this text of this request has, then commits. A
shipper that is killed in between leaves an object that the next one writes again, and whose row comes then.
"""

import hashlib
import json
import re
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa

from mosaic.data import Tables
from mosaic.errors import BadRequest, Unavailable
from mosaic.ids import is_id
from mosaic.monitoring.keeping import PAYLOAD
from mosaic.monitoring.record import compact_json
from mosaic.protocol import Principal
from mosaic.storage import Storage

LARGE_BYTES = 1024 * 1024
"""A text of more, in UTF-8, is an object."""
FOLDER = "_payloads"
"""Within a table's folder. Delta's vacuum leaves alone what begins with an underscore."""
OBJECT_WRITTEN = "object-written"
"""What `at` is told between an object and the commit that refers to it."""
_WHOLE_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+){2}")
_CODES = {"request": "MAX_REQUEST_SIZE_EXCEEDED", "response": "MAX_RESPONSE_SIZE_EXCEEDED"}

PAYLOAD_SCHEMA = pa.schema(
    [
        pa.field("databricks_request_id", pa.string(), nullable=False),
        ("client_request_id", pa.string()),
        pa.field("request_date", pa.date32(), nullable=False),
        pa.field("request_time", pa.timestamp("us", tz="UTC"), nullable=False),
        ("status_code", pa.int32()),
        ("sampling_fraction", pa.float64()),
        ("execution_duration_ms", pa.int64()),
        ("request", pa.string()),
        ("response", pa.string()),
        ("served_entity_id", pa.string()),
        ("logging_error_codes", pa.list_(pa.string())),
        ("requester", pa.string()),
        ("endpoint", pa.string()),
        ("endpoint_config_version", pa.int64()),
        ("served_entity", pa.string()),
        ("model", pa.string()),
        ("model_version", pa.int64()),
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("cached_input_tokens", pa.int64()),
        ("reasoning_tokens", pa.int64()),
        ("cost_nano_dollars", pa.int64()),
        ("price_version", pa.int64()),
        ("gpu_seconds", pa.float64()),
        ("first_token_ms", pa.float64()),
        ("guardrails", pa.string()),
        ("usage_context", pa.string()),
        ("error", pa.string()),
        ("trace_id", pa.string()),
    ]
)
"""The first twelve are Databricks'."""

_SAME = [name for name in PAYLOAD_SCHEMA.names if name not in ("first_token_ms", "trace_id", "logging_error_codes")]


def served_entity_id(row: dict[str, Any]) -> str | None:
    """Which entity of which configuration: `main.serving.helper@3/ours`."""
    if row.get("served_entity") is None:
        return None
    return f"{row['endpoint']}@{row['endpoint_config_version']}/{row['served_entity']}"


def to_arrow(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows of the log as an endpoint's own table has them; `_large` says which of their texts are objects."""
    return pa.Table.from_pylist([_payload(row) for row in rows], schema=PAYLOAD_SCHEMA)


def _payload(row: dict[str, Any]) -> dict[str, Any]:
    time = datetime.fromtimestamp(row["request_time"] / 1e6, UTC)
    duration = row.get("duration_milliseconds")
    return {
        **{name: row.get(name) for name in _SAME},
        "databricks_request_id": row["request_id"],
        "request_date": time.date(),
        "request_time": time,
        "sampling_fraction": row[PAYLOAD]["sampling_fraction"],
        "execution_duration_ms": None if duration is None else round(duration),
        "served_entity_id": served_entity_id(row),
        "logging_error_codes": [_CODES[field] for field in row.get("_large", ())],
        "requester": row.get("principal"),
        "first_token_ms": row.get("first_token_milliseconds"),
        "trace_id": row["request_id"],
    }


def make_payload_table(tables: Tables, principal: Principal, name: str) -> None:
    """Make an endpoint's own table, which belongs to `principal`, or find it there.

    Raises PermissionDenied unless the principal may make it, or MODIFY the one that is there; NotFound for a schema
    that is not; Conflict for a table with other columns.
    """
    acting = tables.acting(principal)
    acting.create(
        name,
        PAYLOAD_SCHEMA,
        primary_key="databricks_request_id",
        owner=principal.name,
        comment="What was asked of a serving endpoint, and answered.",
    )
    acting.place(name, write=True)


def with_objects(
    rows: list[dict[str, Any]], storage: Storage, location: str, at: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The rows with each large text as an object in the table's folder, and in its column where that is."""
    return [_with_objects(row, storage, location, at) for row in rows]


def _with_objects(row: dict[str, Any], storage: Storage, location: str, at: Callable[[str], None]) -> dict[str, Any]:
    large: dict[str, str] = {}
    for field in _CODES:
        text = row.get(field)
        # No character takes more than four bytes.
        if text is None or len(text) * 4 <= LARGE_BYTES or len(data := text.encode()) <= LARGE_BYTES:
            continue
        sha256 = hashlib.sha256(data).hexdigest()
        day = datetime.fromtimestamp(row["request_time"] / 1e6, UTC).date()
        place = f"{folder_of(row, day)}/{_file(row['request_id'], field, sha256)}"
        storage.write_bytes(f"{location}/{place}", data)
        at(OBJECT_WRITTEN)
        large[field] = compact_json({"object": place, "bytes": len(data), "sha256": sha256})
    return {**row, **large, "_large": list(large)} if large else row


def folder_of(row: dict[str, Any], day: date) -> str:
    """Below the table's own; by endpoint and day, so that what is too old goes as a whole."""
    # Of an endpoint that there is not the name is what a client wrote.
    named = row.get("endpoint") or ""
    return f"{FOLDER}/{named if _WHOLE_NAME.fullmatch(named) else 'none'}/{day.isoformat()}"


def whole_text(storage: Storage, location: str, request_id: str, field: str, value: str) -> str:
    """What the column `field` (`request` or `response`) of a row stands for: itself, or what is in its object.

    `location` is the table's. Raises NotFound for an object that is gone, Unavailable for one that is not as it was.
    """
    try:
        told = json.loads(value)
    except ValueError:
        return value
    if not isinstance(told, dict) or told.keys() != {"object", "bytes", "sha256"}:
        return value
    folder, _, name = str(told["object"]).rpartition("/")
    if not folder.startswith(f"{FOLDER}/") or name != _file(request_id, field, told["sha256"]):
        return value  # a client's own text that looks like a reference
    data = storage.read_bytes(f"{location}/{told['object']}")
    if hashlib.sha256(data).hexdigest() != told["sha256"]:
        raise Unavailable(f"the object {told['object']!r} at {location!r} is not what was written there")
    return data.decode()


def _file(request_id: str, field: str, sha256: str) -> str:
    named = f"{request_id}-" if is_id(request_id, "req") else ""
    return f"{named}{field}-{sha256}.json"


def check_columns(name: str, there: pa.Schema) -> None:
    """Raises BadRequest if a table is no longer one that payloads fit into."""
    for field in PAYLOAD_SCHEMA:
        if field.name not in there.names or there.field(field.name).type != field.type:
            raise BadRequest(f"table {name!r} has no column {field.name!r} of {field.type} any more")
