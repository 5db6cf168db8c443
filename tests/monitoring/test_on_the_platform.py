"""The thread both ways and the audit trail, on a running platform."""

import json
import re
import time
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from openai import OpenAI

from mosaic.data.audit_table import AUDIT_TABLE
from mosaic.errors import PermissionDenied
from mosaic.platform import Platform
from mosaic.protocol import Principal
from tests.local import mosaic

PAGE = Path(__file__).parents[2] / "docs" / "lineage.md"


def test_the_audit_trail_reaches_the_lakehouse_by_itself(platform: Platform, settings_file: Path) -> None:
    platform.catalog.create_token("audited", kind="user", is_admin=False)
    platform.catalog.grants.grant("schema", "main.serving", "audited", ["EXECUTE"], by=platform.principal)
    last = platform.catalog.audit.newest(1)[0]
    deadline = time.monotonic() + 20
    while True:
        exported = platform.tables.to_arrow(AUDIT_TABLE)
        if last.event_id in exported["event_id"].to_pylist():
            break
        assert time.monotonic() < deadline, "not there after 20 s"
        time.sleep(0.2)
    assert exported.num_rows == len(pc.unique(exported["event_id"])) == len(pc.unique(exported["sequence"]))
    platform.flush_audit()
    assert platform.flush_audit() == 0
    shown = mosaic("status", "-f", str(settings_file), "--json")
    parts = {part["part"]: part for part in json.loads(shown.stdout)}
    assert parts["audit"]["state"] == "healthy" and "rows shipped" in parts["audit"]["detail"]


def test_a_thread_over_http_is_for_who_asked(platform: Platform, client: OpenAI, token: str) -> None:
    answer = client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "hello"}])
    platform.flush_ledger()
    other = platform.catalog.create_token("mallory", kind="user", is_admin=False)[1]

    def ask(path: str, bearer: str) -> httpx.Response:
        headers = {"authorization": f"Bearer {bearer}"}
        return httpx.get(f"{platform.base_url}/api/2.0/mosaic{path}", headers=headers, timeout=30)

    mine = ask(f"/requests/{answer.id}/why", token)
    assert mine.status_code == 200, mine.text
    assert mine.json()["facts"]["principal"] == "alice" and mine.json()["came_from"][0]["label"] == "model echo"
    assert mine.json() == platform.why(answer.id).model_dump(mode="json")
    theirs = ask(f"/requests/{answer.id}/why", other)
    assert (theirs.status_code, theirs.json()["error_code"]) == (403, "PERMISSION_DENIED")
    refused = ask(f"/tables/{AUDIT_TABLE}/impact", other)
    assert refused.status_code == 403 and "may not SELECT" in refused.json()["message"]


def test_a_platform_of_somebody_sees_what_that_one_may_see(platform: Platform, client: OpenAI) -> None:
    answer = client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "hello"}])
    platform.flush_ledger()
    catalog, admin = platform.catalog, platform.principal
    catalog.create_token("nosy", kind="user", is_admin=False)
    rows = pa.table({"id": [1]})
    for schema in ("main.open", "main.vault"):
        catalog.ensure_schema(schema)
    for name in ("main.open.people", "main.vault.derived"):
        platform.tables.create(name, rows.schema, primary_key="id", owner=admin.name)
    platform.tables.append("main.open.people", rows)
    run_id = catalog.start_run("copy", "main.vault.derived", principal=admin.name)
    acting = platform.tables.acting(admin, run_id)
    acting.append("main.vault.derived", acting.to_arrow("main.open.people"))
    catalog.finish_run(run_id, "finished")
    nosy = platform.acting(Principal(name="nosy"))
    with pytest.raises(PermissionDenied, match="'nosy' may not see request"):
        nosy.why(answer.id)
    with pytest.raises(PermissionDenied, match="may not SELECT"):
        nosy.impact("main.open.people")
    catalog.grants.grant("catalog", "main", "nosy", ["USE CATALOG"], by=admin)
    catalog.grants.grant("schema", "main.open", "nosy", ["USE SCHEMA", "SELECT"], by=admin)
    assert [(one.name, one.withheld) for one in nosy.impact("main.open.people").dependents] == [(None, True)]
    assert [one.name for one in platform.impact("main.open.people").dependents] == ["main.vault.derived"]
    assert platform.acting(Principal(name="alice")).why(answer.id).facts["principal"] == "alice"


def test_the_pages_python_runs(platform: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(compile(snippet, PAGE.name, "exec"), {"platform": platform})
    printed = re.findall(r"^# prints (.*)$", snippet, re.MULTILINE)
    assert printed and capsys.readouterr().out.splitlines() == printed
