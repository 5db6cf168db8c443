"""The plan of a batch job: the version and rows, cut into numbered pieces, and all that a resume must agree with."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from mosaic.errors import Conflict
from mosaic.protocol import Wire
from mosaic.serving.batch.settings import BatchSettings

PLAN_PROPERTY = "mosaic.batch_plan"
"""The output table's property that holds it: name and plan are taken in one step, by one of two that come at once."""

_MAY_DIFFER = ("concurrency", "stall_seconds", "engine")
"""How fast it goes, and not what comes out."""


class Piece(NamedTuple):
    """Rows `start` to `stop` of the pinned version, counted over its files in their fixed order."""

    number: int
    start: int
    stop: int


class Plan(Wire):
    """Kept with the output table; what is done of it is the table's own Delta log to say."""

    job_id: str
    """`batch_...`: also the application of the Delta transactions whose version is the number of pieces done."""
    table: str
    version: int
    """Of the input, whatever is written to it meanwhile."""
    rows: int
    """Of that version, before `where`."""
    answered_by: str
    """The model's version or name, or the endpoint, as it was pinned at the start."""
    settings: dict[str, Any]
    """As they were given."""

    @property
    def pieces(self) -> int:
        return -(-self.rows // int(self.settings["piece_rows"]))

    def piece(self, number: int) -> Piece:
        """`number` counts from 1, since a Delta table without transaction is at 0."""
        size = int(self.settings["piece_rows"])
        return Piece(number, (number - 1) * size, min(number * size, self.rows))

    def left(self, done: int) -> Iterator[Piece]:
        """The pieces after the first `done`."""
        return (self.piece(number) for number in range(done + 1, self.pieces + 1))

    def dump(self) -> str:
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)

    @classmethod
    def load(cls, text: str) -> "Plan":
        return cls.model_validate_json(text)

    def require_same(self, asked: BatchSettings, table: str, version: int | None) -> None:
        """Raises Conflict naming what is asked otherwise now; a table without version means the plan's."""
        there, now = dict(self.settings), asked.model_dump(mode="json")
        there["table"], now["table"] = (self.table, table)
        if version is not None:
            there["table"], now["table"] = f"{self.table}@{self.version}", f"{table}@{version}"
        different = [key for key in now if key not in _MAY_DIFFER and now[key] != there.get(key)]
        if different:
            told = "; ".join(f"{key} is {_short(now[key])}, and was {_short(there.get(key))}" for key in different)
            raise Conflict(
                f"output_table {asked.output_table!r} holds another batch job, {self.job_id}: {told}. Run it as "
                "it was, or name another output_table",
                param=different[0],
                code="batch_differs",
            )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."
