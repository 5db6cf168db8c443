"""SQL injection and hostile names in every name, field and query parameter of every route of the protocol.

Nothing is a 500, and the database is as it was: its tables, and the count of their rows. The routes and their fields
come from the protocol's own OpenAPI document, so a new route is attacked as soon as it is there.
`tests/clients/test_openapi_fuzz.py` has the same document fuzzed by schemathesis.
"""

import asyncio
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import sqlalchemy as sa
from starlette.routing import Route

from mosaic.catalog import Catalog
from mosaic.catalog.unity import unity_routes
from mosaic.catalog.unity.openapi import operation_of
from mosaic.catalog.unity.routes import NOT_SPOKEN
from tests.catalog.conftest import Unity

INJECTIONS = [
    "' OR '1'='1",
    "' OR 1=1 --",
    '" OR ""="',
    "') OR ('1'='1",
    "'; DROP TABLE securable; --",
    '"; DROP TABLE securable; --',
    "main'; DELETE FROM privilege_grant; --",
    "x'); INSERT INTO token VALUES ('t'); --",
    "' UNION SELECT name, sql FROM sqlite_master --",
    "1; ATTACH DATABASE '/tmp/x' AS x",
    "' AND (SELECT count(*) FROM token) > 0 --",
    "'||(SELECT hash FROM token)||'",
    "admin'--",
    "admin'/*",
    "*/ DROP TABLE audit_event; /*",
    "main.docs.entries' --",
    "1 OR SLEEP(5)",
    "'; SELECT pg_sleep(5); --",
    "%' ESCAPE '!' OR '%'='",
    "\\'; DROP TABLE securable; --",
    "%27%20OR%201=1",
    "%2527",
    "a/b",
    "a'b",
    'a"b',
    "a;b",
    "a --b",
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "%00",
    "a\0b",
    "x" * 300,
    "ma\u0131n",
    "m\u0430in",
    "\uff07 OR 1=1",
    "main\u202e",
    "${7*7}{{7*7}}",
    ":name",
    "?",
]


SHARE = 4
"""Of the payloads each place gets every fourth, and its neighbours the others: all are thousands of requests."""


def counts(url: str) -> dict[str, int]:
    """Rows of every table of the database, but of those that say what was asked."""
    engine = sa.create_engine(url)
    with engine.connect() as database:
        names = sorted(sa.inspect(database).get_table_names())
        asked = {name: sa.select(sa.func.count()).select_from(sa.table(name)) for name in names}
        found = {name: database.execute(query).scalar_one() for name, query in asked.items()}
    engine.dispose()
    assert {"securable", "privilege_grant"} <= found.keys()
    return {name: count for name, count in found.items() if not name.startswith("audit")}


def spoken(unity: Unity) -> list[Route]:
    found = [one for one in unity_routes(unity.catalog, unity.storage) if isinstance(one, Route)]
    return [one for one in found if one.path.split("/")[3] not in NOT_SPOKEN]


@pytest.fixture
def document(unity: Unity) -> Any:
    answer = unity("GET", "/openapi.json")
    assert answer.status_code == 200
    return answer.json()


def test_the_document_has_every_route_and_no_other(unity: Unity, document: Any) -> None:
    routes = {(one.path, method) for one in spoken(unity) for method in (one.methods or set()) - {"HEAD"}}
    written = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    assert written == routes and ("/2.1/unity-catalog/openapi.json", "GET") in written
    operations = [one for methods in document["paths"].values() for one in methods.values()]
    assert len({one["operationId"] for one in operations}) == len(operations)
    for one in spoken(unity):
        operation, (method,) = operation_of(one), (one.methods or set()) - {"HEAD"}
        said = document["paths"][one.path][method.lower()]
        assert {p["name"] for p in said["parameters"] if p["in"] == "query"} == {q.name for q in operation.query}
        assert ("requestBody" in said) == (operation.asked is not None)
        assert {"200", "400", "401", "403", "404", "409"} <= said["responses"].keys()


def test_injections_change_nothing_and_are_never_a_500(
    unity: Unity, document: Any, catalog: Catalog, catalog_url: str
) -> None:
    catalog.create_table("main.docs.entries", "/nowhere", columns=[], primary_key=None, owner="ann")

    async def attack(injections: list[str], share: int) -> None:
        headers = {"authorization": f"Bearer {unity.admin}"}
        transport = httpx.ASGITransport(app=unity.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://unity", headers=headers) as client:
            for number, injection in enumerate(injections):
                for place, (method, path, query, body) in enumerate(attacks(document, injection)):
                    if (number + place) % share == 0:
                        content = None if body is None else json.dumps(body)
                        check(await client.request(method, path, params=query, content=content), injection)

    asyncio.run(attack(["harmless"], 1))  # makes what a hostile text in a comment or an address may make too
    before = counts(catalog_url)
    asyncio.run(attack(INJECTIONS, SHARE))
    assert counts(catalog_url) == before


def check(answer: httpx.Response, injection: str) -> None:
    """Refused in the protocol's shape, or answered as a value like any other."""
    where = f"{answer.request.method} {answer.request.url} {injection!r}: {answer.status_code} {answer.text}"
    assert answer.status_code in (200, 400, 403, 404, 409), where
    told = answer.text.lower()
    assert not any(word in told for word in ("sqlalche", "psycopg", "syntax error", "traceback")), where
    if answer.status_code != 200:
        assert answer.json()["error_code"] and answer.json()["message"], where


def attacks(document: Any, injection: str) -> Iterator[tuple[str, str, dict[str, str], Any]]:
    """One request for each parameter of a path, parameter of a query and text field of a body; else all is good.

    Bodies are of what a reader of the document would send; their free texts (comments) are left alone, since there
    everything may be said.
    """
    sent = injection.encode("utf-8", "surrogatepass")
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            good = {p["name"]: str(p["example"]) for p in operation["parameters"] if p["in"] == "path"}
            body = example(document, operation)
            for name in good:
                yield method.upper(), filled(path, {**good, name: quote(sent, safe="")}), {}, body
            for parameter in operation["parameters"]:
                if parameter["in"] == "query" and method == "get":
                    place = {"catalog_name": "main", "schema_name": "docs"}
                    yield method.upper(), filled(path, good), {**place, parameter["name"]: injection}, body
            for field in body or {}:
                if isinstance(body[field], str):
                    yield method.upper(), filled(path, good), {}, {**body, field: injection}


def filled(path: str, values: dict[str, str]) -> str:
    return "/api" + path.format(**values)


def example(document: Any, operation: Any) -> Any:
    """A body with the required fields of its shape; None where there is no body."""
    if "requestBody" not in operation:
        return None
    shape = operation["requestBody"]["content"]["application/json"]["schema"]
    if "$ref" in shape:
        shape = document["components"]["schemas"][shape["$ref"].rpartition("/")[2]]
    return {field: value(shape["properties"][field], field) for field in shape.get("required", [])}


def value(schema: Any, field: str) -> Any:
    known = {"catalog_name": "main", "schema_name": "docs", "name": "entries", "model_name": "none"}
    if field in known:
        return known[field]
    if "enum" in schema:
        return schema["enum"][0]
    return {"integer": 1, "array": [], "object": {}}.get(schema.get("type", ""), "x")
