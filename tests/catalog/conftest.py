"""A fresh catalog with two schemas and a clock that stands still, on each database, and the Unity Catalog protocol."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import httpx
import pytest
import sqlalchemy as sa
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from mosaic.catalog import Catalog
from mosaic.catalog.doubles import FixedClock
from mosaic.catalog.postgres import PostgresServer
from mosaic.catalog.unity import Authorize, Vend, unity_routes
from mosaic.runtime import Authenticate, ShapeErrors
from mosaic.storage import Storage


class Databases(Protocol):
    """Databases of one kind, by their URL."""

    def new(self) -> str: ...

    def copy(self, url: str) -> str: ...

    def drop(self, url: str) -> None: ...


class SqliteDatabases:
    """Files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def new(self) -> str:
        folder = self._folder / uuid4().hex
        folder.mkdir()
        return f"sqlite:///{folder}/catalog.db"

    def copy(self, url: str) -> str:
        made = self.new()
        shutil.copy(url.removeprefix("sqlite:///"), made.removeprefix("sqlite:///"))
        return made

    def drop(self, url: str) -> None:
        shutil.rmtree(Path(url.removeprefix("sqlite:///")).parent)


class PostgresDatabases:
    """Databases of the test run's server."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server

    def new(self, template: str = "template1") -> str:
        name = f"test_{uuid4().hex}"
        self._server.sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self._server.url(name)

    def copy(self, url: str) -> str:
        return self.new(str(sa.make_url(url).database))

    def drop(self, url: str) -> None:
        self._server.sql(f"DROP DATABASE {sa.make_url(url).database} WITH (FORCE)")


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The test run's own server; that PostgreSQL is not installed fails the tests that need it."""
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def databases(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Databases:
    """Each kind of database; with this in its name, a test runs on every one."""
    if request.param == "sqlite":
        return SqliteDatabases(tmp_path_factory.mktemp("sqlite"))
    return PostgresDatabases(request.getfixturevalue("postgres"))


@pytest.fixture(scope="session")
def migrated(databases: Databases) -> str:
    """An empty catalog, to be copied."""
    url = databases.new()
    Catalog.open(url).close()
    return url


@pytest.fixture
def catalog_url(databases: Databases, migrated: str) -> Iterator[str]:
    """The address of an empty catalog of the test's own."""
    url = databases.copy(migrated)
    yield url
    databases.drop(url)


@pytest.fixture
def catalog(catalog_url: str, clock: FixedClock) -> Iterator[Catalog]:
    made = Catalog.open(catalog_url, now=clock)
    made.ensure_schema("main.docs")
    made.ensure_schema("main.ml")
    yield made
    made.close()


def under_api(app: ASGIApp) -> ASGIApp:
    """The application as Serve calls it with the route prefix /api."""

    async def prefixed(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "root_path": "/api"}, receive, send)

    return prefixed


class Unity:
    """The protocol's application in this process, asked as an administrator by default; users may read catalog main."""

    def __init__(
        self, catalog: Catalog, storage: Storage, authorize: Authorize | None = None, vend: Vend | None = None
    ) -> None:
        self.catalog, self.storage = catalog, storage
        router = Router(routes=unity_routes(catalog, storage, authorize=authorize, vend=vend), redirect_slashes=False)
        self.app = under_api(ShapeErrors(Authenticate(router, catalog.check_token, deny=catalog.deny_token)))
        self.admin = catalog.create_token("ann", is_admin=True)[1]
        self.reader = catalog.create_token("bob")[1]
        reading = ["USE CATALOG", "USE SCHEMA", "SELECT", "EXECUTE"]
        catalog.grants.grant("catalog", "main", "users", reading, by=catalog.check_token(self.admin))

    def __call__(self, method: str, path: str, *, token: str | None = None, **other: Any) -> httpx.Response:
        """`path` below /api/2.1/unity-catalog, or whole."""
        whole = path if path.startswith("/api") else f"/api/2.1/unity-catalog{path}"

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)
            headers = {"authorization": f"Bearer {token or self.admin}"}
            async with httpx.AsyncClient(transport=transport, base_url="http://unity", headers=headers) as client:
                return await client.request(method, whole, **other)

        return asyncio.run(ask())

    def make(self, path: str, **body: object) -> Any:
        """The JSON of what a POST made."""
        answer = self("POST", path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
def unity(catalog: Catalog, tmp_path: Path) -> Unity:
    return Unity(catalog, Storage(str(tmp_path / "root")))
