"""Names of models to folders: every kind of name, what is wrong with them, and a hub on loopback."""

import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from mosaic.catalog import Catalog
from mosaic.errors import BadRequest, Conflict, NotFound, Unavailable
from mosaic.models import ModelResolver, ModelSource
from mosaic.models.cache import digests
from mosaic.storage import Storage


def model_folder(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(weights)
    return folder


@pytest.fixture
def resolver(tmp_path: Path) -> ModelResolver:
    return ModelResolver(tmp_path / "cache", Storage(str(tmp_path / "root")))


def test_unknown_plain_name_lists_the_packaged_ones(resolver: ModelResolver) -> None:
    with pytest.raises(NotFound, match=r"no model 'gpt'; there are \['all-minilm-l6-v2', 'smollm2-135m-instruct'\]"):
        resolver.resolve("gpt")
    for name in ("", "a/b/c", "main.ml", "a b"):
        with pytest.raises(NotFound, match="there are"):
            resolver.resolve(name)


def test_packaged_folder_is_found_without_importing_its_package(resolver: ModelResolver) -> None:
    folder = resolver.resolve("all-minilm-l6-v2")
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == 384
    assert (folder / "model.safetensors").is_file() and (folder / "tokenizer.json").is_file()


def test_local_folders(resolver: ModelResolver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path / "here" / "bot")
    monkeypatch.chdir(tmp_path)
    assert resolver.resolve(str(folder)) == folder
    assert resolver.resolve("./here/bot") == folder
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme").touch()
    with pytest.raises(BadRequest, match=r"has none of \['config.json', .*\]; it holds \['readme'\]"):
        resolver.resolve("./empty")
    with pytest.raises(NotFound, match=r"no folder .*/missing' for model '\./missing'"):
        resolver.resolve("./missing")


def test_registered_versions_are_checked_against_their_checksums(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "root"))
    catalog = Catalog.open(f"sqlite:///{tmp_path}/catalog.db")
    catalog.ensure_schema("main.ml")
    catalog.create_model("main.ml.bot", owner="ann")
    address = storage.address("models/bot/1")
    storage.upload(model_folder(tmp_path / "bot"), address)
    catalog.create_model_version("main.ml.bot", source=address, kind="full", checksums=digests(tmp_path / "bot"))
    catalog.set_alias("main.ml.bot", "champion", 1)

    def find(name: str) -> ModelSource:
        version = catalog.get_model_version(name)
        return ModelSource(name=version.full_name, address=version.source, checksums=version.checksums)

    resolver = ModelResolver(tmp_path / "cache", storage, find)
    assert resolver.resolve("main.ml.bot/1") == resolver.resolve("main.ml.bot@champion") == Path(address)
    with pytest.raises(NotFound, match=r"no version 2 of model 'main\.ml\.bot'"):
        resolver.resolve("main.ml.bot/2")
    (Path(address) / "model.safetensors").write_bytes(b"tampered")
    (Path(address) / "extra.py").touch()
    with pytest.raises(
        Conflict,
        match=r"not those that were registered; not registered: \['extra.py'\]; changed: \['model.safetensors'\]",
    ):
        resolver.resolve("main.ml.bot@champion")
    with pytest.raises(Unavailable, match="there is no catalog to ask"):
        ModelResolver(tmp_path / "cache", storage).resolve("main.ml.bot/1")


@pytest.fixture(scope="module")
def s3() -> Iterator[Storage]:
    from moto.server import ThreadedMotoServer
    from pyarrow import fs

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"access_key": "test", "secret_key": "test", "region": "us-east-1"}
    fs.S3FileSystem(**keys, scheme="http", endpoint_override=f"{host}:{port}", allow_bucket_creation=True).create_dir(
        "weights"
    )
    options = {f"AWS_{name}": "test" for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY")}
    yield Storage(
        "s3://weights/root",
        {**options, "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ALLOW_HTTP": "true"},
    )
    server.stop()


def test_addresses_are_downloaded_once(s3: Storage, tmp_path: Path) -> None:
    address = s3.address("bot")
    s3.upload(model_folder(tmp_path / "bot"), address)
    resolver = ModelResolver(tmp_path / "cache", s3)
    folder = resolver.resolve(address)
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest == {"name": address, "files": digests(tmp_path / "bot")}
    s3.delete(address)
    assert resolver.resolve(address) == resolver.resolve(address + "/") == folder
    with pytest.raises(NotFound, match="no folder with files at 's3://weights/root/none'"):
        resolver.resolve(s3.address("none"))
    s3.write_bytes(s3.address("odd/file"), b"")
    with pytest.raises(BadRequest, match="is no model folder"):
        resolver.resolve(s3.address("odd"))
    # Nothing half-made stays of what failed.
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]


def test_a_registered_version_in_an_object_store_is_verified(s3: Storage, tmp_path: Path) -> None:
    address = s3.address("registered")
    s3.upload(model_folder(tmp_path / "bot"), address)
    right = digests(tmp_path / "bot")
    wrong = {**right, "model.safetensors": hashlib.sha256(b"other").hexdigest()}
    sources = {
        "main.ml.bot/1": ModelSource(name="main.ml.bot/1", address=address, checksums=right),
        "main.ml.bot/2": ModelSource(name="main.ml.bot/2", address=address, checksums=wrong),
    }
    resolver = ModelResolver(tmp_path / "cache", s3, sources.__getitem__)
    folder = resolver.resolve("main.ml.bot/1")
    assert digests(folder) == right
    with pytest.raises(Conflict, match=r"'main.ml.bot/2' are not those that were registered; changed: \['model.safe"):
        resolver.resolve("main.ml.bot/2")


class Hub(ThreadingHTTPServer):
    """The part of a model hub's HTTP that a download needs."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.files = {"config.json": b"{}", "model.safetensors": b"hub weights", "evil.bin": b"a pickle"}
        self.asked: list[str] = []


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        commit = "a" * 40
        if self.path.startswith("/api/models/org/bot/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.server.files.items()
            ]
            self._answer(200, json.dumps(entries).encode(), {})
        elif self.path.startswith("/api/models/org/bot"):
            siblings = [{"rfilename": name} for name in self.server.files]
            self._answer(200, json.dumps({"id": "org/bot", "sha": commit, "siblings": siblings}).encode(), {})
        elif self.path.startswith("/org/bot/resolve/"):
            data = self.server.files[self.path.rpartition("/")[2]]
            self._answer(200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit})
        else:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite runs with HF_HUB_OFFLINE=1; these tests ask a hub of their own on loopback."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


def test_hub_models_are_downloaded_once_and_only_safe_files(online: None, hub: Hub, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{hub.server_address[1]}"
    resolver = ModelResolver(tmp_path / "cache", Storage(str(tmp_path / "root")), hub_endpoint=endpoint)
    folder = resolver.resolve("org/bot")
    assert (folder / "model.safetensors").read_bytes() == b"hub weights"
    assert sorted(path.name for path in folder.rglob("*")) == ["config.json", "manifest.json", "model.safetensors"]
    asked = len(hub.asked)
    assert resolver.resolve("org/bot") == folder and len(hub.asked) == asked
    with pytest.raises(NotFound, match="no model 'org/other' on the hub"):
        resolver.resolve("org/other")


def test_a_hub_that_cannot_be_reached_is_said_at_once(online: None, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "root"))
    started = time.monotonic()
    told = r"'org/bot' is the id of a model on a hub, and the hub cannot be reached \(Connect.*'smollm2-135m-instruct'"
    with pytest.raises(Unavailable, match=told):
        ModelResolver(tmp_path / "cache", storage, hub_endpoint="http://127.0.0.1:9").resolve("org/bot")
    # One that takes the connection and says nothing is given up after a few seconds.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(Unavailable, match="Timeout"):
            ModelResolver(tmp_path / "cache", storage, hub_endpoint=endpoint).resolve("org/bot")
    assert time.monotonic() - started < 60  # it would otherwise wait without limit
    assert [path for path in (tmp_path / "cache" / "hub").iterdir() if path.is_dir()] == []
