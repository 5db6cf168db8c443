"""The audit trail in the lakehouse: every row once, whatever is killed, whoever else ships, and no secret in it."""

import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mosaic.catalog import Catalog
from mosaic.catalog.connections import SECRET_OPTIONS
from mosaic.data import Tables
from mosaic.data.audit_table import AUDIT_TABLE, SCHEMA, AuditShipper
from mosaic.data.ship import KILL_POINTS, SequenceShipper
from mosaic.errors import Conflict, PermissionDenied
from mosaic.protocol import Principal
from mosaic.storage import Storage

ADMIN = Principal(name="admin", is_admin=True)


class Place:
    """A catalog whose audit trail goes into a table beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"sqlite:///{folder / 'catalog.db'}"
        self.catalog = Catalog.open(self.url, key_file=folder / "key")
        self.catalog.ensure_schema("main.shop")
        self.catalog.create_token("ann")
        self.tables = Tables(Storage(str(folder / "root")), self.catalog)

    def shipper(self, at: Callable[[str], None] = lambda point: None) -> AuditShipper:
        return AuditShipper(self.tables, self.catalog, at=at)

    def act(self, times: int) -> None:
        """Changes, and so rows: one each."""
        for _ in range(times):
            held = bool(self.catalog.grants.list("schema", "main.shop"))
            change = self.catalog.grants.revoke if held else self.catalog.grants.grant
            change("schema", "main.shop", "ann", ["SELECT"], by=ADMIN)

    def exported(self) -> list[dict[str, Any]]:
        return self.tables.to_arrow(AUDIT_TABLE).sort_by("sequence").to_pylist()

    def trail(self) -> list[str]:
        return [event.event_id for event in self.catalog.audit.list(limit=10_000)]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_the_columns_are_databricks_and_the_values_the_catalogs(place: Place) -> None:
    place.act(1)
    with pytest.raises(PermissionDenied):
        place.catalog.grants.check("ann", "MODIFY", "schema", "main.shop")
    asked = Principal(
        name="ann", token_id="tok_1", request_id="req_1", source_ip_address="10.0.0.9", user_agent="curl/8.5"
    )
    with pytest.raises(PermissionDenied):
        place.catalog.grants.check(asked, "MANAGE", "schema", "main.shop", action="deleteSchema")
    assert place.shipper().ship_once() == len(place.trail())
    assert place.tables.to_arrow(AUDIT_TABLE).schema.names == SCHEMA.names
    table = place.catalog.get_table(AUDIT_TABLE)
    assert (table.owner, table.primary_key) == ("system", "event_id")
    rows = place.exported()
    assert [row["event_id"] for row in rows] == place.trail()
    granted = next(row for row in rows if row["action_name"] == "updatePermissions")
    assert granted["user_identity"] == {"email": "admin", "subject_name": None}
    assert dict(granted["request_params"])["securable_full_name"] == "main.shop"
    assert granted["response"] == {"status_code": 200, "error_message": None, "result": None}
    assert granted["event_date"] == granted["event_time"].date()
    assert granted["account_id"] is None and granted["identity_metadata"] is None
    earlier, refused = (row for row in rows if row["response"]["status_code"] == 403)
    came = ("action_name", "token_id", "request_id", "source_ip_address", "user_agent")
    assert [refused[name] for name in came] == ["deleteSchema", "tok_1", "req_1", "10.0.0.9", "curl/8.5"]
    assert refused["response"]["status_code"] == 403 and "may not MANAGE" in refused["response"]["error_message"]
    assert refused["user_identity"]["email"] == "ann" and earlier["request_id"] is None


def test_a_growing_trail_is_shipped_once(place: Place) -> None:
    shipper = place.shipper()
    shipper.ship_once()
    version = place.tables.version(AUDIT_TABLE)
    assert shipper.ship_once() == 0 and place.tables.version(AUDIT_TABLE) == version, "nothing to say, no commit"
    place.act(3)
    assert (shipper.ship_once(), place.shipper().ship_once()) == (3, 0)
    place.act(2)
    assert (place.shipper().ship_once(), shipper.ship_once()) == (2, 0)
    assert [row["event_id"] for row in place.exported()] == place.trail()


def test_a_long_trail_goes_page_by_page(tmp_path: Path) -> None:
    rows = [{"n": n, "id": f"e{n}"} for n in range(1, 26) if n % 7]  # numbers may be missing
    schema = pa.schema([("n", pa.int64()), ("id", pa.string())])
    catalog = Catalog.open(f"sqlite:///{tmp_path / 'catalog.db'}")
    tables = Tables(Storage(str(tmp_path / "root")), catalog)
    catalog.ensure_schema("main.test")
    tables.create("main.test.rows", schema, primary_key="id", owner="admin")
    shipper = SequenceShipper(
        "numbers",
        lambda after, limit: [row for row in rows if row["n"] > after][:limit],
        lambda: tables.delta("main.test.rows"),
        number="n",
        identity="id",
        to_arrow=lambda page: pa.Table.from_pylist(page, schema=schema),
        page_rows=5,
    )
    assert shipper.ship_once() == len(rows)
    assert tables.version("main.test.rows") == 5, "one commit for each page"
    assert tables.to_arrow("main.test.rows").sort_by("n").to_pylist() == rows
    assert shipper.ship_once() == 0


def test_two_shippers_at_once(place: Place) -> None:
    stop, failures = threading.Event(), []

    def ship() -> None:
        shipper = place.shipper()
        try:
            while not stop.is_set():
                shipper.ship_once()
        except BaseException as error:
            failures.append(error)

    place.shipper().ship_once()
    threads = [threading.Thread(target=ship) for _ in range(2)]
    for thread in threads:
        thread.start()
    place.act(40)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    place.shipper().ship_once()
    assert [row["event_id"] for row in place.exported()] == place.trail()


def test_a_race_between_two_commits_from_the_same_state(place: Place) -> None:
    place.shipper().ship_once()
    place.act(1)
    other, raced = place.shipper(), []

    def ship_in_between(point: str) -> None:
        if point == "before-commit" and not raced:
            raced.append(other.ship_once())

    assert (place.shipper(ship_in_between).ship_once(), raced) == (0, [1])
    assert [row["event_id"] for row in place.exported()] == place.trail()


KILLED = """
import os, signal, sys
from pathlib import Path
from mosaic.catalog import Catalog
from mosaic.catalog.connections import SECRET_OPTIONS
from mosaic.data import Tables
from mosaic.data.audit_table import AuditShipper
from mosaic.storage import Storage

def at(point):
    if point == {point!r}:
        Path({marker!r}).write_text(point)
        os.kill(os.getpid(), signal.SIGKILL)

catalog = Catalog.open({url!r})
AuditShipper(Tables(Storage({root!r}), catalog), catalog, at=at).ship_once()
"""


@pytest.mark.parametrize("point", KILL_POINTS[:2])
def test_kill_9_at_every_point(place: Place, tmp_path: Path, point: str) -> None:
    place.shipper().ship_once()
    place.act(3)
    marker = tmp_path / "hit"
    script = KILLED.format(point=point, marker=str(marker), url=place.url, root=str(tmp_path / "root"))
    killed = subprocess.run([sys.executable, "-c", script], timeout=60, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert marker.read_text() == point
    assert place.shipper().ship_once() == (3 if point == "before-commit" else 0)
    assert [row["event_id"] for row in place.exported()] == place.trail()


@pytest.mark.parametrize("events_since", [0, 3, 7])
def test_a_catalog_from_a_backup_is_refused(place: Place, tmp_path: Path, events_since: int) -> None:
    """Its numbers come a second time: behind, at, and past the position that is shipped already."""
    running = place.shipper()
    running.ship_once()
    place.catalog.close()
    shutil.copy(tmp_path / "catalog.db", tmp_path / "backup.db")
    place.act(3)
    running.ship_once()
    last = place.exported()[-1]
    place.catalog.close()
    for path in tmp_path.glob("catalog.db*"):
        path.unlink()
    shutil.copy(tmp_path / "backup.db", tmp_path / "catalog.db")
    place.catalog = Catalog.open(place.url)
    place.tables = Tables(Storage(str(tmp_path / "root")), place.catalog)
    place.act(events_since)
    for shipper in (place.shipper(), running):
        with pytest.raises(Conflict, match=f"no longer has event_id '{last['event_id']}' with sequence") as refused:
            shipper.ship_once()
        assert refused.value.code == "source_was_put_back"
    lost = [row["event_id"] for row in place.exported()]
    assert last["event_id"] in lost

    # Told to go on, it keeps what the restored catalog lacks, and ships what it has counted anew.
    common = place.shipper().resume()
    assert common == last["sequence"] - 3
    place.act(1)
    assert (running.ship_once(), place.shipper().ship_once()) == (events_since + 1, 0)
    place.act(1)
    assert (place.shipper().ship_once(), running.ship_once()) == (1, 0)
    exported = [row["event_id"] for row in place.exported()]
    assert set(exported) == {*lost, *place.trail()} and len(exported) == len(set(exported))


def test_no_secret_in_the_trail_or_in_the_table(place: Place, tmp_path: Path) -> None:
    secrets = [place.catalog.create_token(f"user{number}", comment="for the shop")[1] for number in range(3)]
    secrets.append(place.catalog.create_token("root", is_admin=True)[1])
    for secret in secrets:
        place.catalog.check_token(secret)
    for number, option in enumerate(SECRET_OPTIONS):
        secrets.append(f"sk-{option}-{number:04d}-QxV7")
        options = {"base_url": "https://example.org", option: secrets[-1]}
        place.catalog.connections.create(f"provider{number}", connection_type="openai", options=options, owner="admin")
    secrets.append("sk-changed-9999-QxV7")
    place.catalog.connections.update("provider0", options={"api_key": secrets[-1]}, by=ADMIN)
    with pytest.raises(PermissionDenied):
        place.catalog.grants.check("ann", "MANAGE", "connection", "provider0")
    place.act(2)
    place.shipper().ship_once()
    actions = {row["action_name"] for row in place.exported()}
    assert {"generateDbToken", "createConnection", "updateConnection", "updatePermissions"} <= actions
    place.catalog.close()
    connection = sqlite3.connect(tmp_path / "catalog.db")
    kept = repr(connection.execute("SELECT * FROM audit").fetchall())
    connection.close()
    exported = repr(place.tables.to_arrow(AUDIT_TABLE).to_pylist())
    files = b"".join(path.read_bytes() for path in (tmp_path / "root").rglob("*") if path.is_file())
    for secret in secrets:
        for hidden in (secret, secret.removeprefix("mosaic_")):
            assert hidden not in kept and hidden not in exported and hidden.encode() not in files
