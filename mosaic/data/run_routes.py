"""Runs over HTTP, as far as readers of tables need them: what is going to be read, at which version, is noted."""

import asyncio
from typing import Any

from pydantic import Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mosaic.catalog.lineage import LARGEST_VERSION
from mosaic.data.tables import Tables
from mosaic.errors import BadRequest, UnsupportedField
from mosaic.protocol import Wire
from mosaic.runtime.asgi import read_json
from mosaic.settings import explain

_MAX_BODY_BYTES = 256 * 1024


class RunInput(Wire):
    """A table that is going to be read; any other field is a 400 that names it."""

    table: str = Field(min_length=1)
    version: int | None = Field(default=None, ge=0, le=LARGEST_VERSION)
    """None for the newest now."""
    columns: list[str] | None = Field(default=None, max_length=10_000)
    """None for all."""
    predicate: str | None = None
    """SQL; None for all rows."""


def run_routes(tables: Tables) -> list[Route]:
    """The routes, for an application with the prefix /api that has put a Principal into `request.state.principal`."""

    async def add_input(http: Request) -> Response:
        asked = _parse(await read_json(http.scope, http.receive, _MAX_BODY_BYTES))
        acting = tables.acting(http.state.principal, http.path_params["run_id"])

        def note() -> dict[str, object]:
            record, delta = acting.open(asked.table, asked.version, columns=asked.columns, predicate=asked.predicate)
            return {"run_id": acting.run_id, "table": record.name, "version": delta.version()}

        return JSONResponse(await asyncio.to_thread(note))

    return [Route("/2.0/mosaic/runs/{run_id}/inputs", add_input, methods=["POST"])]


def _parse(body: Any) -> RunInput:
    if not isinstance(body, dict):
        raise BadRequest(f"the body must be a JSON object, not {type(body).__name__}")
    try:
        return RunInput.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        kind = UnsupportedField if first["type"] == "extra_forbidden" else BadRequest
        field = ".".join(str(part) for part in first["loc"]) or None
        raise kind(explain(error, RunInput), param=field) from None
