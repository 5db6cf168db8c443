"""A gateway in this process with the platform's tables behind it: what it keeps, and where that is shipped to."""

import asyncio
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from mosaic.catalog import Catalog
from mosaic.data import Shipper, Tables
from mosaic.gateway import Feedback
from mosaic.gateway.doubles import gateway_in_process
from mosaic.gateway.quota_shard import Shard
from mosaic.monitoring import INFERENCE_TABLE, SCHEMA, Ledger, lost
from mosaic.monitoring.destinations import Destinations
from mosaic.monitoring.feedback import FEEDBACK_SCHEMA, FEEDBACK_TABLE, AskedBefore, requests_finder
from mosaic.monitoring.payloads import make_payload_table
from mosaic.protocol import Engine, Principal
from mosaic.runtime.asgi import RequestId
from mosaic.serving.doubles import EchoEngine, InstantApps
from mosaic.serving.endpoint import EndpointSettings, Unit
from mosaic.serving.service import Serving
from mosaic.storage import Storage

ADMIN = Principal(name="admin", is_admin=True)


class Room(InstantApps):
    """Engines that need no room."""

    def require_model(self, unit: Unit) -> None: ...

    def require_room(self, units: set[Unit]) -> None: ...


class Door:
    """The parts of a platform that a ledger needs, at a folder; another process may have them too."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.spool = folder, folder / "spool"
        self.catalog = Catalog.open(f"sqlite:///{folder / 'catalog.db'}")
        self.storage = Storage(str(folder / "root"))
        self.tables = Tables(self.storage, self.catalog)

    def furnish(self) -> None:
        """The platform's tables, as `mosaic up` makes them."""
        self.catalog.ensure_schema("system.serving", owner="system")
        self.catalog.ensure_schema("main.logs")
        self.catalog.ensure_schema("main.serving")
        self.tables.create(INFERENCE_TABLE, SCHEMA, primary_key="request_id", owner="system")
        self.tables.create(FEEDBACK_TABLE, FEEDBACK_SCHEMA, primary_key="feedback_id", owner="system")

    def serving(self, principal: Principal = ADMIN) -> Serving:
        made = functools.partial(make_payload_table, self.tables)
        return Serving(self.catalog, Room(), principal, made)  # type: ignore[arg-type]

    def serve(self, name: str, principal: Principal = ADMIN, **ai_gateway: Any) -> None:
        """An endpoint with the echo behind it, live at once."""
        told = {"name": name, "served_entities": [{"name": "echo", "model": "echo"}], "ai_gateway": ai_gateway}
        endpoint = self.serving(principal).put(EndpointSettings.parse(told))
        if endpoint.pending is not None:
            self.catalog.endpoints.activate(endpoint.id, endpoint.pending.version)

    def token(self, name: str) -> str:
        return self.catalog.create_token(name)[1]

    def app(
        self,
        owner: str = "gateway",
        engine: Engine | None = None,
        max_body_bytes: int = 20_000_000,
        find: Callable[[str], AskedBefore | None] | None = None,
        wait_seconds: float = 0,
    ) -> Any:
        """`find` finds requests for feedback, in place of what a gateway has; they are waited for so long."""
        answering = engine or EchoEngine()

        def feedback(ledger: Ledger) -> Feedback:
            wait = {"wait_seconds": wait_seconds, "look_seconds": 0.05}
            return Feedback(find or self.finder(), self.catalog, ledger, **wait)

        app, self.ledger = gateway_in_process(
            self.catalog,
            self.folder,
            engine=lambda entity: answering,
            owner=owner,
            shard=Shard(self.folder / f"quota-{owner}"),
            feedback=feedback,
            max_body_bytes=max_body_bytes,
        )
        return RequestId(app)

    def finder(self) -> Callable[[str], AskedBefore | None]:
        return requests_finder(self.spool, self.tables)

    def shipper(self, at: Callable[[str], None] = lambda point: None) -> Shipper:
        return Shipper(self.spool, Destinations(self.tables, self.storage, at=at), lost=lost, at=at)

    def rows(self, table: str = INFERENCE_TABLE) -> list[dict[str, Any]]:
        self.shipper().ship_once()
        found: list[dict[str, Any]] = self.tables.to_arrow(table).to_pylist()
        return sorted(found, key=lambda row: str(row.get("request_time")))


@contextmanager
def opened(folder: Path) -> Iterator[Door]:
    door = Door(folder)
    door.furnish()
    yield door


def asked(app: Any, token: str | None, *asks: tuple[str, Any]) -> list[httpx.Response]:
    """The answers to several requests, one after the other."""

    async def run() -> list[httpx.Response]:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://door", headers=headers) as client:
            return [await client.post(path, json=body) for path, body in asks]

    return asyncio.run(run())


def chat(model: str, text: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": text}], **more}


def texts(rows: Sequence[dict[str, Any]]) -> list[Any]:
    return [None if row["request"] is None else json.loads(row["request"])["messages"][0]["content"] for row in rows]
