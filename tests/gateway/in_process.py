"""The whole gateway in this process, without a platform: what is asked of it, when what leaves, and its rows."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from mosaic.catalog import Catalog
from mosaic.catalog.names import INTERNAL
from mosaic.errors import EngineFailed, Unavailable
from mosaic.gateway import Endpoints
from mosaic.gateway.doubles import gateway_in_process
from mosaic.protocol import Engine, EngineRequest
from mosaic.serving.doubles import EchoEngine

FRESH_SECONDS = 0.05
_FORMS = ("response_format", "structured_outputs")


class Watched:
    """An engine that tells how much it was asked and said, and whether it was stopped on the way."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.forget()

    def forget(self) -> None:
        """As if nothing had been asked yet."""
        self.asked = self.said = self.stopped = 0

    async def answer(self, request: EngineRequest) -> AsyncIterator[dict[str, Any]]:
        self.asked += 1
        try:
            async with aclosing(self._engine.answer(request)) as items:  # type: ignore[type-var]
                async for item in items:
                    self.said += 1
                    yield item
        except (asyncio.CancelledError, GeneratorExit):
            self.stopped += 1
            raise


class Formless(EchoEngine):
    """An engine that knows nothing of the form that is asked for."""

    def answer(self, request: EngineRequest) -> AsyncIterator[dict[str, Any]]:
        body = {field: value for field, value in request.body.items() if field not in _FORMS}
        return super().answer(request.model_copy(update={"body": body}))


class Answer(NamedTuple):
    status: int
    body: str
    first_byte_seconds: float
    """Until the status or any byte left."""
    seconds: float

    @property
    def said(self) -> str:
        """The text, streamed or whole."""
        if not self.body.startswith("data: "):
            return str(json.loads(self.body)["choices"][0]["message"]["content"])
        chunks = [json.loads(line[6:]) for line in self.body.split("\n\n") if line and "[DONE]" not in line]
        return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c.get("choices"))

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found


class InProcess:
    """Endpoints are put into the catalog as they are; entities are answered by the engines of `engines`, by model.
    Judges are asked through the application itself, with a row of their own, as `gateway-internal` does it."""

    def __init__(self, folder: Path, engines: Mapping[str, Engine]) -> None:
        self.catalog = Catalog.open(f"sqlite:///{folder}/catalog.db")
        self.token = self.catalog.create_token("admin", kind="user", is_admin=True)[1]
        self.internal = self.catalog.create_token(INTERNAL, kind="service")[1]
        self.rows: list[dict[str, Any]] = []
        self.runner = asyncio.Runner()
        self.run = self.runner.run
        """Until it is done, always on the same loop."""
        trusted = frozenset({INTERNAL})
        endpoints = Endpoints(self.catalog, trusted=trusted, fresh_seconds=FRESH_SECONDS, ask_judge=self._ask_judge)
        self.app, self.ledger = gateway_in_process(
            self.catalog,
            folder,
            engine=lambda entity: engines[entity.model],
            endpoints=endpoints,
            on_row=self._closed,
            max_body_bytes=100_000,
        )

    def put(self, name: str, model: str = "echo", **more: Any) -> None:
        """An endpoint, live at once and seen by the gateway."""
        served = {"name": name, "served_entities": [{"name": "one", "model": model}], **more}
        self.catalog.endpoints.put(name, config=served, owner="admin")

    def guard(self, name: str, **guardrails: Any) -> None:
        """Give the endpoint guardrails."""
        self.put(name, ai_gateway={"guardrails": guardrails})
        time.sleep(FRESH_SECONDS)

    async def ask(
        self, name: str, text: str, *, stream: bool = False, path: str = "/v1/chat/completions", **more: Any
    ) -> Answer:
        asked = (
            {"messages": [{"role": "user", "content": text}]} if path.endswith("chat/completions") else {"prompt": text}
        )
        body = json.dumps({"model": name, **asked, "stream": stream, **more}).encode()
        headers = [(b"authorization", f"Bearer {self.token}".encode()), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
        incoming = [{"type": "http.request", "body": body}]
        sent: list[tuple[float, dict[str, Any]]] = []
        started = time.perf_counter()

        async def receive() -> dict[str, Any]:
            return incoming.pop() if incoming else await asyncio.Event().wait()  # type: ignore[return-value]

        async def send(message: dict[str, Any]) -> None:
            sent.append((time.perf_counter() - started, message))

        await self.app(scope, receive, send)  # type: ignore[arg-type]
        told = b"".join(message.get("body", b"") for _, message in sent).decode()
        return Answer(sent[0][1]["status"], told, sent[0][0], sent[-1][0])

    def row(self, endpoint: str) -> dict[str, Any]:
        """The last one of an endpoint."""
        (found,) = [one for one in self.rows if one.get("endpoint") in (endpoint, f"main.serving.{endpoint}")][-1:]
        return {**found, "guardrails": json.loads(found.get("guardrails") or "{}")}

    async def _ask_judge(self, endpoint: str, body: dict[str, Any], request_id: str) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {self.internal}", "x-mosaic-parent-request-id": request_id}
        transport = httpx.ASGITransport(app=self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://mosaic", headers=headers) as client:
            answer = await client.post("/v1/chat/completions", json={"model": endpoint, **body})
        if answer.status_code != 200:
            raise (Unavailable if answer.status_code == 503 else EngineFailed)(answer.text)
        told: dict[str, Any] = answer.json()
        return told

    def _closed(self, row: Mapping[str, Any]) -> None:
        self.rows.append(dict(row))

    def close(self) -> None:
        self.runner.close()
        self.ledger.close()
        self.catalog.close()
