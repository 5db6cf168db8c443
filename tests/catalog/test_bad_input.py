"""Bad input to the catalog: each gets the right status, and a message that names it."""

from datetime import timedelta
from typing import Any

import pytest

from mosaic.catalog import Catalog
from mosaic.catalog.doubles import FixedClock
from mosaic.errors import Conflict
from tests.catalog.conftest import Unity


def told(answer: Any, status: int) -> str:
    assert answer.status_code == status, answer.text
    return str(answer.json()["message"])


def test_an_unknown_privilege(unity: Unity) -> None:
    change = {"changes": [{"principal": "bob", "add": ["FLY"]}]}
    assert "privilege 'FLY' does not exist" in told(unity("PATCH", "/permissions/catalog/main", json=change), 400)
    change = {"changes": [{"principal": "bob", "add": ["CREATE CATALOG"]}]}
    assert "'CREATE CATALOG' does not fit a schema" in told(
        unity("PATCH", "/permissions/schema/main.ml", json=change), 400
    )


def test_a_cycle_of_groups(catalog: Catalog) -> None:
    for name in ("a", "b", "c"):
        catalog.principals.create_group(name, by="admin")
    catalog.principals.add_member("a", "b", by="admin")
    catalog.principals.add_member("b", "c", by="admin")
    with pytest.raises(Conflict, match=r"'a'.*'c'|'c'.*'a'") as refused:
        catalog.principals.add_member("c", "a", by="admin")
    assert refused.value.status == 409


@pytest.mark.parametrize("name", ["a/b", "a'b", 'a"b', "a b", "x" * 300, "a;--", "\u00fc"])
def test_a_name_with_what_no_name_has(unity: Unity, name: str) -> None:
    schema = {"catalog_name": "main", "schema_name": "docs"}
    for path, body in [
        ("/catalogs", {"name": name}),
        ("/schemas", {"name": name, "catalog_name": "main"}),
        ("/tables", {**schema, "name": name, "table_type": "MANAGED"}),
        ("/volumes", {**schema, "name": name, "volume_type": "MANAGED"}),
        ("/models", {**schema, "name": name}),
    ]:
        assert repr(name) in told(unity("POST", path, json=body), 400), path


def test_a_page_token_of_another_query(unity: Unity) -> None:
    for name in ("a", "b"):
        unity.make("/schemas", name=name, catalog_name="main")
    token = unity("GET", "/schemas?catalog_name=main&max_results=1").json()["next_page_token"]
    other = told(unity("GET", f"/catalogs?page_token={token}"), 400)
    assert repr(token) in other and "belongs to another list" in other
    assert "'no-token' is not one that this list gave" in told(unity("GET", "/catalogs?page_token=no-token"), 400)


def test_an_expired_token(unity: Unity, catalog: Catalog, clock: FixedClock) -> None:
    token = catalog.create_token("eve", expires_at=clock.now + timedelta(hours=1))[1]
    clock.now += timedelta(hours=2)
    assert "expired" in told(unity("GET", "/catalogs", token=token), 401)


def test_a_wrong_etag(unity: Unity) -> None:
    read = unity("GET", "/schemas/main.ml")
    etag = read.headers["etag"]
    headers = {"authorization": f"Bearer {unity.admin}", "if-match": etag}
    assert unity("PATCH", "/schemas/main.ml", json={"comment": "first"}, headers=headers).status_code == 200
    stale = unity("PATCH", "/schemas/main.ml", json={"comment": "second"}, headers=headers)
    assert etag.strip('"') in told(stale, 412)
    assert unity("GET", "/schemas/main.ml").json()["comment"] == "first"


def test_a_missing_parent(unity: Unity) -> None:
    place = {"catalog_name": "main", "schema_name": "dox", "name": "x"}
    assert "no catalog 'lake'" in told(unity("POST", "/schemas", json={"name": "x", "catalog_name": "lake"}), 404)
    for path, more in [
        ("/tables", {"table_type": "MANAGED"}),
        ("/volumes", {"volume_type": "MANAGED"}),
        ("/models", {}),
    ]:
        assert "no schema 'main.dox'" in told(unity("POST", path, json={**place, **more}), 404)
    version = {"catalog_name": "main", "schema_name": "ml", "model_name": "bot", "source": "x"}
    assert "no model 'main.ml.bot'" in told(unity("POST", "/models/versions", json=version), 404)
