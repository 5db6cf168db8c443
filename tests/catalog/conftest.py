"""A fresh catalog with two schemas and a clock that stands still, on each database, and the Unity Catalog protocol."""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from mosaic.catalog import Catalog
from mosaic.catalog.doubles import FixedClock
from mosaic.catalog.postgres import PostgresServer
from mosaic.catalog.unity import Authorize, Vend, unity_routes
from mosaic.runtime import Authenticate, ShapeErrors
from mosaic.storage import Storage


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The test run's own server; that PostgreSQL is not installed fails the tests that need it."""
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty catalog in a file, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "catalog.db"
    Catalog.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture(scope="session")
def migrated_database(postgres: PostgresServer) -> str:
    """The name of an empty catalog's database, to be copied."""
    postgres.sql("CREATE DATABASE migrated")
    Catalog.open(postgres.url("migrated")).close()
    return "migrated"


@pytest.fixture(params=["sqlite", "postgresql"])
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Makes addresses of databases of the test's own, without a table yet."""
    yield from _urls(request, tmp_path, migrated=False)


@pytest.fixture(params=["sqlite", "postgresql"])
def catalog_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of an empty catalog of the test's own."""
    for make in _urls(request, tmp_path, migrated=True):
        yield make()


def _urls(request: pytest.FixtureRequest, folder: Path, *, migrated: bool) -> Iterator[Callable[[], str]]:
    made: list[str] = []

    def sqlite() -> str:
        path = folder / f"catalog{len(made) or ''}.db"
        made.append(str(path))
        if migrated:
            shutil.copy(request.getfixturevalue("migrated_file"), path)
        return f"sqlite:///{path}"

    def postgresql() -> str:
        made.append(f"test_{uuid4().hex}")
        template = f" TEMPLATE {request.getfixturevalue('migrated_database')}" if migrated else ""
        server.sql(f"CREATE DATABASE {made[-1]}{template}")
        return server.url(made[-1])

    if request.param == "sqlite":
        yield sqlite
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    yield postgresql
    for name in made:
        server.sql(f"DROP DATABASE {name} WITH (FORCE)")


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
        self.app = under_api(ShapeErrors(Authenticate(router, catalog.check_token)))
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
