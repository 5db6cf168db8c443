"""Names, owners, grants, versions, tokens and lineage: the SQL database that says what exists, whose it is, whence."""

from mosaic.catalog.catalog import Catalog
from mosaic.catalog.explain import EffectivePrivilege, Explanation
from mosaic.catalog.names import parse_model_version, parse_table_version
from mosaic.catalog.records import (
    AliasEvent,
    AuditEvent,
    CatalogEntry,
    Dropped,
    Endpoint,
    Found,
    Grant,
    GrantChange,
    Index,
    KnownPrincipal,
    LineageNode,
    Model,
    ModelVersion,
    PolicyVersion,
    PromptVersion,
    Run,
    RunEdge,
    Schema,
    Securable,
    Table,
    Token,
)
from mosaic.catalog.store import StoreSettings

__all__ = [
    "AliasEvent",
    "AuditEvent",
    "Catalog",
    "CatalogEntry",
    "Dropped",
    "EffectivePrivilege",
    "Endpoint",
    "Explanation",
    "Found",
    "Grant",
    "GrantChange",
    "Index",
    "KnownPrincipal",
    "LineageNode",
    "Model",
    "ModelVersion",
    "PolicyVersion",
    "PromptVersion",
    "Run",
    "RunEdge",
    "Schema",
    "Securable",
    "StoreSettings",
    "Table",
    "Token",
    "parse_model_version",
    "parse_table_version",
]
