"""The thread both ways and the audit trail, on a running platform."""

import json
import time
from pathlib import Path

import pyarrow.compute as pc

from mosaic.data.audit_table import AUDIT_TABLE
from mosaic.platform import Platform
from tests.local import mosaic


def test_the_audit_trail_reaches_the_lakehouse_by_itself(platform: Platform, settings_file: Path) -> None:
    platform.catalog.create_token("audited", kind="user", is_admin=False)
    platform.catalog.grants.grant("schema", "main.serving", "audited", ["EXECUTE"], by=platform.principal)
    deadline = time.monotonic() + 20
    while True:
        last = platform.catalog.audit.list(limit=10_000)[-1]
        exported = platform.tables.to_arrow(AUDIT_TABLE)
        if last.event_id in exported["event_id"].to_pylist():
            break
        assert time.monotonic() < deadline, "not there after 20 s"
        time.sleep(0.2)
    assert exported.num_rows == len(pc.unique(exported["event_id"])) == len(pc.unique(exported["sequence"]))
    assert platform.flush_audit() == 0
    shown = mosaic("status", "-f", str(settings_file), "--json")
    parts = {part["part"]: part for part in json.loads(shown.stdout)}
    assert parts["audit"]["state"] == "healthy" and "rows shipped" in parts["audit"]["detail"]
