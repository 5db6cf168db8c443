"""The protocol's wire shapes: what may be asked, and what is answered, every field always there.

Fields of the protocol that this version cannot honour are not in the shapes of what is asked, so that they are a 400
that names them; in what is answered they are null.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Protocol

from pydantic import ConfigDict, Field, field_validator

from mosaic.protocol import Wire

LONGEST_TYPE = 64 * 1024
"""Characters of a type's text or JSON."""
_LONGEST_TYPES = 1024 * 1024
"""Characters of all types of a body: reading them takes a second for as many."""

_MOST_GRANTS = 1000
"""Of all changes of a body: writing as many takes about a second."""

MOST_PROPERTIES = 1000
Properties = Annotated[dict[str, str], Field(max_length=MOST_PROPERTIES)]
"""No list and no map of a body is without an end: what is written is written under the catalog's one lock."""
Options = Annotated[dict[str, str], Field(max_length=200)]
Privileges = Annotated[tuple[str, ...], Field(max_length=50)]

# What is asked


class Asked(Wire):
    """A field that is null counts as one that is not there."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def given(self) -> dict[str, Any]:
        """The fields that were there and not null."""
        return {name: getattr(self, name) for name in self.model_fields_set if getattr(self, name) is not None}


class CreateCatalog(Asked):
    name: str
    comment: str | None = None
    properties: Properties | None = None


class CreateSchema(Asked):
    name: str
    catalog_name: str
    comment: str | None = None
    properties: Properties | None = None


class Update(Asked):
    """Of any securable; a name cannot be changed, since lineage and grants hold on to it."""

    owner: str | None = None
    comment: str | None = None


class UpdateNamespace(Update):
    """Of a catalog or a schema."""

    properties: Properties | None = None


class PermissionsChange(Asked):
    principal: str
    add: Privileges = ()
    remove: Privileges = ()


class UpdatePermissions(Asked):
    changes: tuple[PermissionsChange, ...] = Field(min_length=1, max_length=200)

    @field_validator("changes")
    @classmethod
    def _can_be_written(cls, changes: tuple[PermissionsChange, ...]) -> tuple[PermissionsChange, ...]:
        asked = sum(len(one.add) + len(one.remove) for one in changes)
        if asked > _MOST_GRANTS:
            raise ValueError(f"{asked} privileges are added and removed; up to {_MOST_GRANTS} fit into one request")
        return changes


class AskedColumn(Asked):
    name: str = Field(min_length=1, max_length=255)
    type_text: str | None = Field(default=None, max_length=LONGEST_TYPE)
    type_json: str | None = Field(default=None, max_length=LONGEST_TYPE)
    type_name: str | None = None
    type_precision: int | None = None
    type_scale: int | None = None
    type_interval_type: str | None = None
    position: int | None = None
    comment: str | None = None
    nullable: bool | None = None
    partition_index: int | None = Field(default=None, ge=0)


class Typed(Protocol):
    """What says a type; a column, or a parameter of a function."""

    @property
    def type_text(self) -> str | None: ...

    @property
    def type_json(self) -> str | None: ...


def check_types_length(typed: Iterable[Typed]) -> None:
    """Raises ValueError, which is a 400 that names the field, if it would take long to read all types."""
    length = sum(len(one.type_text or "") + len(one.type_json or "") for one in typed)
    if length > _LONGEST_TYPES:
        raise ValueError(f"the types have {length} characters; up to {_LONGEST_TYPES} are read")


class CreateTable(Asked):
    name: str
    catalog_name: str
    schema_name: str
    table_type: Literal["MANAGED", "EXTERNAL"]
    data_source_format: Literal["DELTA"] = "DELTA"
    columns: list[AskedColumn] = Field(default_factory=list, max_length=10_000)
    storage_location: str | None = None
    comment: str | None = None
    properties: Properties | None = None

    @field_validator("columns")
    @classmethod
    def _types_can_be_read(cls, columns: list[AskedColumn]) -> list[AskedColumn]:
        check_types_length(columns)
        return columns


class UpdateTable(Update):
    """Of a table; its columns are its data's to say."""

    properties: Properties | None = None


class CreateVolume(Asked):
    name: str
    catalog_name: str
    schema_name: str
    volume_type: Literal["MANAGED", "EXTERNAL"]
    storage_location: str | None = None
    comment: str | None = None


class UpdateVolume(Update):
    """Of a volume; its files stay where they are."""


class TagKeyValue(Asked):
    key: str = Field(min_length=1, max_length=255)
    value: str = Field(default="", max_length=1000)


class CreateModel(Asked):
    name: str
    catalog_name: str
    schema_name: str
    comment: str | None = None
    tags: list[TagKeyValue] = Field(default_factory=list, max_length=50)


class UpdateModel(Update):
    """Of a registered model."""


class CreateModelVersion(Asked):
    model_name: str
    catalog_name: str
    schema_name: str
    source: str = Field(min_length=1)
    run_id: str | None = None
    """MLflow's; kept as it is, not followed."""
    comment: str | None = None
    model_id: str | None = None
    run_tracking_server_id: str | None = None
    feature_deps: str | None = None
    tags: list[TagKeyValue] = Field(default_factory=list, max_length=50)


class UpdateModelVersion(Asked):
    comment: str | None = None


class Finalize(Asked):
    """Nothing beyond the path."""


class SetAlias(Asked):
    version_num: int = Field(ge=1, le=2**31 - 1)


class TableCredentials(Asked):
    table_id: str
    operation: Literal["READ", "READ_WRITE"]


class VolumeCredentials(Asked):
    volume_id: str
    operation: Literal["READ_VOLUME", "WRITE_VOLUME"]


class PathCredentials(Asked):
    url: str
    operation: Literal["PATH_READ", "PATH_READ_WRITE"]


class ModelVersionCredentials(Asked):
    catalog_name: str
    schema_name: str
    model_name: str
    version: int = Field(ge=1, le=2**31 - 1)
    operation: Literal["READ_MODEL_VERSION", "READ_WRITE_MODEL_VERSION"]


# What is answered; times are milliseconds since 1970


class Answer(Wire):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Kept(Answer):
    """A securable; its etag is the header ETag of an answer that is about it alone."""

    etag: str = Field(exclude=True)


class Nothing(Answer):
    """What a deletion answers."""


class PrivilegeAssignment(Answer):
    principal: str
    privileges: list[str]


class Permissions(Answer):
    privilege_assignments: list[PrivilegeAssignment]


class EffectivePrivilege(Answer):
    privilege: str
    inherited_from_type: str | None
    inherited_from_name: str | None


class EffectiveAssignment(Answer):
    principal: str
    privileges: list[EffectivePrivilege]


class EffectivePermissions(Answer):
    """Databricks': Unity Catalog itself has no such question."""

    privilege_assignments: list[EffectiveAssignment]
    next_page_token: None = None


class CatalogInfo(Kept):
    name: str
    full_name: str
    comment: str | None
    properties: dict[str, str]
    owner: str
    created_at: int
    created_by: str
    updated_at: int
    updated_by: str | None
    id: str
    storage_root: None = None
    storage_location: None = None


class Catalogs(Answer):
    catalogs: list[CatalogInfo]
    next_page_token: str | None


class SchemaInfo(Kept):
    name: str
    catalog_name: str
    full_name: str
    comment: str | None
    properties: dict[str, str]
    owner: str
    created_at: int
    created_by: str
    updated_at: int
    updated_by: str | None
    schema_id: str
    storage_root: None = None
    storage_location: None = None


class Schemas(Answer):
    schemas: list[SchemaInfo]
    next_page_token: str | None


class ColumnInfo(Answer):
    name: str
    type_text: str
    type_json: str
    type_name: str
    type_precision: int
    type_scale: int
    type_interval_type: None = None
    position: int
    comment: str | None
    nullable: bool
    partition_index: int | None


class TableInfo(Kept):
    name: str
    catalog_name: str
    schema_name: str
    full_name: str
    table_type: Literal["MANAGED", "EXTERNAL"]
    data_source_format: Literal["DELTA"] = "DELTA"
    columns: list[ColumnInfo] | None
    """null in a list that was asked for without them; so are the properties."""
    storage_location: str
    comment: str | None
    properties: dict[str, str] | None
    owner: str
    created_at: int
    created_by: str
    updated_at: int
    updated_by: str | None
    table_id: str
    view_definition: None = None
    view_dependencies: None = None


class TableSummary(Answer):
    full_name: str
    table_type: Literal["MANAGED", "EXTERNAL"]


class TableSummaries(Answer):
    tables: list[TableSummary]
    next_page_token: str | None


class VolumeInfo(Kept):
    name: str
    catalog_name: str
    schema_name: str
    full_name: str
    volume_type: Literal["MANAGED", "EXTERNAL"]
    storage_location: str
    comment: str | None
    owner: str
    created_at: int
    created_by: str
    updated_at: int
    updated_by: str | None
    volume_id: str


class Volumes(Answer):
    volumes: list[VolumeInfo]
    next_page_token: str | None


class Tables(Answer):
    tables: list[TableInfo]
    next_page_token: str | None


class TableExists(Answer):
    table_exists: bool


class Alias(Answer):
    alias_name: str
    version_num: int


class RegisteredModelInfo(Kept):
    name: str
    catalog_name: str
    schema_name: str
    full_name: str
    storage_location: str
    comment: str | None
    owner: str
    created_at: int
    created_by: str
    updated_at: int
    updated_by: str | None
    id: str
    aliases: list[Alias]
    tags: list[TagKeyValue] | None
    """null in a list."""


class RegisteredModels(Answer):
    registered_models: list[RegisteredModelInfo]
    next_page_token: str | None


class ModelVersionInfo(Answer):
    model_name: str
    catalog_name: str
    schema_name: str
    version: int
    source: str
    run_id: str | None
    status: Literal["PENDING_REGISTRATION", "READY"]
    storage_location: str
    comment: str | None
    created_at: int
    created_by: str | None
    updated_at: int
    updated_by: str | None
    id: str
    aliases: list[Alias]
    model_id: str | None
    run_tracking_server_id: str | None
    feature_deps: str | None
    tags: list[TagKeyValue] | None
    """null in a list."""


class ModelVersions(Answer):
    model_versions: list[ModelVersionInfo]
    next_page_token: str | None


class AwsCredentials(Answer):
    access_key_id: str
    secret_access_key: str
    session_token: str


class AzureSas(Answer):
    sas_token: str


class GcpToken(Answer):
    oauth_token: str


class TemporaryCredentials(Answer):
    aws_temp_credentials: AwsCredentials | None
    azure_user_delegation_sas: AzureSas | None
    gcp_oauth_token: GcpToken | None
    r2_temp_credentials: None = None
    expiration_time: int
    url: str
    endpoint_url: str | None
    """The object store's own address, where it is not the cloud's (MinIO, R2); not in the protocol, wanted by many."""


class MetastoreSummary(Answer):
    metastore_id: str
    global_metastore_id: str
    name: str
    cloud: None = None
    region: None = None
    owner: str
    privilege_model_version: str = "1.0"
    storage_root: str
    storage_root_credential_id: None = None
    storage_root_credential_name: None = None
    default_data_access_config_id: None = None
    delta_sharing_scope: str = "INTERNAL"
    delta_sharing_recipient_token_lifetime_in_seconds: None = None
    delta_sharing_organization_name: None = None
    external_access_enabled: bool = True
    created_at: None = None
    created_by: None = None
    updated_at: None = None
    updated_by: None = None


class OpenApi(Answer):
    """The OpenAPI document of these routes."""

    openapi: str
    info: dict[str, Any]
    servers: list[dict[str, Any]]
    security: list[dict[str, list[str]]]
    paths: dict[str, Any]
    components: dict[str, Any]
