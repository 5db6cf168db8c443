"""A gateway in this process before the echo, with its quota in this process too, and a way to ask it."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from mosaic.catalog import Catalog
from mosaic.data.wal import SUFFIX, read_segment
from mosaic.gateway import Endpoints, LiveEntity
from mosaic.gateway.doubles import gateway_in_process
from mosaic.gateway.quota_shard import Rebuild, Shard
from mosaic.monitoring import Ledger
from mosaic.protocol import Engine
from mosaic.runtime.asgi import RequestId
from mosaic.serving.doubles import EchoEngine
from mosaic.serving.endpoint import Unit

DOLLAR = 10**9


class Door:
    """`gateways` gateways on one catalog and one shard; each sees what the catalog says at once."""

    def __init__(
        self,
        folder: Path,
        *,
        clock: Callable[[], float] | None = None,
        gateways: int = 1,
        gpus: float = 0.0,
        delay_seconds: float = 0.0,
        rebuild: Rebuild = dict,
        engine: Callable[[LiveEntity], Engine] | None = None,
    ) -> None:
        self.catalog = Catalog.open(f"sqlite:///{folder}/catalog.db", key_file=folder / "catalog.key")
        self.folder = folder
        told = {} if clock is None else {"clock": clock}
        self.shard = Shard(folder / "quota", rebuild=rebuild, **told)
        echo = EchoEngine(delay_seconds)

        def gpus_of(unit: Unit) -> float:
            return gpus

        self.apps, self.ledgers = [], list[Ledger]()
        for number in range(gateways):
            endpoints = Endpoints(self.catalog, fresh_seconds=0, gpus_of=gpus_of)
            app, ledger = gateway_in_process(
                self.catalog,
                folder,
                engine=engine or (lambda entity: echo),
                owner=f"gateway{number}",
                endpoints=endpoints,
                shard=self.shard,
                max_body_bytes=1_000_000,
            )
            self.ledgers.append(ledger)
            self.apps.append(RequestId(app))

    def serve(self, name: str = "helper", *entities: dict[str, Any], model: str = "echo", **ai_gateway: Any) -> None:
        served = entities or [{"name": "echo", "model": model}]
        config = {"name": name, "served_entities": served, "ai_gateway": ai_gateway}
        self.catalog.endpoints.put(name, config=config, owner="admin")

    def user(self, name: str, *, kind: Any = "user") -> str:
        """A token of somebody's who may ask everything."""
        return self.catalog.create_token(name, kind=kind, is_admin=True)[1]

    async def ask(self, token: str, text: str = "hello there", *, gateway: int = 0, **body: Any) -> httpx.Response:
        asked = {"model": "helper", "messages": [{"role": "user", "content": text}], **body}
        transport = httpx.ASGITransport(app=self.apps[gateway])
        headers = {"authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://door", headers=headers) as client:
            return await client.post("/v1/chat/completions", json=asked)

    def asked(self, token: str, text: str = "hello there", **body: Any) -> httpx.Response:
        return asyncio.run(self.ask(token, text, **body))

    def rows(self) -> list[dict[str, Any]]:
        """Of the requests that have ended, as their log has them."""
        records = [
            one for path in sorted((self.folder / "spool").glob(f"*{SUFFIX}")) for one in read_segment(path).records
        ]
        return [record["row"] for _, record in records if record["kind"] == "close"]

    def close(self) -> None:
        for ledger in self.ledgers:
            ledger.close()
        self.catalog.close()


def error(answer: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()["error"]
    return found


def streamed(answer: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, without [DONE]."""
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]
