"""The thread both ways over HTTP: where an answer came from, and what depends on a table; and the arms of an endpoint
beside each other."""

import asyncio
import functools
from datetime import datetime

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mosaic.catalog import Catalog
from mosaic.catalog.lineage import LARGEST_VERSION
from mosaic.data import Tables
from mosaic.monitoring.compare import compare
from mosaic.monitoring.impact import ANSWERS_NAMED, MOST_ANSWERS_NAMED, impact
from mosaic.monitoring.thread import why
from mosaic.settings import Settings


class ImpactQuery(Settings):
    """The parameters of an impact; any other is a 400 that names it."""

    where: str | None = None
    version: int | None = Field(default=None, ge=0, le=LARGEST_VERSION)
    limit: int = Field(default=ANSWERS_NAMED, ge=0, le=MOST_ANSWERS_NAMED)


class CompareQuery(Settings):
    """The parameters of a comparison of arms."""

    since: datetime | None = None
    arms: str = ""
    """Names with commas between them, the baseline first."""

    @property
    def names(self) -> list[str]:
        return [name.strip() for name in self.arms.split(",") if name.strip()]


def thread_routes(tables: Tables, catalog: Catalog) -> list[Route]:
    """Routes below /api; each checks the caller itself (see `why`, `impact` and `compare`)."""

    async def request_why(http: Request) -> Response:
        ask = functools.partial(why, tables, catalog, http.path_params["request_id"], principal=http.state.principal)
        return JSONResponse((await asyncio.to_thread(ask)).model_dump(mode="json"))

    async def table_impact(http: Request) -> Response:
        asked = ImpactQuery.parse(dict(http.query_params), source="the impact's parameters")
        ask = functools.partial(impact, tables, catalog, http.path_params["name"], principal=http.state.principal)
        found = await asyncio.to_thread(ask, where=asked.where, version=asked.version, limit=asked.limit)
        return JSONResponse(found.model_dump(mode="json"))

    async def compared(http: Request) -> Response:
        asked = CompareQuery.parse(dict(http.query_params), source="the comparison's parameters")
        ask = functools.partial(compare, tables, catalog, http.path_params["name"], principal=http.state.principal)
        found = await asyncio.to_thread(ask, since=asked.since, arms=asked.names)
        return JSONResponse(found.model_dump(mode="json"))

    return [
        Route("/2.0/serving-endpoints/{name}/compare", compared),
        Route("/2.0/mosaic/requests/{request_id}/why", request_why),
        Route("/2.0/mosaic/tables/{name}/impact", table_impact),
    ]
