"""How long after its answer a request's row is in the Delta table, under load.

    python -m benchmarks.ledger

One process: the gateway as an ASGI application before the echo, 32 clients that ask without a pause, and the shipper as
the platform runs it, which looks every second. Half of the requests are for an endpoint with a table of its own. What
is measured is from the moment at which a client has its whole answer to that at which the table's newest version has
the row; the table is looked at every 50 ms.
"""

import asyncio
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq

from mosaic.monitoring import INFERENCE_TABLE
from mosaic.monitoring.shipper import Shipping
from tests.gateway.ledger_door import Door

ROUNDS, SECONDS, CLIENTS, GATE_SECONDS = 5, 10.0, 32, 5.0
LOOK_SECONDS = 0.05
OWN = {"enabled": True, "catalog_name": "main", "schema_name": "logs"}
OWN_TABLE = "main.logs.kept_payload"
TABLES = {INFERENCE_TABLE: "request_id", OWN_TABLE: "databricks_request_id"}


def main() -> None:
    print(f"{CLIENTS} clients for {SECONDS:g} s, {ROUNDS} rounds; gate: p99 within {GATE_SECONDS:g} s")
    lags: dict[str, list[tuple[float, float, float]]] = {name: [] for name in TABLES}
    rates = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            answered, seen = one_round(Path(folder))
        rates.append(len(answered) / SECONDS)
        for name, times in seen.items():
            late = sorted(times[one] - answered[one] for one in times)
            lags[name].append((statistics.median(late), late[int(len(late) * 0.99)], late[-1]))
    print(f"requests/s: {shown(rates)}")
    for name, rounds in lags.items():
        for what, values in zip(("p50", "p99", "most"), zip(*rounds, strict=True), strict=True):
            print(f"{name}: {what} {shown(list(values))} s")
        worst = max(p99 for _, p99, _ in rounds)
        print(f"{name}: {'within' if worst <= GATE_SECONDS else 'beyond'} the gate in every round (p99 {worst:.2f} s)")


def one_round(folder: Path) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """When each request was answered, and when each table had its row."""
    door = Door(folder)
    door.furnish()
    door.serve("kept", inference_table_config=OWN)
    door.serve("plain")
    token = door.catalog.create_token("ann", is_admin=True)[1]
    shipping = Shipping(lambda: Door(folder).shipper(), 1.0)
    looking = {name: Looking(door, name, key) for name, key in TABLES.items()}
    answered, kept = asyncio.run(load(door.app(), token))
    due = {INFERENCE_TABLE: set(answered), OWN_TABLE: kept}
    deadline = time.monotonic() + 60
    while any(len(looking[name].seen) < len(due[name]) for name in TABLES):
        assert time.monotonic() < deadline, f"rows are missing; the shipper says {shipping.status()}"
        time.sleep(0.05)
    for name, one in looking.items():
        one.stop()
        assert one.seen.keys() == due[name]
    return answered, {name: one.seen for name, one in looking.items()}


async def load(app: Any, token: str) -> tuple[dict[str, float], set[str]]:
    answered: dict[str, float] = {}
    kept: set[str] = set()
    end = time.monotonic() + SECONDS

    async def client(number: int) -> None:
        name = ("kept", "plain")[number % 2]
        body = {"model": name, "messages": [{"role": "user", "content": "What is kept of this? " * 5}]}
        headers = {"authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://door", headers=headers
        ) as session:
            while time.monotonic() < end:
                answer = await session.post("/v1/chat/completions", json=body)
                request_id = json.loads(answer.text)["id"]
                answered[request_id] = time.monotonic()
                if name == "kept":
                    kept.add(request_id)

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return answered, kept


class Looking:
    """Looks at a table in a thread of its own, and keeps when it first saw each row."""

    def __init__(self, door: Door, table: str, key: str) -> None:
        self._door, self._table, self._key = door, table, key
        self.seen: dict[str, float] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _look(self) -> None:
        delta, files = self._door.tables.delta(self._table), set[str]()
        while not self._stopped.wait(LOOK_SECONDS):
            delta.update_incremental()
            there = set(delta.file_uris())
            now = time.monotonic()
            for file in there - files:
                for request_id in pq.read_table(file, columns=[self._key])[self._key].to_pylist():
                    self.seen.setdefault(request_id, now)
            files = there


def shown(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
