"""No list and no map that a body may carry is without an end, and reading one takes time that grows with it alone."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel
from starlette.routing import Route

from mosaic.catalog import Catalog
from mosaic.catalog.routes import catalog_routes
from mosaic.catalog.unity import unity_routes
from mosaic.catalog.unity.call import Operation
from mosaic.catalog.unity.spark import parse_type
from mosaic.data.routes import ExecuteStatement
from mosaic.data.run_routes import RunInput
from tests.catalog.conftest import Unity

PLACE = {"catalog_name": "main", "schema_name": "docs", "name": "rows"}
TABLE = PLACE | {"table_type": "MANAGED"}
CODE = {"input_params": {}, "data_type": "INT", "full_data_type": "int", "routine_body": "EXTERNAL"}
CODE |= {"external_language": "PYTHON", "routine_definition": "return 1"}
MANY = {str(number): "x" for number in range(1001)}
WIDE = f"struct<{','.join(f'a{number}:int' for number in range(8000))}>"


def unbounded(schema: Any, path: str) -> Iterator[str]:
    """The lists and maps of a JSON schema that may be of any length."""
    if isinstance(schema, list):
        for number, one in enumerate(schema):
            yield from unbounded(one, f"{path}.{number}")
    if not isinstance(schema, dict):
        return
    if schema.get("type") == "array" and "maxItems" not in schema:
        yield path
    if isinstance(schema.get("additionalProperties"), dict) and "maxProperties" not in schema:
        yield path
    for key, one in schema.items():
        yield from unbounded(one, f"{path}.{key}")


def asked(routes: list[Route]) -> set[type[BaseModel]]:
    operations = [getattr(one.endpoint, "__self__", None) for one in routes]
    return {one.asked for one in operations if isinstance(one, Operation) and one.asked is not None}


def test_every_list_and_map_of_a_body_has_an_end(unity: Unity, catalog: Catalog) -> None:
    shapes = asked([*unity_routes(catalog, unity.storage), *catalog_routes(catalog)]) | {ExecuteStatement, RunInput}
    assert len(shapes) > 25
    assert [found for one in shapes for found in unbounded(one.model_json_schema(), one.__name__)] == []


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("PATCH", "/permissions/schema/main.docs", {"changes": [{"principal": "bob"}] * 201}, "changes"),
        (
            "PATCH",
            "/permissions/schema/main.docs",
            {"changes": [{"principal": "bob", "add": ["SELECT"] * 51}]},
            "changes.0.add",
        ),
        ("POST", "/tables", TABLE | {"columns": [{"name": "a", "type_text": WIDE}]}, "columns.0.type_text"),
        ("POST", "/tables", TABLE | {"columns": [{"name": "a", "type_json": " " * 65537}]}, "columns.0.type_json"),
        (
            "POST",
            "/tables",
            TABLE | {"columns": [{"name": f"c{number}", "type_json": " " * 65536} for number in range(17)]},
            "columns",
        ),
        (
            "PATCH",
            "/permissions/schema/main.docs",
            {"changes": [{"principal": "bob", "add": ["SELECT"] * 6}] * 167},
            "changes",
        ),
        ("POST", "/tables", TABLE | {"properties": MANY}, "properties"),
        ("PATCH", "/schemas/main.docs", {"properties": MANY}, "properties"),
        ("POST", "/connections", {"name": "k", "connection_type": "HTTP", "options": MANY}, "options"),
        (
            "POST",
            "/functions",
            {
                "function_info": PLACE
                | CODE
                | {
                    "input_params": {
                        "parameters": [
                            {"name": f"p{number}", "type_text": " " * 65536, "type_name": "INT", "position": number}
                            for number in range(17)
                        ]
                    }
                }
            },
            "function_info.input_params.parameters",
        ),
    ],
)
def test_what_is_beyond_is_refused_by_name(unity: Unity, method: str, path: str, body: Any, field: str) -> None:
    refused = unity(method, path, json=body)
    assert refused.status_code == 400, refused.text[:500]
    assert refused.json()["details"][0]["metadata"] == {"field": field}


def test_what_real_clients_send_fits(unity: Unity) -> None:
    columns = [
        {"name": f"c{number}", "type_text": "bigint", "type_json": f'{{"name":"c{number}","type":"long"}}'}
        for number in range(2000)
    ]
    nested = {"name": "nested", "type_text": f"struct<{','.join(f'a{number}:int' for number in range(2000))}>"}
    made = unity.make("/tables", **TABLE, columns=[*columns, nested], properties=dict(list(MANY.items())[:1000]))
    assert len(made["columns"]) == 2001
    principals = [{"principal": "bob", "add": ["SELECT"], "remove": ["MODIFY"]}] * 200
    assert unity("PATCH", "/permissions/table/main.docs.rows", json={"changes": principals}).status_code == 200


@pytest.mark.timeout(60)
def test_reading_a_type_takes_time_that_grows_with_its_length() -> None:
    """A second for a million characters; what takes time that grows with the square needs minutes."""
    fields = parse_type(f"struct<{','.join('`a b`: int not null' for _ in range(60_000))}>").json
    assert isinstance(fields, dict) and len(fields["fields"]) == 60_000
    deep = "struct<a: " * 40 + f"array<{'int' + ' ' * 1_000_000}>" + " > " * 40
    assert parse_type(deep).text == "struct<a:" * 40 + "array<int>" + ">" * 40
