"""Columns and values in Databricks' words: type names, values as the strings of a JSON_ARRAY, typed parameters."""

import base64
import datetime as dt
import json
import math
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

import pyarrow as pa

from mosaic.errors import BadRequest
from mosaic.protocol import Wire

_SIMPLE: tuple[tuple[Callable[[pa.DataType], bool], str, str], ...] = (
    (pa.types.is_boolean, "BOOLEAN", "BOOLEAN"),
    (pa.types.is_int8, "BYTE", "TINYINT"),
    (lambda kind: kind in (pa.int16(), pa.uint8()), "SHORT", "SMALLINT"),
    (lambda kind: kind in (pa.int32(), pa.uint16()), "INT", "INT"),
    (lambda kind: kind in (pa.int64(), pa.uint32()), "LONG", "BIGINT"),
    (lambda kind: kind in (pa.float16(), pa.float32()), "FLOAT", "FLOAT"),
    (pa.types.is_float64, "DOUBLE", "DOUBLE"),
    (pa.types.is_date, "DATE", "DATE"),
    (lambda kind: pa.types.is_timestamp(kind) and kind.tz is None, "TIMESTAMP", "TIMESTAMP_NTZ"),
    (pa.types.is_timestamp, "TIMESTAMP", "TIMESTAMP"),
    (lambda kind: pa.types.is_interval(kind) or pa.types.is_duration(kind), "INTERVAL", "INTERVAL"),
    (pa.types.is_null, "NULL", "VOID"),
    (
        lambda kind: (
            pa.types.is_binary(kind)
            or pa.types.is_large_binary(kind)
            or pa.types.is_fixed_size_binary(kind)
            or pa.types.is_binary_view(kind)
        ),
        "BINARY",
        "BINARY",
    ),
)
"""What Databricks has no type for (times of day, unions) is STRING; unsigned numbers are the next wider signed ones."""


class Column(Wire):
    """A result's column."""

    name: str
    position: int
    type_name: str
    type_text: str
    type_precision: int | None = None
    type_scale: int | None = None


def columns(schema: pa.Schema) -> list[Column]:
    """A result's columns in Databricks' types."""
    found = []
    for position, field in enumerate(schema):
        base, text = type_names(field.type)
        column = Column(name=field.name, position=position, type_name=base, type_text=text)
        if base == "DECIMAL":
            precision, scale = re.findall(r"\d+", text)
            column = column.model_copy(update={"type_precision": int(precision), "type_scale": int(scale)})
        found.append(column)
    return found


def type_names(kind: pa.DataType) -> tuple[str, str]:
    """A type's base and full name: `("ARRAY", "ARRAY<BIGINT>")`."""
    if isinstance(kind, pa.ExtensionType):
        return type_names(kind.storage_type)
    for fits, base, text in _SIMPLE:
        if fits(kind):
            return base, text
    if pa.types.is_decimal(kind):
        return "DECIMAL", f"DECIMAL({kind.precision},{kind.scale})"
    if kind == pa.uint64():
        return "DECIMAL", "DECIMAL(20,0)"
    if pa.types.is_map(kind):
        return "MAP", f"MAP<{type_names(kind.key_type)[1]},{type_names(kind.item_type)[1]}>"
    if pa.types.is_struct(kind):
        fields = ",".join(f"{field.name}:{type_names(field.type)[1]}" for field in kind)
        return "STRUCT", f"STRUCT<{fields}>"
    if hasattr(kind, "value_type") and not pa.types.is_dictionary(kind):
        return "ARRAY", f"ARRAY<{type_names(kind.value_type)[1]}>"
    return "STRING", "STRING"


def strings(rows: pa.Table) -> list[list[str | None]]:
    """The rows as Databricks' JSON_ARRAY: every value a string, or null."""
    by_column = [[as_string(value) for value in plain(column)] for column in rows.columns]
    return [list(row) for row in zip(*by_column, strict=True)] if by_column else []


def plain(column: pa.ChunkedArray) -> list[Any]:
    """A column's values in Python; moments finer than Python's to the microsecond."""
    kind = column.type
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        column = column.cast(pa.timestamp("us", kind.tz), safe=False)
    return list(column.to_pylist())


def as_string(value: Any) -> str | None:
    """One value; what is nested is JSON."""
    if value is None:
        return None
    if isinstance(value, dict | list | tuple):
        return json.dumps(_for_json(value), ensure_ascii=False)
    return str(_for_json(value) if not isinstance(value, bool | float) else _scalar(value))


def _scalar(value: bool | float) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return repr(value)


def _for_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _for_json(item) for key, item in value.items()}
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return [_for_json(item) for item in value]
    if isinstance(value, list):
        if value and all(isinstance(item, tuple) and len(item) == 2 for item in value):  # a map
            return {str(_for_json(key)): _for_json(item) for key, item in value}
        return [_for_json(item) for item in value]
    if isinstance(value, dt.datetime):
        moment = value if value.tzinfo is None else value.astimezone(dt.UTC).replace(tzinfo=None)
        text = moment.isoformat(timespec="microseconds" if moment.microsecond % 1000 else "milliseconds")
        return text if value.tzinfo is None else f"{text}Z"
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return _scalar(value)
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)


def parameter(name: str, kind: str | None, value: str | None) -> Any:
    """A typed parameter's value; raises BadRequest."""
    wanted = (kind or "STRING").upper().strip()
    base = wanted.partition("(")[0].strip()
    if base not in _PARAMETERS:
        raise BadRequest(
            f"parameter {name!r} has the type {kind!r}; there are {sorted(_PARAMETERS)}", param="parameters"
        )
    if value is None:
        return None
    try:
        return _PARAMETERS[base](value)
    except (ValueError, InvalidOperation, KeyError):
        raise BadRequest(f"parameter {name!r} = {value[:80]!r} is no {wanted}", param="parameters") from None


def _whole(bits: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = int(text)
        if not -(2 ** (bits - 1)) <= number < 2 ** (bits - 1):
            raise ValueError
        return number

    return parse


_PARAMETERS: dict[str, Callable[[str], Any]] = {
    "STRING": str,
    "BOOLEAN": lambda text: {"true": True, "false": False}[text.lower()],
    "TINYINT": _whole(8),
    "SMALLINT": _whole(16),
    "INT": _whole(32),
    "BIGINT": _whole(64),
    "LONG": _whole(64),
    "FLOAT": float,
    "DOUBLE": float,
    "DECIMAL": Decimal,
    "DATE": dt.date.fromisoformat,
    "TIMESTAMP": lambda text: dt.datetime.fromisoformat(text).replace(
        tzinfo=dt.datetime.fromisoformat(text).tzinfo or dt.UTC
    ),
    "TIMESTAMP_NTZ": lambda text: dt.datetime.fromisoformat(text).replace(tzinfo=None),
    "VOID": lambda text: None,
}
