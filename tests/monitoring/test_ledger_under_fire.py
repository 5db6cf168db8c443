"""Two gateways under load, killed at random moments together with what ships their logs: each request that reached a
door has one row, with the status that its client saw and the tokens that the engine counted."""

import asyncio
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from mosaic.ids import new_id
from mosaic.monitoring import INFERENCE_TABLE, Exchange, Ledger
from mosaic.monitoring.feedback import FEEDBACK_TABLE
from mosaic.protocol import EngineRequest
from mosaic.serving.doubles import EchoEngine
from tests.gateway.ledger_door import Door
from tests.local import free_ports

KILLS, WORKERS = 20, 8
OWN = {"enabled": True, "catalog_name": "main", "schema_name": "logs"}
OWN_TABLE = "main.logs.helper_payload"
REFUSED = {"no token": 401, "no such endpoint": 404, "a wrong field": 400}


class CountingEngine(EchoEngine):
    """The echo, which keeps what it has counted of each request where no kill takes it away."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def answer(self, request: EngineRequest) -> AsyncIterator[dict[str, Any]]:
        async for item in super().answer(request):
            if (usage := item.get("usage")) is not None:
                told = [request.request_id, usage["prompt_tokens"], usage["completion_tokens"]]
                os.write(self._file, json.dumps(told).encode() + b"\n")
            yield item


class Witness(Ledger):
    """Keeps which requests the door has opened a row for."""

    file = -1

    def open(self, request_id: str, **fields: Any) -> Exchange:
        exchange = super().open(request_id, **fields)
        os.write(self.file, f"{fields['client_request_id']}\n".encode())
        return exchange


def run_gateway(folder: Path, port: int, owner: str) -> None:
    door = Door(folder)
    app = door.app(f"{owner}-{new_id('gw')[-8:]}", CountingEngine(folder / "counted"))
    door.ledger.__class__ = Witness
    Witness.file = os.open(folder / "witnessed", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="critical", lifespan="off")


def run_shipper(folder: Path) -> None:
    shipper = Door(folder).shipper()
    while True:
        shipper.ship_once()
        time.sleep(0.1)


def ship(folder: Path) -> None:
    Door(folder).shipper().ship_once()


class Process:
    """One that is started again, as fast as a fork, when it was killed."""

    def __init__(self, context: Any, target: Any, *arguments: Any) -> None:
        self._context, self._target, self._arguments = context, target, arguments
        self.start()

    def start(self) -> None:
        self._process = self._context.Process(target=self._target, args=self._arguments, daemon=True)
        self._process.start()

    def kill(self) -> None:
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.join()
        assert self._process.exitcode == -signal.SIGKILL


class Load:
    """Clients that ask all sorts of things, and remember what they saw."""

    def __init__(self, ports: list[int], token: str, seed: int) -> None:
        self.ports, self.token, self.seed = ports, token, seed
        self.seen: dict[str, int | str | None] = {}
        """By the client's own id: the status, `aborted`, or None where it was broken off."""
        self.feedback: list[str] = []
        self.stopped = False

    async def run(self) -> None:
        await asyncio.gather(*(self._work(random.Random(self.seed + n)) for n in range(WORKERS)))

    async def _work(self, draw: random.Random) -> None:
        async with httpx.AsyncClient(timeout=30, headers={"authorization": f"Bearer {self.token}"}) as client:
            while not self.stopped:
                address, mine = f"http://127.0.0.1:{draw.choice(self.ports)}", new_id("cli")
                self.seen[mine] = None
                try:
                    await self._ask(client, f"{address}/v1", mine, draw)
                except httpx.TransportError:
                    await asyncio.sleep(0.02)

    async def _ask(self, client: httpx.AsyncClient, address: str, mine: str, draw: random.Random) -> None:
        headers = {"x-client-request-id": mine}
        kind = draw.choice(["whole", "whole", "stream", "limited", "leaves", *REFUSED])
        words = " ".join(["word"] * draw.randint(1, 20))
        body = {"model": "helper", "messages": [{"role": "user", "content": words}], "stream": kind == "stream"}
        if kind == "leaves":
            body |= {"messages": [{"role": "user", "content": f"slow: {words} {words}"}], "stream": True}
            async with client.stream("POST", f"{address}/chat/completions", json=body, headers=headers) as answer:
                async for _ in answer.aiter_lines():
                    self.seen[mine] = "aborted"
                    break
            return
        body |= {"a wrong field": {"temperature": 9}, "no such endpoint": {"model": "x"}}.get(kind, {})
        body |= {"model": "limited"} if kind == "limited" else {}
        headers |= {"authorization": "Bearer mosaic_none"} if kind == "no token" else {}
        told = await client.post(f"{address}/chat/completions", json=body, headers=headers)
        if kind == "stream" and not told.text.endswith("data: [DONE]\n\n"):
            return
        self.seen[mine] = told.status_code
        assert told.status_code in (200, 429) or told.status_code == REFUSED[kind], told.text
        if kind == "whole":
            second = new_id("cli")
            self.seen[second] = None
            said = {"request_id": told.json()["id"], "rating": 1, "comment": second}
            done = await client.post(f"{address}/feedback", json=said, headers={"x-client-request-id": second})
            assert done.status_code == 200, done.text
            self.seen[second] = 200
            self.feedback.append(second)


@pytest.mark.faults
def test_every_request_has_one_row_whatever_is_killed(tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    draw, door = random.Random(seed), Door(tmp_path)
    door.furnish()
    door.serve("helper", inference_table_config=OWN)
    door.serve("limited", rate_limits=[{"calls": 5}])
    token = door.catalog.create_token("ann", is_admin=True)[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.monitoring.test_ledger_under_fire"])
    ports = free_ports(2)
    running = [Process(context, run_gateway, tmp_path, port, f"gw{n}") for n, port in enumerate(ports)]
    running.append(Process(context, run_shipper, tmp_path))
    load = Load(ports, token, seed)

    async def under_fire() -> Counter[int]:
        killed: Counter[int] = Counter()
        loading = asyncio.create_task(load.run())
        await asyncio.sleep(2)
        for _ in range(KILLS):
            which = draw.randrange(len(running))
            await asyncio.to_thread(running[which].kill)
            await asyncio.to_thread(running[which].start)
            killed[which] += 1
            await asyncio.sleep(draw.uniform(0.3, 2))
        load.stopped = True
        await loading
        return killed

    killed = asyncio.run(under_fire())
    for process in running:
        process.kill()
    shutil.copytree(door.spool, tmp_path / "again")
    shippers = [context.Process(target=ship, args=(tmp_path,)) for _ in range(2)]
    for shipper in shippers:
        shipper.start()
    for shipper in shippers:
        shipper.join()
        assert shipper.exitcode == 0
    door.shipper().ship_once()
    # once more: as if the machine had lost that the logs were removed
    for path in (tmp_path / "again").iterdir():
        shutil.copy(path, door.spool)
    door.shipper().ship_once()
    check(door, load)
    print(f"killed {dict(killed)}: {len(load.seen)} requests, {Counter(map(str, load.seen.values()))}")


def check(door: Door, load: Load) -> None:
    rows = door.rows(INFERENCE_TABLE)
    by_client = {row["client_request_id"]: row for row in rows}
    assert len(by_client) == len(rows), "a request has two rows"
    witnessed = set((door.folder / "witnessed").read_text().split())
    assert witnessed <= by_client.keys() <= load.seen.keys()
    answered = {mine: seen for mine, seen in load.seen.items() if isinstance(seen, int)}
    assert {mine: by_client[mine]["status_code"] for mine in answered} == answered
    aborted = {by_client[mine]["status_code"] for mine, seen in load.seen.items() if seen == "aborted"}
    assert 499 in aborted and aborted <= {200, 499, 599}
    assert {200, 400, 401, 404, 429} <= set(answered.values())

    counted: dict[str, list[int]] = {}
    for line in (door.folder / "counted").read_text().splitlines():
        request_id, *tokens = json.loads(line)
        counted[request_id] = tokens
    lost = {row["request_id"] for row in rows if row["status_code"] == 599}
    told = {
        row["request_id"]: [row["input_tokens"], row["output_tokens"]]
        for row in rows
        if row["input_tokens"] is not None
    }
    assert told == {request_id: tokens for request_id, tokens in counted.items() if request_id not in lost}

    own = {row["databricks_request_id"]: row for row in door.rows(OWN_TABLE)}
    assert len(own) == door.tables.to_arrow(OWN_TABLE).num_rows
    assert own.keys() == {row["request_id"] for row in rows if row["endpoint"] in ("helper", "main.serving.helper")}
    said = Counter(row["comment"] for row in door.rows(FEEDBACK_TABLE))
    assert set(said.values()) == {1} and set(load.feedback) <= said.keys() <= load.seen.keys()
