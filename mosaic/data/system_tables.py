"""System tables, computed from the catalog as they are asked: `system.information_schema.*` and the lineage of tables.

Each shows a caller what it may BROWSE, and of privileges those that it or a group of it has, or that are on what it
may MANAGE. Columns are Databricks'; where Databricks has no such table (registered models, their versions), they follow
its pattern. Tokens, and where the secrets of connections are, are in none of them. `system.access.audit` is not here:
it is a Delta table like any other.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from mosaic.catalog import Catalog, Run
from mosaic.catalog.names import METASTORE
from mosaic.catalog.unity.places import contains
from mosaic.catalog.unity.spark import SparkType, parse_type
from mosaic.errors import BadRequest, NotFound
from mosaic.protocol import Principal
from mosaic.storage import Storage

_RUNS_AT_ONCE = 1_000

_NAMES = {"table": "table", "volume": "volume", "function": "routine", "model": "model"}

Row = dict[str, Any]


def columns_of_show(what: str, parent: str, names: Sequence[str]) -> pa.Table:
    """What SHOW answers, in Databricks' columns."""
    last = [name.rpartition(".")[2] for name in names]
    if what == "catalogs":
        return pa.table({"catalog": pa.array(last, pa.string())})
    if what == "schemas":
        return pa.table({"databaseName": pa.array(last, pa.string())})
    schema = parent.rpartition(".")[2]
    kinds = {"database": pa.string(), "tableName": pa.string(), "isTemporary": pa.bool_()}
    rows = {"database": [schema] * len(last), "tableName": last, "isTemporary": [False] * len(last)}
    return pa.table({name: pa.array(rows[name], kind) for name, kind in kinds.items()})


class _View:
    """The catalog as one caller may see it."""

    def __init__(self, catalog: Catalog, storage: Storage, caller: Principal) -> None:
        self.catalog, self.storage, self.caller = catalog, storage, caller
        try:
            mine = {caller.name, "users", *catalog.principals.groups_of(caller.name)}
        except NotFound:
            mine = set()
        self._mine = mine

    def catalogs(self) -> Iterator[Any]:
        seen = set(self.catalog.grants.visible(self.caller, "catalog", METASTORE))
        return (one for one in self.catalog.catalogs.list() if one.name in seen)

    def schemas(self) -> Iterator[Any]:
        for parent in self.catalog.catalogs.list():
            seen = set(self.catalog.grants.visible(self.caller, "schema", parent.name))
            yield from (one for one in self.catalog.schemas.list(parent.name) if one.name in seen)

    def things(self, kind: str, found: Sequence[Any]) -> Iterator[Any]:
        """Those of a kind in schemas, also in schemas that are not seen themselves."""
        by_schema: dict[str, list[Any]] = {}
        for one in found:
            by_schema.setdefault(one.name.rpartition(".")[0], []).append(one)
        for schema, inside in by_schema.items():
            seen = set(self.catalog.grants.visible(self.caller, kind, schema))
            yield from (one for one in inside if one.name in seen)

    def tables(self) -> Iterator[Any]:
        return self.things("table", self.catalog.list_tables())

    def models(self) -> Iterator[Any]:
        return self.things("model", self.catalog.list_models())

    def owns(self, thing: Any) -> bool:
        """Whether to show what only owners and administrators need to know: where the data is."""
        return self.caller.is_admin or thing.owner in self._mine

    def grants(self, kind: str, name: str) -> Iterator[Any]:
        """Those to the caller and its groups; all, for whoever may manage the thing."""
        granted = self.catalog.grants.list(kind, name)
        manages = bool(granted) and self.catalog.grants.is_allowed(self.caller, "MANAGE", kind, name)
        return (grant for grant in granted if manages or grant.principal in self._mine)


def _stamps(thing: Any) -> Row:
    return {
        "comment": thing.comment,
        "created": thing.created_at,
        "created_by": thing.created_by,
        "last_altered": thing.updated_at,
        "last_altered_by": thing.updated_by,
    }


def _placed(kind: str, name: str) -> Row:
    """`main.docs.entries` -> `table_catalog`, `table_schema`, `table_name`."""
    catalog, schema, last = name.split(".")
    word = _NAMES[kind]
    return {f"{word}_catalog": catalog, f"{word}_schema": schema, f"{word}_name": last}


def _catalogs(view: _View) -> Iterator[Row]:
    for one in view.catalogs():
        yield {"catalog_name": one.name, "catalog_owner": one.owner, **_stamps(one)}


def _schemata(view: _View) -> Iterator[Row]:
    for one in view.schemas():
        catalog, schema = one.name.split(".")
        yield {"catalog_name": catalog, "schema_name": schema, "schema_owner": one.owner, **_stamps(one)}


def _tables(view: _View) -> Iterator[Row]:
    for one in view.tables():
        yield {
            **_placed("table", one.name),
            "table_type": "MANAGED" if contains(view.storage.root, one.location) else "EXTERNAL",
            "is_insertable_into": "YES",
            "table_owner": one.owner,
            "data_source_format": "DELTA",
            "storage_path": one.location if view.owns(one) else None,
            **_stamps(one),
        }


def _columns(view: _View) -> Iterator[Row]:
    for one in view.tables():
        for position, column in enumerate(one.columns):
            kind = SparkType(column["spark"]) if "spark" in column else _type(str(column["type"]))
            yield {
                **_placed("table", one.name),
                "column_name": column["name"],
                "ordinal_position": position,
                "is_nullable": "YES" if column.get("nullable") is not False else "NO",
                "full_data_type": str(column["type"]) if kind is None else kind.text,
                "data_type": None if kind is None else kind.name,
                "comment": column.get("comment"),
            }


def _volumes(view: _View) -> Iterator[Row]:
    for one in view.things("volume", view.catalog.volumes.list()):
        yield {
            **_placed("volume", one.name),
            "volume_type": one.spec["volume_type"],
            "volume_owner": one.owner,
            "storage_location": one.spec["location"] if view.owns(one) else None,
            **_stamps(one),
        }


def _routines(view: _View) -> Iterator[Row]:
    for one in view.things("function", view.catalog.functions.list()):
        placed = _placed("function", one.name)
        specific = {name.replace("routine_", "specific_"): value for name, value in placed.items()}
        yield {
            **specific,
            **placed,
            "routine_owner": one.owner,
            "routine_type": "FUNCTION",
            "data_type": one.spec.get("data_type"),
            "full_data_type": one.spec.get("full_data_type"),
            "routine_body": one.spec["routine_body"],
            "routine_definition": one.spec["routine_definition"] if view.owns(one) else None,
            "external_language": one.spec.get("external_language"),
            **_stamps(one),
        }


def _models(view: _View) -> Iterator[Row]:
    for one in view.models():
        yield {**_placed("model", one.name), "model_owner": one.owner, **_stamps(one)}


def _model_versions(view: _View) -> Iterator[Row]:
    for model in view.models():
        for one in view.catalog.list_model_versions(model.name):
            yield {
                **_placed("model", model.name),
                "version": one.version,
                "aliases": sorted(alias for alias, version in model.aliases.items() if version == one.version),
                "status": one.status,
                "kind": one.kind,
                "base_model": one.base_model,
                "run_id": one.run_id,
                "source": one.source if view.owns(model) else None,
                **_stamps(one),
            }


def _granted(grant: Any) -> Row:
    return {
        "grantor": grant.granted_by,
        "grantee": grant.principal,
        "privilege_type": grant.privilege,
        "is_grantable": "NO",
        "inherited_from": "NONE",
    }


def _table_privileges(view: _View) -> Iterator[Row]:
    for one in view.tables():
        yield from ({**_placed("table", one.name), **_granted(grant)} for grant in view.grants("table", one.name))


def _schema_privileges(view: _View) -> Iterator[Row]:
    for one in view.schemas():
        catalog, schema = one.name.split(".")
        for grant in view.grants("schema", one.name):
            yield {"catalog_name": catalog, "schema_name": schema, **_granted(grant)}


def _catalog_privileges(view: _View) -> Iterator[Row]:
    for one in view.catalogs():
        yield from ({"catalog_name": one.name, **_granted(grant)} for grant in view.grants("catalog", one.name))


def _table_tags(view: _View) -> Iterator[Row]:
    for one in view.tables():
        catalog, schema, table = one.name.split(".")
        for key, value in view.catalog.tags.list("table", one.name).items():
            named = {"catalog_name": catalog, "schema_name": schema, "table_name": table}
            yield {**named, "tag_name": key, "tag_value": value}


def _table_lineage(view: _View) -> Iterator[Row]:
    """One row for each pair of a table that a run read and one that it made, or for the one side that there is."""
    seen = {one.id for one in view.tables()}
    for run in _runs_with_tables(view.catalog):
        read = [edge for edge in run.inputs if edge.kind == "table"]
        made = [edge for edge in run.outputs if edge.kind == "table"]
        pairs = [
            (source, target)
            for source in (*read, *([] if read else [None]))
            for target in (*made, *([] if made else [None]))
        ]
        for number, (source, target) in enumerate(pairs):
            ends = [end.securable_id for end in (source, target) if end is not None]
            if ends and seen.issuperset(ends):
                yield {**_event(run, number), **_end("source", source), **_end("target", target)}


def _runs_with_tables(catalog: Catalog) -> Iterator[Run]:
    """Newest first, in short reads."""
    before = None
    while runs := catalog.list_runs(edge_kind="table", limit=_RUNS_AT_ONCE, before=before):
        yield from runs
        before = runs[-1].run_id


def _event(run: Run, number: int) -> Row:
    is_sql = run.kind == "sql"
    job = None if is_sql else {"job_id": run.name, "job_run_id": run.run_id}
    return {
        "metastore_id": METASTORE,
        "entity_type": "DBSQL_QUERY" if is_sql else "JOB",
        "entity_id": run.run_id if is_sql else run.name,
        "entity_run_id": run.run_id,
        "created_by": run.principal,
        "event_time": run.started_at,
        "event_date": run.started_at.date(),
        "record_id": f"{run.run_id}-{number}",
        "event_id": run.run_id,
        "statement_id": run.run_id if is_sql else None,
        "entity_metadata": {"job_info": job, "sql_query_id": run.run_id if is_sql else None},
    }


def _end(side: str, edge: Any) -> Row:
    if edge is None:
        return {}
    catalog, schema, name = edge.name.split(".")
    return {
        f"{side}_table_full_name": edge.name,
        f"{side}_table_catalog": catalog,
        f"{side}_table_schema": schema,
        f"{side}_table_name": name,
        f"{side}_type": "TABLE",
        f"{side}_version": edge.version,
    }


def _type(text: str) -> SparkType | None:
    try:
        return parse_type(text)
    except BadRequest:
        return None


class _Computed(NamedTuple):
    rows: Callable[[_View], Iterator[Row]]
    schema: pa.Schema


def _schema(*texts: str) -> pa.Schema:
    """Columns by name, of text unless a type stands behind a colon."""
    words = [word.partition(":") for word in " ".join(texts).split()]
    return pa.schema([(name, _TYPES[kind or "text"]) for name, _, kind in words])


_TYPES = {
    "text": pa.string(),
    "texts": pa.list_(pa.string()),
    "int": pa.int32(),
    "long": pa.int64(),
    "date": pa.date32(),
    "time": pa.timestamp("us", tz="UTC"),
    "entity": pa.struct(
        [
            ("job_info", pa.struct([("job_id", pa.string()), ("job_run_id", pa.string())])),
            *((name, pa.string()) for name in ("dashboard_id", "legacy_dashboard_id", "notebook_id", "sql_query_id")),
            ("dlt_pipeline_info", pa.struct([("dlt_pipeline_id", pa.string()), ("dlt_update_id", pa.string())])),
        ]
    ),
}
_STAMPS = "comment created:time created_by last_altered:time last_altered_by"
_GRANTED = "privilege_type is_grantable inherited_from"
_TABLE = "table_catalog table_schema table_name"
_MODEL = "model_catalog model_schema model_name"
_SIDE = "{0}_table_full_name {0}_table_catalog {0}_table_schema {0}_table_name {0}_path {0}_type"

_INFORMATION_SCHEMA = {
    "catalogs": _Computed(_catalogs, _schema("catalog_name catalog_owner", _STAMPS)),
    "schemata": _Computed(_schemata, _schema("catalog_name schema_name schema_owner", _STAMPS)),
    "tables": _Computed(
        _tables,
        _schema(_TABLE, "table_type is_insertable_into table_owner", _STAMPS, "data_source_format storage_path"),
    ),
    "columns": _Computed(
        _columns,
        _schema(_TABLE, "column_name ordinal_position:int is_nullable full_data_type data_type comment"),
    ),
    "volumes": _Computed(
        _volumes,
        _schema("volume_catalog volume_schema volume_name volume_type volume_owner storage_location", _STAMPS),
    ),
    "routines": _Computed(
        _routines,
        _schema(
            "specific_catalog specific_schema specific_name routine_catalog routine_schema routine_name routine_owner",
            "routine_type data_type full_data_type routine_body routine_definition external_language",
            _STAMPS,
        ),
    ),
    "registered_models": _Computed(_models, _schema(_MODEL, "model_owner", _STAMPS)),
    "model_versions": _Computed(
        _model_versions,
        _schema(_MODEL, "version:long aliases:texts status kind base_model run_id source", _STAMPS),
    ),
    "table_privileges": _Computed(_table_privileges, _schema("grantor grantee", _TABLE, _GRANTED)),
    "schema_privileges": _Computed(_schema_privileges, _schema("grantor grantee catalog_name schema_name", _GRANTED)),
    "catalog_privileges": _Computed(_catalog_privileges, _schema("grantor grantee catalog_name", _GRANTED)),
    "table_tags": _Computed(_table_tags, _schema("catalog_name schema_name table_name tag_name tag_value")),
}
_TABLE_LINEAGE = _Computed(
    _table_lineage,
    _schema(
        "account_id metastore_id workspace_id entity_type entity_id entity_run_id",
        _SIDE.format("source"),
        _SIDE.format("target"),
        "created_by event_time:time event_date:date record_id event_id statement_id entity_metadata:entity",
        "source_version:long target_version:long",
    ),
)


SystemTable = Callable[[Catalog, Storage, Principal], pa.Table]
"""The rows of one, as a caller may see them."""


def _reader(computed: _Computed) -> SystemTable:
    def read(catalog: Catalog, storage: Storage, caller: Principal) -> pa.Table:
        return pa.Table.from_pylist(list(computed.rows(_View(catalog, storage, caller))), schema=computed.schema)

    return read


INFORMATION_SCHEMA = "system.information_schema."
SYSTEM_TABLES: Mapping[str, SystemTable] = {
    **{f"{INFORMATION_SCHEMA}{name}": _reader(computed) for name, computed in _INFORMATION_SCHEMA.items()},
    "system.access.table_lineage": _reader(_TABLE_LINEAGE),
}
"""By name; each computes its rows for a caller."""
