"""Tables of the protocol: Delta tables, under the platform's root (MANAGED) or elsewhere (EXTERNAL)."""

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal

from starlette.routing import Route

from mosaic.catalog import Table, names
from mosaic.catalog.unity import shapes
from mosaic.catalog.unity.call import IN_SCHEMA, PAGE, Call, Query, route
from mosaic.catalog.unity.locations import Locations
from mosaic.catalog.unity.places import to_uri
from mosaic.catalog.unity.spark import SparkType, parse_json, parse_type
from mosaic.catalog.unity.surface import Surface, described, split
from mosaic.errors import BadRequest, NotFound

OWN_PROPERTIES = "mosaic."
"""How the names of properties begin that only the platform writes."""

_LEAN = (
    Query("omit_columns", "whether the columns are left out", "boolean"),
    Query("omit_properties", "whether the properties are left out", "boolean"),
)
_SUMMARY = (
    Query("catalog_name", "whose tables", required=True),
    Query("schema_name_pattern", "of schemas whose names are so, as by SQL's LIKE; without it of all"),
    Query("table_name_pattern", "whose names are so, as by SQL's LIKE"),
)


class TableRoutes:
    """Making a table here gives it a name and a place; its Delta log is written by the first who writes to it."""

    def __init__(self, surface: Surface) -> None:
        self._catalog, self._authorize = surface.catalog, surface.authorize
        self._locations = Locations(surface.catalog, surface.storage, surface.authorize)
        self._seen, self._given = surface.seen, surface.given

    def routes(self, base: str) -> list[Route]:
        return [
            route("POST", f"{base}/tables", self.create, asked=shapes.CreateTable),
            route("GET", f"{base}/tables", self.list, query=(*IN_SCHEMA, *_LEAN, *PAGE)),
            route("GET", f"{base}/table-summaries", self.list_summaries, query=(*_SUMMARY, *PAGE)),
            route("GET", f"{base}/tables/{{full_name}}", self.get),
            route("GET", f"{base}/tables/{{full_name}}/exists", self.exists),
            route("PATCH", f"{base}/tables/{{full_name}}", self.update, asked=shapes.UpdateTable, conditional=True),
            route("DELETE", f"{base}/tables/{{full_name}}", self.delete, conditional=True),
        ]

    def create(self, call: Call) -> shapes.TableInfo:
        asked = call.parse(shapes.CreateTable)
        name = names.parse_object(f"{asked.catalog_name}.{asked.schema_name}.{asked.name}", "table")
        by = self._authorize(call.principal, "CREATE_TABLE", "schema", name.rpartition(".")[0])
        table = self._catalog.create_table(
            name,
            self._locations.choose("table", name, asked.table_type, asked.storage_location, by=call.principal),
            columns=[_kept_column(column, position) for position, column in enumerate(_in_order(asked.columns))],
            primary_key=None,
            owner=by.name,
            by=by,
            comment=asked.comment or "",
            properties=_own_words(asked.properties or {}, {}),
        )
        return self._shown(table)

    def list(self, call: Call) -> shapes.Tables:
        schema = names.parse_schema(f"{call.asked('catalog_name')}.{call.asked('schema_name')}")
        self._authorize(call.principal, "USE_SCHEMA", "schema", schema)
        tables = self._seen(call.principal, "table", self._catalog.list_tables(schema))
        page, token = call.page(f"tables of {schema}", tables, lambda table: table.name)
        left_out = {field: None for field in ("columns", "properties") if call.flag(f"omit_{field}")}
        shown = [self._shown(table).model_copy(update=left_out) for table in page]
        return shapes.Tables(tables=shown, next_page_token=token)

    def list_summaries(self, call: Call) -> shapes.TableSummaries:
        """Over the schemas of a catalog, as far as the caller may know of them."""
        catalog = names.parse_catalog(call.asked("catalog_name"))
        self._authorize(call.principal, "USE_CATALOG", "catalog", catalog)
        of_schema, of_table = _glob(call.find("schema_name_pattern")), _glob(call.find("table_name_pattern"))
        schemas = [one for one in self._catalog.schemas.list(catalog) if fnmatchcase(_last(one.name), of_schema)]
        tables = [
            table
            for schema in schemas
            for table in self._seen(call.principal, "table", self._catalog.list_tables(schema.name))
            if fnmatchcase(_last(table.name), of_table)
        ]
        asked = f"summaries of {catalog} {of_schema} {of_table}"
        page, token = call.page(asked, sorted(tables, key=lambda table: table.name), lambda table: table.name)
        shown = [shapes.TableSummary(full_name=table.name, table_type=self._type(table)) for table in page]
        return shapes.TableSummaries(tables=shown, next_page_token=token)

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

    def update(self, call: Call) -> shapes.TableInfo:
        name = names.parse_object(call.path["full_name"], "table")
        by = self._authorize(call.principal, "MANAGE", "table", name)
        asked = call.parse(shapes.UpdateTable, full_name=name)
        given = self._given(call, asked)
        if asked.properties is not None:
            given["properties"] = _own_words(asked.properties, self._catalog.get_table(name).properties)
        return self._shown(self._catalog.update_table(name, by=by, **given))

    def delete(self, call: Call) -> shapes.Nothing:
        name = names.parse_object(call.path["full_name"], "table")
        by = self._authorize(call.principal, "MANAGE", "table", name)
        self._catalog.delete_table(name, by=by, expected_etag=call.expected_etag)
        return shapes.Nothing()

    def _shown(self, table: Table) -> shapes.TableInfo:
        return shapes.TableInfo(
            **split(table.name),
            table_type=self._type(table),
            columns=[column_info(column, position) for position, column in enumerate(table.columns)],
            storage_location=to_uri(table.location),
            table_id=table.id,
            properties=table.properties,
            **described(table),
        )

    def _type(self, table: Table) -> Literal["MANAGED", "EXTERNAL"]:
        return "MANAGED" if self._locations.is_managed(table.location) else "EXTERNAL"


def _glob(pattern: str | None) -> str:
    """SQL's LIKE as fnmatch says it, which takes no longer for patterns with many `%`; without a pattern everything."""
    said = {"%": "*", "_": "?", "*": "[*]", "?": "[?]", "[": "[[]"}
    return "".join(said.get(sign, sign) for sign in (pattern or "%").lower())


def _last(name: str) -> str:
    return name.rpartition(".")[2]


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


def _own_words(properties: Mapping[str, str], there: Mapping[str, str]) -> dict[str, str]:
    """With the platform's own properties as they are there: they say what it did, such as a batch job's plan.

    Raises BadRequest for others of such a name.
    """
    kept = {name: value for name, value in there.items() if name.startswith(OWN_PROPERTIES)}
    ours = [name for name in properties if name.startswith(OWN_PROPERTIES) and properties[name] != kept.get(name)]
    if ours:
        raise BadRequest(
            f"property {ours[0]!r}: names that begin with {OWN_PROPERTIES!r} are the platform's own; take another",
            param="properties",
        )
    return {**properties, **kept}
