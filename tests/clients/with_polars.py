"""polars' Catalog: what there is, and a table as a lazy frame, read through deltalake."""

import polars as pl

from tests.clients.calls import Calls, said

calls = Calls("polars", "deltalake")
catalog = pl.Catalog(calls.offered.address, bearer_token=calls.offered.token, require_https=False)
other = pl.Catalog(calls.offered.address, bearer_token=calls.offered.without_select, require_https=False)


def rows(frame: pl.LazyFrame) -> list[list[object]]:
    return [[said(value) for value in row] for row in frame.collect().rows()]


calls.works("list_catalogs", catalog.list_catalogs, lambda all: "main" in [one.name for one in all])
calls.works(
    "list_namespaces",
    lambda: catalog.list_namespaces("main"),
    lambda all: {"docs", "many"} <= {one.name for one in all},
)
calls.works("list_tables, 150", lambda: catalog.list_tables("main", "many"), lambda all: len(all) == calls.offered.many)
calls.works(
    "get_table_info",
    lambda: catalog.get_table_info("main", "docs", "people"),
    lambda one: [c.type_text for c in one.columns][:4] == ["bigint", "string", "double", "date"],
)
calls.works(
    "get_table_info, its schema as polars'",
    lambda: catalog.get_table_info("main", "docs", "people").get_polars_schema(),
    lambda schema: (schema["score"], schema["tags"]) == (pl.Float64(), pl.List(pl.String())),
)
calls.works(
    "scan_table, every value",
    lambda: rows(catalog.scan_table("main", "docs", "people").sort("id")),
    lambda found: found == calls.offered.people,
)
calls.works(
    "scan_table, an older version",
    lambda: rows(catalog.scan_table("main", "docs", "people", delta_table_version=1).select(pl.len())),
    lambda found: found == [[40]],
)
calls.works(
    "scan_table with a filter",
    lambda: rows(catalog.scan_table("main", "docs", "people").filter(pl.col("id") < 9).select("id").sort("id")),
    lambda found: found == [[n] for n in range(9) if n != 7],
)
calls.refused("scan_table, without SELECT", lambda: rows(other.scan_table("main", "docs", "people")), "Forbidden")
calls.refused(
    "get_table_info, one that is not there", lambda: catalog.get_table_info("main", "docs", "no"), "Not Found"
)
calls.works(
    "create_catalog", lambda: catalog.create_catalog("polar", comment="cold"), lambda one: one.comment == "cold"
)
calls.works("create_namespace", lambda: catalog.create_namespace("polar", "raw"), lambda one: one.name == "raw")
calls.works(
    "create_table",
    lambda: catalog.create_table(
        "polar",
        "raw",
        "rows",
        schema={"id": pl.Int64(), "name": pl.String(), "tags": pl.List(pl.String())},
        table_type="EXTERNAL",
        data_source_format="DELTA",
        storage_root="file:///polar/rows",
    ),
    lambda one: [c.type_name for c in one.columns] == ["LONG", "STRING", "ARRAY"],
)
calls.works("delete_table", lambda: catalog.delete_table("polar", "raw", "rows"))
calls.works("delete_namespace", lambda: catalog.delete_namespace("polar", "raw"))
calls.works("delete_catalog", lambda: catalog.delete_catalog("polar"))
calls.say()
