"""What a version's files say when it is finalized: its signature, and what of it runs code when loaded."""

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import mlflow
import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from mosaic.catalog import Catalog, files
from mosaic.errors import BadRequest
from mosaic.storage import Storage
from tests.catalog.conftest import Unity
from tests.catalog.test_unity_clients import Echo
from tests.catalog.test_unity_models import MODEL, VERSION

SIGNATURE = """
flavors:
  python_function: {loader_module: my_loader, code: code, data: weights}
  sklearn: {pickled_model: model.dat}
signature:
  inputs: '[{"type": "string", "required": true}]'
  outputs: null
"""


def uploaded(unity: Unity, **contents: str) -> Path:
    """A version whose files are there; the keys are names with __ for dots."""
    version = unity.make("/models/versions", **VERSION)
    folder = Path(urlsplit(version["storage_location"]).path)
    for name, text in contents.items():
        file = folder / name.replace("__", ".").replace("_in_", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def finalize(unity: Unity, number: int) -> httpx.Response:
    return unity("PATCH", f"/models/main.ml.bot/versions/{number}/finalize", json={})


def test_what_is_kept_of_a_version(unity: Unity, catalog: Catalog) -> None:
    unity.make("/models", **MODEL)
    uploaded(unity, MLmodel=SIGNATURE, model__dat="x", config__json="{}", data_in_net__PT="x", a__pkl__gz="x")
    assert finalize(unity, 1).status_code == 200
    kept = catalog.get_model_version("main.ml.bot/1").spec
    assert kept["signature"] == {"inputs": '[{"type": "string", "required": true}]'}
    assert kept["pickles"] == ["a.pkl.gz", "code", "data/net.PT", "model.dat", "weights"]
    assert kept["source"] == VERSION["source"]
    uploaded(unity, config__json="{}", model__safetensors="x", tokenizer__json="{}", pt="x")
    assert finalize(unity, 2).status_code == 200
    kept = catalog.get_model_version("main.ml.bot/2").spec
    assert (kept["signature"], kept["pickles"]) == (None, [])


@pytest.mark.parametrize(
    ("flavor", "named"),
    [
        ("{loader_module: mlflow.sklearn, data: model.txt}", ["model.txt"]),
        ("{loader_module: mlflow.lightgbm, model_path: booster.txt}", ["booster.txt"]),
        ("{loader_module: os}", ["MLmodel"]),
        ("{loader_module: [os]}", ["MLmodel"]),
        ("{loader_module: mlflow.onnx, data: model.onnx}", []),
        ("{loader_module: mlflow.transformers}", ["MLmodel"]),
    ],
)
def test_what_a_loader_is_given_is_named(unity: Unity, catalog: Catalog, flavor: str, named: list[str]) -> None:
    """MLflow imports the loader that the file names, whatever the suffix of what it loads."""
    unity.make("/models", **MODEL)
    uploaded(unity, MLmodel=f"flavors: {{python_function: {flavor}}}", model__txt="x", booster__txt="x")
    assert finalize(unity, 1).status_code == 200
    assert catalog.get_model_version("main.ml.bot/1").spec["pickles"] == named


def test_a_real_model_of_mlflow(unity: Unity, catalog: Catalog) -> None:
    unity.make("/models", **MODEL)
    folder = Path(urlsplit(unity.make("/models/versions", **VERSION)["storage_location"]).path)
    mlflow.pyfunc.save_model(folder, python_model=Echo(), pip_requirements=[])
    assert finalize(unity, 1).status_code == 200
    kept = catalog.get_model_version("main.ml.bot/1").spec
    assert kept["pickles"] == ["python_model.pkl"]
    assert json.loads(kept["signature"]["inputs"]) == [{"type": "string", "required": True}]


def test_an_mlmodel_that_cannot_be_read(unity: Unity, catalog: Catalog) -> None:
    unity.make("/models", **MODEL)
    bomb = "a: &a {x: 1}\n" + "b: {<<: [*a, *a]}\n"
    for number, text in enumerate(("{", bomb, "[" * 5000, "x: " + "y" * 1024 * 1024, "!!python/object:os.system x"), 1):
        folder = uploaded(unity, MLmodel=text)
        refused = finalize(unity, number)
        assert refused.status_code == 400 and "MLmodel" in refused.json()["message"], refused.text
        assert catalog.get_model_version(f"main.ml.bot/{number}").status == "PENDING_REGISTRATION"
        (folder / "MLmodel").write_text("flavors: [1]\nsignature: 3")
        assert finalize(unity, number).status_code == 200  # put right
    uploaded(unity, MLmodel="flavors: {python_function: {cloudpickle_version: 3.0}}", weights="x")
    assert finalize(unity, 6).status_code == 200
    assert catalog.get_model_version("main.ml.bot/6").spec["pickles"] == ["MLmodel"]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


def test_in_an_object_store(endpoint: str, tmp_path: Path) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
    storage = Storage("s3://models/root", {**keys, "AWS_ENDPOINT_URL": f"http://{endpoint}", "AWS_ALLOW_HTTP": "true"})
    fs.S3FileSystem(
        access_key="test",
        secret_key="test",
        region="us-east-1",
        scheme="http",
        endpoint_override=endpoint,
        allow_bucket_creation=True,
    ).create_dir("models")
    assert files.look(storage, storage.address("none")).names == ()
    (tmp_path / "up" / "sub").mkdir(parents=True)
    (tmp_path / "up" / "MLmodel").write_text(SIGNATURE)
    (tmp_path / "up" / "sub" / "pytorch_model.bin").write_bytes(b"x")
    storage.upload(tmp_path / "up", storage.address("bot"))
    looked = files.look(storage, storage.address("bot"))
    assert looked.names == ("MLmodel", "sub/pytorch_model.bin")
    assert looked.pickles == ("code", "model.dat", "sub/pytorch_model.bin", "weights")
    assert looked.signature is not None and "inputs" in looked.signature
    storage.write_bytes(storage.address("bot", "MLmodel"), b"{")
    with pytest.raises(BadRequest, match=r"s3://models/root/bot/MLmodel' is no YAML"):
        files.look(storage, storage.address("bot"))
