"""A database of an older version, with rows in it, opened by this one."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

import mosaic.catalog.migrations
from mosaic.catalog import Catalog
from mosaic.errors import Unauthenticated
from tests.catalog.conftest import Databases

TIME = "2026-10-01 10:00:00.000000"


def migrated_to(connection: sa.Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(str(mosaic.catalog.migrations.__file__)).parent))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def insert(connection: sa.Connection, table: str, *row: Any) -> None:
    named = {f"v{number}": value for number, value in enumerate(row)}
    values = ", ".join(f":{name}" for name in named)
    connection.execute(sa.text(f"INSERT INTO {table} VALUES ({values})"), named)


def add_securable(connection: sa.Connection, kind: str, name: str, parent: str | None, owner: str) -> None:
    spec = '{"location": "/r", "columns": [], "primary_key": null}' if kind == "table" else "{}"
    row = (
        f"sec_{name}",
        kind,
        parent,
        name.rpartition(".")[2],
        name,
        owner,
        "",
        "{}",
        spec,
        1,
        TIME,
        owner,
        TIME,
        None,
    )
    insert(connection, "securable", *row)


def add_token(connection: sa.Connection, number: int, principal: str, kind: str, is_admin: bool) -> None:
    digest = hashlib.sha256(f"mosaic_{number}".encode()).hexdigest()
    row = (f"tok_{number}", digest, principal, kind, is_admin, "", TIME, None, None, None)
    insert(connection, "token", *row)


def fill(connection: sa.Connection) -> None:
    for kind, name, parent, owner in (
        ("catalog", "main", None, "admin"),
        ("catalog", "system", None, "system"),
        ("schema", "main.docs", "sec_main", "ann"),
        ("table", "main.docs.entries", "sec_main.docs", "bob"),
    ):
        add_securable(connection, kind, name, parent, owner)
    add_token(connection, 1, "admin", "user", True)
    add_token(connection, 2, "job", "service", False)
    add_token(connection, 3, "ann", "user", False)
    add_token(connection, 4, "ann", "service", False)
    add_token(connection, 5, "admins", "user", False)  # a name that is the administrators' group from now on


def test_a_database_of_revision_1_comes_under_the_metastore(databases: Databases) -> None:
    engine = sa.create_engine(url := databases.new())
    with engine.begin() as connection:
        migrated_to(connection, "0001")
        fill(connection)
    engine.dispose()

    catalog = Catalog.open(url)
    assert {one.name: one.kind for one in catalog.principals.list()} == {
        "admin": "user",
        "admins": "group",
        "ann": "user",
        "bob": "user",
        "job": "service",
        "system": "service",
        "users": "group",
    }
    assert catalog.principals.members("admins") == ["admin"]
    assert catalog.get_table("main.docs.entries").owner == "bob"
    assert catalog.check_token("mosaic_1").is_admin and catalog.check_token("mosaic_2").name == "job"
    with pytest.raises(Unauthenticated, match="principal 'admins' of token tok_5 is a group"):
        catalog.check_token("mosaic_5")
    table = ("table", "main.docs.entries")
    assert catalog.grants.is_allowed("admin", "SELECT", *table) and not catalog.grants.is_allowed(
        "bob", "SELECT", *table
    )
    catalog.grants.grant("catalog", "main", "users", ["USE CATALOG"], by="admin")
    assert catalog.grants.is_allowed("ann", "SELECT", *table)  # owns the schema
    assert [catalog.grants.visible("admin", "catalog", "metastore"), len(catalog.audit.list())] == [
        ["main", "system"],
        1,
    ]
    catalog.ensure_schema("other.docs")
    assert catalog.grants.is_allowed("admin", "CREATE SCHEMA", "catalog", "other")
    catalog.close()
    query = sa.text("SELECT kind, full_name, owner FROM securable WHERE parent_id IS NULL")
    with engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            assert connection.execute(sa.text("PRAGMA foreign_key_check")).fetchall() == []
        roots = connection.execute(query).fetchall()
    engine.dispose()
    assert roots == [("metastore", "metastore", "admins")]


def test_edges_of_revision_4_learn_which_bearer_of_a_name_they_mean(databases: Databases) -> None:
    engine = sa.create_engine(url := databases.new())
    day = [f"2026-10-0{number} 10:00:00.000000" for number in range(6)]
    with engine.begin() as connection:
        migrated_to(connection, "0001")
        fill(connection)
        for number, (made, dropped) in enumerate(((day[1], day[3]), (day[3], None))):
            row = (f"sec_rows{number}", "table", "sec_main.docs", "rows", "main.docs.rows", "ann", "", "{}", "{}", 1)
            insert(connection, "securable", *row, made, "ann", made, dropped)
        for number, ended in enumerate((day[2], day[4], None)):
            insert(connection, "run", f"run_{number}", "step", "s", "ann", "{}", "finished", None, "{}", day[2], ended)
            insert(connection, "run_edge", 2 * number, f"run_{number}", "output", "table", "main.docs.rows", 1, None)
            insert(connection, "run_edge", 2 * number + 1, f"run_{number}", "input", "file", "raw.csv", None, None)
    engine.dispose()

    catalog = Catalog.open(url)
    runs = [catalog.get_run(f"run_{number}") for number in range(3)]
    assert [run.outputs[0].securable_id for run in runs] == ["sec_rows0", "sec_rows1", "sec_rows1"]
    assert [run.inputs[0].securable_id for run in runs] == [None] * 3
    catalog.close()


def test_tokens_of_revision_5_stand_for_themselves(databases: Databases) -> None:
    engine = sa.create_engine(url := databases.new())
    with engine.begin() as connection:
        migrated_to(connection, "0001")
        fill(connection)
        migrated_to(connection, "0005")
    engine.dispose()

    catalog = Catalog.open(url)
    assert {one.parent_id for one in catalog.list_tokens()} == {None}
    ann = catalog.check_token("mosaic_3")
    made, secret = catalog.create_token("ann", by=ann)
    assert made.parent_id == "tok_3" and catalog.check_token(secret).name == "ann"
    catalog.revoke_token("tok_3")
    for gone in (secret, "mosaic_3"):
        with pytest.raises(Unauthenticated, match="was revoked at"):
            catalog.check_token(gone)
    assert catalog.check_token("mosaic_4").name == "ann"
    catalog.close()
