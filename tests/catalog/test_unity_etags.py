"""ETag and If-Match over the Unity Catalog protocol: who changes something says what it was when it was read."""

import asyncio
from typing import Any

import httpx
import pytest

from mosaic.catalog import Catalog
from tests.catalog.conftest import Unity

PLACE = {"catalog_name": "main", "schema_name": "ml", "name": "thing"}
CODE = {"input_params": {}, "data_type": "INT", "full_data_type": "int", "routine_body": "EXTERNAL"}
CODE |= {"external_language": "PYTHON", "routine_definition": "return 1"}
MADE: dict[str, tuple[str, dict[str, Any]]] = {
    "/catalogs": ("lake", {"name": "lake"}),
    "/schemas": ("main.new", {"name": "new", "catalog_name": "main"}),
    "/models": ("main.ml.thing", PLACE),
    "/tables": ("main.ml.thing", PLACE | {"table_type": "MANAGED"}),
    "/functions": ("main.ml.thing", {"function_info": PLACE | CODE}),
    "/connections": ("lake", {"name": "lake", "connection_type": "HTTP", "options": {"host": "https://h"}}),
    "/volumes": ("main.ml.thing", PLACE | {"volume_type": "MANAGED"}),
}
"""How one of each noun is made, and its name."""


def etag(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    found = answer.headers["etag"]
    assert found.startswith('"') and found.endswith('"') and len(found) > 8
    assert "etag" not in answer.json()
    return found


@pytest.mark.parametrize("noun", MADE)
def test_what_was_changed_meanwhile_is_not_overwritten(unity: Unity, catalog: Catalog, noun: str) -> None:
    catalog.principals.create("carl", by=catalog.check_token(unity.admin))
    name, body = MADE[noun]
    path = f"{noun}/{name}"
    first = etag(unity("POST", noun, json=body))
    assert etag(unity("GET", path)) == first

    def change(if_match: str | None, **fields: str) -> httpx.Response:
        headers = {} if if_match is None else {"if-match": if_match}
        return unity("PATCH", path, json=fields, headers=headers)

    second = etag(change(first, comment="one"))
    assert second != first and etag(unity("GET", path)) == second
    for fields in ({"comment": "two"}, {"owner": "carl"}, {"owner": "carl", "comment": "two"}):
        stale = change(first, **fields)
        assert (stale.status_code, stale.json()["error_code"]) == (412, "FAILED_PRECONDITION")
        assert stale.json()["details"][0]["reason"] == "STALE_ETAG"
        assert first.strip('"') in stale.json()["message"] and second.strip('"') in stale.json()["message"]
    there = unity("GET", path)
    assert etag(there) == second and (there.json()["comment"], there.json()["owner"]) == ("one", "ann")
    both = change(second, owner="carl", comment="two")
    third = etag(both)
    assert third not in (first, second) and (both.json()["comment"], both.json()["owner"]) == ("two", "carl")
    assert etag(change("*", comment="three")) != third
    fourth = etag(change(None, comment="four"))
    assert etag(change(fourth, comment="four")) == fourth  # nothing changed
    weak = change(f"W/{fourth}", comment="five")
    assert weak.status_code == 412 and f"W/{fourth}" in weak.json()["message"]
    assert change(f"{first}, W/{fourth},{second}", comment="five").status_code == 412
    assert etag(change(f'{first} ,, "a,b", {fourth},', comment="four")) == fourth
    two_lines = [("if-match", first), ("if-match", fourth)]
    assert etag(unity("PATCH", path, json={"comment": "four"}, headers=two_lines)) == fourth
    for wrong in (
        fourth.strip('"'),
        f"{fourth} {first}",
        f"{fourth}, *",
        f"{fourth}, x",
        ",",
        '"',
        "",
        "**",
        '"a b"',
        "\u00e9",
    ):
        refused = unity("PATCH", path, json={"comment": "x"}, headers={"if-match": wrong.encode("latin-1")})
        assert refused.status_code == 400, (wrong, refused.text)
        assert refused.json()["details"][0]["metadata"] == {"field": "If-Match"}
        assert unity("DELETE", path, headers={"if-match": wrong.encode("latin-1")}).status_code == 400
    assert unity("DELETE", path, headers={"if-match": third}).status_code == 412
    assert unity("DELETE", path, headers={"if-match": fourth}).json() == {}
    assert unity("GET", path).status_code == 404
    again = etag(unity("POST", noun, json=body))
    assert again not in (first, second, third, fourth)  # another thing of the same name
    assert unity("DELETE", path, headers={"if-match": first}).status_code == 412
    assert unity("DELETE", path, headers={"if-match": "*"}).status_code == 200


def test_of_many_that_change_the_same_state_one_wins(unity: Unity) -> None:
    path = "/api/2.1/unity-catalog/schemas/main.ml"
    state = etag(unity("GET", path))

    async def ask() -> list[int]:
        transport = httpx.ASGITransport(app=unity.app)
        headers = {"authorization": f"Bearer {unity.admin}", "if-match": state}
        async with httpx.AsyncClient(transport=transport, base_url="http://unity", headers=headers) as client:
            asked = [client.patch(path, json={"comment": f"by {number}"}) for number in range(12)]
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    assert sorted(asyncio.run(ask())) == [200] + [412] * 11


def test_if_match_is_not_passed_over(unity: Unity) -> None:
    """A route that could not keep the promise says so."""
    unity.make("/models", **PLACE)
    for method, path, body in [
        ("PUT", "/models/main.ml.thing/aliases/champion", {"version_num": 1}),
        ("POST", "/schemas", {"name": "x", "catalog_name": "main"}),
        ("PATCH", "/permissions/schema/main.ml", {"changes": [{"principal": "bob", "add": ["SELECT"]}]}),
    ]:
        refused = unity(method, path, json=body, headers={"if-match": '"x"'})
        assert refused.status_code == 400 and "If-Match is not honoured" in refused.json()["message"]
    assert unity("GET", "/schemas/main.ml", headers={"if-match": '"x"'}).status_code == 200
