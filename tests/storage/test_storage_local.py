"""Storage on the local disk: addresses, whole files and folders, kill -9, wrong input."""

import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.errors import BadRequest, NotFound
from mosaic.storage import Storage, StorageSettings


def make_tree(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def read_tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_bytes_round_trip_and_list(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    address = storage.address("tables", "a/b", "file.bin")
    assert address == f"{tmp_path}/tables/a/b/file.bin" and storage.is_local
    assert not storage.exists(address)
    storage.write_bytes(address, b"one")
    storage.write_bytes(address, b"two")
    assert storage.read_bytes(address) == b"two"
    assert storage.list(storage.address("tables", "a")) == [storage.address("tables/a/b")]
    assert storage.list(storage.address("nothing")) == []
    assert storage.local_path(address).read_bytes() == b"two"
    assert storage.delta_options(address) == {}
    storage.delete(storage.address("tables"))
    storage.delete(storage.address("tables"))
    assert not storage.exists(address)
    with pytest.raises(NotFound, match=r"nothing at .*file\.bin"):
        storage.read_bytes(address)


def test_a_compressed_looking_name_is_kept_as_it_is(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes(storage.address("rows.gz"), b"not compressed")
    assert storage.read_bytes(storage.address("rows.gz")) == b"not compressed"
    assert (tmp_path / "rows.gz").read_bytes() == b"not compressed"


@pytest.mark.parametrize("part", ["..", "a/../b", "/etc", "a//b", "", ".", "s3://b/k", "a\0b", "a\nb", "a/"])
def test_parts_that_lead_elsewhere_are_refused(tmp_path: Path, part: str) -> None:
    with pytest.raises(BadRequest, match="not a part of an address"):
        Storage(str(tmp_path)).address("x", part)


@settings(deadline=None)
@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=4))
def test_every_accepted_address_is_below_the_root(parts: list[str]) -> None:
    storage = Storage("/some/root")
    try:
        address = storage.address(*parts)
    except BadRequest:
        return
    assert os.path.normpath(address).startswith("/some/root/")
    assert os.path.normpath(address) == address


@pytest.mark.parametrize(
    ("root", "told"),
    [
        ("ftp://host/x", r"unknown scheme 'ftp'; supported are \['a local path', 's3://', 'gs://', 'abfss://'\]"),
        ("hdfs://host/x", "unknown scheme 'hdfs'"),
        ("s3://", "names no bucket"),
        ("  ", "needs a root"),
        ("s3://bucket/a/../b", "may not hold '..'"),
    ],
)
def test_wrong_roots(root: str, told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        Storage(root)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"AWS_REGON": "x"}, "unknown storage option 'AWS_REGON'; there are .*'AWS_REGION'"),
        ({"AWS_ENDPOINT_URL": "localhost:9000"}, "must start with http"),
        ({"AWS_ENDPOINT_URL": "http://localhost:9000"}, "set AWS_ALLOW_HTTP to 'true'"),
        ({"AWS_ALLOW_HTTP": "yes"}, "must be 'true' or 'false'"),
        ({"AWS_REGION": "a", "aws_region": "b"}, "given twice"),
    ],
)
def test_wrong_options(options: dict[str, str], told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        Storage("s3://bucket", options)


def test_relative_addresses_and_remote_paths_are_refused(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with pytest.raises(BadRequest, match="is no address"):
        storage.read_bytes("relative/file")
    with pytest.raises(BadRequest, match="not a local address"):
        storage.local_path("s3://bucket/key")


def test_only_below_the_root_can_be_deleted(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root-2").mkdir()
    storage = Storage(str(tmp_path / "root"))
    for address in (storage.root, storage.root + "/", str(tmp_path), str(tmp_path / "root-2"), "/etc/hostname"):
        with pytest.raises(BadRequest, match="only what is below the root"):
            storage.delete(address)
    with pytest.raises(BadRequest, match=r"'\.\.'"):
        storage.delete(f"{storage.root}/../root-2")
    assert (tmp_path / "root-2").is_dir()


def test_folders_go_up_and_come_down_whole(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "root"))
    first = make_tree(tmp_path / "first", {"a.txt": b"a", "deep/er/b.txt": b"b", "gone.txt": b"x"})
    second = make_tree(tmp_path / "second", {"a.txt": b"A", "deep/er/b.txt": b"B"})
    address = storage.address("models/bot/1")
    storage.upload(first, address)
    storage.upload(second, address)  # replaces: nothing of the first is left
    assert read_tree(Path(address)) == read_tree(second)
    storage.download(address, tmp_path / "down")
    assert read_tree(tmp_path / "down") == read_tree(second)
    assert [path.name for path in Path(address).parent.iterdir()] == ["1"]
    with pytest.raises(BadRequest, match="holds something"):
        storage.download(address, tmp_path / "down")
    with pytest.raises(NotFound, match="no folder with files"):
        storage.download(storage.address("nothing"), tmp_path / "other")
    with pytest.raises(BadRequest, match="upload needs a folder"):
        storage.upload(first / "a.txt", address)
    assert not (tmp_path / "other").exists()


def test_a_reader_never_sees_a_part_of_a_write(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    address = storage.address("value")
    storage.write_bytes(address, b"0" * 100_000)
    stop = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not stop.is_set():
            data = storage.read_bytes(address)
            assert len(data) == 100_000
            seen.update({data[:1], data[-1:]})

    thread = threading.Thread(target=read)
    thread.start()
    for round_number in range(50):
        storage.write_bytes(address, str(round_number % 10).encode() * 100_000)
    stop.set()
    thread.join()
    assert len(seen) > 1
    assert storage.list(storage.root) == [address]


WRITER = """
import sys
from mosaic.storage import Storage
storage = Storage(sys.argv[1])
print("ready", flush=True)
number = 0
while True:
    number += 1
    storage.write_bytes(storage.address("value"), str(number % 10).encode() * 3_000_000)
"""


def test_kill_9_while_writing_leaves_the_old_or_the_new_file(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        while not storage.exists(storage.address("value")):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        data = storage.read_bytes(storage.address("value"))
        assert len(data) == 3_000_000 and len(set(data)) == 1
        assert storage.list(storage.root) == [storage.address("value")]  # what was half-written is not shown


def test_pickles_and_hides_its_secrets(tmp_path: Path) -> None:
    storage = Storage("s3://bucket/prefix/", {"aws_secret_access_key": "hidden", "AWS_REGION": "eu-west-1"})
    again = pickle.loads(pickle.dumps(storage))
    assert (again.root, again.options) == ("s3://bucket/prefix", storage.options)
    assert storage.options["AWS_SECRET_ACCESS_KEY"] == "hidden" and "hidden" not in repr(storage)
    assert not storage.is_local and storage.address("a", "b") == "s3://bucket/prefix/a/b"
    assert Storage("file:///tmp/x").root == "/tmp/x"


def test_settings() -> None:
    assert Storage.from_settings(StorageSettings()).root == str(Path("~/.mosaic").expanduser())
    with pytest.raises(BadRequest, match="unknown field 'rot'"):
        StorageSettings.parse({"rot": "x"})


def test_other_stores_are_spelled_for_pyarrow() -> None:
    azure = Storage("abfss://box@account.dfs.core.windows.net/p", {"AZURE_STORAGE_ACCOUNT_KEY": "a2V5"})
    filesystem, path = azure.filesystem(azure.address("x"))
    assert (filesystem.type_name, path) == ("abfs", "box/p/x")
    assert azure.delta_options(azure.root) == {"AZURE_STORAGE_ACCOUNT_KEY": "a2V5"}
    google = Storage("gs://box/p", {"GOOGLE_SKIP_SIGNATURE": "true"})
    filesystem, path = google.filesystem(google.address("x"))
    assert (filesystem.type_name, path) == ("gcs", "box/p/x")
    with pytest.raises(BadRequest, match="the address names account 'account'"):
        Storage(azure.root, {"AZURE_STORAGE_ACCOUNT_NAME": "other"}).filesystem(azure.root)
    with pytest.raises(BadRequest, match="an Azure address is"):
        Storage("abfss://box/p").filesystem("abfss://box/p")
