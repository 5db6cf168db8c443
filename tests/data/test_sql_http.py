"""Databricks' SQL Statement Execution API over a real socket: databricks-sdk unchanged, and what it would not send."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.errors import BadRequest, NotFound
from databricks.sdk.service import sql as api
from starlette.routing import Router

from mosaic.data.routes import WRITING_WAREHOUSE, sql_routes
from mosaic.runtime import Authenticate, ShapeErrors
from tests.catalog.conftest import under_api
from tests.data.sql_lake import Lake, lake_in
from tests.local import served

ENDLESS = "SELECT count(*) FROM range(1000000000000) a WHERE a.range % 7 = 3"


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    with lake_in(tmp_path_factory.mktemp("lake")) as made:
        yield made


@pytest.fixture(scope="module")
def address(lake: Lake) -> Iterator[str]:
    """The routes as control wears them, on a port of loopback."""
    app = under_api(ShapeErrors(Authenticate(Router(routes=sql_routes(lake.sql)), lake.catalog.check_token)))
    with served(app) as address:
        yield address


@pytest.fixture(scope="module")
def statements(lake: Lake, address: str) -> api.StatementExecutionAPI:
    return WorkspaceClient(host=address, token=lake.admin_token, auth_type="pat").statement_execution


@pytest.fixture(scope="module")
def bobs(lake: Lake, address: str) -> api.StatementExecutionAPI:
    return WorkspaceClient(host=address, token=lake.bob_token, auth_type="pat").statement_execution


def post(address: str, token: str, **body: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {token}"}
    return httpx.post(f"{address}/api/2.0/sql/statements", json=body, headers=headers, timeout=60)


def test_databricks_sdk_asks_and_reads(bobs: api.StatementExecutionAPI) -> None:
    answer = bobs.execute_statement(
        "SELECT id, name, id > :low AS more FROM people WHERE team = :team ORDER BY id DESC",
        "any",
        catalog="main",
        schema="docs",
        parameters=[
            api.StatementParameterListItem(name="low", value="1", type="INT"),
            api.StatementParameterListItem(name="team", value="x"),
        ],
        wait_timeout="30s",
        on_wait_timeout=api.ExecuteStatementRequestOnWaitTimeout.CANCEL,
        disposition=api.Disposition.INLINE,
        format=api.Format.JSON_ARRAY,
        row_limit=100,
        byte_limit=1_000_000,
    )
    assert answer.status is not None and answer.status.state == api.StatementState.SUCCEEDED
    manifest, result = answer.manifest, answer.result
    assert manifest is not None and manifest.schema is not None and result is not None
    assert (manifest.total_row_count, manifest.truncated, manifest.format) == (2, False, api.Format.JSON_ARRAY)
    columns = manifest.schema.columns or []
    assert [(one.name, one.position, one.type_name, one.type_text) for one in columns] == [
        ("id", 0, api.ColumnInfoTypeName.LONG, "BIGINT"),
        ("name", 1, api.ColumnInfoTypeName.STRING, "STRING"),
        ("more", 2, api.ColumnInfoTypeName.BOOLEAN, "BOOLEAN"),
    ]
    assert result.data_array == [["2", "bob", "true"], ["1", "ann", "false"]]
    assert answer.statement_id is not None
    again = bobs.get_statement(answer.statement_id)
    assert again.result is not None and again.result.data_array == result.data_array
    assert bobs.get_statement_result_chunk_n(answer.statement_id, 0).data_array == result.data_array
    with pytest.raises(NotFound, match="no chunk '1'"):
        bobs.get_statement_result_chunk_n(answer.statement_id, 1)


def test_values_are_strings_in_databricks_forms(statements: api.StatementExecutionAPI) -> None:
    answer = statements.execute_statement(
        "SELECT NULL AS n, TRUE AS b, 1::TINYINT AS t, 1.50::DECIMAL(10,2) AS d, 0.1::DOUBLE AS f, "
        "'nan'::FLOAT AS nan, DATE '2026-01-02' AS day, TIMESTAMPTZ '2026-01-02 03:04:05.678+01' AS at, "
        "TIMESTAMP '2026-01-02 03:04:05' AS ntz, '\\x00\\xff'::BLOB AS raw, [1, NULL] AS l, "
        "{'a': 'x', 'b': [1.5]} AS s, map {'k': 1} AS m, TIME '10:00' AS tm, INTERVAL 2 DAY AS i, "
        "sum(1::HUGEINT) AS h, 'it''s \u00fc' AS u",
        "any",
    )
    assert answer.result is not None and answer.manifest is not None and answer.manifest.schema is not None
    types = {one.name: one.type_text for one in answer.manifest.schema.columns or []}
    values = dict(zip(types, (answer.result.data_array or [[]])[0], strict=True))
    assert values == {
        "n": None,
        "b": "true",
        "t": "1",
        "d": "1.50",
        "f": "0.1",
        "nan": "NaN",
        "day": "2026-01-02",
        "at": "2026-01-02T02:04:05.678Z",
        "ntz": "2026-01-02T03:04:05.000",
        "raw": "AP8=",
        "l": "[1, null]",
        "s": '{"a": "x", "b": ["1.5"]}',
        "m": '{"k": 1}',
        "tm": "10:00:00",
        "i": values["i"],
        "h": "1",
        "u": "it's \u00fc",
    }
    assert types == {
        "n": "VOID",
        "b": "BOOLEAN",
        "t": "TINYINT",
        "d": "DECIMAL(10,2)",
        "f": "DOUBLE",
        "nan": "FLOAT",
        "day": "DATE",
        "at": "TIMESTAMP",
        "ntz": "TIMESTAMP_NTZ",
        "raw": "BINARY",
        "l": "ARRAY<INT>",
        "s": "STRUCT<a:STRING,b:ARRAY<DECIMAL(2,1)>>",
        "m": "MAP<STRING,INT>",
        "tm": "STRING",
        "i": "INTERVAL",
        "h": "DECIMAL(38,0)",
        "u": "STRING",
    }


def test_values_that_arrow_or_python_lack_keep_their_texts(statements: api.StatementExecutionAPI) -> None:
    expected = {
        "'infinity'::TIMESTAMP": "infinity",
        "'-infinity'::DATE": "-infinity",
        "DATE '10000-01-01'": "10000-01-01",
        "DATE '0044-03-15 (BC)'": "0044-03-15 (BC)",
        "TIMESTAMPTZ '12026-01-02 03:04:05.25+01'": "12026-01-02T02:04:05.250Z",
        "[DATE '10000-01-01', NULL]": '["10000-01-01", null]',
        "TIMETZ '10:00:00+02'": "10:00:00+02",
        "TIME '24:00:00'": "24:00:00",
        "'0101'::BIT": "0101",
        "12345678901234567890123::BIGNUM": "12345678901234567890123",
        "[{'b': '1'::BIT}]": '[{"b": "1"}]',
        "INTERVAL '14 months 3 days 2.5 seconds'": "1 year 2 months 3 days 00:00:02.5",
        "INTERVAL 0 DAY": "00:00:00",
        "MAP {}::MAP(VARCHAR, INT)": "{}",
        "map {1: map {DATE '2026-01-02': INTERVAL 3 DAY}}": '{"1": {"2026-01-02": "3 days"}}',
    }
    answer = statements.execute_statement("SELECT " + ", ".join(expected), "any")
    assert answer.result is not None, answer.status
    assert (answer.result.data_array or [[]])[0] == list(expected.values())
    far = api.StatementParameterListItem(name="at", value="9999-12-31T23:59:59-12:00", type="TIMESTAMP")
    answer = statements.execute_statement("SELECT :at", "any", parameters=[far])
    assert answer.result is not None and answer.result.data_array == [["10000-01-01T11:59:59.000Z"]]


def test_a_statement_that_waits_for_others_is_cancelled_and_one_user_leaves_a_turn(
    lake: Lake, address: str, bobs: api.StatementExecutionAPI
) -> None:
    eves = WorkspaceClient(host=address, token=lake.eve_token, auth_type="pat").statement_execution
    endless = [eves.execute_statement(ENDLESS, "any", wait_timeout="0s").statement_id for _ in range(6)]
    asked = bobs.execute_statement("SELECT 1", "any", wait_timeout="50s")
    assert asked.result is not None and asked.result.data_array == [["1"]]
    for statement_id in reversed(endless):  # those that wait first
        assert statement_id is not None
        eves.cancel_execution(statement_id)
        assert ended(eves, statement_id).state == api.StatementState.CANCELED


def test_limits_cut_and_say_so(statements: api.StatementExecutionAPI) -> None:
    cut = statements.execute_statement("SELECT * FROM range(10)", "any", row_limit=3)
    assert cut.manifest is not None and cut.result is not None
    assert cut.manifest.truncated and cut.manifest.total_row_count == 3 == len(cut.result.data_array or [])
    cut = statements.execute_statement("SELECT repeat('x', 100) FROM range(1000)", "any", byte_limit=5_000)
    assert cut.manifest is not None and cut.manifest.truncated and 0 < (cut.manifest.total_row_count or 0) < 60


@pytest.mark.parametrize(
    ("statement", "code", "told"),
    [
        ("SELECT * FROM main.vault.secrets", "BAD_REQUEST", "'bob' may not SELECT"),
        ("SELECT * FROM main.docs.nothing", "NOT_FOUND", "there are"),
        ("SELECT * FROM read_csv('/etc/passwd')", "BAD_REQUEST", "may not be used"),
        ("SELEC", "BAD_REQUEST", "syntax error"),
        ("SELECT 'a'::INT", "BAD_REQUEST", "Could not convert"),
        ("INSERT INTO main.docs.people VALUES (9, 'x', 'y')", "BAD_REQUEST", "only reading was asked for"),
        ("SELECT :x", "BAD_REQUEST", "has a parameter no value"),
    ],
)
def test_a_wrong_statement_fails_as_on_databricks(
    bobs: api.StatementExecutionAPI, statement: str, code: str, told: str
) -> None:
    answer = bobs.execute_statement(statement, "any")
    assert answer.status is not None and answer.status.state == api.StatementState.FAILED
    assert answer.status.error is not None and answer.status.error.message is not None
    assert answer.status.error.error_code == api.ServiceErrorCode(code) and told in answer.status.error.message
    assert answer.result is None


def test_a_statement_runs_beside_its_request_and_is_cancelled(statements: api.StatementExecutionAPI) -> None:
    begun = statements.execute_statement(ENDLESS, "any", wait_timeout="0s")
    assert begun.status is not None and begun.status.state == api.StatementState.RUNNING
    assert begun.statement_id is not None
    statements.cancel_execution(begun.statement_id)
    assert ended(statements, begun.statement_id).state == api.StatementState.CANCELED
    quick = statements.execute_statement("SELECT 1", "any", wait_timeout="0s")
    assert quick.statement_id is not None
    assert ended(statements, quick.statement_id).state == api.StatementState.SUCCEEDED
    statements.cancel_execution(quick.statement_id)  # too late: it stays as it is
    assert ended(statements, quick.statement_id).state == api.StatementState.SUCCEEDED


def ended(statements: api.StatementExecutionAPI, statement_id: str) -> api.StatementStatus:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        status = statements.get_statement(statement_id).status
        assert status is not None
        if status.state != api.StatementState.RUNNING:
            return status
        time.sleep(0.02)
    raise AssertionError("the statement did not end")


def test_a_statement_is_its_principals(
    lake: Lake, address: str, statements: api.StatementExecutionAPI, bobs: api.StatementExecutionAPI
) -> None:
    eves = WorkspaceClient(host=address, token=lake.eve_token, auth_type="pat").statement_execution
    asked = bobs.execute_statement("SELECT name FROM main.docs.people", "any")
    assert asked.statement_id is not None
    for ask in (eves.get_statement, eves.cancel_execution):
        with pytest.raises(NotFound, match="it is not yours"):
            ask(asked.statement_id)
    assert statements.get_statement(asked.statement_id).result is not None  # an administrator


def test_writing_is_asked_for_by_the_warehouse(statements: api.StatementExecutionAPI, lake: Lake) -> None:
    made = statements.execute_statement("CREATE TABLE main.docs.made AS SELECT 1 AS a", WRITING_WAREHOUSE)
    assert made.status is not None and made.status.state == api.StatementState.SUCCEEDED
    assert made.result is not None and made.result.data_array == [["1", "1"]]
    assert lake.value("SELECT count(*) FROM main.docs.made") == 1


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"statement": "SELECT 1"}, "'warehouse_id' is required"),
        ({"warehouse_id": "x"}, "'statement' is required"),
        ({"statement": "", "warehouse_id": "x"}, "statement"),
        ({"statement": 1, "warehouse_id": "x"}, "statement"),
        ({"statement": "SELECT 1", "warehouse_id": "x", "query_tags": []}, "unknown field 'query_tags'"),
        ({"statement": "SELECT 1", "warehouse_id": "x", "disposition": "EXTERNAL_LINKS"}, "disposition"),
        ({"statement": "SELECT 1", "warehouse_id": "x", "format": "ARROW_STREAM"}, "format"),
        ({"statement": "SELECT 1", "warehouse_id": "x", "wait_timeout": "3s"}, "must be 0s, or 5s to 50s"),
        ({"statement": "SELECT 1", "warehouse_id": "x", "wait_timeout": "10"}, "wait_timeout"),
        ({"statement": "SELECT 1", "warehouse_id": "x", "on_wait_timeout": "WAIT"}, "on_wait_timeout"),
        ({"statement": "SELECT 1", "warehouse_id": "x", "row_limit": 0}, "row_limit"),
        ({"statement": "SELECT 1", "warehouse_id": "x", "byte_limit": 99_999_999_999}, "byte_limit"),
        ({"statement": "SELECT 1", "warehouse_id": "x", "parameters": [{"name": "a", "kind": "x"}]}, "kind"),
        (
            {"statement": "SELECT 1", "warehouse_id": "x", "parameters": [{"name": "a", "type": "INT", "value": "b"}]},
            "'a' = 'b' is no INT",
        ),
        (
            {
                "statement": "SELECT 1",
                "warehouse_id": "x",
                "parameters": [{"name": "a", "type": "INT", "value": "3000000000"}],
            },
            "is no INT",
        ),
        *(
            (
                {
                    "statement": "SELECT 1",
                    "warehouse_id": "x",
                    "parameters": [{"name": "a", "type": kind, "value": value}],
                },
                told,
            )
            for kind, value, told in (
                ("INT", "1_000", "is no INT"),
                ("DOUBLE", "1_0", "is no DOUBLE"),
                ("DECIMAL(5,2)", "1.555", "is no DECIMAL(5,2)"),
                ("DECIMAL(5,2)", "1000", "is no DECIMAL(5,2)"),
                ("DECIMAL", "NaN", "is no DECIMAL"),
                ("DECIMAL(40,1)", "1", "p from 1 to 38"),
                ("INT(3)", "1", "has the type 'INT(3)'"),
            )
        ),
        ({"statement": "SELECT 1", "warehouse_id": "x", "parameters": [{"name": "a", "type": "BLOB"}]}, "there are"),
        ({"statement": "SELECT 1", "warehouse_id": "x", "parameters": [{"name": "a"}, {"name": "a"}]}, "twice"),
    ],
)
def test_a_wrong_request_is_a_400_that_names_the_field(
    lake: Lake, address: str, body: dict[str, Any], told: str
) -> None:
    answer = post(address, lake.admin_token, **body)
    assert answer.status_code == 400 and told in answer.json()["message"], answer.text


def test_typed_parameters(statements: api.StatementExecutionAPI) -> None:
    given = {
        "STRING": "x",
        "BOOLEAN": "TRUE",
        "BIGINT": "-3",
        "DOUBLE": "1e3",
        "DECIMAL(10,2)": "1.5",
        "DECIMAL(38,0)": "9" * 38,
        "DATE": "2026-01-02",
        "TIMESTAMP": "2026-01-02T03:04:05+01:00",
        "TIMESTAMP_NTZ": "2026-01-02T03:04:05",
        "VOID": None,
    }
    names = [f"p{number}" for number in range(len(given))]
    answer = statements.execute_statement(
        "SELECT " + ", ".join(f":{name} AS {name}" for name in names),
        "any",
        parameters=[
            api.StatementParameterListItem(name=name, type=kind, value=value)
            for name, (kind, value) in zip(names, given.items(), strict=True)
        ],
    )
    assert answer.result is not None and answer.result.data_array == [
        [
            "x",
            "true",
            "-3",
            "1000.0",
            "1.50",
            "9" * 38,
            "2026-01-02",
            "2026-01-02T02:04:05.000Z",
            "2026-01-02T03:04:05.000",
            None,
        ]
    ]


def test_without_a_token_or_a_json_body_nothing_runs(
    lake: Lake, address: str, statements: api.StatementExecutionAPI
) -> None:
    assert httpx.post(f"{address}/api/2.0/sql/statements", json={}).status_code == 401
    headers = {"authorization": f"Bearer {lake.admin_token}"}
    assert httpx.post(f"{address}/api/2.0/sql/statements", content=b"{", headers=headers).status_code == 400
    assert httpx.post(f"{address}/api/2.0/sql/statements", json=[1], headers=headers).status_code == 400
    with pytest.raises(NotFound):
        statements.get_statement("stm_00000000000000000000000000")
    with pytest.raises(BadRequest):
        statements.execute_statement("", "any")
