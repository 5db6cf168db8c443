"""Control's HTTP surface: the platform's status, what the catalog names, index queries, the thread behind an answer,
the catalog in Unity Catalog's protocol, and MLflow's."""

import asyncio
import functools
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route, Router
from starlette.types import ASGIApp

from mosaic.catalog.routes import catalog_routes
from mosaic.catalog.unity import unity_routes
from mosaic.data.routes import sql_routes
from mosaic.data.run_routes import run_routes
from mosaic.errors import NotFound
from mosaic.gateway.money import Money
from mosaic.gateway.money_routes import MoneyRoutes
from mosaic.gateway.routes import parse
from mosaic.monitoring.payloads import make_payload_table
from mosaic.monitoring.routes import thread_routes
from mosaic.platform.parts import Parts
from mosaic.platform.status import platform_status
from mosaic.protocol import Principal, Wire
from mosaic.runtime import Authenticate, ShapeErrors
from mosaic.runtime.asgi import read_json
from mosaic.serving.permissions import EndpointPermissionRoutes
from mosaic.serving.policies import Policies
from mosaic.serving.policy_routes import PolicyRoutes
from mosaic.serving.routes import ServingRoutes
from mosaic.serving.service import Serving


class IndexQuery(Wire):
    """The part of Databricks' vector-search query that is honoured."""

    query_text: str = Field(min_length=1)
    num_results: int = Field(default=10, ge=1, le=1000)


def control_app(parts: Parts, mlflow: ASGIApp) -> ASGIApp:
    """Control as one ASGI application, for the route prefix /api; `mlflow` is the door to the tracking server."""
    router = Router(routes=control_routes(parts, mlflow), redirect_slashes=False)
    return ShapeErrors(Authenticate(router, parts.catalog.check_token, deny=parts.catalog.deny_token))


def control_routes(parts: Parts, mlflow: ASGIApp) -> list[BaseRoute]:
    """Every route; `tests/platform/test_every_route_is_checked.py` asks each as somebody who may nothing."""
    catalog = parts.catalog

    async def status(http: Request) -> Response:
        may = functools.partial(may_know, http.state.principal)
        return JSONResponse([part.model_dump() for part in await asyncio.to_thread(platform_status, parts, may)])

    def may_know(principal: Principal, kind: str, name: str) -> bool:
        try:
            return catalog.grants.is_allowed(principal, "BROWSE", kind, name)
        except NotFound:  # dropped since the list was read
            return False

    def listing(read: Callable[[], Sequence[Any]], kind: str, key: str) -> Callable[[Request], Any]:
        """Those that the caller may know of."""

        def known(principal: Principal) -> list[Any]:
            return [record for record in read() if may_know(principal, kind, record.name)]

        async def answer(http: Request) -> Response:
            records = await asyncio.to_thread(known, http.state.principal)
            return JSONResponse({key: [record.model_dump(mode="json") for record in records]})

        return answer

    async def query_index(http: Request) -> Response:
        asked = parse(IndexQuery, await read_json(http.scope, http.receive, 1024 * 1024))
        name = http.path_params["name"]
        await asyncio.to_thread(catalog.grants.check, http.state.principal, "SELECT", "index", name)
        found = await parts.indexes.query_async(name, asked.query_text, asked.num_results)
        return JSONResponse(found.model_dump(mode="json"))

    make_table = functools.partial(make_payload_table, parts.tables)
    serving = functools.partial(Serving, catalog, parts.engines, make_table=make_table)
    return [
        Route("/2.0/mosaic/status", status),
        Route("/2.0/mosaic/tables", listing(catalog.list_tables, "table", "tables")),
        Route("/2.0/mosaic/models", listing(catalog.list_models, "model", "models")),
        Route("/2.0/mosaic/indexes", listing(catalog.list_indexes, "index", "indexes")),
        Route("/2.0/mosaic/endpoints", listing(catalog.endpoints.list, "endpoint", "endpoints")),
        *thread_routes(parts.tables, catalog),
        Route("/2.0/vector-search/indexes/{name}/query", query_index, methods=["POST"]),
        *unity_routes(catalog, parts.storage),
        *catalog_routes(catalog),
        *ServingRoutes(serving).routes(),
        *EndpointPermissionRoutes(catalog).routes(),
        *PolicyRoutes(functools.partial(Policies, catalog)).routes(),
        *MoneyRoutes(functools.partial(Money, catalog, parts.tables)).routes(),
        *sql_routes(parts.sql),
        *run_routes(parts.tables),
        *(Mount(prefix, app=mlflow) for prefix in ("/2.0/mlflow", "/3.0/mlflow", "/2.0/mlflow-artifacts")),
    ]
