"""Column types: from Arrow's or Spark's spelling, as the catalog keeps them, to the three ways in which Unity Catalog
says them (Spark's short text, Spark's JSON, an enum)."""

import json
import re
from dataclasses import dataclass
from typing import Any

from mosaic.errors import BadRequest

Json = str | dict[str, Any]

# Delta's primitive types in Spark's JSON -> (Spark's short text, Unity Catalog's enum).
_PRIMITIVES = {
    "boolean": ("boolean", "BOOLEAN"),
    "byte": ("tinyint", "BYTE"),
    "short": ("smallint", "SHORT"),
    "integer": ("int", "INT"),
    "long": ("bigint", "LONG"),
    "float": ("float", "FLOAT"),
    "double": ("double", "DOUBLE"),
    "date": ("date", "DATE"),
    "timestamp": ("timestamp", "TIMESTAMP"),
    "timestamp_ntz": ("timestamp_ntz", "TIMESTAMP_NTZ"),
    "string": ("string", "STRING"),
    "binary": ("binary", "BINARY"),
    "variant": ("variant", "VARIANT"),
    "void": ("void", "NULL"),
}
# Other spellings: SQL's, and Arrow's as Delta stores them (it has no unsigned integers).
_SPELLINGS = {
    **{name: name for name in _PRIMITIVES},
    **{text: name for name, (text, _) in _PRIMITIVES.items()},
    **dict.fromkeys(("bool",), "boolean"),
    **dict.fromkeys(("int8", "uint8"), "byte"),
    **dict.fromkeys(("int16", "uint16"), "short"),
    **dict.fromkeys(("int32", "uint32"), "integer"),
    **dict.fromkeys(("int64", "uint64"), "long"),
    **dict.fromkeys(("real",), "float"),
    **dict.fromkeys(("large_string", "string_view"), "string"),
    **dict.fromkeys(("large_binary", "binary_view"), "binary"),
    **dict.fromkeys(("null",), "void"),
}
_LISTS = ("array", "list", "large_list", "fixed_size_list", "list_view")
_DECIMAL = re.compile(r"(?:decimal|decimal128|decimal256|dec|numeric)\(\s*([0-9]{1,2})\s*,\s*([0-9]{1,2})\s*\)")
_TIMESTAMP = re.compile(r"timestamp\[(?:s|ms|us|ns)(, *tz=[^\]]+)?\]")
_FIXED_BINARY = re.compile(r"fixed_size_binary\[[0-9]+\]")
_WORD = re.compile(r"[a-z0-9_]+")
_DEEPEST = 50


@dataclass(frozen=True)
class SparkType:
    """A type in Spark's JSON; the other spellings follow from it."""

    json: Json

    @property
    def text(self) -> str:
        return _text(self.json)

    @property
    def name(self) -> str:
        if isinstance(self.json, dict):
            return str(self.json["type"]).upper()
        return "DECIMAL" if self.json.startswith("decimal") else _PRIMITIVES[self.json][1]

    @property
    def precision_scale(self) -> tuple[int, int]:
        """Of a decimal; 0 and 0 of anything else, since old clients fail on null."""
        found = _DECIMAL.fullmatch(self.json) if isinstance(self.json, str) else None
        return (0, 0) if found is None else (int(found[1]), int(found[2]))


def parse_type(text: str) -> SparkType:
    """A type from Arrow's text (`list<item: int64>`) or Spark's (`array<bigint>`); raises BadRequest."""
    parsed, rest = _parse(text.strip(), 0)
    if rest.strip():
        raise BadRequest(f"type {text[:80]!r} is not understood from {rest.strip()[:40]!r} on", param="type_text")
    return SparkType(parsed)


def parse_json(text: str) -> tuple[SparkType, dict[str, Any]]:
    """The type of a Spark JSON field `{"name": ..., "type": ..., "nullable": ..., "metadata": ...}` or bare type, and
    the field's metadata; raises BadRequest."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # fails for half a surrogate pair, which no answer could carry
    except (ValueError, RecursionError):
        value = text  # a bare word such as long
    metadata: object = {}
    if isinstance(value, dict) and "name" in value:
        metadata = value.get("metadata") or {}
        value = value.get("type")
    if not isinstance(metadata, dict):
        raise BadRequest(f"type_json {text[:80]!r} has metadata that is no JSON object", param="type_json")
    return SparkType(_checked(value, 0)), metadata


def _parse(text: str, depth: int) -> tuple[Json, str]:
    """One type from the start of a text, and what is left."""
    if depth > _DEEPEST:
        raise BadRequest(f"a type is nested deeper than {_DEEPEST} levels", param="type_text")
    lowered = text.lower()
    if found := _DECIMAL.match(lowered):
        if int(found[2]) > int(found[1]) or not 1 <= int(found[1]) <= 38:
            raise BadRequest(f"type {found[0]!r}: Delta has decimal(1,0) to decimal(38,38)", param="type_text")
        return f"decimal({int(found[1])},{int(found[2])})", text[found.end() :]
    if found := _TIMESTAMP.match(lowered):
        return "timestamp" if found[1] else "timestamp_ntz", text[found.end() :]
    if found := _FIXED_BINARY.match(lowered):
        return "binary", text[found.end() :]
    if lowered.startswith("date32[day]"):
        return "date", text[len("date32[day]") :]
    word = _WORD.match(lowered)
    name, rest = (word[0], text[word.end() :].lstrip()) if word else ("", text)
    if name in _LISTS and rest.startswith("<"):
        element, nullable, rest = _element(rest[1:].lstrip(), depth)
        rest = re.sub(r"^\[[0-9]+\]", "", _past(">", rest))
        return {"type": "array", "elementType": element, "containsNull": nullable}, rest
    if name == "map" and rest.startswith("<"):
        key, rest = _parse(rest[1:].lstrip(), depth + 1)
        value, nullable, rest = _element(_past(",", _not_null(rest)[1]).lstrip(), depth)
        rest = re.sub(r"^\s*\('[^']*', '[^']*'\)|^, keys_sorted", "", rest)
        return {"type": "map", "keyType": key, "valueType": value, "valueContainsNull": nullable}, _past(">", rest)
    if name == "struct" and rest.startswith("<"):
        return _struct(rest[1:], depth)
    if name in _SPELLINGS:
        return _SPELLINGS[name], rest
    raise BadRequest(f"type {text[:80]!r} is none of Delta's; there are {sorted(_PRIMITIVES)}", param="type_text")


def _struct(rest: str, depth: int) -> tuple[Json, str]:
    fields: list[dict[str, Any]] = []
    while not (rest := rest.lstrip()).startswith(">"):
        if fields:
            rest = _past(",", rest).lstrip()
        found = re.match(r"`([^`]+)`|([^:<>,`]+)", rest)
        if found is None:
            raise BadRequest(f"a struct's field has no name at {rest[:40]!r}", param="type_text")
        element, nullable, rest = _element(_past(":", rest[found.end() :].lstrip()).lstrip(), depth)
        name = (found[1] or found[2]).strip()
        fields.append({"name": name, "type": element, "nullable": nullable, "metadata": {}})
    return {"type": "struct", "fields": fields}, rest[1:]


def _element(text: str, depth: int) -> tuple[Json, bool, str]:
    """A type within another; Arrow names it (`item: int64 not null`), Spark does not."""
    text = re.sub(r"^(item|element|value|key): *", "", text)
    parsed, rest = _parse(text, depth + 1)
    required, rest = _not_null(rest)
    return parsed, not required, rest


def _not_null(rest: str) -> tuple[bool, str]:
    found = re.match(r"\s*not null", rest, re.IGNORECASE)
    return (True, rest[found.end() :]) if found else (False, rest)


def _past(mark: str, rest: str) -> str:
    rest = rest.lstrip()
    if not rest.startswith(mark):
        raise BadRequest(f"a type lacks {mark!r} at {rest[:40]!r}", param="type_text")
    return rest[1:]


def _checked(value: object, depth: int) -> Json:
    """A type in Spark's JSON as it should be."""
    if isinstance(value, str):
        parsed, rest = _parse(value, depth)
        if not rest and isinstance(parsed, str):
            return parsed
    if isinstance(value, dict) and depth < _DEEPEST:
        kind = value.get("type")
        if kind == "array":
            element = _checked(value.get("elementType"), depth + 1)
            return {"type": "array", "elementType": element, "containsNull": value.get("containsNull") is not False}
        if kind == "map":
            key, item = _checked(value.get("keyType"), depth + 1), _checked(value.get("valueType"), depth + 1)
            nullable = value.get("valueContainsNull") is not False
            return {"type": "map", "keyType": key, "valueType": item, "valueContainsNull": nullable}
        if kind == "struct" and isinstance(value.get("fields"), list):
            return {"type": "struct", "fields": [_checked_field(field, depth) for field in value["fields"]]}
    raise BadRequest(f"type_json {str(value)[:80]!r} is no type in Spark's JSON", param="type_json")


def _checked_field(field: object, depth: int) -> dict[str, Any]:
    if not isinstance(field, dict) or not isinstance(field.get("name"), str):
        raise BadRequest(f"type_json has a struct with a field without name: {str(field)[:80]!r}", param="type_json")
    metadata = field.get("metadata")
    return {
        "name": field["name"],
        "type": _checked(field.get("type"), depth + 1),
        "nullable": field.get("nullable") is not False,
        "metadata": metadata if isinstance(metadata, dict) else {},
    }


def _text(value: Json) -> str:
    if isinstance(value, str):
        return value if value.startswith("decimal") else _PRIMITIVES[value][0]
    if value["type"] == "array":
        return f"array<{_text(value['elementType'])}>"
    if value["type"] == "map":
        return f"map<{_text(value['keyType'])},{_text(value['valueType'])}>"
    fields = ",".join(f"{field['name']}:{_text(field['type'])}" for field in value["fields"])
    return f"struct<{fields}>"
