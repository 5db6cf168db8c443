"""Catalogs and schemas over the Unity Catalog protocol, in the protocol's exact JSON."""

from datetime import timedelta

from mosaic.catalog import Catalog
from mosaic.catalog.doubles import FixedClock
from tests.catalog.conftest import Unity

NOW = 1_793_527_200_000  # the fixed clock's moment


def test_catalogs(unity: Unity, catalog: Catalog, clock: FixedClock) -> None:
    made = unity.make("/catalogs", name="Lake", comment="raw", properties={"team": "a"})
    assert made == {
        "name": "lake",
        "full_name": "lake",
        "comment": "raw",
        "properties": {"team": "a"},
        "owner": "ann",
        "created_at": NOW,
        "created_by": "ann",
        "updated_at": NOW,
        "updated_by": None,
        "id": made["id"],
        "storage_root": None,
        "storage_location": None,
    }
    assert unity("GET", "/catalogs/LAKE").json() == made
    listed = unity("GET", "/catalogs?anything=else&anything=twice").json()
    assert [one["name"] for one in listed["catalogs"]] == ["lake", "main"] and listed["next_page_token"] is None
    seen = unity("GET", "/catalogs", token=unity.reader).json()
    assert [one["name"] for one in seen["catalogs"]] == ["main"]  # a reader is told what there is to read
    clock.now += timedelta(seconds=1.5)
    unknown = unity("PATCH", "/catalogs/lake", json={"comment": "lost", "owner": "eve"})
    assert unknown.status_code == 404 and "no principal 'eve'" in unknown.json()["message"]
    catalog.create_token("eve")
    changed = unity("PATCH", "/catalogs/lake", json={"comment": "cooked", "owner": "eve", "properties": None}).json()
    assert changed == made | {"comment": "cooked", "owner": "eve", "updated_at": NOW + 1500, "updated_by": "ann"}
    given = [event for event in catalog.audit.list() if event.action_name == "updateCatalog"]
    assert [(event.user_identity.email, event.request_params.get("owner")) for event in given] == [
        ("ann", "eve"),
    ]
    assert unity("DELETE", "/catalogs/lake", json={"name": "lake"}).json() == {}
    gone = unity("GET", "/catalogs/lake")
    assert (gone.status_code, gone.json()["error_code"]) == (404, "CATALOG_NOT_FOUND")
    assert gone.json()["message"] == "no catalog 'lake'; there are ['main']"


def test_schemas(unity: Unity) -> None:
    made = unity.make("/schemas", name="Raw", catalog_name="main", comment="as it came", properties={"a": "b"})
    assert made == {
        "name": "raw",
        "catalog_name": "main",
        "full_name": "main.raw",
        "comment": "as it came",
        "properties": {"a": "b"},
        "owner": "ann",
        "created_at": NOW,
        "created_by": "ann",
        "updated_at": NOW,
        "updated_by": None,
        "schema_id": made["schema_id"],
        "storage_root": None,
        "storage_location": None,
    }
    assert unity("GET", "/schemas/main.raw").json() == made
    listed = unity("GET", "/schemas", params={"catalog_name": "main"}).json()
    assert [one["name"] for one in listed["schemas"]] == ["docs", "ml", "raw"] and listed["schemas"][2] == made
    changed = unity("PATCH", "/schemas/main.raw", json={"properties": {"c": "d"}}).json()
    assert changed == made | {"properties": {"c": "d"}, "updated_by": "ann"}
    assert unity("DELETE", "/schemas/main.raw").json() == {}
    assert unity("GET", "/schemas/main.raw").json()["error_code"] == "SCHEMA_NOT_FOUND"
    bare = unity.make("/schemas", name="raw", catalog_name="main")
    assert (bare["comment"], bare["properties"]) == (None, {}) and bare["schema_id"] != made["schema_id"]


def test_what_is_not_empty_is_deleted_by_force_alone(unity: Unity, catalog: Catalog) -> None:
    catalog.create_model("main.ml.bot", owner="ann")
    catalog.create_table("main.docs.t", "/t", columns=[{"name": "id"}], primary_key="id", owner="ann")
    refused = unity("DELETE", "/schemas/main.ml")
    assert (refused.status_code, refused.json()["error_code"]) == (400, "FAILED_PRECONDITION")
    assert "schema 'main.ml' is not empty: ['model main.ml.bot']; delete them first" in refused.json()["message"]
    assert "'schema main.docs'" in unity("DELETE", "/catalogs/main?force=false").json()["message"]
    # What runs is not taken away, nor what it runs over, even by force.
    catalog.put_index("main.ml.index", table="main.docs.t", spec={}, owner="ann")
    for path in ("/schemas/main.docs", "/schemas/main.ml", "/catalogs/main"):
        refused = unity("DELETE", f"{path}?force=true")
        assert (refused.status_code, refused.json()["error_code"]) == (400, "FAILED_PRECONDITION")
        assert "index main.ml.index" in refused.json()["message"]
    catalog.delete_index("main.ml.index")
    assert unity("DELETE", "/schemas/main.ml?force=true").json() == {}
    assert unity("GET", "/models").json()["registered_models"] == []
    assert unity("DELETE", "/catalogs/main?force=True").json() == {}
    assert catalog.list_schemas() == [] == catalog.list_tables()


def test_the_metastore(unity: Unity) -> None:
    summary = unity("GET", "/metastore_summary", token=unity.reader).json()
    assert summary == unity("GET", "/metastore_summary").json()
    assert (summary["name"], summary["storage_root"]) == ("mosaic", f"file://{unity.storage.root}")
    assert len(summary["metastore_id"]) == 36 and summary["region"] is None


def test_pages(unity: Unity) -> None:
    for number in range(5):
        unity.make("/schemas", name=f"s{number}", catalog_name="main")
    asked = {"catalog_name": "main", "max_results": "3"}
    first = unity("GET", "/schemas", params=asked).json()
    unity("DELETE", "/schemas/main.ml")  # the token is a place among the names, not a count of rows
    second = unity("GET", "/schemas", params=asked | {"page_token": first["next_page_token"]}).json()
    third = unity("GET", "/schemas", params={"catalog_name": "main", "page_token": second["next_page_token"]}).json()
    names = [[one["name"] for one in page["schemas"]] for page in (first, second, third)]
    assert names == [["docs", "ml", "s0"], ["s1", "s2", "s3"], ["s4"]] and third["next_page_token"] is None
    whole = unity("GET", "/schemas", params={"catalog_name": "main", "max_results": "0"}).json()
    assert len(whole["schemas"]) == 6 and whole["next_page_token"] is None
    unity.make("/catalogs", name="lake")
    other = unity("GET", "/schemas", params={"catalog_name": "lake", "page_token": first["next_page_token"]})
    assert (other.status_code, other.json()["error_code"]) == (400, "INVALID_ARGUMENT")
    assert "belongs to another list" in other.json()["message"]
    for token in ("x", "\u00fc", "W10=", "bnVsbA==", "WzEsMl0="):
        refused = unity("GET", "/catalogs", params={"page_token": token})
        assert refused.status_code == 400 and "page_token" in refused.json()["message"]
    for number in ("-1", "x", "1.5", "9" * 30, "\u0661"):
        refused = unity("GET", "/catalogs", params={"max_results": number})
        assert refused.status_code == 400 and "max_results" in refused.json()["message"]


def test_readers_change_nothing_and_nobody_changes_the_platforms_own(unity: Unity, catalog: Catalog) -> None:
    refused = unity("POST", "/catalogs", token=unity.reader, json={"name": "lake"})
    assert (refused.status_code, refused.json()["error_code"]) == (403, "PERMISSION_DENIED")
    assert "'bob' may not CREATE CATALOG on metastore" in refused.json()["message"]
    for method, path in (("PATCH", "/schemas/main.ml"), ("DELETE", "/schemas/main.ml"), ("DELETE", "/catalogs/main")):
        refused = unity(method, path, token=unity.reader, json={})
        assert refused.status_code == 403 and "'bob' may not MANAGE on" in refused.json()["message"]
    assert unity("GET", "/schemas/main.ml", token=unity.reader).status_code == 200
    catalog.ensure_schema("system.serving", owner="system")
    for path in ("/schemas/system.serving", "/catalogs/system"):
        assert "platform's own" in unity("DELETE", f"{path}?force=true").json()["message"]
    assert unity("POST", "/schemas", json={"name": "x", "catalog_name": "system"}).status_code == 403
    assert unity("POST", "/catalogs", json={"name": "lake"}, token="wrong").json()["error_code"] == "UNAUTHENTICATED"
