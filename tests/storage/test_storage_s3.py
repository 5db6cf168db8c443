"""Storage on S3: moto's server on loopback, with deltalake and pyarrow as clients."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from moto.server import ThreadedMotoServer

from mosaic.errors import BadRequest, NotFound, Unavailable
from mosaic.storage import Storage

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def storage(endpoint: str, request: pytest.FixtureRequest) -> Storage:
    bucket = request.node.name.replace("_", "-")[:60].strip("-")
    made = Storage(f"s3://{bucket}/prefix", {**KEYS, "AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true"})
    filesystem, _ = made.filesystem(made.root)
    type(filesystem)(
        access_key="test",
        secret_key="test",
        region="us-east-1",
        scheme="http",
        endpoint_override=endpoint.removeprefix("http://"),
        allow_bucket_creation=True,
    ).create_dir(bucket)
    return made


def test_s3_bytes(storage: Storage) -> None:
    address = storage.address("a/b", "file.bin")
    assert not storage.exists(address)
    storage.write_bytes(address, b"one")
    storage.write_bytes(address, b"two")
    assert storage.read_bytes(address) == b"two"
    assert storage.exists(storage.address("a"))
    assert storage.list(storage.address("a")) == [storage.address("a/b")]
    assert storage.list(storage.address("a/b")) == [address]
    assert storage.list(storage.address("none")) == []
    with pytest.raises(NotFound, match="nothing at 's3://"):
        storage.read_bytes(storage.address("none"))
    storage.delete(address)
    assert not storage.exists(address)
    storage.write_bytes(storage.address("c/d/e"), b"x")
    storage.delete(storage.address("c"))
    storage.delete(storage.address("c"))
    assert not storage.exists(storage.address("c/d/e"))
    with pytest.raises(BadRequest, match="only what is below the root"):
        storage.delete("s3://other-bucket/key")


def test_s3_folders(storage: Storage, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"a")
    (folder / "deep" / "b.bin").write_bytes(b"b" * 300_000)
    address = storage.address("models/1")
    storage.write_bytes(f"{address}/old.txt", b"old")
    storage.upload(folder, address)
    assert not storage.exists(f"{address}/old.txt")
    storage.download(address, tmp_path / "down")
    assert (tmp_path / "down/a.txt").read_bytes() == b"a"
    assert (tmp_path / "down/deep/b.bin").read_bytes() == b"b" * 300_000
    assert sorted(path.name for path in (tmp_path / "down").rglob("*")) == ["a.txt", "b.bin", "deep"]
    # A storage with a local root reads any bucket that its options open.
    local = Storage(str(tmp_path / "root"), storage.options)
    assert local.read_bytes(f"{address}/a.txt") == b"a" and local.delta_options(local.root) == {}


def test_s3_delta_table(storage: Storage) -> None:
    address, options = storage.address("tables/t"), storage.delta_options(storage.address("tables/t"))
    assert options["AWS_CONDITIONAL_PUT"] == "etag"
    write_deltalake(address, pa.table({"n": [1, 2]}), storage_options=options)
    write_deltalake(address, pa.table({"n": [3]}), mode="append", storage_options=options)
    table = DeltaTable(address, storage_options=options)
    assert table.version() == 1
    assert sorted(table.to_pyarrow_table()["n"].to_pylist()) == [1, 2, 3]
    filesystem, path = storage.filesystem(address)  # the same objects through pyarrow
    assert filesystem.get_file_info(f"{path}/_delta_log/00000000000000000001.json").is_file


def test_s3_concurrent_commits_lose_nothing(storage: Storage) -> None:
    address, options = storage.address("tables/t"), storage.delta_options(storage.address("tables/t"))
    write_deltalake(address, pa.table({"writer": [-1], "n": [-1]}), storage_options=options)
    failures: list[BaseException] = []
    barrier = threading.Barrier(2)

    def append(writer: int) -> None:
        try:
            barrier.wait(30)
            for number in range(12):
                rows = pa.table({"writer": [writer], "n": [number]})
                write_deltalake(address, rows, mode="append", storage_options=options)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=append, args=(writer,)) for writer in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    table = DeltaTable(address, storage_options=options)
    rows = table.to_pyarrow_table().to_pylist()
    assert sorted((row["writer"], row["n"]) for row in rows if row["writer"] >= 0) == [
        (writer, number) for writer in (0, 1) for number in range(12)
    ]
    assert table.version() == 24


def test_s3_unreachable_is_said_within_seconds() -> None:
    options = {**KEYS, "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ALLOW_HTTP": "true"}
    storage = Storage("s3://bucket/x", options)
    with pytest.raises(Unavailable, match="storage at 's3://bucket/x/y' failed"):
        storage.read_bytes(storage.address("y"))
