"""From rows to questions: templates filled, and the rows that cannot be asked told apart. No engine, no network."""

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from mosaic.serving.batch.settings import BatchSettings, columns_of

LONGEST_PROMPT = 1_000_000
"""Characters; no model takes so many, and a row must not fill the memory of all."""


class Answer(NamedTuple):
    """What became of one row: a response or an error, never both."""

    response: Any = None
    """Text of a chat, numbers of an embedding, whatever a prediction is."""
    error: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    model: str | None = None
    """Who answered, as exactly as it is known: a model version's full name."""


class Unaskable(Exception):
    """A row that nothing can be asked about, and why."""


def messages(settings: BatchSettings, row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The chat of one row; raises Unaskable."""
    assert settings.prompt is not None
    user = {"role": "user", "content": filled(settings.prompt, row)}
    if settings.system_prompt is None:
        return [user]
    return [{"role": "system", "content": filled(settings.system_prompt, row)}, user]


def text(settings: BatchSettings, row: Mapping[str, Any]) -> str:
    """What is embedded of one row; raises Unaskable."""
    if settings.prompt is not None:
        return filled(settings.prompt, row)
    assert settings.columns is not None
    return _shown(settings.columns[0], row[settings.columns[0]])


def record(settings: BatchSettings, row: Mapping[str, Any]) -> dict[str, Any]:
    """What is predicted from, of one row; raises Unaskable. Nulls are left to the model's signature."""
    assert settings.columns is not None
    return {name: plain(row[name]) for name in settings.columns}


def filled(template: str, row: Mapping[str, Any]) -> str:
    """The template with the row's values; raises Unaskable for one that is null, or when it all gets too long."""
    made = template.format(**{name: _shown(name, row[name]) for name in columns_of(template)})
    if len(made) > LONGEST_PROMPT:
        raise Unaskable(f"the prompt has {len(made):,} characters, more than {LONGEST_PROMPT:,}")
    return made


def _shown(column: str, value: Any) -> str:
    if value is None:
        raise Unaskable(f"column {column!r} is null")
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        raise Unaskable(f"column {column!r} is binary, which no prompt can show")
    if isinstance(value, Mapping | list):
        return json.dumps(plain(value), ensure_ascii=False)
    return str(value)


def plain(value: Any) -> Any:
    """A value of Arrow's as JSON has it; raises Unaskable for what it has no form for."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise Unaskable(f"{value} cannot be asked in JSON")
        return value
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [plain(one) for one in value]
    raise Unaskable(f"a value of type {type(value).__name__} cannot be asked in JSON")
