"""unitycatalog-client, generated from Unity Catalog's own OpenAPI document, by one who owns a catalog."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import unitycatalog.client as uc

from tests.clients.calls import Calls

calls = Calls("unitycatalog-client")
base = f"{calls.offered.address}/api/2.1/unity-catalog"


def ask(api: type, method: str, *given: object, token: str = calls.offered.token, **named: object) -> Callable[[], Any]:
    """A call with a connection of its own; its token can only be given as a header."""

    async def call() -> Any:
        header = {"header_name": "Authorization", "header_value": f"Bearer {token}"}
        async with uc.ApiClient(uc.Configuration(host=base), **header) as client:
            made: Awaitable[Any] = getattr(api(client), method)(*given, **named)
            return await made

    return lambda: asyncio.run(call())


async def with_access_token() -> Any:
    async with uc.ApiClient(uc.Configuration(host=base, access_token=calls.offered.token)) as client:
        return await uc.CatalogsApi(client).list_catalogs()


place: dict[str, Any] = {"catalog_name": "oss", "schema_name": "raw"}

# Catalogs and schemas
Catalogs, Schemas = uc.CatalogsApi, uc.SchemasApi
new = uc.CreateCatalog(name="oss", comment="theirs", properties={"a": "b"})
calls.works("catalogs: create", ask(Catalogs, "create_catalog", new), lambda made: made.properties == {"a": "b"})
calls.refused("catalogs: create one that is there", ask(Catalogs, "create_catalog", new), "ALREADY_EXISTS")
calls.works(
    "catalogs: list", ask(Catalogs, "list_catalogs"), lambda all: {"main", "oss"} <= {one.name for one in all.catalogs}
)
calls.works("catalogs: get", ask(Catalogs, "get_catalog", "oss"), lambda one: one.owner == "ann")
change = uc.UpdateCatalog(comment="ours")
calls.works("catalogs: update", ask(Catalogs, "update_catalog", "oss", change), lambda one: one.comment == "ours")
rename = uc.UpdateCatalog(new_name="other")
calls.refused("catalogs: rename", ask(Catalogs, "update_catalog", "oss", rename), "unknown field 'new_name'")
schema = uc.CreateSchema(name="raw", catalog_name="oss")
calls.works("schemas: create", ask(Schemas, "create_schema", schema), lambda one: one.full_name == "oss.raw")
calls.works(
    "schemas: list", ask(Schemas, "list_schemas", "oss"), lambda all: [one.name for one in all.schemas] == ["raw"]
)
calls.works("schemas: get", ask(Schemas, "get_schema", "oss.raw"), lambda one: one.schema_id is not None)
calls.works(
    "schemas: update",
    ask(Schemas, "update_schema", "oss.raw", uc.UpdateSchema(properties={"c": "d"})),
    lambda one: one.properties == {"c": "d"},
)
calls.works("metastore summary", ask(uc.MetastoresApi, "summary"), lambda one: one.metastore_id is not None)

# Tables
Tables = uc.TablesApi
column = uc.ColumnInfo(
    name="id",
    type_text="bigint",
    type_json='{"name":"id","type":"long","nullable":true,"metadata":{}}',
    type_name=uc.ColumnTypeName.LONG,
    position=0,
)
table = uc.CreateTable(
    **place,
    name="rows",
    table_type="EXTERNAL",
    data_source_format="DELTA",
    columns=[column],
    storage_location="file:///r",
)
made = calls.works(
    "tables: create",
    ask(Tables, "create_table", table),
    lambda one: [(c.name, c.type_name) for c in one.columns] == [("id", "LONG")],
)
calls.works(
    "tables: list", ask(Tables, "list_tables", "oss", "raw"), lambda all: [one.name for one in all.tables] == ["rows"]
)
calls.works(
    "tables: list by pages",
    ask(Tables, "list_tables", "main", "many", max_results=50),
    lambda page: len(page.tables) == 50 and page.next_page_token,
)
calls.works(
    "tables: get",
    ask(Tables, "get_table", "main.docs.people"),
    lambda one: [c.name for c in one.columns][:2] == ["id", "name"],
)
calls.refused("tables: get one that is not there", ask(Tables, "get_table", "oss.raw.no"), "no table 'oss.raw.no'")
staging = uc.CreateStagingTable(**place, name="x")
calls.refused("tables: staging", ask(Tables, "create_staging_table", staging), "is not spoken by this version")

# Volumes and functions
Volumes, Functions = uc.VolumesApi, uc.FunctionsApi
volume = uc.CreateVolumeRequestContent(**place, name="files", volume_type="MANAGED", comment="theirs")
kept = calls.works(
    "volumes: create", ask(Volumes, "create_volume", volume), lambda one: one.full_name == "oss.raw.files"
)
calls.works(
    "volumes: list",
    ask(Volumes, "list_volumes", "oss", "raw"),
    lambda all: [one.name for one in all.volumes] == ["files"],
)
calls.works("volumes: get", ask(Volumes, "get_volume", "oss.raw.files"), lambda one: one.volume_id == kept.volume_id)
change = uc.UpdateVolumeRequestContent(comment="ours")
calls.works(
    "volumes: update", ask(Volumes, "update_volume", "oss.raw.files", change), lambda one: one.comment == "ours"
)
text = {"type_text": "string", "type_name": "STRING", "type_json": '{"name":"x","type":"string"}'}
function = uc.CreateFunction(
    **place,
    name="shout",
    input_params=uc.FunctionParameterInfos(parameters=[uc.FunctionParameterInfo(name="x", position=0, **text)]),
    data_type="STRING",
    full_data_type="STRING",
    routine_body="EXTERNAL",
    routine_definition="return x.upper()",
    external_language="PYTHON",
    parameter_style="S",
    is_deterministic=True,
    sql_data_access="NO_SQL",
    is_null_call=False,
    security_type="DEFINER",
    specific_name="shout",
    properties="null",
)
wanted = uc.CreateFunctionRequest(function_info=function)
calls.works(
    "functions: create",
    ask(Functions, "create_function", wanted),
    lambda one: one.routine_definition == "return x.upper()" and one.external_language == "PYTHON",
)
calls.works(
    "functions: list",
    ask(Functions, "list_functions", "oss", "raw"),
    lambda all: [one.name for one in all.functions] == ["shout"],
)
calls.works(
    "functions: get",
    ask(Functions, "get_function", "oss.raw.shout"),
    lambda one: [parameter.name for parameter in one.input_params.parameters] == ["x"],
)

# Models and their versions
Models, Versions = uc.RegisteredModelsApi, uc.ModelVersionsApi
model = uc.CreateRegisteredModel(**place, name="bot", comment="says it again")
calls.works("models: create", ask(Models, "create_registered_model", model), lambda one: one.full_name == "oss.raw.bot")
calls.works(
    "models: list",
    ask(Models, "list_registered_models", catalog_name="oss", schema_name="raw"),
    lambda all: [one.name for one in all.registered_models] == ["bot"],
)
calls.works("models: get", ask(Models, "get_registered_model", "oss.raw.bot"), lambda one: one.owner == "ann")
calls.works(
    "models: update",
    ask(Models, "update_registered_model", "oss.raw.bot", uc.UpdateRegisteredModel(comment="c")),
    lambda one: one.comment == "c",
)
version = uc.CreateModelVersion(**place, model_name="bot", source="file:///somewhere", run_id="r1")
calls.works(
    "model versions: create",
    ask(Versions, "create_model_version", version),
    lambda one: (one.version, one.status.value) == (1, "PENDING_REGISTRATION"),
)
calls.works(
    "model versions: list",
    ask(Versions, "list_model_versions", "oss.raw.bot"),
    lambda all: [one.version for one in all.model_versions] == [1],
)
calls.works("model versions: get", ask(Versions, "get_model_version", "oss.raw.bot", 1), lambda one: one.run_id == "r1")
calls.works(
    "model versions: update",
    ask(Versions, "update_model_version", "oss.raw.bot", 1, uc.UpdateModelVersion(comment="first")),
    lambda one: one.comment == "first",
)
finalize = uc.FinalizeModelVersion(full_name="oss.raw.bot", version=1)
calls.refused(
    "model versions: finalize one without files",
    ask(Versions, "finalize_model_version", "oss.raw.bot", 1, finalize),
    "nothing was uploaded",
)
calls.works("model versions: delete", ask(Versions, "delete_model_version", "oss.raw.bot", 1))

# Permissions
Grants = uc.GrantsApi
change = uc.UpdatePermissions(changes=[uc.PermissionsChange(principal="bob", add=["USE CATALOG"], remove=[])])
calls.works(
    "permissions: update",
    ask(Grants, "update", "catalog", "oss", change),
    lambda held: [one.principal for one in held.privilege_assignments] == ["bob"],
)
calls.works(
    "permissions: get",
    ask(Grants, "get", "catalog", "oss"),
    lambda held: [p.value for p in held.privilege_assignments[0].privileges] == ["USE CATALOG"],
)
owner = uc.UpdatePermissions(
    changes=[uc.PermissionsChange(principal="bob", add=["CREATE SCHEMA"], remove=["USE CATALOG"])]
)
calls.works(
    "permissions: add one and remove another",
    ask(Grants, "update", "catalog", "oss", owner),
    lambda held: [p.value for p in held.privilege_assignments[0].privileges] == ["CREATE SCHEMA"],
)
calls.refused("permissions: get, of what others own", ask(Grants, "get", "catalog", "main"), "PERMISSION_DENIED")

# Temporary credentials
Credentials = uc.TemporaryCredentialsApi
if made is not None:
    wanted = uc.GenerateTemporaryTableCredential(table_id=made.table_id, operation="READ")
    calls.works(
        "temporary credentials: table on local disk",
        ask(Credentials, "generate_temporary_table_credentials", wanted),
        lambda given: given.aws_temp_credentials is None and given.expiration_time > 0,
    )
    calls.refused(
        "temporary credentials: table, without SELECT",
        ask(Credentials, "generate_temporary_table_credentials", wanted, token=calls.offered.without_select),
        "PERMISSION_DENIED",
    )
calls.works(
    "model versions: create another", ask(Versions, "create_model_version", version), lambda one: one.version == 2
)
wanted = uc.GenerateTemporaryModelVersionCredential(
    **place, model_name="bot", version=2, operation="READ_WRITE_MODEL_VERSION"
)
calls.works(
    "temporary credentials: model version",
    ask(Credentials, "generate_temporary_model_version_credentials", wanted),
    lambda given: given.expiration_time > 0,
)
if kept is not None:
    wanted = uc.GenerateTemporaryVolumeCredential(volume_id=kept.volume_id, operation="WRITE_VOLUME")
    calls.works(
        "temporary credentials: volume",
        ask(Credentials, "generate_temporary_volume_credentials", wanted),
        lambda given: given.expiration_time > 0,
    )
    calls.refused(
        "temporary credentials: volume, without WRITE VOLUME",
        ask(Credentials, "generate_temporary_volume_credentials", wanted, token=calls.offered.without_select),
        "PERMISSION_DENIED",
    )
wanted = uc.GenerateTemporaryPathCredential(url="file:///r/part", operation="PATH_READ")
calls.works(
    "temporary credentials: path in a table",
    ask(Credentials, "generate_temporary_path_credentials", wanted),
    lambda given: given.expiration_time > 0,
)
elsewhere = uc.GenerateTemporaryPathCredential(url="file:///etc", operation="PATH_READ")
calls.refused(
    "temporary credentials: path elsewhere",
    ask(Credentials, "generate_temporary_path_credentials", elsewhere),
    "PERMISSION_DENIED",
)

# What is not spoken, and who is not known
calls.refused(
    "external locations", ask(uc.ExternalLocationsApi, "list_external_locations"), "is not spoken by this version"
)
calls.refused("storage credentials", ask(uc.CredentialsApi, "list_credentials"), "is not spoken by this version")
calls.refused("a token that is not known", ask(Catalogs, "list_catalogs", token="mosaic_no"), "UNAUTHENTICATED")
calls.not_offered(
    "a token as Configuration(access_token=...)", lambda: asyncio.run(with_access_token()), "send your token as"
)

# Away again
calls.refused("models: delete one with versions", ask(Models, "delete_registered_model", "oss.raw.bot"), "version")
calls.works("models: delete by force", ask(Models, "delete_registered_model", "oss.raw.bot", force=True))
calls.works("functions: delete", ask(Functions, "delete_function", "oss.raw.shout"))
calls.works("volumes: delete", ask(Volumes, "delete_volume", "oss.raw.files"))
calls.works("tables: delete", ask(Tables, "delete_table", "oss.raw.rows"))
calls.works("schemas: delete", ask(Schemas, "delete_schema", "oss.raw"))
calls.works("catalogs: delete", ask(Catalogs, "delete_catalog", "oss"))
calls.say()
