"""databricks-sdk, by one who owns a catalog."""

from pathlib import Path

from databricks.sdk import WorkspaceClient
from databricks.sdk.service import catalog as uc

from tests.clients.calls import Calls

calls = Calls("databricks-sdk")
workspace = WorkspaceClient(host=calls.offered.address, token=calls.offered.token, auth_type="pat")
bob = WorkspaceClient(host=calls.offered.address, token=calls.offered.without_select, auth_type="pat")
w = workspace

# Who one is
calls.works("current_user.me", lambda: w.current_user.me(), lambda one: (one.user_name, one.active) == ("ann", True))

# Catalogs and schemas
calls.works("catalogs.create", lambda: w.catalogs.create("lake", comment="raw"), lambda one: one.owner == "ann")
calls.refused("catalogs.create, one that is there", lambda: w.catalogs.create("lake"), "AlreadyExists")
calls.works("catalogs.list", lambda: list(w.catalogs.list()), lambda all: {"lake", "main"} <= {one.name for one in all})
calls.works("catalogs.get", lambda: w.catalogs.get("lake"), lambda one: one.comment == "raw")
calls.works("catalogs.update", lambda: w.catalogs.update("lake", comment="c"), lambda one: one.comment == "c")
calls.refused(
    "catalogs.update, a new name", lambda: w.catalogs.update("lake", new_name="x"), "unknown field 'new_name'"
)
calls.works(
    "schemas.create",
    lambda: w.schemas.create("docs", "lake", properties={"a": "b"}),
    lambda one: one.properties == {"a": "b"},
)
calls.works("schemas.list", lambda: list(w.schemas.list("lake")), lambda all: [one.name for one in all] == ["docs"])
calls.works("schemas.get", lambda: w.schemas.get("lake.docs"), lambda one: one.full_name == "lake.docs")
calls.works("schemas.update", lambda: w.schemas.update("lake.docs", comment="c"), lambda one: one.comment == "c")
calls.works("metastores.summary", lambda: w.metastores.summary(), lambda one: one.name == "mosaic")

# Tables
column = uc.ColumnInfo(name="id", type_text="bigint", type_name=uc.ColumnTypeName.LONG, position=0)
made = calls.works(
    "tables.create",
    lambda: w.tables.create(
        "rows",
        "lake",
        "docs",
        table_type=uc.TableType.EXTERNAL,
        data_source_format=uc.DataSourceFormat.DELTA,
        storage_location="file:///data/rows",
        columns=[column],
    ),
    lambda one: one.columns[0].type_name == uc.ColumnTypeName.LONG,
)
calls.works("tables.list", lambda: list(w.tables.list("lake", "docs")), lambda all: [t.name for t in all] == ["rows"])
calls.works(
    "tables.list, by pages", lambda: list(w.tables.list("main", "many", max_results=7)), lambda all: len(all) == 150
)
calls.works("tables.exists", lambda: w.tables.exists("lake.docs.rows"), lambda answer: answer.table_exists)
calls.works(
    "tables.get", lambda: w.tables.get("main.docs.people"), lambda one: one.columns[7].type_text == "decimal(10,2)"
)
calls.refused("tables.get, one that is not there", lambda: w.tables.get("lake.docs.no"), "no table 'lake.docs.no'")
calls.works(
    "tables.list_summaries",
    lambda: list(w.tables.list_summaries("lake", schema_name_pattern="d%")),
    lambda all: [one.full_name for one in all] == ["lake.docs.rows"],
)
credentials = w.temporary_table_credentials.generate_temporary_table_credentials
calls.works(
    "temporary_table_credentials, on local disk",
    lambda: credentials(table_id=made.table_id, operation=uc.TableOperation.READ),
    lambda given: given.url == "file:///data/rows",
)
calls.refused(
    "temporary_table_credentials, without SELECT",
    lambda: bob.temporary_table_credentials.generate_temporary_table_credentials(
        table_id=w.tables.get("main.docs.people").table_id, operation=uc.TableOperation.READ
    ),
    "PermissionDenied",
)

# Volumes and functions
kept = calls.works(
    "volumes.create",
    lambda: w.volumes.create("lake", "docs", "files", uc.VolumeType.MANAGED, comment="theirs"),
    lambda one: one.full_name == "lake.docs.files",
)
calls.works(
    "volumes.list", lambda: list(w.volumes.list("lake", "docs")), lambda all: [one.name for one in all] == ["files"]
)
calls.works("volumes.read", lambda: w.volumes.read("lake.docs.files"), lambda one: one.volume_id == kept.volume_id)
calls.works("volumes.update", lambda: w.volumes.update("lake.docs.files", comment="c"), lambda one: one.comment == "c")
calls.works(
    "temporary_volume_credentials",
    lambda: w.temporary_volume_credentials.generate_temporary_volume_credentials(
        volume_id=kept.volume_id, operation=uc.VolumeOperation.WRITE_VOLUME
    ),
    lambda given: given.url.startswith("file:///"),
)
calls.works(
    "temporary_path_credentials, of a path in a table",
    lambda: w.temporary_path_credentials.generate_temporary_path_credentials(
        "file:///data/rows/part", uc.PathOperation.PATH_READ
    ),
    lambda given: given.url == "file:///data/rows/part",
)
parameter = uc.FunctionParameterInfo(name="x", type_text="string", type_name=uc.ColumnTypeName.STRING, position=0)
shout = uc.CreateFunction(
    name="shout",
    catalog_name="lake",
    schema_name="docs",
    input_params=uc.FunctionParameterInfos([parameter]),
    data_type=uc.ColumnTypeName.STRING,
    full_data_type="STRING",
    routine_body=uc.CreateFunctionRoutineBody.EXTERNAL,
    routine_definition="return x.upper()",
    external_language="python",
    parameter_style=uc.CreateFunctionParameterStyle.S,
    is_deterministic=True,
    sql_data_access=uc.CreateFunctionSqlDataAccess.NO_SQL,
    is_null_call=False,
    security_type=uc.CreateFunctionSecurityType.DEFINER,
    specific_name="shout",
)
calls.works(
    "functions.create", lambda: w.functions.create(shout), lambda one: one.routine_definition == "return x.upper()"
)
calls.works(
    "functions.list", lambda: list(w.functions.list("lake", "docs")), lambda all: [one.name for one in all] == ["shout"]
)
calls.works(
    "functions.get", lambda: w.functions.get("lake.docs.shout"), lambda one: one.input_params.parameters[0].name == "x"
)
calls.works(
    "functions.update", lambda: w.functions.update("lake.docs.shout", owner="ann"), lambda one: one.owner == "ann"
)

# Models and their versions
calls.works(
    "registered_models.create",
    lambda: w.registered_models.create(name="bot", catalog_name="lake", schema_name="docs"),
    lambda one: one.full_name == "lake.docs.bot",
)
calls.works(
    "registered_models.list",
    lambda: list(w.registered_models.list(catalog_name="lake", schema_name="docs")),
    lambda all: [one.name for one in all] == ["bot"],
)
calls.works("registered_models.get", lambda: w.registered_models.get("lake.docs.bot"), lambda one: one.owner == "ann")
calls.works(
    "registered_models.update",
    lambda: w.registered_models.update("lake.docs.bot", comment="c"),
    lambda one: one.comment == "c",
)


def make_version() -> object:
    """The SDK has no call for this, but its client for any path."""
    version = {"catalog_name": "lake", "schema_name": "docs", "model_name": "bot", "source": "file:///m"}
    made = w.api_client.do("POST", "/api/2.1/unity-catalog/models/versions", body=version)
    folder = Path(made["storage_location"].removeprefix("file://"))
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"w")
    return w.api_client.do("PATCH", "/api/2.1/unity-catalog/models/lake.docs.bot/versions/1/finalize", body={})


calls.works("a model version, by api_client.do", make_version, lambda one: one["status"] == "READY")
calls.works("model_versions.list", lambda: list(w.model_versions.list("lake.docs.bot")), lambda all: len(all) == 1)
calls.works("model_versions.get", lambda: w.model_versions.get("lake.docs.bot", 1), lambda one: one.version == 1)
calls.works(
    "model_versions.update",
    lambda: w.model_versions.update("lake.docs.bot", 1, comment="c"),
    lambda one: one.comment == "c",
)
calls.works(
    "registered_models.set_alias",
    lambda: w.registered_models.set_alias("lake.docs.bot", "champion", 1),
    lambda alias: alias.version_num == 1,
)
calls.works(
    "model_versions.get_by_alias",
    lambda: w.model_versions.get_by_alias("lake.docs.bot", "champion"),
    lambda one: one.version == 1,
)
calls.works("registered_models.delete_alias", lambda: w.registered_models.delete_alias("lake.docs.bot", "champion"))
calls.works("model_versions.delete", lambda: w.model_versions.delete("lake.docs.bot", 1))

# Grants
change = [
    uc.PermissionsChange(principal="bob", add=[uc.Privilege.USE_CATALOG, uc.Privilege.USE_SCHEMA, uc.Privilege.SELECT])
]
calls.works(
    "grants.update",
    lambda: w.grants.update("catalog", "lake", changes=change),
    lambda held: [one.principal for one in held.privilege_assignments] == ["bob"],
)
calls.works(
    "grants.get",
    lambda: w.grants.get("catalog", "lake"),
    lambda held: (
        [p.value for p in held.privilege_assignments[0].privileges or []] == ["SELECT", "USE_CATALOG", "USE_SCHEMA"]
    ),
)
calls.works(
    "grants.get_effective",
    lambda: w.grants.get_effective("schema", "lake.docs", principal="bob"),
    lambda held: (
        {
            (one.privilege.value, one.inherited_from_type.value, one.inherited_from_name)
            for one in held.privilege_assignments[0].privileges
        }
        >= {("SELECT", "CATALOG", "lake"), ("USE_SCHEMA", "CATALOG", "lake")}
    ),
)
calls.refused("grants.get, of what others own", lambda: bob.grants.get("catalog", "lake"), "PermissionDenied")
wrong = [uc.PermissionsChange(principal="nobody", add=[uc.Privilege.USE_CATALOG])]
calls.refused("grants.update, to nobody", lambda: w.grants.update("catalog", "lake", changes=wrong), "'nobody'")

# What is not spoken
calls.refused("external_locations.list", lambda: list(w.external_locations.list()), "is not spoken by this version")
calls.refused("storage_credentials.list", lambda: list(w.storage_credentials.list()), "is not spoken by this version")

# Away again
calls.refused("catalogs.delete, one that holds something", lambda: w.catalogs.delete("lake"), "lake")
calls.works("functions.delete", lambda: w.functions.delete("lake.docs.shout"))
calls.works("volumes.delete", lambda: w.volumes.delete("lake.docs.files"))
calls.works("tables.delete", lambda: w.tables.delete("lake.docs.rows"))
calls.works("registered_models.delete", lambda: w.registered_models.delete("lake.docs.bot"))
calls.works("schemas.delete", lambda: w.schemas.delete("lake.docs"))
calls.works("catalogs.delete, by force", lambda: w.catalogs.delete("lake", force=True))
calls.say()
