"""200 clients at once create and read tables through HTTP: what is lost, what it takes, how soon a revocation holds.

    python benchmarks/catalog_http.py [--quick]

A process serves control's catalog routes on loopback; this one asks it, on the same cores. For 60 seconds each client
makes a table, reads it, and reads one that it made before; then every table that was acknowledged must be there. After
that, two replicas, asked all the time by 8 clients each: how long after a token or a grant was taken back a request was
still answered. On SQLite, then on PostgreSQL (fsync on, Unix socket). `--quick` asks for 10 seconds.
"""

import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from mosaic.catalog import Catalog
from mosaic.catalog.postgres import PostgresServer

CLIENTS, SECONDS = 200, 10 if "--quick" in sys.argv[1:] else 60
REVOCATIONS, ASKING = 5, 8
SERVE = Path(__file__).parent.parent / "tests" / "catalog" / "serve.py"
PORTS = (18731, 18732)
BASE = "/api/2.1/unity-catalog"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, closing(PostgresServer(durable=True)) as server:
        server.sql("CREATE DATABASE catalog")
        for name, url in (("SQLite", f"sqlite:///{folder}/catalog.db"), ("PostgreSQL", server.url("catalog"))):
            catalog = Catalog.open(url)
            catalog.ensure_schema("main.load")
            for kind, on, privileges in (
                ("catalog", "main", ["USE CATALOG"]),
                ("schema", "main.load", ["USE SCHEMA", "CREATE TABLE"]),
            ):
                catalog.grants.grant(kind, on, "users", privileges, by="admin")
            with serving(url, folder, PORTS[:1]) as (address,):
                asyncio.run(load(name, catalog, address))
            with serving(url, folder, PORTS) as addresses:
                asyncio.run(revoke(name, catalog, addresses))
            catalog.close()
    print(f"load average at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


@contextmanager
def serving(url: str, folder: str, ports: tuple[int, ...]) -> Iterator[list[str]]:
    """The addresses of server processes, which are ready."""
    processes = [subprocess.Popen([sys.executable, str(SERVE), url, f"{folder}/root", str(port)]) for port in ports]
    addresses = [f"http://127.0.0.1:{port}{BASE}" for port in ports]
    try:
        asyncio.run(ready(addresses))
        yield addresses
    finally:
        for process in processes:
            process.terminate()
            process.wait()


async def ready(addresses: list[str]) -> None:
    async with aiohttp.ClientSession() as http:
        for address in addresses:
            for _ in range(600):
                try:
                    async with http.get(f"{address}/catalogs") as answer:
                        assert answer.status == 401
                        break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.1)


class Load:
    """What was answered: milliseconds by kind, tables that are there, and what was not expected."""

    def __init__(self) -> None:
        self.taken: dict[str, list[float]] = {"create": [], "read": []}
        self.made: list[str] = []
        self.unexpected: list[str] = []

    async def ask(self, kind: str, asking: Any) -> bool:
        started = time.perf_counter()
        try:
            async with asking as answer:
                text = await answer.text()
                status = answer.status
        except (aiohttp.ClientError, TimeoutError) as error:
            status, text = 0, repr(error)
        self.taken[kind].append((time.perf_counter() - started) * 1000)
        if status != 200:
            self.unexpected.append(f"{status} {text[:200]}")
        return status == 200


async def load(name: str, catalog: Catalog, address: str) -> None:
    tokens = [catalog.create_token(f"client{number}")[1] for number in range(CLIENTS)]
    told, until = Load(), time.monotonic() + SECONDS
    connector, timeout = aiohttp.TCPConnector(limit=CLIENTS), aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        started = time.monotonic()
        await asyncio.gather(*(client(http, address, number, tokens[number], told, until) for number in range(CLIENTS)))
        seconds = time.monotonic() - started
    there = {table.name for table in catalog.list_tables("main.load")}
    lost = set(told.made) - there
    requests = sum(map(len, told.taken.values()))
    print(f"{name}: {requests} requests in {seconds:.0f} s, {requests / seconds:.0f} a second, {CLIENTS} clients")
    for kind, taken in told.taken.items():
        print(f"  {kind:7} n {len(taken):6}  p50 {quantile(taken, 0.5):.0f} ms  p99 {quantile(taken, 0.99):.0f} ms")
    print(f"  {len(told.made)} tables acknowledged, {len(lost)} lost, {len(told.unexpected)} unexpected answers")
    if lost or told.unexpected:
        sys.exit(f"not as it should be: {sorted(lost)[:5]} {told.unexpected[:5]}")


async def client(http: aiohttp.ClientSession, address: str, number: int, token: str, told: Load, until: float) -> None:
    chance, mine, turn = random.Random(number), [], 0
    headers = {"authorization": f"Bearer {token}"}
    shape = {"catalog_name": "main", "schema_name": "load", "table_type": "EXTERNAL", "data_source_format": "DELTA"}
    while time.monotonic() < until:
        table = f"c{number}_{turn}"
        body = {**shape, "name": table, "columns": [], "storage_location": f"s3://bucket/{table}"}
        if await told.ask("create", http.post(f"{address}/tables", json=body, headers=headers)):
            mine.append(f"main.load.{table}")
            told.made.append(mine[-1])
        for one in (mine[-1:], mine and [chance.choice(mine)]):
            if one:
                await told.ask("read", http.get(f"{address}/tables/{one[0]}", headers=headers))
        turn += 1


async def revoke(name: str, catalog: Catalog, addresses: list[str]) -> None:
    """The longest time after a revocation at which a request began that was still answered, over all replicas."""
    if catalog.find_table("main.load.kept") is None:
        catalog.create_table("main.load.kept", "s3://b/kept", columns=[], primary_key=None, owner="admin")
    longest = {"grant": 0.0, "token": 0.0}
    async with aiohttp.ClientSession() as http:
        for _ in range(REVOCATIONS):
            token, secret = catalog.create_token("guest")
            named = ("table", "main.load.kept", "guest", ["SELECT"])
            for what, take in (
                ("grant", lambda named=named: catalog.grants.revoke(*named, by="admin")),
                ("token", lambda token=token: catalog.revoke_token(token.id)),
            ):
                catalog.grants.grant(*named, by="admin")
                longest[what] = max(longest[what], await answered_after(http, addresses, secret, take))
    shown = ", ".join(f"a {what} {seconds * 1000:.0f} ms" for what, seconds in longest.items())
    print(f"  still answered after it was taken back, longest of {REVOCATIONS}, 2 replicas: {shown}")


async def answered_after(
    http: aiohttp.ClientSession, addresses: list[str], secret: str, take: Callable[[], object]
) -> float:
    answers: list[tuple[float, int]] = []
    enough = asyncio.Event()

    async def ask(address: str) -> None:
        while not enough.is_set():
            began = time.monotonic()
            headers = {"authorization": f"Bearer {secret}"}
            async with http.get(f"{address}/tables/main.load.kept", headers=headers) as answer:
                answers.append((began, answer.status))

    asking: list[Awaitable[None]] = [asyncio.create_task(ask(one)) for one in addresses for _ in range(ASKING)]
    await asyncio.sleep(0.5)
    await asyncio.to_thread(take)
    taken = time.monotonic()
    await asyncio.sleep(1.5)
    enough.set()
    await asyncio.gather(*asking)
    assert answers[-1][1] in (401, 403), answers[-1]
    return max(began - taken for began, status in answers if status == 200)


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


if __name__ == "__main__":
    main()
