"""What the foreign clients find: the protocol's application on a port of loopback, over a catalog and tables on disk.

`main.docs.people` is a real Delta table of four commits; `main.many` holds 150 tables, of which `t120` has rows;
`main.docs.far` is said to be in an object store. Ann may read all of it, make catalogs, and make models in `main.ml`;
Bob may use catalog and schemas, but nothing in them. Beside it stand gateways, with an echo for a model.
"""

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
from starlette.routing import Router

from mosaic.catalog import Catalog
from mosaic.catalog.routes import catalog_routes
from mosaic.catalog.unity import unity_routes
from mosaic.data import Tables
from mosaic.runtime import Authenticate, ShapeErrors
from mosaic.runtime.asgi import RequestId
from mosaic.storage import Storage
from tests.catalog.conftest import under_api
from tests.gateway.door import Door, door
from tests.local import served

MANY = 150
PEOPLE = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        ("name", pa.string()),
        ("score", pa.float64()),
        ("born", pa.date32()),
        ("seen_at", pa.timestamp("us", tz="UTC")),
        ("tags", pa.list_(pa.string())),
        ("good", pa.bool_()),
        ("price", pa.decimal128(10, 2)),
    ]
)


@dataclass(frozen=True)
class Offered:
    """What a client's script is told, as JSON on its standard input."""

    address: str
    """http://127.0.0.1:port"""
    token: str
    """Ann's."""
    without_select: str
    """Bob's."""
    people: list[list[object]]
    """The rows of main.docs.people by id, in the words of JSON."""
    many: int
    """How many tables main.many has."""
    folder: str
    """Where a client may write."""
    gateways: dict[str, dict[str, str]]
    """By client, since limits are used up: a gateway's `address`, a `token`, and that of a `stranger` who may use
    nothing. Its endpoints are those of tests/gateway/door.py."""

    def told(self) -> dict[str, object]:
        return asdict(self)


@contextmanager
def offered(folder: Path) -> Iterator[Offered]:
    """The application with its data, until the end of the block."""
    catalog, storage = Catalog.open(f"sqlite:///{folder}/catalog.db"), Storage(str(folder / "root"))
    try:
        rows = make_tables(catalog, Tables(storage, catalog))
        tokens = {name: catalog.create_token(name)[1] for name in ("ann", "bob")}
        admin = catalog.check_token(catalog.create_token("admin", is_admin=True)[1])
        reading = ["USE CATALOG", "USE SCHEMA", "SELECT", "EXECUTE"]
        catalog.grants.grant("catalog", "main", "ann", reading, by=admin)
        catalog.grants.grant("catalog", "main", "bob", ["USE CATALOG", "USE SCHEMA"], by=admin)
        catalog.grants.grant("metastore", "metastore", "ann", ["CREATE CATALOG", "CREATE EXTERNAL TABLE"], by=admin)
        catalog.grants.grant("schema", "main.ml", "ann", ["CREATE MODEL"], by=admin)
        router = Router(routes=[*unity_routes(catalog, storage), *catalog_routes(catalog)], redirect_slashes=False)
        app = RequestId(under_api(ShapeErrors(Authenticate(router, catalog.check_token))))
        work = folder / "work"
        work.mkdir()
        with served(app) as address, door(folder / "openai") as openai, door(folder / "anthropic") as anthropic:
            gateways = {"openai": _told(openai), "anthropic": _told(anthropic)}
            yield Offered(address, tokens["ann"], tokens["bob"], rows, MANY, str(work), gateways)
    finally:
        catalog.close()


def _told(gateway: Door) -> dict[str, str]:
    return {"address": gateway.address, "token": gateway.token, "stranger": gateway.stranger}


def make_tables(catalog: Catalog, tables: Tables) -> list[list[object]]:
    """Makes the tables; returns the rows of main.docs.people, sorted, in the words of JSON."""
    for schema in ("main.docs", "main.many", "main.ml"):
        catalog.ensure_schema(schema)
    tables.create("main.docs.people", PEOPLE, primary_key="id", owner="admin", comment="who is known")
    tables.append("main.docs.people", pa.table(_people(0, 40), schema=PEOPLE))
    tables.append("main.docs.people", pa.table(_people(40, 60), schema=PEOPLE))
    tables.delete_where("main.docs.people", "id = 7")
    few = pa.schema([("n", pa.int64())])
    tables.create("main.many.t120", few, primary_key=None, owner="admin")
    tables.append("main.many.t120", pa.table({"n": [120]}, schema=few))
    columns = [{"name": "n", "type": "int64", "nullable": True}]
    catalog.create_table("main.docs.far", "s3://far/away", columns=columns, primary_key=None, owner="admin")
    for number in range(MANY):
        if number != 120:
            where = f"/nowhere/{number:03}"
            catalog.create_table(f"main.many.t{number:03}", where, columns=columns, primary_key=None, owner="admin")
    kept = tables.to_arrow("main.docs.people").sort_by("id").to_pylist()
    return [[said(value) for value in row.values()] for row in kept]


def said(value: object) -> object:
    """A value as JSON can say it; the scripts say theirs the same way."""
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
    return value if isinstance(value, int | float | str | list | None) else str(value)


def _people(start: int, end: int) -> dict[str, list[object]]:
    numbers = range(start, end)
    day, moment = dt.date(2000, 1, 1), dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    return {
        "id": list(numbers),
        "name": [None if n == 3 else f"na\u00efve '{n}'" for n in numbers],
        "score": [n / 8 for n in numbers],
        "born": [day + dt.timedelta(days=n) for n in numbers],
        "seen_at": [moment + dt.timedelta(hours=n) for n in numbers],
        "tags": [[f"t{n}"] * (n % 3) for n in numbers],
        "good": [n % 2 == 0 for n in numbers],
        "price": pa.array([f"{n}.25" for n in numbers]).cast(pa.decimal128(10, 2)).to_pylist(),
    }
