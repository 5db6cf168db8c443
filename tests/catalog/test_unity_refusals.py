"""What the protocol's routes refuse: in its error shape, with a message that names what was wrong, and never a 500."""

import asyncio
import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.routing import Route

from mosaic.catalog import Catalog
from mosaic.catalog.unity import unity_routes
from mosaic.catalog.unity.routes import NOT_SPOKEN
from mosaic.errors import NotFound, PermissionDenied
from mosaic.protocol import Principal
from tests.catalog.conftest import Unity
from tests.catalog.test_unity_etags import CODE

BAD_NAMES = ["a/b", "a'b", 'a"b', "a;--", "a b", "a.b", "", "x" * 300, "\u00fc", "\0", "..", "%", "a\nb"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_wrong_names(unity: Unity, name: str) -> None:
    schema = {"catalog_name": "main", "schema_name": "docs"}
    for path, body in [
        ("/catalogs", {"name": name}),
        ("/schemas", {"name": name, "catalog_name": "main"}),
        ("/schemas", {"name": "x", "catalog_name": name}),
        ("/tables", {**schema, "name": name, "table_type": "MANAGED"}),
        ("/tables", {**schema, "name": "x", "table_type": "MANAGED", "schema_name": name}),
        ("/models", {**schema, "name": name}),
        ("/models/versions", {**schema, "model_name": name, "source": "x"}),
    ]:
        refused = unity("POST", path, json=body)
        assert refused.status_code == 400, refused.text
        told = refused.json()
        assert told["error_code"] == "INVALID_ARGUMENT" and set(told) == {
            "error_code",
            "message",
            "details",
            "request_id",
        }
        assert repr(name)[1:-1] in told["message"] or "NUL" in told["message"]
        assert told["details"][0]["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    for path in ("/catalogs/", "/schemas/main.", "/tables/main.docs.", "/models/main.ml."):
        refused = unity("GET", path + quote(name, safe=""))
        assert refused.status_code in (400, 404) and refused.json()["error_code"] in ("INVALID_ARGUMENT", "NOT_FOUND")


def test_missing_parents(unity: Unity) -> None:
    def told(path: str, **body: object) -> tuple[str, str]:
        refused = unity("POST", path, json=body)
        assert refused.status_code == 404
        return refused.json()["error_code"], refused.json()["message"]

    place = {"catalog_name": "main", "schema_name": "dox", "name": "x"}
    assert told("/schemas", name="x", catalog_name="lake") == (
        "CATALOG_NOT_FOUND",
        "no catalog 'lake'; there are ['main']",
    )
    no_schema = ("SCHEMA_NOT_FOUND", "no schema 'main.dox'; there are ['main.docs', 'main.ml']")
    assert told("/tables", **place, table_type="MANAGED") == no_schema == told("/models", **place)
    version = {"catalog_name": "main", "schema_name": "ml", "model_name": "bot", "source": "x"}
    assert told("/models/versions", **version)[0] == "NOT_FOUND"
    assert unity("GET", "/tables?catalog_name=main&schema_name=dox").json()["error_code"] == "SCHEMA_NOT_FOUND"
    assert unity("GET", "/schemas?catalog_name=lake").json()["error_code"] == "CATALOG_NOT_FOUND"
    missing = unity("GET", "/tables?catalog_name=main").json()
    assert missing["message"] == "query parameter 'schema_name' is required"
    assert missing["details"][0]["metadata"] == {"field": "schema_name"}


def test_wrong_bodies(unity: Unity) -> None:
    def told(content: str | bytes, path: str = "/catalogs", method: str = "POST") -> str:
        refused = unity(method, path, content=content)
        assert refused.status_code == 400, refused.text
        return str(refused.json()["message"])

    assert "not JSON" in told("{") and "not JSON" in told(b"\xff") and "not JSON" in told("[" * 100_000)
    assert "must be a JSON object, not list" in told("[" * 900 + "]" * 900)
    assert "must be a JSON object" in told("null") and "must be a JSON object" in told('"x"')
    assert told("{}") == "field 'name' is required" == told("")
    assert "unknown field 'storage_root'; there are ['comment', 'name', 'properties']" in told(
        '{"name": "x", "storage_root": "s3://b"}'
    )
    assert "field 'name' = 3" in told('{"name": 3}') and "field 'name' = {" in told(
        '{"name": ' + '{"a":' * 300 + "1" + "}" * 301
    )
    assert "properties" in told('{"name": "x", "properties": {"a": 1}}')
    for text in ("\\u0000", "\\ud800"):
        assert "has a NUL or a lone surrogate" in told(f'{{"name": "x", "comment": "{text}"}}')
        assert "has a NUL or a lone surrogate" in told(f'{{"name": "x", "properties": {{"{text}": "b"}}}}')
    assert "unknown field 'new_name'" in told('{"new_name": "x"}', "/catalogs/main", "PATCH")
    assert "but the path says 'main.ml'" in told('{"full_name": "main.docs"}', "/schemas/main.ml", "PATCH")
    too_large = unity("POST", "/catalogs", content="x" * (5 * 1024 * 1024))
    assert too_large.status_code == 413
    unity.make("/models", name="bot", catalog_name="main", schema_name="ml")
    for number in ("0", "-1", "x", "1.0", "99999999999"):
        refused = unity("GET", f"/models/main.ml.bot/versions/{number}")
        assert refused.status_code == 400 and number in refused.json()["message"]


def test_what_is_not_spoken_is_told_from_what_is_not_there(unity: Unity) -> None:
    for noun in NOT_SPOKEN:
        for method, path in (("GET", f"/{noun}"), ("PATCH", f"/{noun}/table/main.docs.x")):
            refused = unity(method, path)
            assert (refused.status_code, refused.json()["error_code"]) == (501, "UNIMPLEMENTED")
            assert repr(noun) in refused.json()["message"]
    nothing = unity("GET", "/nothing")
    assert (nothing.status_code, nothing.json()["error_code"]) == (404, "NOT_FOUND")
    assert unity("PUT", "/catalogs").status_code == 405
    nobody = unity("GET", "/catalogs", headers={"authorization": ""})
    assert (nobody.status_code, nobody.json()["error_code"]) == (401, "UNAUTHENTICATED")


def routes(unity: Unity) -> list[Route]:
    """Those that do something."""
    known = unity_routes(unity.catalog, unity.storage)
    return [one for one in known if one.path.partition("unity-catalog/")[2].split("/")[0] not in NOT_SPOKEN]


PATH = {
    "name": "main",
    "full_name": "main.ml.bot",
    "version": "1",
    "alias": "champion",
    "securable_type": "registered_model",
    "subentity_name": "1",
    "entity_type": "registered_models",
    "entity_name": "main.ml.bot",
    "tag_key": "stage",
}
"""What stands in a path."""


def test_every_route_asks_before_it_does_anything(unity: Unity, catalog: Catalog) -> None:
    def refuse(principal: Principal, privilege: str, securable_kind: str, full_name: str) -> None:
        asked.append((privilege, securable_kind, full_name))
        raise PermissionDenied("closed", code="closed")

    table = catalog.create_table("main.docs.t", "/t", columns=[], primary_key=None, owner="ann")
    where = {"volume_type": "EXTERNAL", "location": "/v"}
    volume = catalog.volumes.create("main.docs.v", spec=where, owner="ann")
    closed = Unity(catalog, unity.storage, refuse)
    named = {"catalog_name": "main", "schema_name": "docs", "name": "x"}
    bodies = {
        "/catalogs": {"name": "x"},
        "/schemas": {"name": "x", "catalog_name": "main"},
        "/tables": {**named, "table_type": "MANAGED"},
        "/volumes": {**named, "volume_type": "MANAGED"},
        "/connections": {"name": "x", "connection_type": "HTTP", "options": {}},
        "/functions": {"function_info": {**named, **CODE}},
        "/temporary-volume-credentials": {"volume_id": volume.id, "operation": "READ_VOLUME"},
        "/temporary-path-credentials": {"url": "/v/x", "operation": "PATH_READ"},
        "/models": named,
        "/entity-tag-assignments": {"entity_type": "schemas", "entity_name": "main.docs", "tag_key": "a"},
        "/models/versions": {"catalog_name": "main", "schema_name": "ml", "model_name": "bot", "source": "x"},
        "/temporary-table-credentials": {"table_id": table.id, "operation": "READ"},
        "/temporary-model-version-credentials": {
            "catalog_name": "main",
            "schema_name": "ml",
            "model_name": "bot",
            "version": 1,
            "operation": "READ_MODEL_VERSION",
        },
    }
    for route in routes(unity):
        asked: list[tuple[str, str, str]] = []
        path = "/api" + route.path.format(**PATH)
        path = path.replace("/schemas/main.ml.bot", "/schemas/main.ml")
        for method in (route.methods or set()) - {"HEAD"}:
            given_body = bodies.get(route.path.partition("unity-catalog")[2], {}) if method == "POST" else {}
            if "/permissions/" in path and method == "PATCH":
                given_body = {"changes": [{"principal": "bob", "add": ["EXECUTE"]}]}
            answer = closed(method, path, params={"catalog_name": "main", "schema_name": "docs"}, json=given_body)
            assert answer.status_code == 403 and len(asked) == 1, (method, path, answer.text)


HOSTILE = ["' OR 1=1 --", '"; DROP TABLE securable; --', "main.docs", "main.ml.bot", "../../etc/passwd", "%00", "\0"]
HOSTILE += ["\ud800", "{x}", "%s%n", "a" * 300, "1e999", "-1", "0", "null", "\u202e", "system.x", "main.ml.bot/1"]
HOSTILE += ["EXTERNAL", "s3://b/x", "PATH_READ"]
hostile = st.text(max_size=40) | st.sampled_from(HOSTILE)
hostile_value = st.one_of(hostile, st.none(), st.integers(), st.booleans(), st.lists(hostile, max_size=2))
FIELDS = ["name", "catalog_name", "schema_name", "model_name", "full_name", "comment", "owner", "source", "run_id"]
FIELDS += ["table_type", "storage_location", "columns", "properties", "version", "version_num", "table_id", "operation"]
FIELDS += ["volume_type", "volume_id", "url", "entity_type", "entity_name", "tag_key", "tag_value", "changes"]


@given(
    number=st.integers(0, 10_000),
    parts=st.lists(hostile, min_size=3, max_size=3),
    body=st.dictionaries(st.sampled_from(FIELDS), hostile_value, max_size=6),
    column=st.dictionaries(st.sampled_from(["name", "type_text", "type_json", "type_name"]), hostile_value, max_size=4),
    query=st.dictionaries(
        st.sampled_from(["catalog_name", "schema_name", "max_results", "page_token", "force"]), hostile, max_size=3
    ),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_hostile_is_a_500(
    unity: Unity, number: int, parts: list[str], body: dict[str, Any], column: dict[str, Any], query: dict[str, str]
) -> None:
    known = routes(unity)
    route = known[number % len(known)]
    method = next(iter((route.methods or set()) - {"HEAD"}))
    path = "/api" + route.path.format(
        **{
            name: quote(parts[place % 3].encode("utf-8", "surrogatepass"), safe="")
            for place, name in enumerate(PATH)
            if not name.endswith("_type") or number % 2
        },
        **({} if number % 2 else {"securable_type": "schema", "entity_type": "schemas"}),
    )
    if route.path.endswith("/tables") and method == "POST":
        # Good but for what is hostile, so that the columns are reached.
        body = {"name": "t", "catalog_name": "main", "schema_name": "docs", "table_type": "MANAGED"} | body
        body["columns"] = [{"name": "x", "type_text": "int"} | column]
    elif method == "POST" and number % 2:
        good = {"name": "t", "catalog_name": "main", "schema_name": "docs", "model_name": "t", "source": "s"}
        body = {field: body.get(field, good[field]) for field in good if field in {*body, *_fields(route)}}
    sent = {key: value.encode("utf-8", "replace").decode() for key, value in query.items()}
    answer = unity(method, path, params=sent, content=_json(body))
    assert answer.status_code in (200, 400, 403, 404, 405, 409), (method, path, body, answer.text)
    answer.json()


def _fields(route: Route) -> set[str]:
    of = {
        "catalogs": {"name"},
        "schemas": {"name", "catalog_name"},
        "models": {"name", "catalog_name", "schema_name"},
        "versions": {"model_name", "catalog_name", "schema_name", "source"},
    }
    return of.get(route.path.rpartition("/")[2], set())


def _json(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()


def test_many_at_once(unity: Unity, catalog: Catalog) -> None:
    """Who registers at the same time gets different numbers, and each its own folder."""
    unity.make("/models", name="bot", catalog_name="main", schema_name="ml")
    body = {"model_name": "bot", "catalog_name": "main", "schema_name": "ml", "source": "x"}

    async def ask() -> list[httpx.Response]:
        headers = {"authorization": f"Bearer {unity.admin}"}
        transport = httpx.ASGITransport(app=unity.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://unity", headers=headers) as client:
            path = "/api/2.1/unity-catalog/models/versions"
            return await asyncio.gather(*(client.post(path, json=body) for _ in range(20)))

    made = [answer.json() for answer in asyncio.run(ask())]
    assert sorted(one["version"] for one in made) == list(range(1, 21))
    assert len({one["storage_location"] for one in made}) == 20


def test_a_refusal_of_the_platforms_own_is_a_row_of_the_audit(unity: Unity, catalog: Catalog) -> None:
    catalog.ensure_schema("system.access", owner="system")
    for method, path, body in (
        ("POST", "/schemas", {"catalog_name": "system", "name": "mine"}),
        ("PATCH", "/schemas/system.access", {"comment": "mine"}),
    ):
        before = catalog.audit.newest(1)[0].sequence
        answer = unity(method, path, json=body)
        assert answer.status_code == 403 and "is the platform's own" in answer.json()["message"]
        (row,) = catalog.audit.list(after=before)
        assert (row.user_identity.email, row.response.status_code) == ("ann", 403)
        assert row.request_params["securable_full_name"].startswith("system")


def test_a_name_that_is_not_there_tells_no_others(catalog: Catalog) -> None:
    catalog.create_table("main.docs.payroll", "/p", columns=[], primary_key=None, owner="ann")
    for ask in (
        lambda: catalog.get_table("system.serving.inference"),
        lambda: catalog.tags.list("table", "main.docs.x"),
        lambda: catalog.endpoints.get("x"),
        lambda: catalog.list_tables("main.none"),
    ):
        with pytest.raises(NotFound, match=r"^no [a-z]+ '[a-z.]+'$"):
            ask()
