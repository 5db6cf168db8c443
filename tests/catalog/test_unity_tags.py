"""Tags over the Unity Catalog protocol, as MLflow's native registry and databricks-sdk ask for them."""

from mosaic.catalog import Catalog
from tests.catalog.conftest import Unity
from tests.catalog.test_unity_models import MODEL, VERSION


def test_tags_of_models_as_mlflow_changes_them(unity: Unity, catalog: Catalog) -> None:
    unity.make("/models", **MODEL, tags=[{"key": "task", "value": "chat"}, {"key": "bare"}])
    made = unity.make("/models/versions", **VERSION, tags=[{"key": "stage", "value": "test"}])
    assert made["tags"] == [{"key": "stage", "value": "test"}]
    model, version = "/securable-tags/FUNCTION/main.ml.bot", "/subentity-tags/FUNCTION/main.ml.bot/1"
    body = {"changes": {"add_tags": [{"key": "task", "value": "code"}, {"key": "a", "value": "b"}], "remove": ["bare"]}}
    assert unity("PATCH", model, json=body).json() == {}
    assert unity("GET", "/models/main.ml.bot").json()["tags"] == [
        {"key": "a", "value": "b"},
        {"key": "task", "value": "code"},
    ]
    assert unity("PATCH", version, json={"changes": {"add_tags": [{"key": "x", "value": "y"}]}}).json() == {}
    assert unity("PATCH", version, json={"changes": {"remove": ["stage"]}}).json() == {}
    assert unity("GET", "/models/main.ml.bot/versions/1").json()["tags"] == [{"key": "x", "value": "y"}]
    assert catalog.tags.list("model", "main.ml.bot", version=1) == {"x": "y"}
    missing = unity("PATCH", version, json={"changes": {"add_tags": [{"key": "n"}], "remove": ["stage"]}})
    assert missing.status_code == 404 and "no tag 'stage'; there are ['x']" in missing.json()["message"]
    assert catalog.tags.list("model", "main.ml.bot", version=1) == {"x": "y"}  # nothing of it was done
    for path, changes, told in [
        (model, {}, "no tag to add or remove"),
        (model, {"add_tags": [{"key": "a"}], "remove": ["a"]}, "both added and removed"),
        (model, {"add_tags": [{"key": ""}]}, "key"),
        (model, {"add_tags": [{"key": " a"}]}, "printable"),
        (model, {"add_tags": [{"key": f"k{n}"} for n in range(50)]}, "50 fit"),
        (model, {"set": []}, "unknown field 'changes.set'"),
        ("/subentity-tags/model/main.ml.bot/x", {"remove": ["a"]}, "version 'x'"),
        ("/subentity-tags/table/main.ml.bot/1", {"remove": ["a"]}, "main.ml.bot"),
        ("/securable-tags/metastore/metastore", {"remove": ["a"]}, "the metastore has no tags"),
        ("/securable-tags/dog/main.ml.bot", {"remove": ["a"]}, "'dog'"),
        ("/subentity-tags/model/main.ml.bot/9", {"add_tags": [{"key": "a"}]}, "no version 9"),
    ]:
        refused = unity("PATCH", path, json={"changes": changes})
        assert refused.status_code in (400, 404) and told in refused.json()["message"], refused.text


def test_tags_ask_for_apply_tag(unity: Unity, catalog: Catalog) -> None:
    unity.make("/models", **MODEL)
    unity.make("/models/versions", **VERSION)
    entity = {"entity_type": "models", "entity_name": "main.ml.bot", "tag_key": "k", "tag_value": "v"}
    base = "/entity-tag-assignments"
    one = f"{base}/models/main.ml.bot/tags/k"

    def statuses() -> list[int]:
        changes = {"changes": {"add_tags": [{"key": "t", "value": "v"}]}}
        asked = [
            ("PATCH", "/securable-tags/registered_model/main.ml.bot", changes),
            ("PATCH", "/subentity-tags/registered_model/main.ml.bot/1", changes),
            ("POST", base, entity),
            ("PATCH", f"{one}?update_mask=*", {"tag_value": "w"}),
            ("DELETE", one, {}),
        ]
        return [unity(method, path, json=body, token=unity.reader).status_code for method, path, body in asked]

    assert statuses() == [403] * 5
    assert unity("GET", f"{base}/models/main.ml.bot/tags", token=unity.reader).json()["tag_assignments"] == []
    catalog.grants.grant("model", "main.ml.bot", "bob", ["APPLY TAG"], by=catalog.check_token(unity.admin))
    assert statuses() == [200] * 5
    assert unity("POST", base, json=entity).json()["tag_value"] == "v"
    assert unity("GET", one, token=unity.reader).json() == entity | {
        "source_type": None,
        "update_time": None,
        "updated_by": None,
    }
    first = unity("GET", f"{base}/models/main.ml.bot/tags?max_results=1").json()
    rest = unity("GET", f"{base}/models/main.ml.bot/tags?page_token={first['next_page_token']}").json()
    assert [tag["tag_key"] for tag in first["tag_assignments"] + rest["tag_assignments"]] == ["k", "t"]
    for method, path, body, status in [
        ("PATCH", f"{one}?update_mask=tag_key", {"tag_value": "w"}, 400),
        ("PATCH", one, {"tag_value": "w"}, 400),
        ("PATCH", f"{one}?update_mask=*", {"tag_value": "w", "tag_key": "other"}, 400),
        ("PATCH", f"{base}/models/main.ml.bot/tags/none?update_mask=*", {"tag_value": "w"}, 404),
        ("DELETE", f"{base}/models/main.ml.bot/tags/none", {}, 404),
        ("GET", f"{base}/columns/main.docs.t.c/tags", {}, 501),
        ("POST", base, entity, 409),
    ]:
        assert unity(method, path, json=body).status_code == status, (method, path)
    hidden = unity("GET", f"{base}/catalogs/main/tags", token=catalog.create_token("eve")[1])
    assert hidden.status_code == 200  # users may use the catalog
    catalog.catalogs.create("dark", owner="ann")
    assert unity("GET", f"{base}/catalogs/dark/tags", token=unity.reader).status_code == 403


def test_a_function_is_tagged_though_a_model_has_its_name(unity: Unity, catalog: Catalog) -> None:
    code = {"input_params": {}, "data_type": "INT", "full_data_type": "int", "routine_body": "EXTERNAL"}
    code |= {"external_language": "PYTHON", "routine_definition": "return 1"}
    unity.make("/models", **MODEL)
    unity.make("/models/versions", **VERSION)
    unity.make("/functions", function_info=MODEL | code)
    body = {"changes": {"add_tags": [{"key": "a", "value": "b"}]}}
    assert unity("PATCH", "/securable-tags/FUNCTION/main.ml.bot", json=body).json() == {}
    assert (
        catalog.tags.list("function", "main.ml.bot") == {"a": "b"} and catalog.tags.list("model", "main.ml.bot") == {}
    )
    assert unity("PATCH", "/subentity-tags/FUNCTION/main.ml.bot/1", json=body).json() == {}
    assert catalog.tags.list("model", "main.ml.bot", version=1) == {"a": "b"}
    assert unity("DELETE", "/functions/main.ml.bot").json() == {}
    assert unity("PATCH", "/securable-tags/FUNCTION/main.ml.bot", json=body).json() == {}
    assert catalog.tags.list("model", "main.ml.bot") == {"a": "b"}
