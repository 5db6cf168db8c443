"""A table's columns in the catalog's words and in Delta's, so that a name that came first can get its log later."""

import json
from typing import Any

import pyarrow as pa
from deltalake import Schema

from mosaic.catalog import Table
from mosaic.catalog.unity.spark import parse_type
from mosaic.errors import BadRequest

_NOT_WRITTEN = ("variant", "void")


def catalog_columns(schema: Schema) -> list[dict[str, Any]]:
    """As the catalog keeps them: Arrow's text for people, Spark's JSON to make the very same schema from."""
    fields = json.loads(schema.to_json())["fields"]
    types = {field.name: str(field.type) for field in pa.schema(schema.to_arrow())}
    return [
        {"name": field["name"], "type": types[field["name"]], "spark": field["type"], "nullable": field["nullable"]}
        for field in fields
    ]


def delta_schema(table: Table) -> Schema:
    """The schema to make a table's log with; raises BadRequest for columns that Delta tables here cannot have."""
    if not table.columns:
        raise BadRequest(f"table {table.name!r} was registered without columns, so that no rows fit it; create it anew")
    fields = [_field(table.name, column) for column in table.columns]
    return Schema.from_json(json.dumps({"type": "struct", "fields": fields}))


def shape(schema: Schema) -> list[tuple[str, Any, bool]]:
    """What two schemas must have in common to be the same for rows: names, types and whether null is allowed."""
    fields = json.loads(schema.to_json())["fields"]
    return [(field["name"], _bare(field["type"]), field["nullable"]) for field in fields]


def _field(table: str, column: dict[str, Any]) -> dict[str, Any]:
    name = column["name"]
    if column.get("partition_index") is not None:
        raise BadRequest(f"table {table!r} is to be partitioned by {name!r}, which is not supported; create it without")
    kind = column["spark"] if "spark" in column else parse_type(str(column["type"])).json
    if kind in _NOT_WRITTEN:
        raise BadRequest(f"column {name!r} of table {table!r} is {kind}, which cannot be written here")
    comment = {"comment": column["comment"]} if column.get("comment") else {}
    metadata = {**(column.get("metadata") or {}), **comment}
    return {"name": name, "type": kind, "nullable": column.get("nullable") is not False, "metadata": metadata}


def _bare(kind: Any) -> Any:
    """A type without its fields' metadata."""
    if isinstance(kind, dict):
        return {key: _bare(value) for key, value in kind.items() if key != "metadata"}
    return [_bare(one) for one in kind] if isinstance(kind, list) else kind
