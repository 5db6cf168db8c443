"""Levels of Databricks' on an endpoint, and what they let somebody do."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from mosaic.errors import NotFound, PermissionDenied
from mosaic.platform.control import control_app
from mosaic.platform.lifecycle import ADMIN
from mosaic.platform.parts import Parts, build_parts
from mosaic.protocol import Principal
from mosaic.runtime.asgi import RequestId
from mosaic.serving.endpoint import EndpointSettings, ServedEntity
from mosaic.serving.register import Models
from mosaic.serving.service import Serving
from tests.catalog.conftest import under_api
from tests.local import local_settings

BASE = "/api/2.0/permissions/serving-endpoints"


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    """An endpoint of ann's, and bob, who may use where it is."""
    made = build_parts(local_settings(tmp_path))
    catalog = made.catalog
    for name in ("ann", "bob"):
        catalog.create_token(name)
    catalog.principals.create_group("team", by="admin")
    settings = EndpointSettings(name="helper", served_entities=[ServedEntity(name="e", model="echo")])
    catalog.endpoints.put("helper", config=settings.model_dump(), owner="ann")
    for kind, name, privilege in (("catalog", "main", "USE CATALOG"), ("schema", "main.serving", "USE SCHEMA")):
        for who in ("bob", "team"):
            catalog.grants.grant(kind, name, who, [privilege], by="admin")
    return made


def ask(parts: Parts, who: str, method: str, path: str, *entries: dict[str, Any]) -> httpx.Response:
    async def tracking(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("not MLflow's")

    async def asked() -> httpx.Response:
        app = RequestId(under_api(control_app(parts, tracking)))
        headers = {"authorization": f"Bearer {parts.catalog.create_token(who)[1]}"}
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://mosaic", headers=headers) as client:
            body = None if method == "GET" else {"access_control_list": list(entries)}
            return await client.request(method, f"{BASE}/{path}", json=body)

    return asyncio.run(asked())


def may(parts: Parts, who: str) -> set[str]:
    grants = parts.catalog.grants
    asked = ("BROWSE", "EXECUTE", "MANAGE")
    return {one for one in asked if grants.is_allowed(who, one, "endpoint", "main.serving.helper")}


@pytest.mark.parametrize(
    ("level", "allowed"),
    [
        ("CAN_VIEW", {"BROWSE"}),
        ("CAN_QUERY", {"BROWSE", "EXECUTE"}),
        ("CAN_MANAGE", {"BROWSE", "EXECUTE", "MANAGE"}),
    ],
)
def test_a_level_is_what_it_lets_somebody_do(level: str, allowed: set[str], parts: Parts) -> None:
    known = parts.catalog.endpoints.get("helper").id
    assert may(parts, "bob") == set()
    given = ask(parts, "ann", "PATCH", known, {"user_name": "bob", "permission_level": level})
    assert given.status_code == 200 and may(parts, "bob") == allowed
    assert given.json() == ask(parts, "ann", "GET", "helper").json()
    assert given.json()["object_id"] == f"/serving-endpoints/{known}"
    levels = {
        one["user_name"]: one["all_permissions"][0]["permission_level"] for one in given.json()["access_control_list"]
    }
    assert levels == {"ann": "CAN_MANAGE", "bob": level}
    assert ask(parts, "ann", "PUT", known).status_code == 200 and may(parts, "bob") == set()
    assert may(parts, "ann") == {"BROWSE", "EXECUTE", "MANAGE"}


def test_what_is_set_replaces_what_was(parts: Parts) -> None:
    bob, team = {"user_name": "bob"}, {"group_name": "team"}
    ask(parts, "ann", "PUT", "helper", {**bob, "permission_level": "CAN_MANAGE"})
    ask(parts, "ann", "PATCH", "helper", {**team, "permission_level": "CAN_QUERY"})
    assert may(parts, "bob") >= {"MANAGE"} and "EXECUTE" in may(parts, "team")
    set_now = ask(parts, "ann", "PUT", "helper", {**bob, "permission_level": "CAN_VIEW"})
    assert may(parts, "bob") == {"BROWSE"} and may(parts, "team") == set()
    assert [one.get("group_name") for one in set_now.json()["access_control_list"]] == [None, None]


def test_who_may_not_and_what_is_wrong(parts: Parts) -> None:
    bob = {"user_name": "bob", "permission_level": "CAN_MANAGE"}
    for method in ("GET", "PATCH", "PUT"):
        assert ask(parts, "bob", method, "helper", bob).status_code == 403
    assert ask(parts, "bob", "GET", "helper/permissionLevels").status_code == 403
    levels = ask(parts, "ann", "GET", "helper/permissionLevels").json()["permission_levels"]
    assert [one["permission_level"] for one in levels] == ["CAN_MANAGE", "CAN_QUERY", "CAN_VIEW"]
    assert may(parts, "bob") == set()
    for entry, told in (
        ({"user_name": "bob", "permission_level": "CAN_FLY"}, "CAN_FLY"),
        ({"permission_level": "CAN_VIEW"}, "access_control_list.0 must have one of"),
        ({**bob, "group_name": "team"}, "must have one of"),
        ({"user_name": "team", "permission_level": "CAN_VIEW"}, "is a group: say group_name"),
        ({"user_name": "carl", "permission_level": "CAN_VIEW"}, "carl"),
    ):
        refused = ask(parts, "ann", "PATCH", "helper", entry)
        assert 400 <= refused.status_code < 500 and told in refused.text, refused.text
    assert ask(parts, "ann", "GET", "nothing").status_code == 404


@pytest.mark.parametrize("base", ["/srv/anything", "s3://bucket/base", "Qwen/Qwen3-0.6B", "../base"])
def test_an_adapter_of_a_place_is_for_administrators(base: str, parts: Parts, tmp_path: Path) -> None:
    """A place is nobody's to grant, and its engine would read whatever lies there."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    ann = Principal(name="ann", is_admin=False)
    for kind, name, privileges in (
        ("catalog", "main", ["USE CATALOG"]),
        ("schema", "main.serving", ["USE SCHEMA", "CREATE MODEL"]),
    ):
        parts.catalog.grants.grant(kind, name, "ann", privileges, by="admin")

    def models(who: Principal) -> Models:
        return Models(parts.catalog, parts.storage, parts.models, who)

    def serve(who: Principal, model: str) -> None:
        entity = ServedEntity(name="e", model=model)
        Serving(parts.catalog, parts.engines, who).create(EndpointSettings(name="new", served_entities=[entity]))

    with pytest.raises(PermissionDenied, match="is a place, which only administrators may name"):
        models(ann).register("main.serving.bot", folder, base_model=base)
    assert parts.catalog.find_model("main.serving.bot") is None
    denied = [one.action_name for one in parts.catalog.audit.list(limit=1000) if one.response.status_code == 403]
    assert denied == ["createModelVersion"]
    assert models(ann).register("main.serving.mine", folder, base_model="smollm2-135m-instruct").version == 1

    made = models(ADMIN).register("main.serving.bot", folder, base_model=base)
    parts.catalog.grants.grant("model", "main.serving.bot", "ann", ["EXECUTE"], by="admin")
    with pytest.raises(PermissionDenied, match=f"is '{base}', a place, which only administrators may serve"):
        serve(ann, made.full_name)
    denied = [one.action_name for one in parts.catalog.audit.list(limit=1000) if one.response.status_code == 403]
    assert denied == ["createModelVersion", "createServingEndpoint"]
    if base.startswith("/"):
        with pytest.raises(NotFound, match=base):  # past what it may, and there is none
            serve(ADMIN, made.full_name)
