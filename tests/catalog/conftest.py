"""A fresh catalog with two schemas and a clock that stands still, and the Unity Catalog protocol over it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from mosaic.catalog import Catalog
from mosaic.catalog.doubles import FixedClock
from mosaic.catalog.unity import Authorize, Vend, unity_routes
from mosaic.runtime import Authenticate, ShapeErrors
from mosaic.storage import Storage


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock()


@pytest.fixture
def catalog(tmp_path: Path, clock: FixedClock) -> Iterator[Catalog]:
    made = Catalog.open(f"sqlite:///{tmp_path}/catalog.db", now=clock)
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
