"""Columns as a command is told of them (`id BIGINT NOT NULL`), in the types of Unity Catalog's protocol."""

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mosaic.errors import BadRequest

if TYPE_CHECKING:
    import pyarrow as pa

_COLUMN = re.compile(r"\s*(?:`([^`]+)`|([^\s`:,<>()]+))\s+(.+?)(\s+not\s+null)?\s*", re.IGNORECASE | re.DOTALL)
_NOT_WRITTEN = ("variant", "void")


def parse_columns(given: Sequence[str]) -> "pa.Schema":
    """The schema of a new Delta table, in the order in which its columns are given; raises BadRequest."""
    import pyarrow as pa
    from deltalake import Schema

    fields = [_field(one) for one in given]
    folded = [str(field["name"]).lower() for field in fields]
    for name in folded:
        if folded.count(name) > 1:
            raise BadRequest(f"column {name!r} is given twice; in a Delta table upper and lower case are the same")
    return pa.schema(Schema.from_json(json.dumps({"type": "struct", "fields": fields})).to_arrow())


def _field(text: str) -> dict[str, object]:
    from mosaic.catalog.unity.spark import parse_type

    found = _COLUMN.fullmatch(text)
    if found is None:
        raise BadRequest(f"column {text[:80]!r} must be a name and a type, such as 'id BIGINT NOT NULL'")
    name = found[1] or found[2]
    try:
        kind = parse_type(found[3]).json
    except BadRequest as error:
        raise BadRequest(f"column {name!r}: {error.message}") from None
    if kind in _NOT_WRITTEN:
        raise BadRequest(f"column {name!r} is {kind}, which cannot be written here")
    return {"name": name, "type": kind, "nullable": found[4] is None, "metadata": {}}
