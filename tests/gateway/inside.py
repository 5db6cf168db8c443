"""The whole gateway as one ASGI application in the test's own process: no Ray, no port; its rows are kept in a list."""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from mosaic.catalog import Catalog
from mosaic.gateway import LiveEntity
from mosaic.gateway.doubles import gateway_in_process
from mosaic.protocol import Engine

CHAT = "/v1/chat/completions"


class Door:
    """`async with door(...) as gateway`: a client, the catalog, and the row of every request."""

    def __init__(self, catalog: Catalog, client: httpx.AsyncClient, rows: list[Mapping[str, Any]]) -> None:
        self.catalog, self.client, self.rows = catalog, client, rows
        self._tokens: dict[str, str] = {}

    def put(self, name: str, *entities: dict[str, Any], **more: Any) -> None:
        """An endpoint, of the echo if nothing else is said."""
        served = list(entities) or [{"name": "echo", "model": "echo"}]
        config = {"name": name, "served_entities": served, **more}
        self.catalog.endpoints.put(name, config=config, owner="admin")

    async def ask(
        self, model: str, text: Any = "hello", *, by: str = "admin", headers: Mapping[str, str] = {}, **fields: Any
    ) -> httpx.Response:
        """One chat, by a user of that name; `text` may be parts."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
        return await self.client.post(CHAT, json=body, headers={**self.auth(by), **headers})

    def auth(self, by: str) -> dict[str, str]:
        if by not in self._tokens:
            self._tokens[by] = self.catalog.create_token(by, kind="user", is_admin=by == "admin")[1]
        return {"authorization": f"Bearer {self._tokens[by]}"}


@asynccontextmanager
async def door(
    folder: Path, engine: Callable[[LiveEntity], Engine] | None = None, *, max_body_bytes: int = 4 * 2**20
) -> AsyncIterator[Door]:
    """`engine` gives what answers for a served entity; the echo if it is left out."""
    catalog, rows = Catalog.open(f"sqlite:///{folder}/catalog.db"), list[Mapping[str, Any]]()
    app, ledger = gateway_in_process(catalog, folder, engine=engine, on_row=rows.append, max_body_bytes=max_body_bytes)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield Door(catalog, client, rows)
    ledger.close()


def said(answer: httpx.Response) -> str:
    """The text of an answer, whole or streamed."""
    if answer.headers["content-type"] == "application/json":
        return str(answer.json()["choices"][0]["message"]["content"])
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert events[-1] == "[DONE]", events
    choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)
