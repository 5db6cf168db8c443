"""A server that is killed again and again while clients write: what was acknowledged is there once, audit and object
agree."""

import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from mosaic.catalog import AuditEvent, Catalog
from mosaic.catalog.schema import securable
from tests.catalog.replicas import BASE, Replica, replicas

CLIENTS, WRITES, KILLS = 8, 1000, 10

Write = tuple[str, str]
"""What is done (an audit row's action) and to which name."""


class Client(threading.Thread):
    """Writes one thing after another under names of its own, and knows what was acknowledged and what was cut off."""

    def __init__(self, number: int, address: str, token: str, enough: threading.Event) -> None:
        super().__init__()
        self._number, self._enough = number, enough
        headers = {"authorization": f"Bearer {token}"}
        self._http = httpx.Client(base_url=f"{address}{BASE}", headers=headers, timeout=60)
        self.acknowledged: list[Write] = []
        self.cut_off: list[Write] = []
        self.refused: list[str] = []

    def run(self) -> None:
        turn = 0
        while not self._enough.is_set():
            self._write_one_of_each(turn)
            turn += 1
        self._http.close()

    def _write_one_of_each(self, turn: int) -> None:
        me = self._number
        table = f"main.w{me}.t{turn}"
        place = {"catalog_name": "main", "schema_name": f"w{me}", "name": f"t{turn}", "columns": []}
        shape = {"table_type": "EXTERNAL", "data_source_format": "DELTA", "storage_location": f"s3://b/{me}/{turn}"}
        if self._write("createTable", table, "POST", "/tables", {**place, **shape}):
            if turn % 2:
                self._write("deleteTable", table, "DELETE", f"/tables/{table}")
            else:
                change = {"changes": [{"principal": "users", "add": ["SELECT"]}]}
                self._write("updatePermissions", table, "PATCH", f"/permissions/table/{table}", change)
        alias = f"/models/main.ml.m{me}/aliases/a{turn}"
        self._write("setRegisteredModelAlias", f"main.ml.m{me}@a{turn}", "PUT", alias, {"version_num": 1})
        self._write("updateSchema", f"main.w{me}", "PATCH", f"/schemas/main.w{me}", {"comment": str(turn)})

    def _write(self, action: str, name: str, method: str, path: str, body: dict[str, Any] | None = None) -> bool:
        """Whether it was acknowledged; what never reached a server is sent again."""
        while not self._enough.is_set():
            try:
                answer = self._http.request(method, path, json=body)
            except httpx.ConnectError:
                time.sleep(0.02)
                continue
            except httpx.TransportError:
                self.cut_off.append((action, name))
                return False
            if answer.status_code == 200:
                self.acknowledged.append((action, name))
            else:
                self.refused.append(f"{action} {name}: {answer.text}")
            return answer.status_code == 200
        return False


@pytest.mark.faults
@pytest.mark.timeout(240)
def test_a_server_killed_during_1000_writes(catalog_url: str, tmp_path: Path) -> None:
    catalog = Catalog.open(catalog_url)
    _, token = catalog.create_token("ann", is_admin=True)
    for number in range(CLIENTS):
        catalog.ensure_schema(f"main.w{number}")
        catalog.ensure_schema("main.ml")
        catalog.create_model(f"main.ml.m{number}", owner="ann")
        catalog.create_model_version(f"main.ml.m{number}", source="/m", kind="full")
    before = catalog.audit.newest(1)[0].sequence
    enough = threading.Event()
    with replicas(catalog_url, tmp_path / "root", 1) as (replica,):
        clients = [Client(number, replica.address, token, enough) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        try:
            kills = kill_now_and_then(replica, clients)
        finally:
            enough.set()
            for client in clients:
                client.join()

    acknowledged = Counter(write for client in clients for write in client.acknowledged)
    cut_off = Counter(write for client in clients for write in client.cut_off)
    print(f"{acknowledged.total()} acknowledged, {cut_off.total()} cut off, {kills} kills")
    assert [line for client in clients for line in client.refused] == []
    assert acknowledged.total() >= WRITES and kills >= KILLS
    assert cut_off.total() >= KILLS, "the kills hit nothing that was being written"
    audited = Counter(map(as_write, events_after(catalog, before)))
    for write in acknowledged.keys() | cut_off.keys() | audited.keys():
        done, most = acknowledged[write], acknowledged[write] + cut_off[write]
        assert done <= audited[write] <= most, (write, done, audited[write], most)
    assert there(catalog) == audited
    assert damage(catalog_url) == []
    catalog.close()


def kill_now_and_then(replica: Replica, clients: list[Client]) -> int:
    """Kills the server each time that another part of the writes was acknowledged; how often."""
    chance, kills = random.Random(), 0
    deadline = time.monotonic() + 200
    while (done := sum(len(client.acknowledged) for client in clients)) < WRITES or kills < KILLS:
        assert time.monotonic() < deadline and all(client.is_alive() for client in clients), f"{done} writes, {kills}"
        if done > (kills + chance.random()) * WRITES / (KILLS + 1):
            replica.kill()
            kills += 1
            replica.start()
            replica.wait_until_ready()
        time.sleep(chance.random() * 0.02)
    return kills


def events_after(catalog: Catalog, sequence: int) -> list[AuditEvent]:
    return list(catalog.audit.list(after=sequence, limit=10_000))


def as_write(event: AuditEvent) -> Write:
    assert event.response.status_code == 200, event
    params = event.request_params
    alias = f"@{params['alias']}" if "alias" in params else ""
    return event.action_name, params["securable_full_name"] + alias


def there(catalog: Catalog) -> Counter[Write]:
    """The writes that the objects themselves tell of."""
    found: Counter[Write] = Counter()
    engine = sa.create_engine(catalog.url)
    with engine.connect() as connection:
        rows = connection.execute(sa.select(securable).where(securable.c.full_name.like("main.w%"))).all()
    engine.dispose()
    for row in rows:
        if row.kind == "schema":
            found["updateSchema", row.full_name] += row.row_version - 1
            continue
        found["createTable", row.full_name] += 1
        if row.deleted_at is not None:
            found["deleteTable", row.full_name] += 1
        elif granted := len(catalog.grants.list("table", row.full_name)):
            found["updatePermissions", row.full_name] += granted
    for number in range(CLIENTS):
        model = f"main.ml.m{number}"
        for event in catalog.alias_history(model):
            found["setRegisteredModelAlias", f"{model}@{event.alias}"] += 1
    return found


def damage(url: str) -> list[str]:
    """What the database itself finds wrong when it reads everything; PostgreSQL raises the first that it finds."""
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            checks = ["PRAGMA integrity_check", "PRAGMA foreign_key_check"]
            told = [row for check in checks for row in connection.execute(sa.text(check)).scalars() if row != "ok"]
        else:
            connection.execute(sa.text("CREATE EXTENSION amcheck"))
            indexes = "pg_class c JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'btree' AND c.relpersistence = 'p'"
            checked = connection.execute(sa.text(f"SELECT bt_index_check(c.oid, true) FROM {indexes}")).all()
            told = [] if checked else ["no index was found"]
    engine.dispose()
    return told
