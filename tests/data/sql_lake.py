"""A small lake for the tests of SQL: two schemas, four tables, an administrator, and users with fewer grants."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from mosaic.catalog import Catalog
from mosaic.data import Tables
from mosaic.data.sql import Sql, SqlResult, SqlSettings
from mosaic.protocol import Principal
from mosaic.storage import Storage

ADMIN = Principal(name="admin", is_admin=True)
BOB = Principal(name="bob")
EVE = Principal(name="eve")

PEOPLE = pa.table({"id": [1, 2, 3, 4], "name": ["ann", "bob", "cy", None], "team": ["x", "x", "y", None]})
ORDERS = pa.table({"order_id": [10, 11, 12, 13, 14], "person": [1, 1, 2, 3, 9], "amount": [5.0, 7.5, 1.0, None, 100.0]})
SECRET = "the-answer-is-in-the-vault"


class Lake:
    def __init__(self, folder: Path, settings: SqlSettings | None = None) -> None:
        self.folder = folder
        self.catalog = Catalog.open(f"sqlite:///{folder / 'catalog.db'}")
        self.storage = Storage(str(folder))
        self.tables = Tables(self.storage, self.catalog)
        self.sql = Sql(self.storage, self.tables, self.catalog, settings)
        for schema in ("main.docs", "main.vault"):
            self.catalog.ensure_schema(schema)
        self.admin_token = self.catalog.create_token("admin", is_admin=True)[1]
        self.bob_token = self.catalog.create_token("bob")[1]
        self.eve_token = self.catalog.create_token("eve")[1]
        self.make("main.docs.people", PEOPLE, "id")
        self.make("main.docs.orders", ORDERS, "order_id")
        self.make("main.vault.secrets", pa.table({"id": [1, 2], "secret": [SECRET, "other"]}), "id")
        for privilege, kind, name in (
            ("USE CATALOG", "catalog", "main"),
            ("USE SCHEMA", "schema", "main.docs"),
            ("USE SCHEMA", "schema", "main.vault"),
            ("SELECT", "table", "main.docs.people"),
            ("SELECT", "table", "main.docs.orders"),
        ):
            self.grant("bob", privilege, kind, name)

    def make(self, name: str, rows: pa.Table, primary_key: str | None = None) -> None:
        self.tables.create(name, rows.schema, primary_key=primary_key, owner="admin")
        self.tables.append(name, rows)

    def grant(self, who: str, privilege: str, kind: str, name: str) -> None:
        self.catalog.grants.grant(kind, name, who, [privilege], by=ADMIN)

    def query(self, statement: str, principal: Principal = ADMIN, **how: Any) -> SqlResult:
        return self.sql.query(statement, principal=principal, **how)

    def rows(self, statement: str, principal: Principal = ADMIN, **how: Any) -> list[dict[str, Any]]:
        return list(self.query(statement, principal, **how).rows.to_pylist())

    def value(self, statement: str, principal: Principal = ADMIN, **how: Any) -> Any:
        """The one value of a statement."""
        ((value,),) = (row.values() for row in self.rows(statement, principal, **how))
        return value


@contextmanager
def lake_in(folder: Path, settings: SqlSettings | None = None) -> Iterator[Lake]:
    made = Lake(folder, settings)
    yield made
    made.catalog.close()
