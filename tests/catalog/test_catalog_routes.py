"""Search, undrop, prompts and API tokens over HTTP, with each its grant."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.errors import NotFound
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from mosaic.catalog import Catalog
from mosaic.catalog.routes import catalog_routes
from mosaic.errors import PermissionDenied, Unauthenticated
from mosaic.protocol import Principal
from mosaic.runtime import Authenticate, ShapeErrors
from tests.catalog.conftest import Unity, under_api
from tests.local import served


@pytest.fixture
def own(unity: Unity) -> Unity:
    """The catalog's own routes in place of the protocol's."""
    router = Router(routes=catalog_routes(unity.catalog), redirect_slashes=False)
    unity.app = under_api(ShapeErrors(Authenticate(router, unity.catalog.check_token)))
    return unity


def dropped_table(catalog: Catalog, name: str = "main.docs.rows", owner: str = "bob") -> str:
    made = catalog.create_table(name, f"/data/{name}", columns=[], primary_key=None, owner=owner)
    catalog.delete_table(name)
    return made.id


def undrop(own: Unity, token: str | None = None, kind: str = "table", name: str = "main.docs.rows") -> httpx.Response:
    return own("POST", "/api/2.0/mosaic/undrop", json={"securable_type": kind, "full_name": name}, token=token)


def test_who_may_undrop(own: Unity, catalog: Catalog) -> None:
    admin, dan = catalog.check_token(own.admin), catalog.create_token("dan")[1]
    table_id = dropped_table(catalog)
    # Its owner, as long as he could make one there today.
    assert undrop(own, own.reader).status_code == 403
    catalog.grants.grant("schema", "main.docs", "bob", ["CREATE TABLE"], by=admin)
    assert undrop(own, dan).status_code == 403
    assert undrop(own, own.reader).json() == {"securable_type": "table", "full_name": "main.docs.rows"}
    back = catalog.get_table("main.docs.rows")
    assert (back.id, back.owner, back.updated_by) == (table_id, "bob", "bob")
    catalog.delete_table("main.docs.rows")
    # Who may make tables, but does not own this one.
    catalog.grants.grant("schema", "main.docs", "dan", ["CREATE TABLE"], by=admin)
    assert undrop(own, dan).status_code == 403
    # Through a group that owns it.
    catalog.principals.create_group("team", by=admin)
    catalog.principals.add_member("team", "dan", by=admin)
    dropped_table(catalog, "main.docs.ours", owner="team")
    assert undrop(own, dan, name="main.docs.ours").status_code == 200
    # Who may manage what it stood in; who may not any more, may not.
    catalog.grants.grant("schema", "main.docs", "dan", ["MANAGE"], by=admin)
    assert undrop(own, dan).status_code == 200 and catalog.get_table("main.docs.rows").owner == "bob"
    catalog.delete_table("main.docs.rows")
    catalog.grants.revoke("schema", "main.docs", "dan", ["MANAGE"], by=admin)
    assert undrop(own, dan).status_code == 403 and undrop(own).status_code == 200
    told = [event for event in catalog.audit.newest(100) if event.action_name == "undropTable"]
    assert [event.user_identity.email for event in told] == ["bob", "dan", "dan", "ann"]


def test_undrop_refuses(own: Unity, catalog: Catalog) -> None:
    dropped_table(catalog, "main.docs.gone")
    dropped_table(catalog, "main.ml.secret")
    assert undrop(own, own.reader, name="main.docs.none").status_code == 403  # not whether there was one
    missing = undrop(own, name="main.docs.none")
    assert missing.status_code == 404 and "there are ['main.docs.gone']" in missing.json()["message"]
    catalog.create_table("main.docs.gone", "/x", columns=[], primary_key=None, owner="ann")
    assert undrop(own, name="main.docs.gone").json()["error_code"] == "ALREADY_EXISTS"
    catalog.schemas.delete("main.ml", force=True)
    assert undrop(own, name="main.ml.secret").status_code == 404  # no schema
    assert undrop(own, kind="schema", name="main.ml").status_code == 200
    assert undrop(own, kind="schema", name="main.none", token=own.reader).status_code == 403
    for kind, name in (
        ("metastore", "metastore"),
        ("dog", "main.docs.x"),
        ("table", "main.docs"),
        ("table", "a/b.c.d"),
    ):
        assert undrop(own, kind=kind, name=name).status_code == 400
    bad = own("POST", "/api/2.0/mosaic/undrop", json={"securable_type": "table", "full_name": "a.b.c", "by": "root"})
    assert bad.status_code == 400 and "unknown field 'by'" in bad.json()["message"]


def test_search(own: Unity, catalog: Catalog) -> None:
    catalog.create_model("main.ml.bot", owner="ann", comment="speaks of the library")
    catalog.create_table("main.docs.library", "/l", columns=[], primary_key=None, owner="ann")
    catalog.tags.set("model", "main.ml.bot", {"stage": "live", "url": "a:b"})
    catalog.ensure_schema("dark.docs")
    catalog.create_model("dark.docs.library", owner="ann")

    def found(query: str, token: str | None = None) -> list[str]:
        answer = own("GET", f"/api/2.0/mosaic/search?{query}", token=token)
        assert answer.status_code == 200, answer.text
        return [one["name"] for one in answer.json()["hits"]]

    assert found("words=LIBRARY") == ["dark.docs.library", "main.ml.bot", "main.docs.library"]
    assert found("words=library", own.reader) == ["main.ml.bot", "main.docs.library"]
    assert found("words=library&kind=registered_model") == ["dark.docs.library", "main.ml.bot"]
    assert found("words=library&kind=table&kind=model", own.reader) == ["main.ml.bot", "main.docs.library"]
    assert found("tag=stage:live") == ["main.ml.bot"] == found("tag=stage&tag=url:a:b")
    assert found("tag=stage:test") == [] == found("tag=stage&tag=none")
    assert len(found("words=library&limit=1")) == 1
    many = "&".join(f"tag=t{number}" for number in range(21))
    assert found(many.partition("&")[2]) == []
    for wrong in ("limit=x", "limit=-1", "limit=100000", "kind=dog", "limit=0", many):
        assert own("GET", f"/api/2.0/mosaic/search?{wrong}").status_code == 400


def test_prompts(own: Unity, catalog: Catalog) -> None:
    base, name = "/api/2.0/mosaic/prompts", "main.ml.greeting"
    admin = catalog.check_token(own.admin)

    def register(template: str, token: str | None = None) -> httpx.Response:
        return own("POST", base, json={"name": name, "template": template, "comment": "c"}, token=token)

    assert register("Hi", own.reader).status_code == 403
    catalog.grants.grant("schema", "main.ml", "bob", ["CREATE FUNCTION"], by=admin)
    made = register("Hello {{who}}", own.reader).json()
    assert (made["version"], made["variables"], made["created_by"]) == (1, ["who"], "bob")
    eve = catalog.create_token("eve")[1]
    catalog.grants.grant("schema", "main.ml", "eve", ["CREATE FUNCTION"], by=admin)
    assert register("Bye", eve).status_code == 403  # it is bob's by now
    assert register("Bye {{who}}").json()["version"] == 2
    assert own("PUT", f"{base}/{name}/aliases/live", json={"version_num": 2}, token=eve).status_code == 403
    assert own("PUT", f"{base}/{name}/aliases/live", json={"version_num": 2}).json()["template"] == "Bye {{who}}"
    assert own("GET", f"{base}/{name}/aliases/live", token=eve).json()["version"] == 2
    assert own("GET", f"{base}/{name}/versions/1", token=eve).json() == made
    assert own("GET", f"{base}/{name}", token=eve).json() == {"versions": [1, 2], "aliases": {"live": 2}}
    listed = own("GET", f"{base}?schema=main.ml", token=eve).json()["prompts"]
    assert [(one["name"], one["owner"]) for one in listed] == [(name, "bob")]
    catalog.grants.revoke("catalog", "main", "users", ["EXECUTE", "SELECT"], by=admin)
    assert own("GET", f"{base}/{name}/versions/1", token=eve).status_code == 403
    assert own("GET", f"{base}/{name}/aliases/live", token=eve).status_code == 403
    assert own("DELETE", f"{base}/{name}/aliases/live", token=eve).status_code == 403
    assert own("DELETE", f"{base}/{name}/aliases/live").json() == {}
    assert own("GET", f"{base}/{name}/aliases/live").status_code == 404
    assert own("DELETE", f"{base}/{name}", token=eve).status_code == 403
    assert own("DELETE", f"{base}/{name}", token=own.reader).json() == {}
    assert own("GET", f"{base}/{name}").status_code == 404
    for path, status in ((f"{base}/{name}/versions/x", 404), (base, 400), (f"{base}/a.b", 400)):
        assert own("GET", path).status_code == status
    elsewhere = own("POST", base, json={"name": "main.none.x", "template": "x"})
    assert elsewhere.status_code == 404 and own("POST", base, json={"name": name}).status_code == 400


def test_tokens(own: Unity, catalog: Catalog) -> None:
    def create(token: str | None = None, **body: object) -> Any:
        return own("POST", "/api/2.0/token/create", json=body, token=token)

    def listed(token: str | None = None) -> list[dict[str, Any]]:
        return list(own("GET", "/api/2.0/token/list", token=token).json()["token_infos"])

    made = create(own.reader, comment="ci", lifetime_seconds=3600, scopes=["sql", "unity-catalog"]).json()
    who = catalog.check_token(made["token_value"])
    assert (who.name, who.is_admin, set(who.scopes)) == ("bob", False, {"sql", "unity-catalog"})
    info = made["token_info"]
    assert abs(info["expiry_time"] - (time.time() + 3600) * 1000) < 60_000
    plain = create(own.reader).json()["token_info"]
    assert (plain["expiry_time"], plain["scopes"], plain["is_admin"]) == (-1, ["all-apis"], False)
    assert len(listed(own.reader)) == 3 and {one["principal"] for one in listed(own.reader)} == {"bob"}
    assert {one["principal"] for one in listed()} == {"ann", "bob"}
    assert made["token_value"] not in own("GET", "/api/2.0/token/list").text
    # Nobody gives himself more.
    refused = create(own.reader, is_admin=True)
    assert refused.status_code == 403 and "an administrator's rights" in refused.json()["message"]
    assert create(is_admin=True).json()["token_info"]["is_admin"] is True
    assert create().json()["token_info"]["is_admin"] is False
    for wrong in ({"lifetime_seconds": 0}, {"lifetime_seconds": 10**12}, {"scopes": ["root"]}, {"scopes": []}):
        assert create(**wrong).status_code == 400
    assert "unknown field 'principal'" in create(principal="ann").json()["message"]

    def delete(token_id: str, token: str | None = None) -> httpx.Response:
        return own("POST", "/api/2.0/token/delete", json={"token_id": token_id}, token=token)

    anns = next(one["token_id"] for one in listed() if one["principal"] == "ann")
    other, nothing = delete(anns, own.reader), delete("tok_none", own.reader)
    assert other.status_code == nothing.status_code == 404 and anns not in nothing.text
    assert other.json()["message"] == nothing.json()["message"].replace("tok_none", anns)
    assert delete(plain["token_id"], own.reader).json() == {} and len(listed(own.reader)) == 2
    assert delete(info["token_id"]).json() == {} and len(listed(own.reader)) == 1
    catalog.principals.add_member("admins", "bob", by=catalog.check_token(own.admin))
    assert {one["principal"] for one in listed(own.reader)} == {"ann", "bob"}
    assert delete(anns, own.reader).json() == {}


def test_a_token_ends_with_the_one_that_it_was_made_with(own: Unity, catalog: Catalog) -> None:
    def create(token: str, **body: object) -> tuple[str, dict[str, Any]]:
        made = own("POST", "/api/2.0/token/create", json=body, token=token)
        assert made.status_code == 200, made.text
        return made.json()["token_value"], made.json()["token_info"]

    short, its = create(own.reader, lifetime_seconds=3600)
    beside, _ = create(own.reader)
    child, info = create(short)
    assert info["expiry_time"] == its["expiry_time"] > 0
    shorter, info = create(child, lifetime_seconds=60)
    assert 0 < info["expiry_time"] < its["expiry_time"]
    grandchild, info = create(child)
    assert info["expiry_time"] == its["expiry_time"]
    later = own("POST", "/api/2.0/token/create", json={"lifetime_seconds": 7200}, token=child)
    assert later.status_code == 403 and "leave lifetime_seconds out" in later.json()["message"]
    denied = catalog.audit.newest(1)[0]
    assert (denied.action_name, denied.response.status_code) == ("generateDbToken", 403)
    who = catalog.check_token(child)
    assert own("POST", "/api/2.0/token/delete", json={"token_id": its["token_id"]}, token=beside).json() == {}
    for secret in (short, child, shorter, grandchild):
        with pytest.raises(Unauthenticated, match="was revoked at"):
            catalog.check_token(secret)
    row = catalog.audit.newest(1)[0]
    assert row.action_name == "revokeDbToken" and row.request_params["num_tokens"] == "4"
    assert {catalog.check_token(secret).name for secret in (own.reader, beside)} == {"bob"}
    with pytest.raises(Unauthenticated, match="was revoked at"):
        catalog.create_token("bob", by=who)  # whom a replica still knew from a moment ago
    assert len(own("GET", "/api/2.0/token/list", token=beside).json()["token_infos"]) == 2
    # What is made in process by who comes with no token stands for itself.
    made, secret = catalog.create_token("bob")
    assert (made.parent_id, made.expires_at) == (None, None) and catalog.check_token(secret).name == "bob"


def test_a_token_with_few_scopes_makes_none_with_more(unity: Unity, catalog: Catalog) -> None:
    few = Principal(name="bob", scopes=("sql", "mlflow"))
    router = Router(routes=catalog_routes(catalog))

    async def as_few(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["principal"] = few
        await router(scope, receive, send)

    unity.app = under_api(ShapeErrors(as_few))

    def create(**body: object) -> httpx.Response:
        return unity("POST", "/api/2.0/token/create", json=body)

    assert create().json()["token_info"]["scopes"] == ["sql", "mlflow"]
    assert create(scopes=["sql"]).json()["token_info"]["scopes"] == ["sql"]
    for scopes in (["sql", "platform"], ["all-apis"]):
        refused = create(scopes=scopes)
        assert refused.status_code == 403 and scopes[-1] in refused.json()["message"]
    denied = catalog.audit.newest(1)[0]
    assert (denied.action_name, denied.response.status_code) == ("generateDbToken", 403)


@pytest.fixture
def address(own: Unity) -> Iterator[str]:
    with served(own.app) as address:
        yield address


def test_databricks_sdk_tokens(own: Unity, address: str, catalog: Catalog) -> None:
    tokens = WorkspaceClient(host=address, token=own.reader, auth_type="pat").tokens
    made = tokens.create(comment="from the sdk", lifetime_seconds=60 * 60 * 24 * 365 * 9)
    assert made.token_value is not None and made.token_info is not None
    assert catalog.check_token(made.token_value).name == "bob"
    assert [one.comment for one in tokens.list()] == ["", "from the sdk"]
    assert made.token_info.token_id is not None
    tokens.delete(made.token_info.token_id)
    assert len(list(tokens.list())) == 1
    with pytest.raises(NotFound, match="no token"):
        tokens.delete("tok_none")


def test_every_route_asks(own: Unity, catalog: Catalog) -> None:
    def refuse(principal: Principal, privilege: str, securable_kind: str, full_name: str) -> None:
        asked.append(privilege)
        raise PermissionDenied("closed", code="closed")

    bodies = {
        "/2.0/mosaic/undrop": {"securable_type": "table", "full_name": "main.docs.x"},
        "/2.0/mosaic/prompts": {"name": "main.ml.p", "template": "x"},
    }
    routes = catalog_routes(catalog, authorize=refuse)
    app: ASGIApp = ShapeErrors(Authenticate(Router(routes=routes), catalog.check_token))
    own.app = under_api(app)
    for one in routes:
        path = "/api" + one.path.format(full_name="main.ml.p", version=1, alias="live")
        for method in (one.methods or set()) - {"HEAD"}:
            asked: list[str] = []
            answer = own(method, path, params={"schema": "main.ml"}, json=bodies.get(one.path, {}))
            assert answer.status_code == 403 and len(asked) == 1, (method, path, answer.text)
