"""Permissions of the Unity Catalog protocol: seen by who manages, changed, inherited, refused."""

from typing import Any

from tests.catalog.conftest import Unity


def assigned(answer: Any) -> dict[str, list[str]]:
    assert answer.status_code == 200, answer.text
    return {one["principal"]: one["privileges"] for one in answer.json()["privilege_assignments"]}


def effective(answer: Any) -> dict[str, tuple[str | None, str | None]]:
    """Privilege -> where it comes from."""
    assert answer.status_code == 200, answer.text
    (one,) = answer.json()["privilege_assignments"]
    return {held["privilege"]: (held["inherited_from_type"], held["inherited_from_name"]) for held in one["privileges"]}


def test_privileges_are_spelled_as_the_client_reads_them(unity: Unity) -> None:
    change = {"changes": [{"principal": "bob", "add": ["USE_SCHEMA"]}]}
    assert assigned(unity("PATCH", "/permissions/schema/main.ml", json=change)) == {"bob": ["USE SCHEMA"]}
    sdk = {"user-agent": "databricks-sdk-py/0.156.0 python/3.11", "authorization": f"Bearer {unity.admin}"}
    assert assigned(unity("GET", "/permissions/schema/main.ml", headers=sdk)) == {"bob": ["USE_SCHEMA"]}


def test_what_is_granted_is_seen_and_changed(unity: Unity) -> None:
    path, change = "/permissions/schema/main.ml", {"principal": "bob", "add": ["create_table", "MODIFY"]}
    assert assigned(unity("GET", path)) == {}
    assert unity("POST", "/models", json=model(), token=unity.reader).status_code == 403
    assert assigned(unity("PATCH", path, json={"changes": [change]})) == {"bob": ["CREATE TABLE", "MODIFY"]}
    more = {"principal": "bob", "add": ["CREATE MODEL"], "remove": ["MODIFY"]}
    assert assigned(unity("PATCH", path, json={"changes": [more]})) == {"bob": ["CREATE MODEL", "CREATE TABLE"]}
    assert unity("POST", "/models", json=model(), token=unity.reader).status_code == 200
    held = effective(unity("GET", "/effective-permissions/registered_model/main.ml.bot", token=unity.reader))
    assert held["MANAGE"] == (None, None) and held["EXECUTE"] == (None, None)  # his own model


def test_others_see_their_own_and_change_nothing(unity: Unity) -> None:
    path = "/permissions/catalog/main"
    assert unity("GET", path, token=unity.reader).status_code == 403
    assert assigned(unity("GET", f"{path}?principal=bob", token=unity.reader)) == {}
    held = effective(unity("GET", "/effective-permissions/schema/main.ml", token=unity.reader))
    assert held["SELECT"] == held["USE_SCHEMA"] == ("CATALOG", "main") and "MANAGE" not in held
    change = {"changes": [{"principal": "bob", "add": ["MANAGE"]}]}
    refused = unity("PATCH", path, json=change, token=unity.reader)
    assert refused.status_code == 403 and "'bob' may not MANAGE on catalog 'main'" in refused.json()["message"]


def test_what_is_wrong_is_named(unity: Unity) -> None:
    def told(path: str, **change: Any) -> str:
        refused = unity("PATCH", path, json={"changes": [{"principal": "bob", **change}]})
        assert refused.status_code in (400, 404), refused.text
        return str(refused.json()["message"])

    assert "'FLY' does not exist" in told("/permissions/catalog/main", add=["FLY"])
    assert "does not fit a schema" in told("/permissions/schema/main.ml", add=["CREATE CATALOG"])
    assert "nothing in the catalog is a 'castle'" in told("/permissions/castle/main", add=["SELECT"])
    assert "no schema 'main.none'" in told("/permissions/schema/main.none", add=["SELECT"])
    assert "no principal 'eve'" in told("/permissions/catalog/main", principal="eve", add=["SELECT"])


def model() -> dict[str, str]:
    return {"name": "bot", "catalog_name": "main", "schema_name": "ml"}
