"""Names, owners, versions, tokens and lineage: the SQL database that says what exists and where it came from."""

from mosaic.catalog.catalog import Catalog
from mosaic.catalog.names import parse_model_version, parse_table_version
from mosaic.catalog.records import (
    AliasEvent,
    CatalogEntry,
    Endpoint,
    Index,
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
    "Catalog",
    "CatalogEntry",
    "Endpoint",
    "Index",
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
