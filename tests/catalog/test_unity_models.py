"""Registered models, versions and aliases over the Unity Catalog protocol."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from mosaic.catalog import Catalog, migrations
from mosaic.errors import Conflict
from mosaic.platform import PlatformSettings
from mosaic.platform.parts import build_parts
from tests.catalog.conftest import Databases, Unity
from tests.catalog.test_unity_namespaces import NOW

MODEL = {"name": "Bot", "catalog_name": "main", "schema_name": "ml"}
VERSION = {"model_name": "bot", "catalog_name": "main", "schema_name": "ml", "source": "runs:/1/model"}


def test_models(unity: Unity) -> None:
    made = unity.make("/models", **MODEL, comment="says hello")
    assert made == {
        "name": "bot",
        "catalog_name": "main",
        "schema_name": "ml",
        "full_name": "main.ml.bot",
        "storage_location": f"file://{unity.storage.root}/models/main/ml/bot",
        "comment": "says hello",
        "owner": "ann",
        "created_at": NOW,
        "created_by": "ann",
        "updated_at": NOW,
        "updated_by": None,
        "id": made["id"],
        "aliases": [],
        "tags": [],
    }
    assert unity("GET", "/models/main.ml.bot?full_name=main.ml.bot", token=unity.reader).json() == made
    for path in ("/models?max_results=100", "/models?catalog_name=main&schema_name=ml"):
        assert unity("GET", path).json() == {"registered_models": [made | {"tags": None}], "next_page_token": None}
    assert unity("GET", "/models?catalog_name=main").status_code == 400
    again = unity("POST", "/models", json=MODEL)
    assert (again.status_code, again.json()["error_code"]) == (409, "ALREADY_EXISTS")
    changed = unity("PATCH", "/models/main.ml.bot", json={"full_name": "main.ml.bot", "comment": "x"}).json()
    assert changed == made | {"comment": "x", "updated_by": "ann"}
    assert unity("DELETE", "/models/main.ml.bot", json={"full_name": "main.ml.bot"}).json() == {}
    gone = unity("GET", "/models/main.ml.bot")
    assert (gone.status_code, gone.json()["error_code"]) == (404, "NOT_FOUND")
    assert gone.json()["details"][0]["reason"] == "MODEL_NOT_FOUND"


def upload(version: dict[str, str]) -> None:
    folder = Path(urlsplit(version["storage_location"]).path)
    (folder / "data").mkdir(parents=True)
    (folder / "MLmodel").write_text("x")
    (folder / "data" / "weights").write_text("y")


def test_versions(unity: Unity, catalog: Catalog) -> None:
    unity.make("/models", **MODEL)
    made = unity.make("/models/versions", **VERSION, run_id="abc", comment="first", model_id="m-1")
    assert made == {
        "model_name": "bot",
        "catalog_name": "main",
        "schema_name": "ml",
        "version": 1,
        "source": "runs:/1/model",
        "run_id": "abc",
        "status": "PENDING_REGISTRATION",
        "storage_location": made["storage_location"],
        "comment": "first",
        "created_at": NOW,
        "created_by": "ann",
        "updated_at": NOW,
        "updated_by": None,
        "id": "main.ml.bot/1",
        "aliases": [],
        "tags": [],
        "model_id": "m-1",
        "run_tracking_server_id": None,
        "feature_deps": None,
    }
    path = "/models/main.ml.bot/versions/1"
    assert unity("GET", path).json() == made
    early = unity("PATCH", f"{path}/finalize", json={})
    assert early.json()["error_code"] == "FAILED_PRECONDITION" and "nothing was uploaded" in early.json()["message"]
    early = unity("PUT", "/models/main.ml.bot/aliases/champion", json={"version_num": 1})
    assert early.json()["error_code"] == "FAILED_PRECONDITION" and "still being uploaded" in early.json()["message"]
    asked = {key: VERSION[key] for key in ("catalog_name", "schema_name", "model_name")} | {"version": 1}
    write = asked | {"operation": "READ_WRITE_MODEL_VERSION"}
    assert unity("POST", "/temporary-model-version-credentials", json=write, token=unity.reader).status_code == 403
    given = unity("POST", "/temporary-model-version-credentials", json=write).json()
    assert given["url"] == made["storage_location"] and given["aws_temp_credentials"] is None
    upload(made)
    body = {"full_name": "main.ml.bot", "version": "1"}
    ready = unity("PATCH", f"{path}/finalize", json=body).json()
    assert ready == made | {"status": "READY", "updated_by": "ann"}
    assert unity("PATCH", f"{path}/finalize", json=body).json() == ready
    assert set(catalog.get_model_version("main.ml.bot/1").checksums) == {"MLmodel", "data/weights"}
    assert (
        unity("POST", "/temporary-model-version-credentials", json=write).json()["error_code"] == "FAILED_PRECONDITION"
    )
    read = asked | {"operation": "READ_MODEL_VERSION"}
    assert unity("POST", "/temporary-model-version-credentials", json=read, token=unity.reader).status_code == 200
    described = unity("PATCH", path, json={"comment": "second thoughts"}).json()
    assert described == ready | {"comment": "second thoughts"}
    unity.make("/models/versions", **VERSION)
    assert unity("DELETE", "/models/main.ml.bot").json()["error_code"] == "FAILED_PRECONDITION"
    listed = unity("GET", "/models/main.ml.bot/versions?full_name=main.ml.bot&max_results=1").json()
    assert listed["model_versions"] == [described | {"tags": None}]
    token = {"max_results": "10000", "page_token": listed["next_page_token"]}
    rest = unity("GET", "/models/main.ml.bot/versions", params=token).json()
    assert [one["version"] for one in rest["model_versions"]] == [2] and rest["next_page_token"] is None


def test_a_deleted_version_takes_its_aliases_and_leaves_its_number(unity: Unity, catalog: Catalog) -> None:
    unity.make("/models", **MODEL)
    for number in (1, 2):
        upload(unity.make("/models/versions", **VERSION))
        unity("PATCH", f"/models/main.ml.bot/versions/{number}/finalize")
    champion = "/models/main.ml.bot/aliases/Champion"
    assert unity("PUT", champion, json={"version_num": 2}).json() == {"alias_name": "champion", "version_num": 2}
    got = unity("GET", champion).json()
    assert got["version"] == 2 and got["aliases"] == [{"alias_name": "champion", "version_num": 2}]
    assert unity("GET", "/models/main.ml.bot").json()["aliases"] == got["aliases"]
    assert unity("DELETE", "/models/main.ml.bot/versions/2").json() == {}
    for path in (champion, "/models/main.ml.bot/versions/2"):
        assert unity("GET", path).json()["error_code"] == "NOT_FOUND"
    assert catalog.alias_history("main.ml.bot")[-1].version is None
    assert unity("PUT", champion, json={"version_num": 2}).status_code == 404
    assert unity.make("/models/versions", **VERSION)["version"] == 3
    unity("PUT", champion, json={"version_num": 1})
    assert unity("DELETE", champion).json() == {} and unity("DELETE", champion).status_code == 404
    assert [one["version"] for one in unity("GET", "/models/main.ml.bot/versions").json()["model_versions"]] == [1, 3]
    assert unity("DELETE", "/models/main.ml.bot?force=true").json() == {}


def test_versions_that_the_platform_made(unity: Unity, catalog: Catalog) -> None:
    catalog.create_model("main.ml.tuned", owner="eve")
    run_id = catalog.start_run("train", "t", principal="eve")
    catalog.create_model_version("main.ml.tuned", source="s3://b/tuned", kind="adapter", run_id=run_id)
    version = unity("GET", "/models/main.ml.tuned/versions/1").json()
    assert (version["source"], version["storage_location"]) == ("s3://b/tuned", "s3://b/tuned")
    assert (version["status"], version["run_id"], version["created_by"]) == ("READY", run_id, "admin")
    asked = {**VERSION, "model_name": "tuned", "version": 1, "operation": "READ_MODEL_VERSION"}
    del asked["source"]
    assert unity("POST", "/temporary-model-version-credentials", json=asked).json()["error_code"] == "UNIMPLEMENTED"


def test_versions_from_before_there_were_uploads_are_ready(databases: Databases) -> None:
    url = databases.new()
    engine = sa.create_engine(url)
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        row = "'m', 'model', NULL, 'bot', 'main.ml.bot', 'ann', '', '{}', '{}', 1, :at, 'ann', :at, NULL"
        moment = {"at": "2026-11-01 10:00:00.000000"}
        connection.execute(sa.text(f"INSERT INTO securable VALUES ({row})"), moment)
        row = "'m', 1, '/m', 'full', NULL, NULL, '{}', '{}', :at"
        connection.execute(sa.text(f"INSERT INTO model_version VALUES ({row})"), moment)
    engine.dispose()
    catalog = Catalog.open(url)
    version = catalog.get_model_version("main.ml.bot/1")
    assert (version.status, version.comment, version.created_by) == ("READY", "", None)
    assert version.updated_at == version.created_at
    catalog.close()


def test_a_version_that_is_being_uploaded_is_not_resolved(tmp_path: Path) -> None:
    parts = build_parts(PlatformSettings(storage=str(tmp_path)))
    parts.catalog.ensure_schema("main.ml")
    parts.catalog.create_model("main.ml.bot", owner="ann")
    parts.catalog.registry.open_version("main.ml.bot", folder=str(tmp_path / "up"), by="ann")
    with pytest.raises(Conflict, match=r"model version 'main\.ml\.bot/1' is still being uploaded"):
        parts.models.resolve("main.ml.bot/1")
    parts.catalog.close()
