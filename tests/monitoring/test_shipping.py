"""What ships in a thread goes on by itself, says what is wrong, and recovers."""

import contextlib
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from mosaic.catalog import Catalog
from mosaic.data import Tables
from mosaic.data.audit_table import AUDIT_TABLE, AuditShipper
from mosaic.monitoring.shipper import Shipping
from mosaic.storage import Storage


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "not within 20 s"
        time.sleep(0.02)


def copy(source: Path, target: Path) -> None:
    """A database into another while others use both."""
    with contextlib.closing(sqlite3.connect(source)) as reading, contextlib.closing(sqlite3.connect(target)) as writing:
        reading.backup(writing)


def test_the_trail_is_shipped_and_a_restore_is_seen(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'catalog.db'}"
    catalog = Catalog.open(url)
    tables = Tables(Storage(str(tmp_path / "root")), catalog)
    shipper = AuditShipper(tables, catalog)
    shipping = Shipping(lambda: shipper, 0.02)
    wait_for(lambda: catalog.find_table(AUDIT_TABLE) is not None and shipping.flush() == 0)
    copy(tmp_path / "catalog.db", tmp_path / "backup.db")
    catalog.create_token("ann")
    wait_for(lambda: tables.to_arrow(AUDIT_TABLE).num_rows == len(catalog.audit.list(limit=1000)))
    assert shipping.status()["last_error"] is None and shipping.status()["shipped_rows"] > 0

    copy(tmp_path / "backup.db", tmp_path / "catalog.db")
    wait_for(lambda: "was put back to an older state" in str(shipping.status()["last_error"]))
    AuditShipper(tables, catalog).resume()
    catalog.create_token("bob")
    wait_for(lambda: shipping.status()["last_error"] is None)
    wait_for(lambda: "bob" in str(tables.to_arrow(AUDIT_TABLE)["request_params"].to_pylist()))
    assert "ann" in str(tables.to_arrow(AUDIT_TABLE)["request_params"].to_pylist()), "what the backup lacks is kept"


def test_any_failure_is_said_and_tried_again() -> None:
    class Failing:
        left = 3

        def ship_once(self) -> int:
            self.left -= 1
            if self.left >= 0:
                raise ValueError(f"{self.left} to go")
            return 1

    shipping = Shipping(Failing, 0.02)
    wait_for(lambda: shipping.status()["last_error"] is not None or shipping.status()["shipped_rows"] > 0)
    wait_for(lambda: shipping.status()["shipped_rows"] > 0 and shipping.status()["last_error"] is None)
