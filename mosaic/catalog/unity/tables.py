"""Tables of the protocol: Delta tables, under the platform's root (MANAGED) or elsewhere (EXTERNAL)."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.routing import Route

from mosaic.catalog import Table, names
from mosaic.catalog.unity import shapes
from mosaic.catalog.unity.call import PAGE, Call, Query, route
from mosaic.catalog.unity.places import contains, to_address, to_uri
from mosaic.catalog.unity.spark import SparkType, parse_json, parse_type
from mosaic.catalog.unity.surface import Surface, described, split
from mosaic.errors import BadRequest, NotFound
from mosaic.ids import new_id

_SCHEMA = (
    Query("catalog_name", "the catalog of the schema", required=True),
    Query("schema_name", "whose tables", required=True),
)


class TableRoutes:
    """Making a table here gives it a name and a place; its Delta log is written by the first who writes to it."""

    def __init__(self, surface: Surface) -> None:
        self._catalog, self._storage, self._authorize = surface.catalog, surface.storage, surface.authorize
        self._seen = surface.seen

    def routes(self, base: str) -> list[Route]:
        return [
            route("POST", f"{base}/tables", self.create, asked=shapes.CreateTable),
            route("GET", f"{base}/tables", self.list, query=(*_SCHEMA, *PAGE)),
            route("GET", f"{base}/tables/{{full_name}}", self.get),
            route("GET", f"{base}/tables/{{full_name}}/exists", self.exists),
            route("DELETE", f"{base}/tables/{{full_name}}", self.delete, conditional=True),
        ]

    def create(self, call: Call) -> shapes.TableInfo:
        asked = call.parse(shapes.CreateTable)
        name = names.parse_object(f"{asked.catalog_name}.{asked.schema_name}.{asked.name}", "table")
        self._authorize(call.principal, "CREATE_TABLE", "schema", name.rpartition(".")[0])
        table = self._catalog.create_table(
            name,
            self._location(asked, name),
            columns=[_kept_column(column, position) for position, column in enumerate(_in_order(asked.columns))],
            primary_key=None,
            owner=call.principal.name,
            by=call.principal,
            comment=asked.comment or "",
            properties=asked.properties,
        )
        return self._shown(table)

    def list(self, call: Call) -> shapes.Tables:
        schema = names.parse_schema(f"{call.asked('catalog_name')}.{call.asked('schema_name')}")
        self._authorize(call.principal, "USE_SCHEMA", "schema", schema)
        tables = self._seen(call.principal, "table", self._catalog.list_tables(schema))
        page, token = call.page(f"tables of {schema}", tables, lambda table: table.name)
        return shapes.Tables(tables=[self._shown(table) for table in page], next_page_token=token)

    def get(self, call: Call) -> shapes.TableInfo:
        name = names.parse_object(call.path["full_name"], "table")
        self._authorize(call.principal, "BROWSE", "table", name)
        return self._shown(self._catalog.get_table(name))

    def exists(self, call: Call) -> shapes.TableExists:
        name = names.parse_object(call.path["full_name"], "table")
        try:
            self._authorize(call.principal, "BROWSE", "table", name)
        except NotFound:
            return shapes.TableExists(table_exists=False)
        return shapes.TableExists(table_exists=self._catalog.find_table(name) is not None)

    def delete(self, call: Call) -> shapes.Nothing:
        name = names.parse_object(call.path["full_name"], "table")
        self._authorize(call.principal, "MANAGE", "table", name)
        self._catalog.delete_table(name, by=call.principal, expected_etag=call.expected_etag)
        return shapes.Nothing()

    def _location(self, asked: shapes.CreateTable, name: str) -> str:
        if asked.table_type == "EXTERNAL":
            if asked.storage_location is None:
                raise BadRequest(
                    f"an EXTERNAL table needs a storage_location; {name!r} has none", param="storage_location"
                )
            location = to_address(asked.storage_location)
            if self._is_managed(location) or contains(location, self._storage.root):
                raise BadRequest(
                    f"storage_location {asked.storage_location!r} is in the platform's own root, or has it within; "
                    "tables there are MANAGED, and get their place from the platform",
                    param="storage_location",
                )
            return location
        if asked.storage_location is not None:
            raise BadRequest(
                f"a MANAGED table gets its place from the platform; leave storage_location out of {name!r}",
                param="storage_location",
            )
        # A place of its own, never a deleted table's with the same name.
        return self._storage.address("managed", new_id("tbl"))

    def _is_managed(self, location: str) -> bool:
        return contains(self._storage.root, location)

    def _shown(self, table: Table) -> shapes.TableInfo:
        return shapes.TableInfo(
            **split(table.name),
            table_type="MANAGED" if self._is_managed(table.location) else "EXTERNAL",
            columns=[column_info(column, position) for position, column in enumerate(table.columns)],
            storage_location=to_uri(table.location),
            table_id=table.id,
            properties=table.properties,
            **described(table),
        )


def column_info(column: Mapping[str, Any], position: int) -> shapes.ColumnInfo:
    """A column as the catalog keeps it, in Unity Catalog's words; a type that Delta has not is shown as it is kept."""
    name, nullable = str(column.get("name")), column.get("nullable") is not False
    kept = str(column.get("type"))
    spark = _kept_type(column, kept)
    metadata = {**(column.get("metadata") or {}), **({"comment": column["comment"]} if column.get("comment") else {})}
    field = {"name": name, "type": kept if spark is None else spark.json, "nullable": nullable, "metadata": metadata}
    precision, scale = (0, 0) if spark is None else spark.precision_scale
    return shapes.ColumnInfo(
        name=name,
        type_text=kept if spark is None else spark.text,
        type_json=json.dumps(field, separators=(",", ":")),
        type_name="USER_DEFINED_TYPE" if spark is None else spark.name,
        type_precision=precision,
        type_scale=scale,
        position=position,
        comment=column.get("comment"),
        nullable=nullable,
        partition_index=column.get("partition_index"),
    )


def _kept_type(column: Mapping[str, Any], kept: str) -> SparkType | None:
    if "spark" in column:
        return SparkType(column["spark"])
    try:
        return parse_type(kept)  # a table that was made in the data room: Arrow's text
    except BadRequest:
        return None


def _in_order(columns: list[shapes.AskedColumn]) -> list[shapes.AskedColumn]:
    """By position if all say theirs, otherwise as they come."""
    if len({column.name.lower() for column in columns}) < len(columns):
        raise BadRequest(f"columns {[column.name for column in columns][:50]} have a name twice", param="columns")
    if any(column.position is None for column in columns):
        return columns
    return sorted(columns, key=lambda column: column.position or 0)


def _kept_column(column: shapes.AskedColumn, position: int) -> dict[str, Any]:
    """A column as the catalog keeps it; what is said twice about its type must agree."""
    said: dict[str, SparkType] = {}
    metadata: dict[str, Any] = {}
    if column.type_json is not None:
        said["type_json"], metadata = parse_json(column.type_json)
    if column.type_text is not None:
        said["type_text"] = parse_type(column.type_text)
    if not said and column.type_name is not None:
        said["type_name"] = _from_name(column)
    if not said:
        raise BadRequest(f"column {column.name!r} has no type; say it in type_text or type_json", param="columns")
    if len({spark.text for spark in said.values()}) > 1:
        shown = {field: spark.text for field, spark in said.items()}
        raise BadRequest(f"column {column.name!r} says two types: {shown}", param="columns")
    spark = next(iter(said.values()))
    if column.type_name not in (None, spark.name):
        raise BadRequest(
            f"column {column.name!r} has the type {spark.text!r}, whose type_name is {spark.name!r}, "
            f"not {column.type_name!r}",
            param="columns",
        )
    return {
        "name": column.name,
        "type": spark.text,
        "spark": spark.json,
        "nullable": column.nullable is not False,
        "comment": column.comment,
        "partition_index": column.partition_index,
        "metadata": {key: value for key, value in metadata.items() if key != "comment"},
    }


def _from_name(column: shapes.AskedColumn) -> SparkType:
    name = str(column.type_name)
    if name == "DECIMAL":
        return parse_type(f"decimal({column.type_precision or 10},{column.type_scale or 0})")
    return parse_type(name)
