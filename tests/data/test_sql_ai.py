"""`ai_query` in SQL: through the gateway as the caller, within a limit, and errors that say which endpoint."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mosaic.data.sql import Sql
from mosaic.data.sql_engine import SqlSettings
from mosaic.errors import BadRequest, EngineFailed, MosaicError, NotFound, PermissionDenied, Unavailable
from mosaic.platform import Platform
from mosaic.platform.lifecycle import ADMIN
from mosaic.protocol import Principal
from tests.local import mosaic

ROWS = "main.sql_ai.rows"


@pytest.fixture(scope="module")
def rows(platform: Platform) -> Platform:
    platform.catalog.ensure_schema("main.sql_ai")
    schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
    platform.tables.create(ROWS, schema, primary_key=None, owner="admin")
    platform.tables.append(ROWS, pa.table({"id": [1, 2, 3], "text": ["one", None, "three"]}).cast(schema))
    return platform


@pytest.fixture(scope="module")
def sql(rows: Platform) -> Sql:
    settings = SqlSettings(ai_query_rows=50)
    return Sql(rows.storage, rows._parts.tables, rows.catalog, settings, base_url=rows.base_url)


def ask(sql: Sql, statement: str, principal: Principal = ADMIN, **more: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = sql.query(statement, principal=principal, **more).rows.to_pylist()
    return found


def test_each_row_is_asked_and_null_is_not(rows: Platform, sql: Sql) -> None:
    statement = f"SELECT id, ai_query('echo', 'Say ' || text, max_tokens => 9) AS said FROM {ROWS} ORDER BY id"
    result = sql.query(statement, principal=ADMIN)
    assert [row["said"] for row in result.rows.to_pylist()] == ["Say one", None, "Say three"]
    run = rows.catalog.get_run(str(result.run_id))
    assert ("endpoint", "main.serving.echo", 1) in [(edge.kind, edge.name, edge.version) for edge in run.inputs]
    rows.flush_ledger()
    ledger = rows.tables.to_arrow("system.serving.inference", columns=["principal", "request"]).to_pylist()
    asked = [json.loads(row["request"]) for row in ledger if "Say " in (row["request"] or "")]
    assert sorted(one["messages"][0]["content"] for one in asked if one.get("max_tokens") == 9) == [
        "Say one",
        "Say three",
    ]
    assert ask(sql, "SELECT ai_query('echo', 'alone') AS said") == [{"said": "alone"}]
    written = f"CREATE TABLE main.sql_ai.said AS {statement}"
    sql.query(written, principal=ADMIN, writable=True)
    assert ask(sql, "SELECT count(said) AS n FROM main.sql_ai.said") == [{"n": 2}]
    tokens = [one for one in rows.catalog.list_tokens() if "ai_query" in one.comment]
    assert len(tokens) == 3 and all(one.revoked_at for one in tokens)


def test_the_caller_needs_execute_on_the_endpoint(rows: Platform, sql: Sql) -> None:
    rows.catalog.create_token("sue")
    sue, statement = Principal(name="sue"), "SELECT ai_query('echo', 'hello') AS said"
    assert ask(sql, statement, sue) == [{"said": "hello"}]  # users may ask what is in main.serving
    rows.catalog.grants.revoke("schema", "main.serving", "users", ["EXECUTE"], by=ADMIN)
    try:
        with pytest.raises(PermissionDenied, match=r"'sue' may not EXECUTE on endpoint 'main\.serving\.echo'"):
            ask(sql, statement, sue)
        narrow = ADMIN.model_copy(update={"scopes": ("sql",)})
        with pytest.raises(PermissionDenied, match="needs a token with the scope 'model-serving'"):
            ask(sql, statement, narrow)
    finally:
        rows.catalog.grants.grant("schema", "main.serving", "users", ["EXECUTE"], by=ADMIN)


@pytest.mark.parametrize(
    ("statement", "error", "told"),
    [
        ("SELECT ai_query('none', 'x')", NotFound, "no endpoint 'main.serving.none'"),
        ("SELECT ai_query('echo', 'fail: it')", EngineFailed, r"ai_query\('echo'\): .*asked to fail"),
        ("SELECT ai_query('echo', 'x' || range) FROM range(51)", BadRequest, "more than 50 rows"),
        ("SELECT ai_query('ec' || 'ho', 'x')", BadRequest, "must be a text such as 'assistant'"),
        ("SELECT ai_query('echo')", BadRequest, "takes an endpoint's name, a prompt"),
        ("SELECT ai_query('echo', 'x', 5)", BadRequest, "no option ''"),
        ("SELECT ai_query('echo', 'x', tokens => 5)", BadRequest, "no option 'tokens'; there are"),
        ("SELECT ai_query('echo', 'x', max_tokens => 'many')", BadRequest, "'max_tokens' .* must be a constant int"),
        ("SELECT ai_query('echo', 'x', max_tokens => 0)", BadRequest, r"ai_query\('echo'\): .*max_tokens"),
    ],
)
def test_what_is_wrong_is_told_and_the_next_statement_runs(
    sql: Sql, statement: str, error: type[MosaicError], told: str
) -> None:
    with pytest.raises(error, match=told):
        ask(sql, statement)
    assert ask(sql, "SELECT ai_query('echo', 'well') AS said") == [{"said": "well"}]


def test_a_limit_below_the_calls_bounds_them(sql: Sql) -> None:
    found = ask(sql, "SELECT ai_query('echo', 'x' || n) AS said FROM (SELECT range AS n FROM range(5000) LIMIT 4)")
    assert [row["said"] for row in found] == ["x0", "x1", "x2", "x3"]


def test_an_endpoint_that_does_not_answer_ends_with_the_statement(rows: Platform) -> None:
    away = Sql(rows.storage, rows._parts.tables, rows.catalog, base_url="http://127.0.0.1:1")
    began, stop = time.monotonic(), threading.Event()
    with pytest.raises((BadRequest, Unavailable), match=r"time limit of 2 s|no gateway answers"):
        ask(away, "SELECT ai_query('echo', 'x')", timeout_seconds=2)
    threading.Timer(0.5, stop.set).start()
    with pytest.raises(BadRequest, match="cancelled"):
        ask(away, "SELECT ai_query('echo', 'x')", cancelled=stop)
    with pytest.raises(Unavailable, match=r"ai_query\('echo'\): no gateway answers"):
        ask(away, "SELECT ai_query('echo', 'x')", timeout_seconds=30)
    assert time.monotonic() - began < 60
    with pytest.raises(Unavailable, match="no gateway is known here"):
        ask(Sql(rows.storage, rows._parts.tables, rows.catalog), "SELECT ai_query('echo', 'x')")


def test_the_command_asks_too(rows: Platform, settings_file: Path) -> None:
    done = mosaic("sql", "-f", str(settings_file), "--json", f"SELECT ai_query('echo', text) AS said FROM {ROWS}@1")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["said"] for line in done.stdout.splitlines()] == ["one", None, "three"]
