"""Columns and values in Databricks' words: type names, values as the strings of a JSON_ARRAY, typed parameters."""

import base64
import datetime as dt
import json
import math
import re
from collections.abc import Callable
from decimal import Context, Decimal, InvalidOperation
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


_DAYS_OF_400_YEARS = 146_097


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
    """A column's values in Python, maps as dicts by their keys' texts; a text where Python has no such value.

    Python's moments have microseconds, and end with the year 9999; DuckDB's go on, to infinity, and its days to 24:00.
    """
    kind = column.type
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        column = column.cast(pa.timestamp("us", kind.tz), safe=False)
    if not (pa.types.is_nested(kind) or pa.types.is_temporal(kind)):
        return list(column.to_pylist())
    return [_python(value) for value in column]


def _python(value: pa.Scalar) -> Any:
    kind = value.type
    if not value.is_valid:
        return None
    if pa.types.is_map(kind):
        return {as_string(_python(pair[0])): _python(pair[1]) for pair in value.values or ()}
    if pa.types.is_struct(kind):
        return {kind.field(at).name: _python(value[at]) for at in range(kind.num_fields)}
    if pa.types.is_union(kind):
        return _python(value.value)
    if pa.types.is_nested(kind):
        return [_python(item) for item in value.values or ()]
    if pa.types.is_interval(kind):
        return _interval(value.as_py())
    if pa.types.is_time64(kind) and value.value == 86_400 * 10 ** (6 if kind.unit == "us" else 9):
        return "24:00:00"
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        value = value.cast(pa.timestamp("us", kind.tz), safe=False)
    try:
        return value.as_py()
    except (OverflowError, ValueError):
        return _far(value)


def _far(value: pa.Scalar) -> str:
    """A date or moment that Python does not reach."""
    kind, number = value.type, value.value
    if pa.types.is_date32(kind):
        return _infinite(number, 31) or _far_day(number)
    per_second = {"s": 1, "ms": 10**3, "us": 10**6}[kind.unit]
    if infinite := _infinite(number, 63):
        return infinite
    days, rest = divmod(number, 86_400 * per_second)
    time = (dt.datetime.min + dt.timedelta(microseconds=rest * (10**6 // per_second))).time()
    text = time.isoformat(timespec="microseconds" if time.microsecond % 1000 else "milliseconds")
    day, _, before = _far_day(days).partition(" ")
    return f"{day}T{text}{'' if kind.tz is None else 'Z'}{before and ' ' + before}"


def _infinite(number: int, bits: int) -> str | None:
    return {2**bits - 1: "infinity", 1 - 2**bits: "-infinity"}.get(number)


def _far_day(days: int) -> str:
    """Days since 1970; the calendar comes again every 400 years."""
    rounds, rest = divmod(days, _DAYS_OF_400_YEARS)
    day = dt.date(1970, 1, 1) + dt.timedelta(days=rest)
    year = day.year + 400 * rounds
    return f"{year:04d}-{day:%m-%d}" if year > 0 else f"{1 - year:04d}-{day:%m-%d} (BC)"


def _interval(value: Any) -> str:
    """As DuckDB writes it: `1 year 2 months 3 days 00:00:02.5`."""
    years, months = int(value.months / 12), int(math.fmod(value.months, 12))
    named = ((years, "year"), (months, "month"), (value.days, "day"))
    parts = [f"{count} {unit}{'' if abs(count) == 1 else 's'}" for count, unit in named if count]
    if value.nanoseconds or not parts:
        seconds, rest = divmod(abs(value.nanoseconds) // 1000, 10**6)
        fraction = f".{rest:06d}".rstrip("0") if rest else ""
        sign = "-" if value.nanoseconds < 0 else ""
        parts.append(f"{sign}{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{fraction}")
    return " ".join(parts)


def as_string(value: Any) -> str | None:
    """One value; what is nested is JSON."""
    if value is None:
        return None
    if isinstance(value, dict | list):
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
    if isinstance(value, list):
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
    match = re.fullmatch(r"DECIMAL *\( *([0-9]{1,2}) *(?:, *([0-9]{1,2}) *)?\)", wanted)
    base = "DECIMAL" if match else wanted
    if base not in _PARAMETERS:
        raise BadRequest(
            f"parameter {name!r} has the type {kind!r}; there are {sorted(_PARAMETERS)} and DECIMAL(p,s)",
            param="parameters",
        )
    if match and not (1 <= int(match[1]) <= 38 and int(match[2] or 0) <= int(match[1])):
        raise BadRequest(
            f"parameter {name!r} has the type {kind!r}; a DECIMAL(p,s) has p from 1 to 38 and s from 0 to p",
            param="parameters",
        )
    if value is None:
        return None
    try:
        parsed = _PARAMETERS[base](value)
        return _fitting(parsed, int(match[1]), int(match[2] or 0)) if match else parsed
    except (ValueError, OverflowError, InvalidOperation, KeyError):
        raise BadRequest(f"parameter {name!r} = {value[:80]!r} is no {wanted}", param="parameters") from None


def _whole(bits: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,40}", text):  # Python's own takes 1_000 too
            raise ValueError
        number = int(text)
        if not -(2 ** (bits - 1)) <= number < 2 ** (bits - 1):
            raise ValueError
        return number

    return parse


def _float(text: str) -> float:
    if "_" in text:
        raise ValueError
    return float(text)


def _decimal(text: str) -> Decimal:
    number = Decimal(text)
    if "_" in text or not number.is_finite() or abs(number.adjusted()) > 38:
        raise ValueError
    return number


def _fitting(number: Decimal, precision: int, scale: int) -> Decimal:
    """The number with exactly so many decimals; raises ValueError where that is another number, or too long."""
    exact = number.quantize(Decimal(1).scaleb(-scale), context=Context(prec=100))
    if exact != number or exact.copy_abs() >= Decimal(10) ** (precision - scale):
        raise ValueError
    return exact


_PARAMETERS: dict[str, Callable[[str], Any]] = {
    "STRING": str,
    "BOOLEAN": lambda text: {"true": True, "false": False}[text.lower()],
    "TINYINT": _whole(8),
    "SMALLINT": _whole(16),
    "INT": _whole(32),
    "BIGINT": _whole(64),
    "LONG": _whole(64),
    "FLOAT": _float,
    "DOUBLE": _float,
    "DECIMAL": _decimal,
    "DATE": dt.date.fromisoformat,
    "TIMESTAMP": lambda text: dt.datetime.fromisoformat(text).replace(
        tzinfo=dt.datetime.fromisoformat(text).tzinfo or dt.UTC
    ),
    "TIMESTAMP_NTZ": lambda text: dt.datetime.fromisoformat(text).replace(tzinfo=None),
    "VOID": lambda text: None,
}
