"""What 200 clients at once get from the catalog over HTTP: each makes tables and reads them, for a minute.

    python benchmarks/catalog_http.py [--quick]

One server process with control's catalog routes (tests/catalog/serve.py) on loopback, the clients in this process, all
on the same cores; on SQLite and on PostgreSQL (fsync on). Printed are requests per second, p50 and p99 of making and of
reading, answers that were not expected, and acknowledged tables that are not there at the end; both must be none.
`--quick` takes ten seconds.
"""

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import aiohttp

sys.path.insert(0, str(Path(__file__).parent.parent))

from mosaic.catalog import Catalog
from mosaic.catalog.postgres import PostgresServer
from tests.catalog.replicas import BASE, replicas

CLIENTS, SECONDS = 200, (10 if "--quick" in sys.argv[1:] else 60)
COLUMN = {"name": "id", "type_text": "bigint", "type_name": "LONG", "position": 0}


class Seen:
    """What the clients met."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {"create": [], "read": []}
        self.made: list[str] = []
        self.unexpected: Counter[str] = Counter()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, closing(PostgresServer(durable=True)) as server:
        server.sql("CREATE DATABASE catalog")
        for database, url in (("SQLite", f"sqlite:///{folder}/c.db"), ("PostgreSQL", server.url("catalog"))):
            catalog = Catalog.open(url)
            catalog.ensure_schema("main.load")
            token = catalog.create_token("loader", is_admin=True)[1]
            with replicas(url, Path(folder), 1) as (replica,):
                seen = asyncio.run(load(replica.address, token))
            report(database, seen, catalog)
            catalog.close()
    print(f"load average at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


async def load(address: str, token: str) -> Seen:
    seen, until = Seen(), time.monotonic() + SECONDS
    connector = aiohttp.TCPConnector(limit=CLIENTS)
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(f"{address}", connector=connector, headers=headers) as session:
        await asyncio.gather(*(client(session, number, until, seen) for number in range(CLIENTS)))
    return seen


async def client(session: aiohttp.ClientSession, number: int, until: float, seen: Seen) -> None:
    count = 0
    while time.monotonic() < until:
        name = f"t{number}_{count}"
        asked = {"name": name, "catalog_name": "main", "schema_name": "load", "table_type": "MANAGED"}
        if await timed(session, "create", "POST", f"{BASE}/tables", seen, json={**asked, "columns": [COLUMN]}):
            seen.made.append(f"main.load.{name}")
            await timed(session, "read", "GET", f"{BASE}/tables/main.load.{name}", seen)
        count += 1


async def timed(session: aiohttp.ClientSession, what: str, method: str, path: str, seen: Seen, **how: object) -> bool:
    started = time.perf_counter()
    try:
        async with session.request(method, path, **how) as answer:  # type: ignore[arg-type]
            text = await answer.text()
    except aiohttp.ClientError as error:
        seen.unexpected[f"{what}: {type(error).__name__}"] += 1
        return False
    seen.seconds[what].append(time.perf_counter() - started)
    if answer.status != 200:
        seen.unexpected[f"{what}: {answer.status} {text[:100]}"] += 1
    return answer.status == 200


def report(database: str, seen: Seen, catalog: Catalog) -> None:
    there = Counter(table.name for table in catalog.list_tables("main.load"))
    lost = [name for name in seen.made if there[name] != 1]
    count = sum(len(found) for found in seen.seconds.values())
    print(f"{database}: {CLIENTS} clients, {SECONDS} s: {count / SECONDS:.0f} requests/s, {len(seen.made)} tables made")
    for what, found in seen.seconds.items():
        p99 = statistics.quantiles(found, n=100)[98]
        print(f"  {what}: p50 {statistics.median(found) * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms")
    print(f"  not expected: {dict(seen.unexpected) or 'none'}; acknowledged and not there: {lost[:5] or 'none'}")


if __name__ == "__main__":
    main()
