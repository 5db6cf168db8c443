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
