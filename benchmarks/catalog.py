"""What a check of a grant costs: 100,000 objects, 200,000 grants, nested groups, on SQLite and on PostgreSQL.

    python benchmarks/catalog.py [--quick]

Rounds of the SQL alone (the statement that mosaic sends, on a bare connection), of `catalog.grants.is_allowed`, and of
what the gateway does for a request (`Endpoints.use`, from memory) take turns, on both databases, over the same random
questions; printed are the medians of the rounds' p50 and their range, in microseconds. `--quick` fills a tenth and asks
a tenth. The PostgreSQL is one of its own, with fsync on, behind a Unix socket.
"""

import asyncio
import math
import os
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy import event

from mosaic.catalog import Catalog
from mosaic.catalog.postgres import USER, PostgresServer
from mosaic.catalog.privileges import PRIVILEGES
from mosaic.catalog.schema import group_member, principal, privilege_grant, securable
from mosaic.catalog.store import PLANNING
from mosaic.gateway.endpoints import Endpoints
from mosaic.protocol import Principal

QUICK = "--quick" in sys.argv[1:]
CATALOGS, SCHEMAS_EACH, OBJECTS_EACH = (5 if QUICK else 20), 50, 100
USERS, GROUPS, GRANTS = 1_000, 200, (20_000 if QUICK else 200_000)
ROUNDS, QUESTIONS = 5, (200 if QUICK else 2_000)
SQL, API, RESOLVE = "SQL alone", "is_allowed", "Endpoints.use"
GATES = {SQL: 100, API: 300, RESOLVE: 20}

NOW = datetime.now(UTC)
Question = tuple[str, str, str, str]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, closing(PostgresServer(durable=True)) as server:
        server.sql("CREATE DATABASE catalog")
        urls = {"SQLite": f"sqlite:///{folder}/catalog.db", "PostgreSQL": server.url("catalog")}
        catalogs = {}
        for database, url in urls.items():
            Catalog.open(url).close()
            names = fill(url, random.Random(7))
            catalogs[database] = Catalog.open(url)
        chance = random.Random(8)
        asked = [question(names, chance) for _ in range(QUESTIONS)]
        sqlite, postgres = (
            sqlite3.connect(f"{folder}/catalog.db", isolation_level=None),
            psycopg.connect(host=str(server.folder), user=USER, dbname="catalog", autocommit=True, options=PLANNING),
        )
        for about, questions in (("random objects", asked), ("an object in the busiest schema", busiest(asked))):
            print(f"{about}: {len(asked)} questions")
            measure(catalogs, {"SQLite": sqlite, "PostgreSQL": postgres}, questions)
        print(f"load average at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        for open_one in (sqlite, postgres, *catalogs.values()):
            open_one.close()


def measure(catalogs: dict[str, Catalog], drivers: dict[str, Any], asked: list[Question]) -> None:
    rounds: dict[tuple[str, str], list[float]] = {}
    statements = {database: captured(catalog, asked) for database, catalog in catalogs.items()}
    people = [Principal(name=who) for who, *_ in asked]
    for _ in range(ROUNDS):
        for database, catalog in catalogs.items():
            sent, driver = statements[database], drivers[database]

            def sql(number: int, sent: Any = sent, driver: Any = driver) -> None:
                driver.execute(*sent[number]).fetchall()

            def api(number: int, catalog: Catalog = catalog) -> None:
                catalog.grants.is_allowed(*asked[number])

            taken = {SQL: p50(sql, len(asked)), API: p50(api, len(asked)), RESOLVE: asyncio.run(use(catalog, people))}
            for what, microseconds in taken.items():
                rounds.setdefault((database, what), []).append(microseconds)
    answers = {name: [catalog.grants.is_allowed(*one) for one in asked] for name, catalog in catalogs.items()}
    assert answers["SQLite"] == answers["PostgreSQL"], "both answer the same"
    print(f"  {sum(answers['SQLite'])} allowed")
    for (database, what), found in rounds.items():
        gate = GATES[what] if database == "SQLite" or what == RESOLVE else math.inf
        verdict = "met" if max(found) <= gate else "missed" if min(found) > gate else "inconclusive"
        shown = f"{statistics.median(found):.1f} ({min(found):.1f} to {max(found):.1f})"
        judged = "" if gate == math.inf else f"; at most {gate}: {verdict}"
        print(f"  {database:11}{what:14} p50 {shown:>26} microseconds{judged}")


async def use(catalog: Catalog, people: list[Principal]) -> float:
    """The p50 of resolving an endpoint that everybody may use, each having used it before."""
    endpoints, taken = Endpoints(catalog), []
    for who in people:
        await endpoints.use("assistant", who, "req")
    for who in people:
        started = time.perf_counter_ns()
        await endpoints.use("assistant", who, "req")
        taken.append(time.perf_counter_ns() - started)
    return statistics.median(taken) / 1000


def p50(ask: Callable[[int], None], count: int) -> float:
    taken = []
    for number in range(count):
        started = time.perf_counter_ns()
        ask(number)
        taken.append(time.perf_counter_ns() - started)
    return statistics.median(taken) / 1000


def captured(catalog: Catalog, asked: list[Question]) -> list[tuple[str, Any]]:
    """The statements that the checks send, as the driver gets them."""
    sent: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        if statement.startswith("WITH"):
            sent.append((statement, parameters))

    event.listen(sa.Engine, "before_cursor_execute", note)
    for one in asked:
        catalog.grants.is_allowed(*one)
    event.remove(sa.Engine, "before_cursor_execute", note)
    assert len(sent) == len(asked), "a check is one query"
    return sent


def question(names: dict[str, list[str]], chance: random.Random) -> Question:
    kind = chance.choice(("table", "model", "endpoint"))
    privilege = "SELECT" if kind == "table" else "EXECUTE"
    return f"user{chance.randrange(USERS)}", privilege, kind, chance.choice(names[kind])


def busiest(asked: list[Question]) -> list[Question]:
    """The same people at one table, in the schema and catalog where every group and user has a grant."""
    return [(who, "SELECT", "table", "c0.s0.t0") for who, *_ in asked]


def fill(url: str, chance: random.Random) -> dict[str, list[str]]:
    """Written past the catalog's methods, which would sync 300,000 times; the names by kind."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        root = connection.execute(sa.select(securable.c.id).where(securable.c.kind == "metastore")).scalar_one()
        objects = list(securables(root))
        connection.execute(securable.insert(), objects)
        people = [f"user{number}" for number in range(USERS)] + [f"group{number}" for number in range(GROUPS)]
        common = {"active": True, "created_at": NOW, "created_by": "admin"}
        rows = [{"name": name, "kind": "group" if name[0] == "g" else "user", **common} for name in people]
        connection.execute(principal.insert(), rows)
        connection.execute(group_member.insert(), list(memberships(chance)))
        connection.execute(privilege_grant.insert(), grants(objects, people, chance))
    catalog = Catalog.open(url)
    entity = {"name": "echo", "model": "echo"}
    catalog.endpoints.put("assistant", config={"name": "assistant", "served_entities": [entity]}, owner="admin")
    catalog.grants.grant("endpoint", "assistant", "users", ["EXECUTE"], by="admin")
    catalog.grants.grant("catalog", "main", "users", ["USE CATALOG", "USE SCHEMA"], by="admin")
    catalog.close()
    with engine.connect() as connection:
        connection.execute(sa.text("ANALYZE"))
        counts = [
            connection.execute(sa.select(sa.func.count()).select_from(table)).scalar()
            for table in (securable, privilege_grant, group_member)
        ]
        print(f"{connection.dialect.name}: " + "{:,} securables, {:,} grants, {:,} memberships".format(*counts))
        connection.commit()
    engine.dispose()
    return {
        kind: [row["full_name"] for row in objects if row["kind"] == kind] for kind in ("table", "model", "endpoint")
    }


def securables(root: str) -> Iterator[dict[str, Any]]:
    def row(kind: str, name: str, parent: str) -> dict[str, Any]:
        named = {"id": f"sec_{name}", "kind": kind, "parent_id": parent, "name": name.rpartition(".")[2]}
        rest = {"full_name": name, "owner": "admin", "comment": "", "properties": {}, "spec": {}, "config_version": 1}
        return {**named, **rest, "created_at": NOW, "created_by": "admin", "updated_at": NOW}

    kinds = (("table", "t"), ("table", "t"), ("model", "m"), ("endpoint", "e"))
    for c in range(CATALOGS):
        yield row("catalog", f"c{c}", root)
        for s in range(SCHEMAS_EACH):
            yield row("schema", f"c{c}.s{s}", f"sec_c{c}")
            for o in range(OBJECTS_EACH):
                kind, letter = kinds[o % 4]
                yield row(kind, f"c{c}.s{s}.{letter}{o}", f"sec_c{c}.s{s}")


def memberships(chance: random.Random) -> Iterator[dict[str, Any]]:
    """Users in 4 groups each, half of the groups in 2 others: some 20 groups a user."""
    common = {"added_by": "admin", "added_at": NOW}
    for number in range(USERS):
        for group in chance.sample(range(GROUPS), 4):
            yield {"member": f"user{number}", "group_name": f"group{group}", **common}
    for number in range(GROUPS // 2):
        for group in chance.sample(range(number + 1, GROUPS), 2):
            yield {"member": f"group{number}", "group_name": f"group{group}", **common}


def grants(objects: list[dict[str, Any]], people: list[str], chance: random.Random) -> list[dict[str, Any]]:
    made: set[tuple[str, str, str]] = set()
    for name in people:
        made |= {("sec_c0", name, "BROWSE"), ("sec_c0.s0", name, "APPLY TAG"), ("sec_c0.s0", name, "CREATE TABLE")}
    for number in range(GROUPS):
        made |= {(f"sec_c{c}", f"group{number}", "USE CATALOG") for c in chance.sample(range(CATALOGS), 5)}
    schemas = [row["id"] for row in objects if row["kind"] == "schema"]
    for schema in schemas:
        made |= {(schema, f"group{number}", "USE SCHEMA") for number in chance.sample(range(GROUPS), 10)}
        made |= {(schema, f"group{number}", "SELECT") for number in chance.sample(range(GROUPS), 5)}
    leaves = [row for row in objects if row["kind"] not in ("catalog", "schema")]
    while len(made) < GRANTS:
        row = chance.choice(leaves)
        made.add((row["id"], chance.choice(people), chance.choice(PRIVILEGES[row["kind"]])))
    common = {"granted_by": "admin", "granted_at": NOW}
    return [{"securable_id": on, "principal": to, "privilege": what, **common} for on, to, what in sorted(made)]


if __name__ == "__main__":
    main()
