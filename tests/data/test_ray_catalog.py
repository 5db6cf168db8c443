"""`ray.data.read_delta(name, catalog=MosaicCatalog(...))`: over a real socket, in process, and from S3."""

import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import httpx
import pyarrow as pa
import pytest
import ray.data
from moto.server import ThreadedMotoServer
from ray.data.catalog import CatalogAccessMode, ReaderFormat
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from mosaic.catalog import Catalog
from mosaic.catalog.unity import unity_routes
from mosaic.catalog.unity.credentials import Credentials
from mosaic.catalog.unity.shapes import AwsCredentials, GcpToken
from mosaic.data import MosaicCatalog, Tables
from mosaic.data.run_routes import run_routes
from mosaic.errors import (
    BadRequest,
    Conflict,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from mosaic.protocol import Principal
from mosaic.runtime import Authenticate, ShapeErrors
from mosaic.storage import Storage
from tests.local import free_ports, served

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")

NAME = "main.test.words"
SCHEMA = pa.schema([("word", pa.string()), ("length", pa.int64())])
ADMIN = Principal(name="admin", is_admin=True)
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


def rows(*words: str) -> pa.Table:
    return pa.table({"word": list(words), "length": [len(word) for word in words]}, schema=SCHEMA)


def filled(tables: Tables) -> Tables:
    tables.create(NAME, SCHEMA, primary_key="word", owner="ann")
    tables.append(NAME, rows("a", "bb"))
    tables.append(NAME, rows("ccc"))
    return tables


def read(catalog: MosaicCatalog, version: int | None = None, columns: list[str] | None = None) -> list[str]:
    """Its words, through Ray's own reader."""
    data = ray.data.read_delta(NAME, version=version, catalog=catalog, columns=columns, num_cpus=0.25)
    return sorted(row["word"] for row in data.take_all())


@pytest.fixture
def bob(catalog: Catalog) -> str:
    """The token of somebody who may read the table and no more."""
    _, secret = catalog.create_token("bob")
    catalog.grants.grant("catalog", "main", "bob", ["USE CATALOG", "USE SCHEMA"], by=ADMIN)
    return secret


def serve(catalog: Catalog, storage: Storage, tables: Tables, **options: object) -> Iterator[str]:
    """Control's routes on a port of loopback, under /api."""
    routes = [*unity_routes(catalog, storage, **options), *run_routes(tables)]  # type: ignore[arg-type]
    inner: ASGIApp = ShapeErrors(Authenticate(Router(routes=routes, redirect_slashes=False), catalog.check_token))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await inner({**scope, "root_path": "/api"}, receive, send)

    with served(app) as address:
        yield address


@pytest.fixture
def url(tables: Tables, catalog: Catalog, tmp_path: Path) -> Iterator[str]:
    filled(tables)
    yield from serve(catalog, Storage(str(tmp_path / "root")), tables)


def test_over_http_within_the_grants(url: str, catalog: Catalog, bob: str, ray_cluster: None) -> None:
    mine = MosaicCatalog(url + "/", bob)
    with pytest.raises(PermissionDenied, match="'bob' may not"):
        read(mine)
    catalog.grants.grant("table", NAME, "bob", ["SELECT"], by=ADMIN)
    assert read(mine) == ["a", "bb", "ccc"]
    assert read(mine, version=1, columns=["word"]) == ["a", "bb"]
    assert bob not in repr(mine)
    with pytest.raises(PermissionDenied, match="missing MODIFY"):
        mine.resolve(NAME, reader=ReaderFormat.DELTA, mode=CatalogAccessMode.WRITE)
    catalog.grants.revoke("table", NAME, "bob", ["SELECT"], by=ADMIN)
    with pytest.raises(PermissionDenied):
        read(mine)


def test_over_http_in_a_run(url: str, tables: Tables, catalog: Catalog, bob: str, ray_cluster: None) -> None:
    catalog.grants.grant("table", NAME, "bob", ["SELECT"], by=ADMIN)
    run_id = catalog.start_run("training", "main.test.bot", principal="bob")
    mine = MosaicCatalog(url, bob, run_id=run_id)
    version = mine.pin("Main.Test.Words")
    tables.append(NAME, rows("later"))
    assert version == 2 and read(mine, version=version) == ["a", "bb", "ccc"]
    (edge,) = catalog.get_run(run_id).inputs
    assert (edge.kind, edge.name, edge.version) == ("table", NAME, 2)
    assert edge.detail == {"columns": ["word", "length"], "predicate": None}
    assert read(mine) == ["a", "bb", "ccc", "later"]  # not pinned: the newest, noted when the name is resolved
    assert [one.version for one in catalog.get_run(run_id).inputs] == [2, 3]
    with pytest.raises(NotFound, match="no readable version 9"):
        mine.pin(NAME, 9)
    assert MosaicCatalog(url, bob).pin(NAME) == 3 and MosaicCatalog(url, bob).pin(NAME, 1) == 1
    hers = catalog.start_run("training", "main.test.bot", principal="ann")
    for other, error in ((hers, PermissionDenied), ("run_unknown", NotFound)):
        with pytest.raises(error) as refused:
            MosaicCatalog(url, bob, run_id=other).pin(NAME)
        assert hers not in refused.value.message or other == hers
    catalog.finish_run(run_id, "finished")
    with pytest.raises(Conflict, match="already finished"):
        read(mine)
    catalog.grants.revoke("table", NAME, "bob", ["SELECT"], by=ADMIN)
    again = catalog.start_run("training", "main.test.bot", principal="bob")
    with pytest.raises(PermissionDenied, match="missing SELECT"):
        MosaicCatalog(url, bob, run_id=again).pin(NAME)
    assert catalog.get_run(again).inputs == []


def test_ray_writes_where_it_may(url: str, tables: Tables, catalog: Catalog, bob: str, ray_cluster: None) -> None:
    data = ray.data.from_blocks([rows("dddd")])
    for mine in (MosaicCatalog(url, bob), MosaicCatalog.of(tables.acting(catalog.check_token(bob)))):
        catalog.grants.grant("table", NAME, "bob", ["SELECT"], by=ADMIN)
        with pytest.raises(PermissionDenied, match="missing MODIFY"):
            data.write_delta(NAME, catalog=mine, ray_remote_args={"num_cpus": 0.25})
        catalog.grants.grant("table", NAME, "bob", ["MODIFY"], by=ADMIN)
        before = tables.version(NAME)
        data.write_delta(NAME, catalog=mine, ray_remote_args={"num_cpus": 0.25})
        assert tables.version(NAME) == before + 1
        catalog.grants.revoke("table", NAME, "bob", ["MODIFY"], by=ADMIN)
    assert tables.to_arrow(NAME)["word"].to_pylist().count("dddd") == 2


def test_the_route_that_notes_inputs_refuses_what_it_does_not_know(url: str, catalog: Catalog, bob: str) -> None:
    catalog.grants.grant("table", NAME, "bob", ["SELECT"], by=ADMIN)
    run_id = catalog.start_run("training", "main.test.bot", principal="bob")

    def note(body: object, run: str = run_id, token: str = bob) -> tuple[int, str]:
        headers = {"authorization": f"Bearer {token}"}
        answer = httpx.post(f"{url}/api/2.0/mosaic/runs/{run}/inputs", json=body, headers=headers)
        return answer.status_code, answer.json().get("message", "")

    assert note({"table": NAME, "version": 1, "columns": ["word"], "predicate": "length > 1"})[0] == 200
    for body, field in (
        ({"table": NAME, "versoin": 1}, "versoin"),
        ({"version": 1}, "table"),
        ({"table": NAME, "version": -1}, "version"),
        ({"table": NAME, "columns": ["wrod"]}, "wrod"),
        ({"table": "words"}, "words"),
        ([NAME], "object"),
    ):
        status, message = note(body)
        assert status == 400 and field in message, (body, message)
    assert note({"table": NAME}, run="run_other")[0] == 404
    assert note({"table": NAME}, token="mosaic_no")[0] == 401
    (edge,) = catalog.get_run(run_id).inputs
    assert (edge.version, edge.detail) == (1, {"columns": ["word"], "predicate": "length > 1"})


def test_what_goes_wrong_over_http(url: str, catalog: Catalog, bob: str) -> None:
    _, admin = catalog.create_token("admin", is_admin=True)
    for table, error in (("main.test.wrods", NotFound), ("main.test", BadRequest), ("main.test.a/b?c", BadRequest)):
        with pytest.raises(error):
            MosaicCatalog(url, admin).resolve(table, reader=ReaderFormat.DELTA)
    with pytest.raises(Unauthenticated):
        MosaicCatalog(url, "mosaic_wrong").resolve(NAME, reader=ReaderFormat.DELTA)
    for reader in (ReaderFormat.PARQUET, ReaderFormat.ICEBERG):
        with pytest.raises(BadRequest, match="use read_delta"):
            MosaicCatalog(url, admin).resolve(NAME, reader=reader)
    with pytest.raises(Unavailable, match="no platform answers at"):
        MosaicCatalog(f"http://127.0.0.1:{free_ports(1)[0]}", admin).resolve(NAME, reader=ReaderFormat.DELTA)
    with pytest.raises(NotFound):
        MosaicCatalog(f"{url}/elsewhere", admin).resolve(NAME, reader=ReaderFormat.DELTA)


def test_in_process(tables: Tables, catalog: Catalog, bob: str, ray_cluster: None) -> None:
    filled(tables)
    principal = catalog.check_token(bob)
    with pytest.raises(PermissionDenied, match="missing SELECT"):
        read(MosaicCatalog.of(tables.acting(principal)))
    catalog.grants.grant("table", NAME, "bob", ["SELECT"], by=ADMIN)
    run_id = catalog.start_run("training", "main.test.bot", principal="bob")
    mine = MosaicCatalog.of(tables.acting(principal, run_id))
    assert read(mine, version=mine.pin(NAME, 1)) == ["a", "bb"]
    assert [(one.name, one.version) for one in catalog.get_run(run_id).inputs] == [(NAME, 1)]
    assert read(MosaicCatalog.of(tables)) == ["a", "bb", "ccc"]
    with pytest.raises(PermissionDenied, match="missing MODIFY"):
        mine.resolve(NAME, reader=ReaderFormat.DELTA, mode=CatalogAccessMode.WRITE)


def test_vended_credentials_open_an_object_store(catalog: Catalog, bob: str, ray_cluster: None) -> None:
    """They go to the reader alone: nothing of them is left in the environment."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    storage = Storage("s3://lake/root", {**KEYS, "AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true"})
    filesystem, _ = storage.filesystem(storage.root)
    type(filesystem)(
        access_key="test",
        secret_key="test",
        region="us-east-1",
        scheme="http",
        endpoint_override=endpoint.removeprefix("http://"),
        allow_bucket_creation=True,
    ).create_dir("lake")
    asked: list[tuple[str, bool]] = []

    def vend(address: str, write: bool) -> Credentials:
        asked.append((address, write))
        keys = AwsCredentials(access_key_id="vended", secret_access_key="secret", session_token="session")
        return Credentials(expires_at=datetime.now(UTC) + timedelta(hours=1), aws=keys, endpoint_url=endpoint)

    tables = filled(Tables(storage, catalog))
    catalog.grants.grant("table", NAME, "bob", ["SELECT"], by=ADMIN)
    before = dict(os.environ)
    try:
        for address in serve(catalog, storage, tables, vend=vend):
            mine = MosaicCatalog(address, bob, region="us-east-1", allow_http=True)
            assert read(mine) == ["a", "bb", "ccc"]
            assert mine.pin(NAME, 1) == 1
            resolved = mine.resolve(NAME, reader=ReaderFormat.DELTA)
            assert resolved.path == catalog.get_table(NAME).location and resolved.storage_options is not None
            assert resolved.storage_options["AWS_SESSION_TOKEN"] == "session"
        assert read(MosaicCatalog.of(tables)) == ["a", "bb", "ccc"]
    finally:
        moto.stop()
    assert set(asked) == {(catalog.get_table(NAME).location, False)}
    assert {name for name in os.environ if name not in before and name.startswith("AWS_")} == set()


def test_a_store_that_deltalake_cannot_open_is_said(catalog: Catalog, bob: str) -> None:
    catalog.create_table(NAME, "gs://lake/words", columns=[], primary_key=None, owner="ann")
    catalog.grants.grant("table", NAME, "bob", ["SELECT"], by=ADMIN)
    storage = Storage("s3://lake/root", KEYS)

    def vend(address: str, write: bool) -> Credentials:
        return Credentials(expires_at=datetime.now(UTC) + timedelta(hours=1), gcp=GcpToken(oauth_token="t"))

    for options, told in (({"vend": vend}, "no OAuth token"), ({}, "no temporary credentials")):
        for address in serve(catalog, storage, Tables(storage, catalog), **options):
            with pytest.raises(Unimplemented, match=told):
                MosaicCatalog(address, bob).resolve(NAME, reader=ReaderFormat.DELTA)


def test_the_pages_snippets_run(
    tables: Tables, catalog: Catalog, tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/data.md, with the platform's parts in the place of a platform."""
    _, token = catalog.create_token("ann", is_admin=True)
    principal = catalog.check_token(token)
    page = (Path(__file__).parents[2] / "docs/data.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for base_url in serve(catalog, Storage(str(tmp_path / "root")), tables):
        platform = SimpleNamespace(
            tables=tables.acting(principal), catalog=catalog, principal=principal, base_url=base_url
        )
        names = {"platform": platform, "token": token}
        for snippet in snippets:
            exec(compile(snippet, "docs/data.md", "exec"), names)
    assert capsys.readouterr().out == "1\n['table:main.docs.words@1']\n2\n2\n"
