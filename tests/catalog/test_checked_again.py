"""Between a check and the change that it was made for: the change is done to what was checked, or not at all."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Router

from mosaic.catalog import Catalog
from mosaic.catalog.routes import catalog_routes
from mosaic.catalog.unity import unity_routes
from mosaic.catalog.unity.authorize import by_grants
from mosaic.errors import AlreadyExists, Conflict, MosaicError, NotFound, PermissionDenied
from mosaic.protocol import Principal
from mosaic.runtime import Authenticate, ShapeErrors
from mosaic.storage import Storage
from tests.catalog.conftest import Unity, under_api

ROOT = Principal(name="admin", is_admin=True)
CODE = {"input_params": [], "full_data_type": "bigint", "routine_body": "SQL", "routine_definition": "1"}


class Interrupted:
    """All routes of the catalog, with something that happens once, right after the next check."""

    def __init__(self, catalog: Catalog, folder: Path) -> None:
        self.catalog, self.then = catalog, lambda: None
        asks = by_grants(catalog)

        def authorize(principal: Principal, privilege: str, securable_kind: str, full_name: str) -> Principal:
            acting = asks(principal, privilege, securable_kind, full_name)
            then, self.then = self.then, lambda: None
            then()
            return acting

        storage = Storage(str(folder))
        routes = [
            *unity_routes(catalog, storage, authorize=authorize),
            *catalog_routes(catalog, authorize=authorize),
        ]
        self.unity = Unity(catalog, storage)
        self.unity.app = under_api(
            ShapeErrors(Authenticate(Router(routes=routes, redirect_slashes=False), catalog.check_token))
        )

    def __call__(self, then: Callable[[], Any], method: str, path: str, body: object = None) -> httpx.Response:
        """What bob is answered."""
        self.then = then
        return self.unity(method, path, token=self.unity.reader, json=body)


@pytest.fixture
def interrupted(catalog: Catalog, tmp_path: Path) -> Interrupted:
    return Interrupted(catalog, tmp_path / "root")


def make(catalog: Catalog, kind: str, owner: str) -> None:
    if kind == "model":
        catalog.create_model("main.ml.x", owner=owner)
        catalog.create_model_version("main.ml.x", source="/m", kind="full")
        catalog.set_alias("main.ml.x", "live", 1)
    elif kind == "prompt":
        catalog.prompts.register("main.ml.x", "hello", owner=owner)
        catalog.prompts.set_alias("main.ml.x", "live", 1)
    elif kind == "table":
        catalog.create_table("main.ml.x", "/t", columns=[], primary_key=None, owner=owner)
    elif kind == "volume":
        catalog.volumes.create("main.ml.x", spec={"volume_type": "MANAGED", "location": "/v"}, owner=owner)
    elif kind == "function":
        catalog.functions.create("main.ml.x", spec=CODE, owner=owner)
    elif kind == "connection":
        catalog.connections.create("x", connection_type="OPENAI", options={"base_url": "u"}, owner=owner)
    else:
        {"schema": catalog.schemas, "catalog": catalog.catalogs}[kind].create(
            "main.x" if kind == "schema" else "x", owner=owner
        )
    name = {"connection": "x", "catalog": "x", "schema": "main.x"}.get(kind, "main.ml.x")
    catalog.tags.set(kind, name, {"of": owner})


def drop(catalog: Catalog, kind: str) -> None:
    of = {
        "model": catalog.delete_model,
        "prompt": catalog.prompts.delete,
        "table": catalog.delete_table,
        "volume": catalog.volumes.delete,
        "function": catalog.functions.delete,
        "connection": catalog.connections.delete,
        "schema": catalog.schemas.delete,
        "catalog": catalog.catalogs.delete,
    }
    name = {"connection": "x", "catalog": "x", "schema": "main.x"}.get(kind, "main.ml.x")
    of[kind](name)


def state(catalog: Catalog, kind: str) -> tuple[Any, ...]:
    """All that one can see of it; its etag is another after every change."""
    if kind == "model":
        return catalog.get_model("main.ml.x"), catalog.list_model_versions("main.ml.x")
    if kind == "prompt":
        return catalog.prompts.list("main.ml"), catalog.prompts.versions("main.ml.x")
    if kind == "table":
        return (catalog.get_table("main.ml.x"),)
    if kind in ("volume", "function"):
        return ({"volume": catalog.volumes, "function": catalog.functions}[kind].get("main.ml.x"),)
    if kind == "connection":
        return (catalog.connections.get("x"),)
    return (catalog.schemas.get("main.x") if kind == "schema" else catalog.catalogs.get("x"),)


UNITY, MOSAIC = "/api/2.1/unity-catalog", "/api/2.0/mosaic"
NEW_COMMENT = {"comment": "bob's"}
TAGS = {"changes": {"add_tags": [{"key": "k", "value": "bob's"}], "remove": ["of"]}}
CHANGES = [
    ("model", "PATCH", f"{UNITY}/models/main.ml.x", NEW_COMMENT),
    ("model", "PATCH", f"{UNITY}/models/main.ml.x", {"owner": "bob"}),
    ("model", "DELETE", f"{UNITY}/models/main.ml.x?force=true", None),
    (
        "model",
        "POST",
        f"{UNITY}/models/versions",
        {"catalog_name": "main", "schema_name": "ml", "model_name": "x", "source": "dbfs:/x"},
    ),
    ("model", "PATCH", f"{UNITY}/models/main.ml.x/versions/1", NEW_COMMENT),
    ("model", "DELETE", f"{UNITY}/models/main.ml.x/versions/1", None),
    ("model", "PUT", f"{UNITY}/models/main.ml.x/aliases/best", {"version_num": 1}),
    ("model", "DELETE", f"{UNITY}/models/main.ml.x/aliases/live", None),
    ("model", "PATCH", f"{UNITY}/securable-tags/registered_model/main.ml.x", TAGS),
    (
        "model",
        "POST",
        f"{UNITY}/entity-tag-assignments",
        {"entity_type": "registered_models", "entity_name": "main.ml.x", "tag_key": "k"},
    ),
    (
        "model",
        "PATCH",
        f"{UNITY}/entity-tag-assignments/registered_models/main.ml.x/tags/of?update_mask=*",
        {"tag_value": "1"},
    ),
    ("model", "DELETE", f"{UNITY}/entity-tag-assignments/registered_models/main.ml.x/tags/of", None),
    ("table", "PATCH", f"{UNITY}/tables/main.ml.x", NEW_COMMENT),
    ("table", "DELETE", f"{UNITY}/tables/main.ml.x", None),
    ("table", "PATCH", f"{UNITY}/permissions/table/main.ml.x", {"changes": [{"principal": "bob", "add": ["MODIFY"]}]}),
    ("volume", "PATCH", f"{UNITY}/volumes/main.ml.x", NEW_COMMENT),
    ("volume", "PATCH", f"{UNITY}/volumes/main.ml.x", {"owner": "bob"}),
    ("volume", "DELETE", f"{UNITY}/volumes/main.ml.x", None),
    ("function", "DELETE", f"{UNITY}/functions/main.ml.x", None),
    ("connection", "PATCH", f"{UNITY}/connections/x", {"options": {"base_url": "bob's"}}),
    ("connection", "DELETE", f"{UNITY}/connections/x", None),
    ("schema", "PATCH", f"{UNITY}/schemas/main.x", NEW_COMMENT),
    ("schema", "DELETE", f"{UNITY}/schemas/main.x", None),
    ("catalog", "PATCH", f"{UNITY}/catalogs/x", NEW_COMMENT),
    ("catalog", "DELETE", f"{UNITY}/catalogs/x", None),
    ("prompt", "POST", f"{MOSAIC}/prompts", {"name": "main.ml.x", "template": "bob's"}),
    ("prompt", "DELETE", f"{MOSAIC}/prompts/main.ml.x", None),
    ("prompt", "PUT", f"{MOSAIC}/prompts/main.ml.x/aliases/best", {"version_num": 1}),
    ("prompt", "DELETE", f"{MOSAIC}/prompts/main.ml.x/aliases/live", None),
]


def test_what_was_remade_since_the_check_is_not_touched(interrupted: Interrupted) -> None:
    catalog = interrupted.catalog
    for kind, method, path, body in CHANGES:
        make(catalog, kind, owner="bob")

        before: list[Any] = []

        def remake(kind: str = kind, before: list[Any] = before) -> None:
            drop(catalog, kind)
            make(catalog, kind, owner="ann")
            before.extend(state(catalog, kind))

        answer = interrupted(remake, method, path, body)
        assert answer.status_code == 403, (method, path, answer.text)
        assert [*state(catalog, kind)] == before, (method, path)
        (denied,) = catalog.audit.newest(1)
        assert (denied.user_identity.email, denied.response.status_code) == ("bob", 403)
        drop(catalog, kind)
        make(catalog, kind, owner="bob")
        assert interrupted(lambda: None, method, path, body).status_code == 200, (method, path)
        try:
            drop(catalog, kind)
        except NotFound:
            assert method == "DELETE"


def test_nothing_is_made_with_a_grant_that_is_gone(interrupted: Interrupted) -> None:
    catalog, place = interrupted.catalog, {"catalog_name": "main", "schema_name": "ml", "name": "y"}
    function = {**place, **CODE, "input_params": {"parameters": []}, "data_type": "LONG"}
    makes: Sequence[tuple[str, str, str, str, dict[str, Any]]] = [
        ("schema", "main.ml", "CREATE MODEL", f"{UNITY}/models", place),
        (
            "schema",
            "main.ml",
            "CREATE TABLE",
            f"{UNITY}/tables",
            {**place, "table_type": "MANAGED", "data_source_format": "DELTA", "columns": []},
        ),
        ("schema", "main.ml", "CREATE VOLUME", f"{UNITY}/volumes", {**place, "volume_type": "MANAGED"}),
        ("schema", "main.ml", "CREATE FUNCTION", f"{UNITY}/functions", {"function_info": function}),
        ("schema", "main.ml", "CREATE FUNCTION", f"{MOSAIC}/prompts", {"name": "main.ml.y", "template": "x"}),
        ("catalog", "main", "CREATE SCHEMA", f"{UNITY}/schemas", {"catalog_name": "main", "name": "y"}),
        ("metastore", "metastore", "CREATE CATALOG", f"{UNITY}/catalogs", {"name": "y"}),
        (
            *("metastore", "metastore", "CREATE CONNECTION"),
            *(f"{UNITY}/connections", {"name": "y", "connection_type": "OPENAI", "options": {}}),
        ),
    ]
    for kind, name, privilege, path, body in makes:
        catalog.grants.grant(kind, name, "bob", [privilege], by=ROOT)
        before = catalog.search("y", principal=ROOT)
        answer = interrupted(
            lambda one=(kind, name, privilege): catalog.grants.revoke(*one[:2], "bob", [one[2]], by=ROOT),
            *("POST", path, body),
        )
        assert answer.status_code == 403 and f"may not {privilege} on" in answer.json()["message"], answer.text
        assert catalog.search("y", principal=ROOT) == before
        catalog.grants.grant(kind, name, "bob", [privilege], by=ROOT)
        made = interrupted(lambda: None, "POST", path, body)
        assert made.status_code == 200, made.text


def test_a_new_prompt_is_one_principals(interrupted: Interrupted) -> None:
    catalog = interrupted.catalog
    catalog.grants.grant("schema", "main.ml", "bob", ["CREATE FUNCTION"], by=ROOT)
    answer = interrupted(
        lambda: catalog.prompts.register("main.ml.new", "ann's", owner="ann"),
        *("POST", f"{MOSAIC}/prompts", {"name": "main.ml.new", "template": "bob's"}),
    )
    assert answer.status_code == 409, answer.text
    assert [one.template for one in catalog.prompts.versions("main.ml.new")] == ["ann's"]
    with pytest.raises(AlreadyExists):
        catalog.prompts.register("main.ml.new", "x", new=True)
    with pytest.raises(NotFound):
        catalog.prompts.register("main.ml.other", "x", new=False)


def test_what_was_dropped_since_the_check_does_not_come_back(interrupted: Interrupted) -> None:
    catalog = interrupted.catalog
    catalog.grants.grant("schema", "main.ml", "bob", ["CREATE MODEL"], by=ROOT)
    make(catalog, "model", "bob")
    drop(catalog, "model")

    def anns_too() -> None:
        make(catalog, "model", "ann")
        drop(catalog, "model")

    asked = {"securable_type": "model", "full_name": "main.ml.x"}
    answer = interrupted(anns_too, "POST", f"{MOSAIC}/undrop", asked)
    assert answer.status_code == 409 and "meanwhile" in answer.json()["message"], answer.text
    assert catalog.find_model("main.ml.x") is None


def test_a_check_in_process_holds_in_its_change_alone(catalog: Catalog) -> None:
    catalog.create_token("bob")
    catalog.create_token("ann")
    catalog.grants.grant("catalog", "main", "users", ["USE CATALOG", "USE SCHEMA", "CREATE MODEL"], by=ROOT)
    by = catalog.grants.check("bob", "CREATE MODEL", "schema", "main.ml")
    catalog.endpoints.put("main.ml.e", config={"of": "ann"}, owner="ann")
    with pytest.raises(Conflict, match="is at config version 1, not at 0"):
        catalog.endpoints.put("main.ml.e", config={"of": "bob"}, owner="bob", expected_config_version=0, by=by)
    assert catalog.endpoints.get("main.ml.e").config == {"of": "ann"}
    # Several checks are all asked again; one that was of something else is of no use for the change.
    catalog.create_model("main.ml.m", owner="bob")
    both = catalog.grants.check(by, "MANAGE", "model", "main.ml.m")
    assert both == both.model_copy() and both.name == "bob"
    catalog.grants.revoke("catalog", "main", "users", ["CREATE MODEL"], by=ROOT)
    with pytest.raises(PermissionDenied, match="'bob' may not CREATE MODEL on schema"):
        catalog.delete_model("main.ml.m", by=both)
    catalog.delete_model("main.ml.m", by=catalog.grants.check("bob", "MANAGE", "model", "main.ml.m"))


def test_deletes_and_remakes_at_once(catalog: Catalog, tmp_path: Path) -> None:
    """Whatever the order, who deletes is who owned: the trail of the audit agrees with the owners."""
    unity = Unity(catalog, Storage(str(tmp_path / "root")))
    for number in range(10):
        name = f"main.ml.m{number}"
        catalog.create_model(name, owner="bob", by=ROOT)
        bobs = [
            threading.Thread(
                target=lambda: unity("DELETE", f"/models/{name}", token=unity.reader)  # noqa: B023
            )
            for _ in range(3)
        ]
        for one in bobs:
            one.start()
        for _ in range(20):
            try:
                catalog.create_model(name, owner="ann", by=ROOT)
            except MosaicError:
                continue
            break
        for one in bobs:
            one.join()
        deleted = [
            event
            for event in catalog.audit.newest(40)
            if event.action_name == "deleteRegisteredModel"
            and event.request_params["securable_full_name"] == name
            and event.response.status_code == 200
        ]
        assert len(deleted) == 1, [event.user_identity.email for event in deleted]
