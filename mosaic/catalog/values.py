"""What callers hand in to be kept as JSON: checked before a transaction starts."""

import json
import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from mosaic.errors import BadRequest


def json_object(value: Mapping[str, Any], field: str) -> dict[str, Any]:
    """The mapping as plain JSON (tuples become lists); raises BadRequest for what JSON cannot hold."""
    _check_keys(value, field)
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise BadRequest(f"{field} cannot be kept as JSON: {error}", param=field) from None
    return plain


def _check_keys(value: object, field: str) -> None:
    """JSON would turn other keys into text without a word."""
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise BadRequest(f"{field} has keys that are not text: {wrong}", param=field)
        for item in value.values():
            _check_keys(item, field)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_keys(item, field)


def texts(value: Mapping[str, str], field: str) -> dict[str, str]:
    """A mapping of text to text; raises BadRequest."""
    for key, item in value.items():
        if not isinstance(key, str) or not isinstance(item, str):
            raise BadRequest(f"{field} maps text to text, but has {key!r}: {item!r}", param=field)
    return dict(value)


def checksums(value: Mapping[str, str]) -> dict[str, str]:
    """Checksums by relative path; raises BadRequest for what is no SHA-256 in hexadecimal."""
    checked = texts(value, "checksums")
    for path, digest in checked.items():
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise BadRequest(f"checksum of {path!r} must be 64 hexadecimal digits, not {digest!r}", param="checksums")
    return checked


def pack_metrics(metrics: Mapping[str, float]) -> dict[str, float | str]:
    """Metrics for JSON: what it cannot hold (nan, inf: a training that diverged) as text."""
    packed: dict[str, float | str] = {}
    for name, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadRequest(f"metric {name!r} must be a number, not {value!r}", param="metrics")
        packed[name] = float(value) if math.isfinite(value) else str(float(value))
    return packed


def aware(moment: datetime, field: str) -> datetime:
    """A moment with a time zone; raises BadRequest for one without."""
    if moment.tzinfo is None:
        raise BadRequest(f"{field} = {moment.isoformat()} has no time zone; say which, such as UTC", param=field)
    return moment


def dumped(value: Mapping[str, str]) -> bytes:
    """A mapping of text to text, as bytes to be encrypted."""
    return json.dumps(dict(value)).encode()


def loaded(value: bytes) -> dict[str, str]:
    """What `dumped` made."""
    return {str(key): str(item) for key, item in json.loads(value).items()}
