"""Clients that nobody here wrote, over a real socket: MLflow's `uc:` registry and databricks-sdk."""

from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.errors import AlreadyExists, NotFound
from databricks.sdk.service import catalog as uc
from mlflow.exceptions import MlflowException

from mosaic.catalog import Catalog
from tests.catalog.conftest import Unity
from tests.local import served


@pytest.fixture
def address(unity: Unity) -> Iterator[str]:
    """The application on a port of loopback."""
    with served(unity.app) as address:
        yield address


class Echo(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    def predict(self, context: object, model_input: list[str], params: object = None) -> list[str]:
        return model_input


@pytest.fixture
def registry(unity: Unity, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MLFLOW_UC_OSS_TOKEN", unity.admin)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.chdir(tmp_path)  # MLflow puts the files of logged models below the folder that it runs in
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_registry_uri(f"uc:{address}")
    yield
    mlflow.set_tracking_uri(before[0])
    mlflow.set_registry_uri(before[1])


def test_mlflow_registers_and_loads(registry: None, catalog: Catalog, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    mlflow.pyfunc.save_model(folder, python_model=Echo(), pip_requirements=[])
    first = mlflow.register_model(str(folder), "main.ml.bot")
    second = mlflow.register_model(str(folder), "main.ml.bot")  # the model is there; a version more
    assert (int(first.version), int(second.version), second.status) == (1, 2, "READY")
    loaded = mlflow.pyfunc.load_model("models:/main.ml.bot/2")
    assert loaded.predict(["a", "b"]) == ["a", "b"]

    kept = catalog.get_model_version("main.ml.bot/2")
    assert kept.status == "READY" and "MLmodel" in kept.checksums
    assert kept.checksums.keys() == {str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file()}
    client = mlflow.MlflowClient()
    assert [model.name for model in client.search_registered_models()] == ["main.ml.bot"]
    assert len(client.search_model_versions("name = 'main.ml.bot'")) == 2
    client.update_registered_model("main.ml.bot", "says it again")
    assert client.get_registered_model("main.ml.bot").description == "says it again"
    client.update_model_version("main.ml.bot", "1", "the first")
    assert client.get_model_version("main.ml.bot", "1").description == "the first"
    client.delete_model_version("main.ml.bot", "1")
    with pytest.raises(MlflowException, match="no version 1 of model"):
        client.get_model_version("main.ml.bot", "1")
    client.delete_model_version("main.ml.bot", "2")
    client.delete_registered_model("main.ml.bot")
    assert catalog.list_models() == []


def test_databricks_sdk(unity: Unity, address: str, catalog: Catalog) -> None:
    workspace = WorkspaceClient(host=address, token=unity.admin, auth_type="pat")
    workspace.catalogs.create("lake", comment="raw")
    assert [one.name for one in workspace.catalogs.list()] == ["lake", "main"]
    with pytest.raises(AlreadyExists):
        workspace.catalogs.create("lake")
    workspace.schemas.create("docs", "lake", properties={"a": "b"})
    assert workspace.schemas.get("lake.docs").properties == {"a": "b"}
    assert workspace.schemas.update("lake.docs", comment="c").comment == "c"
    column = uc.ColumnInfo(name="id", type_text="bigint", type_name=uc.ColumnTypeName.LONG, position=0)
    made = workspace.tables.create(
        "rows",
        "lake",
        "docs",
        table_type=uc.TableType.EXTERNAL,
        data_source_format=uc.DataSourceFormat.DELTA,
        storage_location="file:///data/rows",
        columns=[column],
    )
    assert [one.full_name for one in workspace.tables.list("lake", "docs")] == ["lake.docs.rows"]
    assert workspace.tables.exists("lake.docs.rows").table_exists
    columns = workspace.tables.get("lake.docs.rows").columns
    assert columns is not None and columns[0].type_name == uc.ColumnTypeName.LONG
    given = workspace.temporary_table_credentials.generate_temporary_table_credentials(
        table_id=made.table_id, operation=uc.TableOperation.READ
    )
    assert given.url == "file:///data/rows"
    workspace.tables.delete("lake.docs.rows")
    with pytest.raises(NotFound, match=r"no table 'lake\.docs\.rows'"):
        workspace.tables.get("lake.docs.rows")

    catalog.create_model("main.ml.bot", owner="ann")
    catalog.create_model_version("main.ml.bot", source="/m", kind="full")
    workspace.registered_models.set_alias("main.ml.bot", "champion", 1)
    assert workspace.model_versions.get_by_alias("main.ml.bot", "champion").version == 1
    workspace.registered_models.delete_alias("main.ml.bot", "champion")
    assert [one.version for one in workspace.model_versions.list("main.ml.bot")] == [1]
    assert [one.full_name for one in workspace.registered_models.list()] == ["main.ml.bot"]
    assert workspace.metastores.summary().name == "mosaic"
    workspace.catalogs.delete("lake", force=True)
    assert [one.name for one in workspace.catalogs.list()] == ["main"]


def test_databricks_sdk_tags(unity: Unity, address: str, catalog: Catalog) -> None:
    assignments = WorkspaceClient(host=address, token=unity.admin, auth_type="pat").entity_tag_assignments
    tag = uc.EntityTagAssignment(entity_type="schemas", entity_name="main.docs", tag_key="team", tag_value="search")
    assert assignments.create(tag).tag_value == "search"
    with pytest.raises(AlreadyExists, match="has the tag 'team'"):
        assignments.create(tag)
    tag.tag_value = "ml"
    assert assignments.update("schemas", "main.docs", "team", tag, update_mask="tag_value").tag_value == "ml"
    assert assignments.get("schemas", "main.docs", "team").as_dict() == tag.as_dict()
    assert [one.tag_key for one in assignments.list("schemas", "main.docs")] == ["team"]
    assert catalog.tags.list("schema", "main.docs") == {"team": "ml"}
    assignments.delete("schemas", "main.docs", "team")
    with pytest.raises(NotFound, match="no tag 'team'"):
        assignments.get("schemas", "main.docs", "team")
