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
_AS_WRITTEN = re.ASCII | re.IGNORECASE
_DECIMAL = re.compile(
    r"(?:decimal|decimal128|decimal256|dec|numeric)\(\s*([0-9]{1,2})\s*,\s*([0-9]{1,2})\s*\)", _AS_WRITTEN
)
_TIMESTAMP = re.compile(r"timestamp\[(?:s|ms|us|ns)(, *tz=[^\]]+)?\]", _AS_WRITTEN)
_FIXED_BINARY = re.compile(r"fixed_size_binary\[[0-9]+\]", _AS_WRITTEN)
_DATE = re.compile(r"date32\[day\]", _AS_WRITTEN)
_WORD = re.compile(r"([a-z0-9_]+)\s*", _AS_WRITTEN)
_SPACE = re.compile(r"\s*")
_SIZE = re.compile(r"\[[0-9]+\]")
_NOT_NULL = re.compile(r"\s*not null", _AS_WRITTEN)
_MAP_DETAIL = re.compile(r"\s*\('[^']*', '[^']*'\)|, keys_sorted")
_FIELD = re.compile(r"`([^`]+)`|([^:<>,`]+)")
_ELEMENT_NAME = re.compile(r"(?:item|element|value|key): *")
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
    text = text.strip()
    parsed, end = _parse(text, 0, 0)
    if rest := text[end:].lstrip():
        raise BadRequest(f"type {text[:80]!r} is not understood from {rest[:40]!r} on", param="type_text")
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


def _parse(text: str, at: int, depth: int) -> tuple[Json, int]:
    """One type that begins at a position of a text, and where it ends.

    Goes by positions and copies no rest, so that its time grows with the text's length alone.
    """
    if depth > _DEEPEST:
        raise BadRequest(f"a type is nested deeper than {_DEEPEST} levels", param="type_text")
    if found := _DECIMAL.match(text, at):
        if int(found[2]) > int(found[1]) or not 1 <= int(found[1]) <= 38:
            raise BadRequest(f"type {found[0]!r}: Delta has decimal(1,0) to decimal(38,38)", param="type_text")
        return f"decimal({int(found[1])},{int(found[2])})", found.end()
    if found := _TIMESTAMP.match(text, at):
        return "timestamp" if found[1] else "timestamp_ntz", found.end()
    if found := _FIXED_BINARY.match(text, at):
        return "binary", found.end()
    if found := _DATE.match(text, at):
        return "date", found.end()
    word = _WORD.match(text, at)
    name, end = (word[1].lower(), word.end()) if word else ("", at)
    within = end + 1 if text.startswith("<", end) else None
    if name in _LISTS and within is not None:
        element, nullable, end = _element(text, _past_space(text, within), depth)
        end = _past_any(_SIZE, text, _past(">", text, end))
        return {"type": "array", "elementType": element, "containsNull": nullable}, end
    if name == "map" and within is not None:
        key, end = _parse(text, _past_space(text, within), depth + 1)
        end = _past_space(text, _past(",", text, _past_any(_NOT_NULL, text, end)))
        value, nullable, end = _element(text, end, depth)
        end = _past(">", text, _past_any(_MAP_DETAIL, text, end))
        return {"type": "map", "keyType": key, "valueType": value, "valueContainsNull": nullable}, end
    if name == "struct" and within is not None:
        return _struct(text, within, depth)
    if name in _SPELLINGS:
        return _SPELLINGS[name], end
    shown = text[at : at + 80]
    raise BadRequest(f"type {shown!r} is none of Delta's; there are {sorted(_PRIMITIVES)}", param="type_text")


def _struct(text: str, at: int, depth: int) -> tuple[Json, int]:
    fields: list[dict[str, Any]] = []
    while not text.startswith(">", at := _past_space(text, at)):
        if fields:
            at = _past_space(text, _past(",", text, at))
        found = _FIELD.match(text, at)
        if found is None:
            raise BadRequest(f"a struct's field has no name at {text[at : at + 40]!r}", param="type_text")
        at = _past_space(text, _past(":", text, found.end()))
        element, nullable, at = _element(text, at, depth)
        name = (found[1] or found[2]).strip()
        fields.append({"name": name, "type": element, "nullable": nullable, "metadata": {}})
    return {"type": "struct", "fields": fields}, at + 1


def _element(text: str, at: int, depth: int) -> tuple[Json, bool, int]:
    """A type within another; Arrow names it (`item: int64 not null`), Spark does not."""
    parsed, end = _parse(text, _past_any(_ELEMENT_NAME, text, at), depth + 1)
    required = _NOT_NULL.match(text, end)
    return parsed, required is None, required.end() if required else end


def _past(mark: str, text: str, at: int) -> int:
    at = _past_space(text, at)
    if not text.startswith(mark, at):
        raise BadRequest(f"a type lacks {mark!r} at {text[at : at + 40]!r}", param="type_text")
    return at + len(mark)


def _past_any(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Behind what may be there."""
    found = pattern.match(text, at)
    return found.end() if found else at


def _past_space(text: str, at: int) -> int:
    return _past_any(_SPACE, text, at)


def _checked(value: object, depth: int) -> Json:
    """A type in Spark's JSON as it should be."""
    if isinstance(value, str):
        parsed, end = _parse(value, 0, depth)
        if end == len(value) and isinstance(parsed, str):
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
