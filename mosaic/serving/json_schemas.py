"""JSON schemas that answers are checked against here, in Python: which are taken, and what an answer breaks.

Other than the schemas that engines make grammars of (`gateway/schemas.py`), these cost an engine nothing. Patterns are
RE2's, since the text is a model's: Python's own would let one answer keep the gateway busy for hours.
"""

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import re2

_LARGEST_CHARACTERS = 64 * 1024
_NOT_TAKEN = ("$id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "patternProperties", "propertyNames")
_DATA = {"enum", "const", "default", "examples", "required"}
_NAMES_TO_SCHEMAS = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}


class NotJson(ValueError):
    """The text is no JSON."""


def check_answer_schema(schema: Mapping[str, Any]) -> None:
    """Raises ValueError that says what is wrong with it, or what in it could not be held to."""
    import jsonschema
    from referencing.exceptions import Unresolvable

    try:
        characters = len(json.dumps(schema))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if characters > _LARGEST_CHARACTERS:
        raise ValueError(f"it has more than {_LARGEST_CHARACTERS} characters")
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except jsonschema.SchemaError as error:
        raise ValueError(f"it is no JSON schema: {error.json_path}: {error.message[:200]}") from None
    if "$schema" in schema and schema["$schema"].rstrip("#") not in _dialects():
        raise ValueError(f"$schema = {schema['$schema']!r:.80} is none of {sorted(_dialects())}")
    resolver, formats = _resolver(schema, kind), kind.FORMAT_CHECKER.checkers
    for one in schemas_within(schema):
        for key in _NOT_TAKEN:
            if key in one:
                raise ValueError(f"{key!r} is not taken")
        if "$ref" in one:
            try:
                resolver.lookup(_local(one["$ref"]))
            except Unresolvable:
                raise ValueError(f"$ref = {one['$ref']!r:.80} points at nothing in it") from None
        if "format" in one and one["format"] not in formats:
            raise ValueError(f"format = {one['format']!r:.80} is none of {sorted(formats)}")
        if "pattern" in one:
            _compiled(one["pattern"])


class AnswerSchema:
    """Ready to look at answers."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        import jsonschema

        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        self._validator = _ours(kind)(dict(schema), format_checker=kind.FORMAT_CHECKER)

    def broken(self, text: str) -> str | None:
        """Where in the schema is what the answer breaks, never what it says; None if it follows.

        Raises NotJson, and RecursionError for one that is too deep to be looked at.
        """
        try:
            value = json.loads(text, parse_constant=_no_number)
        except ValueError:
            raise NotJson from None
        error = next(self._validator.iter_errors(value), None)
        return None if error is None else "/".join(["#", *map(str, error.absolute_schema_path)])


@functools.cache
def _ours(kind: Any) -> Any:
    """A validator of that kind, with patterns in linear time."""
    import jsonschema

    return jsonschema.validators.extend(kind, {"pattern": _pattern})


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    import jsonschema

    if isinstance(instance, str) and not _compiled(pattern).search(_text(instance)):
        yield jsonschema.ValidationError("does not match its pattern")


@functools.lru_cache(maxsize=1000)
def _compiled(pattern: str) -> Any:
    """Raises ValueError."""
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error:
        told = "RE2 does not take it; look-around and back-references are not linear"
        raise ValueError(f"pattern = {pattern!r:.80}: {told}") from None


def _text(text: str) -> str:
    """Without the lone surrogates that RE2 has no bytes for."""
    return text.encode("utf-8", "replace").decode()


def _local(reference: str) -> str:
    if not reference.startswith("#"):
        raise ValueError(f"$ref = {reference!r:.80} must point into the schema itself (#...)")
    return reference


def _resolver(schema: Mapping[str, Any], kind: Any) -> Any:
    from referencing import Registry, Resource
    from referencing.jsonschema import DRAFT202012

    resource = Resource.from_contents(dict(schema), default_specification=DRAFT202012)
    return Registry().with_resource("", resource).resolver()


@functools.cache
def _dialects() -> frozenset[str]:
    import jsonschema

    drafts = ("Draft4Validator", "Draft6Validator", "Draft7Validator", "Draft201909Validator", "Draft202012Validator")
    metas = (getattr(jsonschema, draft).META_SCHEMA for draft in drafts)
    return frozenset(str(meta.get("$id") or meta["id"]).rstrip("#") for meta in metas)


def schemas_within(*schemas: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The schemas and all schemas in them; names of properties and plain data are none."""
    waiting: list[Any] = [*schemas]
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


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")
