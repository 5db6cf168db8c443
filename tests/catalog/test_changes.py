"""A change is done wholly or not at all, is by who was checked, and is another etag."""

import threading
from pathlib import Path
from typing import Any

import pytest

from mosaic.catalog import Catalog
from mosaic.catalog.doubles import FixedClock
from mosaic.storage import Storage
from tests.catalog.conftest import Unity
from tests.catalog.test_unity_etags import CODE, PLACE, etag

MODEL = "/models/main.ml.thing"


def rows_of(catalog: Catalog) -> list[tuple[str, str]]:
    return [(event.action_name, event.user_identity.email) for event in catalog.audit.list(limit=1000)]


def test_what_is_refused_has_changed_nothing(unity: Unity, catalog: Catalog) -> None:
    catalog.create_token("carol")
    unity.make("/connections", name="k", connection_type="HTTP", options={"host": "https://h"})
    unity.make("/models", **PLACE, tags=[{"key": "a", "value": "1"}])
    before = rows_of(catalog)

    def refused(method: str, path: str, body: dict[str, Any]) -> str:
        answer = unity(method, path, json=body)
        assert answer.status_code in (400, 404), answer.text
        return str(answer.json()["message"])

    wrong_url = {"owner": "carol", "options": {"u": "https://a:b@c"}}
    assert "is an address with a user in it" in refused("PATCH", "/connections/k", wrong_url)
    assert unity("GET", "/connections/k").json()["owner"] == "ann"
    tags = f"/securable-tags/registered_model/{PLACE['catalog_name']}.ml.thing"
    for added in ({"key": " b", "value": ""}, {"key": "b", "value": "x" * 1001}):
        assert "tag" in refused("PATCH", tags, {"changes": {"remove": ["a"], "add_tags": [added]}})
    assert "no tag 'z'" in refused("PATCH", tags, {"changes": {"remove": ["a", "z"], "add_tags": [{"key": "b"}]}})
    assert catalog.tags.list("model", "main.ml.thing") == {"a": "1"}
    bad = [{"key": " x ", "value": "1"}]
    assert "tag ' x '" in refused("POST", "/models", {**PLACE, "name": "other", "tags": bad})
    assert catalog.find_model("main.ml.other") is None
    version = {"catalog_name": "main", "schema_name": "ml", "model_name": "thing", "source": "dbfs:/x"}
    assert "tag ' x '" in refused("POST", "/models/versions", {**version, "tags": bad})
    assert catalog.get_model("main.ml.thing").versions == []
    assert "no principal 'zoe'" in refused("PATCH", MODEL, {"comment": "lost", "owner": "zoe"})
    assert catalog.get_model("main.ml.thing").comment == "" and rows_of(catalog) == before
    made = unity.make("/models/versions", **version, tags=[{"key": "c", "value": "2"}])
    assert made["version"] == 1 and made["tags"] == [{"key": "c", "value": "2"}]
    both = unity("PATCH", tags, json={"changes": {"remove": ["a"], "add_tags": [{"key": "b", "value": "2"}]}})
    assert both.status_code == 200 and catalog.tags.list("model", "main.ml.thing") == {"b": "2"}
    assert catalog.audit.newest(1)[0].request_params["removed"] == "a"


def test_what_belongs_to_a_model_changes_its_etag(unity: Unity, catalog: Catalog, tmp_path: Path) -> None:
    seen = [etag(unity("POST", "/models", json=PLACE))]
    version = {"catalog_name": "main", "schema_name": "ml", "model_name": "thing", "source": "dbfs:/x"}
    tags = "/securable-tags/registered_model/main.ml.thing"
    for method, path, body in (
        ("POST", "/models/versions", version),
        ("PATCH", f"{MODEL}/versions/1", {"comment": "told"}),
        ("PATCH", tags, {"changes": {"add_tags": [{"key": "a", "value": "1"}]}}),
        ("PATCH", tags, {"changes": {"remove": ["a"]}}),
        ("FINALIZE", "", {}),
        ("PUT", f"{MODEL}/aliases/live", {"version_num": 1}),
        ("DELETE", f"{MODEL}/aliases/live", None),
        ("PUT", f"{MODEL}/aliases/live", {"version_num": 1}),
        ("DELETE", f"{MODEL}/versions/1", None),
    ):
        if method == "FINALIZE":
            catalog.registry.finalize_version("main.ml.thing", 1, by="ann")
        else:
            assert unity(method, path, json=body).status_code == 200, path
        now = etag(unity("GET", MODEL))
        assert now not in seen, path
        assert unity("DELETE", f"{MODEL}?force=true", headers={"if-match": seen[-1]}).status_code == 412
        seen.append(now)
    assert unity("DELETE", f"{MODEL}?force=true", headers={"if-match": seen[-1]}).status_code == 200


def test_another_secret_is_another_etag(catalog_url: str, clock: FixedClock, tmp_path: Path) -> None:
    catalog = Catalog.open(catalog_url, key_file=tmp_path / "key", now=clock)
    catalog.ensure_schema("main.ml")
    unity = Unity(catalog, Storage(str(tmp_path / "root")))
    made = {"name": "k", "connection_type": "HTTP", "options": {"host": "https://h", "token": "one"}}
    first = etag(unity("POST", "/connections", json=made))
    other = {"options": {"host": "https://h", "token": "two"}}
    changed = unity("PATCH", "/connections/k", json=other, headers={"if-match": first})
    assert etag(changed) != first and changed.json()["updated_by"] == "ann"
    assert unity("PATCH", "/connections/k", json=other, headers={"if-match": first}).status_code == 412
    assert catalog.connections.secrets("k", by="ann") == {"token": "two"}
    catalog.close()


def test_a_description_is_by_the_token_that_gave_it(unity: Unity, catalog: Catalog) -> None:
    unity.make("/models", **PLACE)
    unity.make("/models/versions", catalog_name="main", schema_name="ml", model_name="thing", source="dbfs:/x")
    assert unity("PATCH", f"{MODEL}/versions/1", json={"comment": "told"}).status_code == 200
    (row,) = catalog.audit.newest(1)
    assert row.action_name == "updateModelVersion"
    assert row.token_id == catalog.check_token(unity.admin).token_id is not None


@pytest.mark.parametrize("noun", ["/functions"])
def test_a_list_is_there_while_others_drop(unity: Unity, catalog: Catalog, noun: str) -> None:
    spec = {**CODE, "input_params": [], "return_params": None}
    made = unity.make(noun, function_info=PLACE | CODE)
    spec = catalog.functions.get(made["full_name"]).spec
    ended = threading.Event()

    def churn(worker: int) -> None:
        while not ended.is_set():
            for number in range(3):
                catalog.functions.create(f"main.ml.f{worker}_{number}", spec=spec, owner="ann")
            for number in range(3):
                catalog.functions.delete(f"main.ml.f{worker}_{number}")

    workers = [threading.Thread(target=churn, args=(worker,)) for worker in range(2)]
    for one in workers:
        one.start()
    try:
        for _ in range(30):
            answer = unity("GET", f"{noun}?catalog_name=main&schema_name=ml")
            assert answer.status_code == 200, answer.text
    finally:
        ended.set()
        for one in workers:
            one.join()
