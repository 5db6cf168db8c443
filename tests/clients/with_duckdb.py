"""DuckDB with its extensions for Unity Catalog and Delta, from wheels: tables by name in SQL.

It asks for no second page of a list, and for credentials to write even where it only reads.
"""

from importlib.util import find_spec
from pathlib import Path

import duckdb

from tests.clients.calls import Calls, said

calls = Calls("duckdb", "duckdb-extension-unity-catalog", "duckdb-extension-delta")


def connect(token: str) -> duckdb.DuckDBPyConnection:
    """A database with the extensions, from wheels alone: nothing is fetched."""
    database = duckdb.connect(config={"extension_directory": f"{calls.offered.folder}/duckdb"})
    database.execute("SET autoinstall_known_extensions = false")
    for name in ("httpfs", "delta", "unity_catalog"):
        found = find_spec(f"duckdb_extension_{name}")
        wheel = Path(found.submodule_search_locations[0])
        (file,) = wheel.glob(f"extensions/*/{name}.duckdb_extension")
        database.execute(f"INSTALL '{file}'; LOAD {name}")
    where = f"ENDPOINT '{calls.offered.address}', AWS_REGION 'us-east-1'"
    database.execute(f"CREATE SECRET (TYPE unity_catalog, TOKEN '{token}', {where})")
    return database


def rows(database: duckdb.DuckDBPyConnection, sql: str) -> list[list[object]]:
    return [[said(value) for value in row] for row in database.execute(sql).fetchall()]


database = connect(calls.offered.token)
calls.works("ATTACH", lambda: database.execute("ATTACH 'main' AS lake (TYPE unity_catalog, DEFAULT_SCHEMA 'docs')"))
calls.works(
    "SHOW ALL TABLES, 150 of them in a schema",
    lambda: rows(database, "SELECT name FROM (SHOW ALL TABLES) WHERE schema = 'many'"),
    lambda found: len(found) == calls.offered.many,
)
calls.works(
    "SELECT *, every value",
    lambda: rows(database, "SELECT * FROM lake.docs.people ORDER BY id"),
    lambda found: found == calls.offered.people,
)
calls.works(
    "SELECT with WHERE and GROUP BY",
    lambda: rows(
        database, "SELECT good, count(*), sum(score) FROM lake.docs.people WHERE id >= 20 GROUP BY good ORDER BY good"
    ),
    lambda found: (
        found
        == [
            [good, len(some), sum(some)]
            for good in (False, True)
            for some in [[row[2] for row in calls.offered.people if row[0] >= 20 and row[6] == good]]
        ]
    ),
)
calls.works(
    "SELECT from the 121st table",
    lambda: rows(database, "SELECT n FROM lake.many.t120"),
    lambda found: found == [[120]],
)
calls.works(
    "DESCRIBE",
    lambda: rows(database, "SELECT column_name, column_type FROM (DESCRIBE lake.docs.people)"),
    lambda found: found[1:3] == [["name", "VARCHAR"], ["score", "DOUBLE"]],
)
calls.refused(
    "SELECT from a table that is not there", lambda: rows(database, "SELECT * FROM lake.docs.no"), "does not exist"
)
other = connect(calls.offered.without_select)
other.execute("ATTACH 'main' AS lake (TYPE unity_catalog, DEFAULT_SCHEMA 'docs')")
calls.refused(
    "SELECT from an object store, without MODIFY", lambda: rows(database, "SELECT * FROM lake.docs.far"), "403"
)
calls.refused("SELECT, without SELECT", lambda: rows(other, "SELECT * FROM lake.docs.people"), "does not exist")
unknown = connect("mosaic_no")
calls.refused(
    "ATTACH with a token that is not known",
    lambda: [
        unknown.execute("ATTACH 'main' AS lake (TYPE unity_catalog, DEFAULT_SCHEMA 'docs')"),
        rows(unknown, "SELECT * FROM lake.docs.people"),
    ],
    "401",
)
calls.say()
