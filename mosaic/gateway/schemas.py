"""JSON schemas and regular expressions that answers are to follow, held to what engines can take.

Engines turn them into grammars in their own process: `{"type": "array", "minItems": 1000000000}` alone makes vLLM's
fallback (llguidance) ask for 8 GiB and abort, and a pattern with a count of 10,000 keeps xgrammar busy for 10 s, with
everybody waiting. What they would silently not hold to is refused too. Whether it is a schema at all is the engine's
to say.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mosaic.errors import BadRequest, UnsupportedField

_MOST, _MOST_REPEATS, _LONGEST_REGEX = 100_000, 1000, 4096
_COUNTS = {f"{end}{what}" for end in ("min", "max") for what in ("Items", "Length", "Properties", "Contains")}
_NAMES_TO_SCHEMAS = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
_DATA = {"enum", "const", "default", "examples", "required"}
_NOT_HELD = {
    "not",
    "if",
    "then",
    "else",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedItems",
    "unevaluatedProperties",
}


def check_schema(schema: Mapping[str, Any], param: str, *, is_held: bool = True) -> None:
    """Raises BadRequest that names the keyword; `is_held`: answers must follow it, not only models read it."""
    for one in _within(schema):
        for key, value in one.items():
            if key in _COUNTS and not (type(value) is int and 0 <= value <= _MOST):
                raise BadRequest(f"{param}: {key} = {value!r:.80} must be a whole number up to {_MOST}", param=param)
            if key == "$ref" and not str(value).startswith("#"):
                raise BadRequest(f"{param}: $ref = {value!r:.80} must point into the schema itself (#...)", param=param)
            if is_held and key in _NOT_HELD:
                raise UnsupportedField(f"{param}: {key!r} is no keyword that answers are held to", param=param)
            if key == "pattern" and isinstance(value, str):
                check_regex(value, param)
            if key == "patternProperties" and isinstance(value, Mapping):
                for pattern in value:
                    check_regex(pattern, param)


def check_regex(regex: str, param: str) -> None:
    """Raises BadRequest for one that would keep an engine busy."""
    if len(regex) > _LONGEST_REGEX:
        raise BadRequest(f"{param}: a regular expression has {len(regex)} characters of {_LONGEST_REGEX}", param=param)
    for found in re.finditer(r"\{(\d+)(?:,(\d*))?\}", regex):
        if any(len(count) > 9 or int(count) > _MOST_REPEATS for count in found.groups() if count):
            raise BadRequest(f"{param}: {found.group()[:80]} repeats more than {_MOST_REPEATS} times", param=param)


def _within(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The schema and all schemas in it; names of properties and plain data are none."""
    waiting: list[Any] = [schema]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, Mapping):
            yield one
            for key, value in one.items():
                if key in _NAMES_TO_SCHEMAS and isinstance(value, Mapping):
                    waiting += value.values()
                elif key not in _DATA:
                    waiting.append(value)
