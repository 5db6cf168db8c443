"""What a check of a grant costs: 100,000 objects, 200,000 grants, nested groups, on SQLite.

    python benchmarks/catalog.py

Rounds of the SQL alone (the statement that mosaic sends, on a bare connection) and of `catalog.grants.is_allowed`
take turns over the same random questions; printed are the medians of the rounds' p50 and their range, in microseconds.
"""

import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from mosaic.catalog import Catalog
from mosaic.catalog.privileges import PRIVILEGES
from mosaic.catalog.schema import group_member, principal, privilege_grant, securable

CATALOGS, SCHEMAS_EACH, OBJECTS_EACH = 20, 50, 100
USERS, GROUPS, GRANTS = 1_000, 200, 200_000
ROUNDS, QUESTIONS = 5, 2_000
GATE_SQL, GATE_API = 100, 300

NOW = datetime.now(UTC)
Question = tuple[str, str, str, str]


def main() -> None:
    chance = random.Random(7)
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/catalog.db"
        Catalog.open(url).close()
        names = fill(url, chance)
        catalog = Catalog.open(url)
        asked = [question(names, chance) for _ in range(QUESTIONS)]
        for name, questions in (("random objects", asked), ("an object in the busiest schema", busiest(asked))):
            measure(name, catalog, Path(folder) / "catalog.db", questions)
        catalog.close()


def measure(name: str, catalog: Catalog, path: Path, asked: list[Question]) -> None:
    statements = captured(catalog, asked)
    driver = sqlite3.connect(path, isolation_level=None)

    def sql(number: int) -> None:
        driver.execute(*statements[number]).fetchall()

    def api(number: int) -> None:
        catalog.grants.is_allowed(*asked[number])

    sql_rounds, api_rounds = [], []
    for _ in range(ROUNDS):
        sql_rounds.append(p50(sql, len(asked)))
        api_rounds.append(p50(api, len(asked)))
    driver.close()
    allowed = sum(catalog.grants.is_allowed(*one) for one in asked)
    print(f"{name}: {len(asked)} questions, {allowed} allowed")
    for what, rounds, gate in (("SQL alone", sql_rounds, GATE_SQL), ("is_allowed", api_rounds, GATE_API)):
        verdict = "met" if max(rounds) <= gate else "missed" if min(rounds) > gate else "inconclusive"
        shown = f"{statistics.median(rounds):.0f} ({min(rounds):.0f} to {max(rounds):.0f})"
        print(f"  {what:12} p50 {shown:>20} microseconds; at most {gate}: {verdict}")


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
    with engine.connect() as connection:
        counts = [
            connection.execute(sa.select(sa.func.count()).select_from(table)).scalar()
            for table in (securable, privilege_grant, group_member)
        ]
        print("{:,} securables, {:,} grants, {:,} memberships".format(*counts))
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
