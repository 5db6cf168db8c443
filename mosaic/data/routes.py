"""SQL over HTTP, in the shape of Databricks' SQL Statement Execution API 2.0.

As there: what is wrong with the request is a 400; what is wrong with the statement is a 200 whose `status` is FAILED
and says why. Results are INLINE and JSON_ARRAY, in one chunk.
"""

import asyncio
import re
import time
from typing import Any, Literal

from pydantic import Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mosaic.data.sql import Sql
from mosaic.data.sql_statements import Running, Statements
from mosaic.data.sql_types import parameter, strings
from mosaic.errors import BadRequest, MosaicError, NotFound, UnsupportedField
from mosaic.protocol import Wire
from mosaic.runtime.asgi import read_json
from mosaic.settings import explain

BASE = "/2.0/sql/statements"
WRITING_WAREHOUSE = "read-write"
"""The warehouse id with which INSERT, DELETE and CREATE TABLE AS are taken; with any other, statements read."""

_CANCEL_SECONDS = 1
_MAX_BODY_BYTES = 1024 * 1024
_MAX_BYTES = 25 * 1024 * 1024
_STATUS_CODES = {400: "BAD_REQUEST", 403: "BAD_REQUEST", 404: "NOT_FOUND", 409: "ALREADY_EXISTS", 413: "BAD_REQUEST"}
_STATUS_CODES |= {429: "RESOURCE_EXHAUSTED", 503: "TEMPORARILY_UNAVAILABLE"}


class Parameter(Wire):
    name: str = Field(min_length=1)
    type: str | None = None
    value: str | None = None


class ExecuteStatement(Wire):
    """The part of Databricks' request that is honoured; any other field is a 400 that names it."""

    statement: str = Field(min_length=1)
    warehouse_id: str
    catalog: str | None = None
    schema_: str | None = Field(default=None, alias="schema")
    parameters: list[Parameter] = Field(default_factory=list, max_length=1000)
    row_limit: int | None = Field(default=None, ge=1)
    byte_limit: int | None = Field(default=None, ge=1, le=_MAX_BYTES)
    wait_timeout: str = "10s"
    on_wait_timeout: Literal["CONTINUE", "CANCEL"] = "CONTINUE"
    disposition: Literal["INLINE"] = "INLINE"
    format: Literal["JSON_ARRAY"] = "JSON_ARRAY"

    @property
    def wait_seconds(self) -> int:
        """0, or 5 to 50; raises BadRequest."""
        match = re.fullmatch(r"([0-9]{1,3})s", self.wait_timeout)
        if match is None or not (match[1] == "0" or 5 <= int(match[1]) <= 50):
            raise BadRequest(f"wait_timeout = {self.wait_timeout!r} must be 0s, or 5s to 50s", param="wait_timeout")
        return int(match[1])


def sql_routes(sql: Sql) -> list[Route]:
    """The routes, for an application with the prefix /api that has put a Principal into `request.state.principal`."""
    statements = Statements(sql)

    async def execute(http: Request) -> Response:
        asked = _parse(await read_json(http.scope, http.receive, _MAX_BODY_BYTES))
        wait_seconds = asked.wait_seconds
        how: dict[str, Any] = {
            "parameters": _parameters(asked.parameters),
            "catalog": asked.catalog,
            "schema": asked.schema_,
            "row_limit": asked.row_limit,
            "byte_limit": asked.byte_limit,
            "writable": asked.warehouse_id == WRITING_WAREHOUSE,
        }
        running = statements.start(asked.statement, http.state.principal, **how)
        ended = await _ended(running, wait_seconds)
        if not ended and wait_seconds and asked.on_wait_timeout == "CANCEL":
            running.cancelled.set()
            await _ended(running, _CANCEL_SECONDS)
        return JSONResponse(await asyncio.to_thread(_response, running))

    async def get(http: Request) -> Response:
        running = statements.get(http.path_params["statement_id"], http.state.principal)
        return JSONResponse(await asyncio.to_thread(_response, running))

    async def chunk(http: Request) -> Response:
        running = statements.get(http.path_params["statement_id"], http.state.principal)
        number = http.path_params["chunk"]
        if running.result is None or number != "0":
            raise NotFound(f"statement {running.statement_id!r} has no chunk {number!r}; a result is one chunk, 0")
        return JSONResponse((await asyncio.to_thread(_response, running))["result"])

    async def cancel(http: Request) -> Response:
        statements.cancel(http.path_params["statement_id"], http.state.principal)
        return JSONResponse({})

    return [
        Route(BASE, execute, methods=["POST"]),
        Route(f"{BASE}/{{statement_id}}", get, methods=["GET"]),
        Route(f"{BASE}/{{statement_id}}/result/chunks/{{chunk}}", chunk, methods=["GET"]),
        Route(f"{BASE}/{{statement_id}}/cancel", cancel, methods=["POST"]),
    ]


async def _ended(running: Running, seconds: float) -> bool:
    """Whether a statement ends within so many seconds; waits without a thread, of which a process has few."""
    deadline, pause = time.monotonic() + seconds, 0.002
    while not running.done.is_set() and time.monotonic() < deadline:
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    return running.done.is_set()


def _parse(body: Any) -> ExecuteStatement:
    if not isinstance(body, dict):
        raise BadRequest(f"the body must be a JSON object, not {type(body).__name__}")
    try:
        return ExecuteStatement.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        kind = UnsupportedField if first["type"] == "extra_forbidden" else BadRequest
        field = ".".join(str(part) for part in first["loc"]) or None
        raise kind(explain(error, ExecuteStatement), param=field) from None


def _parameters(given: list[Parameter]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for one in given:
        if one.name in values:
            raise BadRequest(f"parameter {one.name!r} is given twice", param="parameters")
        values[one.name] = parameter(one.name, one.type, one.value)
    return values


def _response(running: Running) -> dict[str, Any]:
    answer: dict[str, Any] = {"statement_id": running.statement_id, "status": {"state": running.state}}
    if running.error is not None and running.state == "FAILED":
        answer["status"]["error"] = _error(running.error)
    result = running.result
    if result is None:
        return answer
    described = [column.model_dump(exclude_none=True) for column in result.columns]
    count = result.rows.num_rows
    piece = {"chunk_index": 0, "row_offset": 0, "row_count": count}
    answer["manifest"] = {
        "format": "JSON_ARRAY",
        "schema": {"column_count": len(described), "columns": described},
        "total_chunk_count": 1,
        "total_row_count": count,
        "truncated": result.truncated,
        "chunks": [piece],
    }
    answer["result"] = {**piece, "data_array": strings(result.rows)}
    return answer


def _error(error: MosaicError) -> dict[str, str]:
    code = "DEADLINE_EXCEEDED" if error.code == "timeout" else _STATUS_CODES.get(error.status, "INTERNAL_ERROR")
    return {"error_code": code, "message": error.message}
