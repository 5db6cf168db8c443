"""The gateway on a port of loopback without a platform: the whole application, a catalog on disk, an echo behind it."""

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mosaic.catalog import Catalog
from mosaic.gateway import Feedback, LiveEntity
from mosaic.gateway.doubles import gateway_in_process
from mosaic.gateway.quota_shard import Shard
from mosaic.monitoring.feedback import AskedBefore
from mosaic.protocol import Engine, EngineRequest, Retrieved
from mosaic.runtime.asgi import RequestId
from mosaic.serving.doubles import EchoEngine
from tests.local import served

LIMITED, GUARDED, SHUT, CLOCK = "limited", "guarded", "shut", "clock"


class Clock:
    """The quota's clock, and an engine that moves it on by as many seconds as the message says."""

    def __init__(self) -> None:
        self._ahead_seconds = 0.0

    def __call__(self) -> float:
        return time.time() + self._ahead_seconds

    async def answer(self, request: EngineRequest) -> AsyncIterator[dict[str, Any]]:
        self._ahead_seconds += float(request.body["messages"][-1]["content"])
        async for item in EchoEngine().answer(request):
            yield item


@dataclass
class Door:
    """A gateway that answers at `address`, and the rows that it has written."""

    address: str
    token: str
    """An administrator's."""
    stranger: str
    """Of one who may use nothing."""
    catalog: Catalog
    rows: list[Mapping[str, Any]] = field(default_factory=list)

    def row(self, request_id: str, *, seconds: float = 2) -> Mapping[str, Any]:
        """The row of a request, once it is there."""
        deadline = time.monotonic() + seconds
        while True:
            found = [row for row in self.rows if row["request_id"] == request_id]
            if found or time.monotonic() > deadline:
                (row,) = found
                return row
            time.sleep(0.01)

    def endpoint(self, name: str, **config: Any) -> str:
        """Put an endpoint before the echo, or before the `model` that is told."""
        entity = {"name": "one", "model": config.pop("model", "echo")}
        whole = {"name": name, "served_entities": [entity], **config}
        self.catalog.endpoints.put(name, config=whole, owner="admin")
        return name


class EchoesRequestId:
    """As Serve does: the request's id is on its answer too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                ids = [pair for pair in scope["headers"] if pair[0] == b"x-request-id"]
                message = {**message, "headers": [*message["headers"], *ids]}
            await send(message)

        await self._app(scope, receive, send_with_id)


@contextmanager
def door(folder: Path, engine: Callable[[LiveEntity], Engine] | None = None) -> Iterator[Door]:
    """Endpoints: `echo`, `limited` (two requests a minute each), `shut` (none), `guarded` (addresses are masked both
    ways), and `clock`, which moves on the time that limits go by. `engine` answers for models of other names."""
    folder.mkdir(parents=True, exist_ok=True)
    catalog, clock, echo = Catalog.open(f"sqlite:///{folder}/catalog.db"), Clock(), EchoEngine()
    shard = Shard(folder / "quota", clock=clock)
    rows: list[Mapping[str, Any]] = []

    async def retrieve(index: str, text: str, k: int, request_id: str) -> tuple[Retrieved, list[dict[str, Any]]]:
        return Retrieved(index=index, version=1, ids=["1"]), [{"text": "an entry"}]

    own: Mapping[str, Engine] = {"clock": clock, "echo": echo}

    def find(request_id: str) -> AskedBefore:
        return AskedBefore(request_id, datetime.now(UTC), "admin", "main.serving.echo", 1, "echo")

    app, ledger = gateway_in_process(
        catalog,
        folder,
        engine=lambda entity: own[entity.model] if engine is None else engine(entity),
        shard=shard,
        retrieve=retrieve,
        feedback=lambda ledger: Feedback(find, catalog, ledger),
        on_row=lambda row: rows.append(json.loads(json.dumps(row))),
        max_body_bytes=1_000_000,
    )
    token = catalog.create_token("admin", kind="user", is_admin=True)[1]
    stranger = catalog.create_token("eve", kind="user", is_admin=False)[1]
    try:
        with served(RequestId(EchoesRequestId(app))) as address:
            made = Door(address, token, stranger, catalog, rows)
            made.endpoint("echo")
            made.endpoint(LIMITED, ai_gateway={"rate_limits": [{"calls": 2, "key": "user"}]})
            made.endpoint(SHUT, ai_gateway={"rate_limits": [{"calls": 0}]})
            made.endpoint(CLOCK, model="clock")
            mask = {"pii": {"behavior": "MASK", "types": ["EMAIL_ADDRESS"]}}
            made.endpoint(GUARDED, ai_gateway={"guardrails": {"input": mask, "output": mask}})
            yield made
    finally:
        ledger.close()
        catalog.close()
