"""JSON schemas and regular expressions that answers are to follow, held to what engines can take.

Engines turn them into grammars in their own process: `{"type": "array", "minItems": 1000000000}` alone makes vLLM's
fallback (llguidance) ask for 8 GiB and abort, and a pattern with a count of 10,000 keeps xgrammar busy for 10 s, with
everybody waiting. What they would silently not hold to is refused too. Whether it is a schema at all is the engine's
to say.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mosaic.errors import BadRequest, UnsupportedField
from mosaic.serving.json_schemas import schemas_within

_MOST, _MOST_REPEATS, _LONGEST_REGEX = 100_000, 1000, 4096
_LARGEST_REGEX, _MOST_ELEMENTS = 10_000, 1_000_000
"""Signs with every one that is repeated counted as often, of a regular expression or of all in one field; and the
counts of elements there, of which llguidance takes some 160 bytes each."""
_REGEX_PARTS = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\{(?=[\d,])(\d*)(?:,(\d*))?\}|.", re.DOTALL)
_COUNTS = {f"{end}{what}" for end in ("min", "max") for what in ("Items", "Length", "Properties", "Contains")}
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


def check_schemas(schemas: Sequence[Mapping[str, Any]], param: str, *, is_held: bool = True) -> None:
    """Raises BadRequest that names the keyword; `is_held`: answers must follow them, not only models read them."""
    elements = size = 0
    for one in schemas_within(*schemas):
        for key, value in one.items():
            if key in _COUNTS and not (type(value) is int and 0 <= value <= _MOST):
                raise BadRequest(f"{param}: {key} = {value!r:.80} must be a whole number up to {_MOST}", param=param)
            if key in _COUNTS and not key.endswith("Length"):
                elements += value
            if key == "$ref" and not str(value).startswith("#"):
                raise BadRequest(f"{param}: $ref = {value!r:.80} must point into the schema itself (#...)", param=param)
            if is_held and key in _NOT_HELD:
                raise UnsupportedField(f"{param}: {key!r} is no keyword that answers are held to", param=param)
            if key == "pattern" and isinstance(value, str):
                size += check_regex(value, param)
            if key == "patternProperties" and isinstance(value, Mapping):
                for pattern in value:
                    size += check_regex(pattern, param)
    _check_size(size, param)
    if elements > _MOST_ELEMENTS:
        told = f"minItems, maxItems and the like add up to {elements:,}"
        raise BadRequest(f"{param}: {told}; at most {_MOST_ELEMENTS:,} together", param=param)


def check_regex(regex: str, param: str) -> int:
    """How large it is with all that is repeated written out; raises BadRequest for one that would keep an engine
    busy."""
    if len(regex) > _LONGEST_REGEX:
        raise BadRequest(f"{param}: a regular expression has {len(regex)} characters of {_LONGEST_REGEX}", param=param)
    open_groups, last = [0], 0  # their sizes; and the size of what a count would repeat
    for found in _REGEX_PARTS.finditer(regex):
        counts = [count for count in found.groups() if count]
        if any(len(count) > 9 or int(count) > _MOST_REPEATS for count in counts):
            raise BadRequest(f"{param}: {found.group()[:80]} repeats more than {_MOST_REPEATS} times", param=param)
        if counts:
            times = max(1, *map(int, counts))
            open_groups[-1] += last * (times - 1)
            last *= times
        elif found.group() == "(":
            open_groups.append(0)
            last = 0
        elif found.group() == ")" and len(open_groups) > 1:
            last = open_groups.pop()
            open_groups[-1] += last
        elif found.group() not in "*+?":  # these repeat as well, and may be repeated
            last = 1
            open_groups[-1] += 1
    size = sum(open_groups)
    _check_size(size, param)
    return size


def _check_size(size: int, param: str) -> None:
    """Raises BadRequest when the regular expressions of a field are too large together."""
    if size > _LARGEST_REGEX:
        told = f"regular expressions are {size:,} signs with their repetitions written out"
        raise BadRequest(f"{param}: {told}; at most {_LARGEST_REGEX:,} together", param=param)
