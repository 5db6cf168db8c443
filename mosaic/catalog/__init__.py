"""Names, owners, grants, versions, tokens and lineage: the SQL database that says what exists, whose it is, whence."""

from mosaic.catalog.catalog import Catalog
from mosaic.catalog.explain import EffectivePrivilege, Explanation
from mosaic.catalog.names import parse_model_version, parse_table_version
from mosaic.catalog.records import (
    AliasEvent,
    AuditEvent,
    CatalogEntry,
    Endpoint,
    Grant,
    GrantChange,
    Index,
    KnownPrincipal,
    LineageNode,
    Model,
    ModelVersion,
    Run,
    RunEdge,
    Schema,
    Table,
    Token,
)

__all__ = [
    "AliasEvent",
    "AuditEvent",
    "Catalog",
    "CatalogEntry",
    "EffectivePrivilege",
    "Endpoint",
    "Explanation",
    "Grant",
    "GrantChange",
    "Index",
    "KnownPrincipal",
    "LineageNode",
    "Model",
    "ModelVersion",
    "Run",
    "RunEdge",
    "Schema",
    "Table",
    "Token",
    "parse_model_version",
    "parse_table_version",
]
