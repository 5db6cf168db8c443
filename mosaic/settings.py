"""The base of all settings: frozen, typo-proof, inert.

A settings class stands beside the code that uses it, has a sentence under each field, and does no I/O. Values come from
Python or from one YAML file; only `mosaic.cli` reads the environment.
"""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from mosaic.errors import BadRequest


class Settings(BaseModel):
    """Frozen, unknown fields refused, sentences under fields become their descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, source: str = "settings") -> Self:
        """Build from plain values; raises BadRequest naming the field, the value and what would be right."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise BadRequest(f"{source}: {explain(error, cls)}", param=_where(error)) from None


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """A validation error in one line: field, value, what would be right."""
    problems = []
    for detail in error.errors():
        field = ".".join(str(part) for part in detail["loc"]) or "(the whole value)"
        if detail["type"] == "extra_forbidden":
            problems.append(f"unknown field {field!r}; there are {sorted(model.model_fields)}")
        elif detail["type"] == "missing":
            problems.append(f"field {field!r} is required")
        else:
            problems.append(f"field {field!r} = {_shorten(detail['input'])}: {_lower_first(detail['msg'])}")
    return "; ".join(problems)


def _where(error: ValidationError) -> str | None:
    location = error.errors()[0]["loc"]
    return ".".join(str(part) for part in location) or None


def _shorten(value: Any, limit: int = 80) -> str:
    try:
        text = repr(value)
    except RecursionError:
        text = f"{type(value).__name__} that is nested too deeply to be shown"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
