"""Volumes over the Unity Catalog protocol, and credentials for volumes and paths."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from mosaic.catalog import Catalog
from mosaic.catalog.unity import Credentials
from mosaic.catalog.unity.shapes import AwsCredentials
from mosaic.storage import Storage
from tests.catalog.conftest import Unity
from tests.catalog.test_unity_namespaces import NOW

VOLUME = {"name": "Raw", "catalog_name": "main", "schema_name": "docs"}
TABLE = {"name": "rows", "catalog_name": "main", "schema_name": "docs", "table_type": "EXTERNAL"}


def test_volumes(unity: Unity, catalog: Catalog, tmp_path: Path) -> None:
    made = unity.make("/volumes", **VOLUME, volume_type="EXTERNAL", storage_location="s3://bucket/a b/", comment="c")
    assert made == {
        "name": "raw",
        "catalog_name": "main",
        "schema_name": "docs",
        "full_name": "main.docs.raw",
        "volume_type": "EXTERNAL",
        "storage_location": "s3://bucket/a b",
        "comment": "c",
        "owner": "ann",
        "created_at": NOW,
        "created_by": "ann",
        "updated_at": NOW,
        "updated_by": None,
        "volume_id": made["volume_id"],
    }
    own = [unity.make("/volumes", **VOLUME | {"name": name}, volume_type="MANAGED") for name in ("b", "c")]
    places = [one["storage_location"] for one in own]
    assert len(set(places)) == 2 and all(one.startswith(f"file://{unity.storage.root}/volumes/vol_") for one in places)
    assert unity("GET", "/volumes/main.DOCS.raw", token=unity.reader).status_code == 403
    catalog.grants.grant("volume", "main.docs.raw", "bob", ["READ VOLUME"], by=catalog.check_token(unity.admin))
    assert unity("GET", "/volumes/main.DOCS.raw", token=unity.reader).json() == made
    asked = "/volumes?catalog_name=main&schema_name=docs"
    assert unity("GET", asked, token=unity.reader).json() == {"volumes": [made], "next_page_token": None}
    first = unity("GET", f"{asked}&max_results=2").json()
    assert [one["name"] for one in first["volumes"]] == ["b", "c"]
    rest = unity("GET", f"{asked}&max_results=2&page_token={first['next_page_token']}").json()
    assert rest == {"volumes": [made], "next_page_token": None}
    again = unity("POST", "/volumes", json={**VOLUME, "volume_type": "MANAGED"})
    assert (again.status_code, again.json()["error_code"]) == (409, "ALREADY_EXISTS")
    changed = unity("PATCH", "/volumes/main.docs.raw", json={"comment": "x", "owner": "bob"}).json()
    assert changed == made | {"comment": "x", "owner": "bob", "updated_by": "ann"}
    assert "unknown field 'new_name'" in unity("PATCH", "/volumes/main.docs.raw", json={"new_name": "x"}).text
    assert unity("PATCH", "/volumes/main.docs.b", json={"comment": "x"}, token=unity.reader).status_code == 403
    assert unity("DELETE", "/volumes/main.docs.b", token=unity.reader).status_code == 403
    assert unity("DELETE", "/volumes/main.docs.raw", token=unity.reader).json() == {}  # its owner by now
    gone = unity("GET", "/volumes/main.docs.raw")
    assert (gone.status_code, gone.json()["details"][0]["reason"]) == (404, "VOLUME_NOT_FOUND")
    actions = [event.action_name for event in catalog.audit.newest(100) if event.action_name.endswith("Volume")]
    assert actions == ["createVolume"] * 3 + ["updateVolume"] + ["deleteVolume"]


def test_places_that_a_volume_cannot_have(unity: Unity) -> None:
    def refused(how: str, place: str | None, noun: str = "/volumes") -> str:
        kind = "volume_type" if noun == "/volumes" else "table_type"
        body = {**VOLUME, "name": "x", kind: how, "storage_location": place}
        answer = unity("POST", noun, json=body)
        assert answer.status_code == 400, answer.text
        return str(answer.json()["message"])

    root = unity.storage.root
    assert "gets its place from the platform" in refused("MANAGED", "s3://bucket/x")
    assert "needs a storage_location" in refused("EXTERNAL", None)
    for place in (root, f"{root}/managed/x", str(Path(root).parent), "/"):
        assert "platform's own root" in refused("EXTERNAL", place) or place == "/"
    for place in ("relative", "http://host/x", "s3://bucket/../x", "file:///a/%2e%2e/b", ""):
        assert "storage_location" in refused("EXTERNAL", place)
    assert "volume_type" in refused("OTHER", None)
    # Files belong to one table or volume alone, or a grant on one would open the other.
    unity.make("/tables", **TABLE, storage_location="s3://bucket/lake/rows")
    unity.make("/volumes", **VOLUME, volume_type="EXTERNAL", storage_location="file:///data/raw")
    for place in ("s3://bucket/lake", "s3://bucket/lake/rows", "s3://bucket/lake/rows/x/", "/data/raw", "/data"):
        for noun in ("/volumes", "/tables"):
            assert "in the place of another" in refused("EXTERNAL", place, noun)
    unity.make("/volumes", **VOLUME | {"name": "y"}, volume_type="EXTERNAL", storage_location="s3://bucket/lake/rows2")
    unity("DELETE", "/volumes/main.docs.raw")
    unity.make("/volumes", **VOLUME, volume_type="EXTERNAL", storage_location="file:///data/raw/new")


def vending(unity: Unity) -> tuple[Unity, list[tuple[str, bool]]]:
    given: list[tuple[str, bool]] = []

    def vend(address: str, write: bool) -> Credentials:
        given.append((address, write))
        aws = AwsCredentials(access_key_id="AK", secret_access_key="very-secret", session_token="st")
        return Credentials(expires_at=datetime(2030, 1, 1, tzinfo=UTC), aws=aws)

    return Unity(unity.catalog, unity.storage, vend=vend), given


def test_credentials_of_volumes(unity: Unity, catalog: Catalog) -> None:
    unity, given = vending(unity)
    volume = unity.make("/volumes", **VOLUME, volume_type="EXTERNAL", storage_location="s3://bucket/raw")

    def ask(operation: str, token: str | None = None) -> int:
        body = {"volume_id": volume["volume_id"], "operation": operation}
        answer = unity("POST", "/temporary-volume-credentials", json=body, token=token)
        if answer.status_code == 200:
            assert answer.json()["aws_temp_credentials"]["secret_access_key"] == "very-secret"
            assert answer.json()["url"] == "s3://bucket/raw"
        return answer.status_code

    assert [ask("READ_VOLUME"), ask("WRITE_VOLUME"), ask("READ")] == [200, 200, 400]
    assert given == [("s3://bucket/raw", False), ("s3://bucket/raw", True)]
    admin = catalog.check_token(unity.admin)
    assert ask("READ_VOLUME", unity.reader) == 403
    catalog.grants.grant("volume", "main.docs.raw", "bob", ["WRITE VOLUME"], by=admin)
    assert ask("WRITE_VOLUME", unity.reader) == 403  # who writes to a folder reads it
    catalog.grants.grant("volume", "main.docs.raw", "bob", ["READ VOLUME"], by=admin)
    assert [ask("READ_VOLUME", unity.reader), ask("WRITE_VOLUME", unity.reader)] == [200, 200]
    catalog.grants.revoke("volume", "main.docs.raw", "bob", ["WRITE VOLUME"], by=admin)
    assert [ask("READ_VOLUME", unity.reader), ask("WRITE_VOLUME", unity.reader)] == [200, 403]
    missing = unity("POST", "/temporary-volume-credentials", json={"volume_id": "sec_1", "operation": "READ_VOLUME"})
    assert missing.status_code == 404
    told = [one for one in catalog.audit.newest(100) if one.action_name == "generateTemporaryVolumeCredential"]
    assert [(one.user_identity.email, one.request_params["operation"]) for one in told] == [
        ("ann", "READ_VOLUME"),
        ("ann", "WRITE_VOLUME"),
        ("bob", "READ_VOLUME"),
        ("bob", "WRITE_VOLUME"),
        ("bob", "READ_VOLUME"),
    ]
    assert {one.request_params["securable_full_name"] for one in told} == {"main.docs.raw"}
    assert "very-secret" not in str(catalog.audit.newest(100))


def test_credentials_of_paths(unity: Unity, catalog: Catalog) -> None:
    unity, given = vending(unity)
    admin = catalog.check_token(unity.admin)
    unity.make("/volumes", **VOLUME, volume_type="EXTERNAL", storage_location="s3://bucket/raw")
    unity.make("/tables", **TABLE, storage_location="s3://bucket/rows")
    managed = unity.make("/tables", **TABLE | {"name": "own", "table_type": "MANAGED"})["storage_location"]
    own = unity.make("/volumes", **VOLUME | {"name": "own"}, volume_type="MANAGED")["storage_location"]
    # As they could be registered before: one within the other.
    inner = {"volume_type": "EXTERNAL", "location": "s3://bucket/rows/inner"}
    catalog.volumes.create("main.ml.inner", spec=inner, owner="ann")

    def ask(url: str, operation: str = "PATH_READ", token: str | None = None) -> tuple[int, str]:
        body = {"url": url, "operation": operation}
        answer = unity("POST", "/temporary-path-credentials", json=body, token=token)
        return answer.status_code, answer.json().get("url") or answer.json()["message"]

    assert ask("s3://bucket/raw/2026/a.json") == (200, "s3://bucket/raw/2026/a.json")
    assert ask("s3://bucket/raw/", "PATH_READ_WRITE") == (200, "s3://bucket/raw")
    assert given == [("s3://bucket/raw/2026/a.json", False), ("s3://bucket/raw", True)]
    assert ask(f"{own}/x")[0] == 200
    for outside in ("s3://bucket", "s3://bucket/other", "s3://bucket/ra", "s3://bucket/raw2", managed, f"{managed}/x"):
        status, message = ask(outside)
        assert status == 403 and "has" in message, outside
    denied = [one for one in catalog.audit.newest(6) if one.action_name == "generateTemporaryPathCredential"]
    assert len(denied) == 6 and {one.response.status_code for one in denied} == {403}
    for wrong in ("s3://bucket/raw/../x", "raw", "", "s3://"):
        assert ask(wrong)[0] == 400
    assert ask("s3://bucket/raw", "PATH_CREATE_TABLE")[0] == 400
    nothing = ask("s3://bucket/other", token=unity.reader)
    refused = ask("s3://bucket/raw", token=unity.reader)
    assert nothing[0] == refused[0] == 403
    assert nothing[1].replace("other", "raw") == refused[1]  # it does not tell that something is there
    assert ask("s3://bucket/rows/part-0.parquet", token=unity.reader)[0] == 200
    assert ask("s3://bucket/rows/part-0.parquet", "PATH_READ_WRITE", token=unity.reader)[0] == 403
    assert ask("s3://bucket/rows/inner/x", token=unity.reader)[0] == 403  # also another's
    assert ask("s3://bucket/rows", token=unity.reader)[0] == 403
    catalog.grants.grant("volume", "main.ml.inner", "bob", ["READ VOLUME"], by=admin)
    assert ask("s3://bucket/rows/inner/x", token=unity.reader)[0] == 200


@pytest.mark.parametrize("noun", ["volume", "table"])
def test_what_cannot_be_written_down_is_not_given(
    catalog: Catalog, catalog_url: str, tmp_path: Path, noun: str
) -> None:
    unity, given = vending(Unity(catalog, Storage(str(tmp_path / "root"))))
    kind = {"volume_type": "EXTERNAL"} if noun == "volume" else {"table_type": "EXTERNAL"}
    made = unity.make(f"/{noun}s", **VOLUME, **kind, storage_location="s3://bucket/raw")
    body = {f"{noun}_id": made[f"{noun}_id"], "operation": {"volume": "READ_VOLUME", "table": "READ"}[noun]}
    assert unity("POST", f"/temporary-{noun}-credentials", json=body).status_code == 200
    engine = sa.create_engine(catalog_url)
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE audit RENAME TO audit_away"))
    engine.dispose()
    refused = unity("POST", f"/temporary-{noun}-credentials", json=body)
    assert refused.status_code == 503 and len(given) == 2
    assert "very-secret" not in refused.text and "AK" not in refused.text
