"""What is kept of a request's texts: all of them, those of a sample, or none; and which table of its endpoint's has its
row too, beside the inference table, which has every row."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

PAYLOAD = "_payload"
"""The key in a row of the log that says which table of an endpoint's own has the row too."""
_TEXTS = ("request", "response")
_SAID = {
    *("content", "reasoning", "reasoning_content", "arguments", "prompt", "input"),
    *("text", "text_1", "text_2", "query", "documents"),
}
"""Fields whose texts count."""
_AROUND = {"messages", "message", "choices", "tool_calls", "function"}
"""What they are in."""


@dataclass(frozen=True)
class Keeping:
    """Of one endpoint."""

    table: str | None = None
    """Its own table, `<catalog>.<schema>.<prefix>_payload`."""
    sampling_fraction: float = 1.0
    """Of how many requests texts are kept, and rows are in its own table."""
    redacts: bool = False
    """Whether no text is kept anywhere."""

    def samples(self, request_id: str) -> bool:
        """Drawn from the request's id, independently of who answers it."""
        draw = int.from_bytes(blake2b(request_id.encode(), digest_size=8, person=b"sampling").digest())
        return draw < self.sampling_fraction * 2**64

    def of(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row as it is kept. What is taken away is counted first."""
        is_sampled = self.samples(row["request_id"])
        if self.redacts or not is_sampled:
            row = {**row, **counts(row), **dict.fromkeys(_TEXTS)}
        if self.table is not None and is_sampled:
            row = {**row, PAYLOAD: {"table": self.table, "sampling_fraction": self.sampling_fraction}}
        return row


def counts(row: dict[str, Any]) -> dict[str, int]:
    """The characters of what was asked and answered, as far as the row has the texts and not the numbers."""
    columns = {"request": "input_characters", "response": "output_characters"}
    return {
        column: _characters(row[text])
        for text, column in columns.items()
        if row.get(text) is not None and row.get(column) is None
    }


def _characters(text: str) -> int:
    try:
        return sum(map(len, _said(json.loads(text))))
    except ValueError:  # nobody writes such a text, and none may hold up whoever ships it
        return len(text)


def _said(value: Any, *, counts: bool = False) -> Iterator[str]:
    """The texts in a request or an answer, without names, roles and settings."""
    if isinstance(value, str) and counts:
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _said(one, counts=counts)
    elif isinstance(value, dict):
        for name, one in value.items():
            if name in _SAID or name in _AROUND:
                yield from _said(one, counts=name in _SAID)
