"""The gateway in one process, without Ray: for tests that ask it over ASGI, ours and users' own.

All of it is the real thing but three: engines are the caller's (the echo if nothing is said), the quota's shard is
called and not an actor, and its log and the rows' stay in a folder that nobody ships.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from mosaic.catalog import Catalog
from mosaic.data.wal import Log
from mosaic.errors import Unprocessable
from mosaic.gateway.asking import Asking
from mosaic.gateway.chat import Retriever
from mosaic.gateway.endpoints import Endpoints, LiveEntity
from mosaic.gateway.feedback import Feedback
from mosaic.gateway.limits import Limits
from mosaic.gateway.quota_shard import Command, QuotaClient, Shard
from mosaic.gateway.routes import GatewayRoutes, gateway_app
from mosaic.monitoring import Ledger
from mosaic.protocol import Engine, Retrieved
from mosaic.serving.doubles import EchoEngine


async def _nothing(index: str, text: str, k: int, request_id: str) -> tuple[Retrieved, list[dict[str, Any]]]:
    raise Unprocessable("nothing is looked up here")


def gateway_in_process(
    catalog: Catalog,
    folder: Path,
    *,
    engine: Callable[[LiveEntity], Engine] | None = None,
    owner: str = "gateway",
    endpoints: Endpoints | None = None,
    shard: Shard | None = None,
    retrieve: Retriever = _nothing,
    feedback: Callable[[Ledger], Feedback] | None = None,
    on_row: Callable[[Mapping[str, Any]], None] = lambda row: None,
    max_body_bytes: int = 4 * 2**20,
) -> tuple[ASGIApp, Ledger]:
    """The application, and its ledger, which whoever is done with it closes.

    `engine` gives what answers for a served entity. `endpoints` see the catalog as it is at each request if they are
    left out. Gateways on one `shard` share their limits; each needs an `owner` of its own. `on_row` has each row as it
    is written.
    """
    endpoints = Endpoints(catalog, fresh_seconds=0) if endpoints is None else endpoints
    held, echo = shard or Shard(folder / "quota"), EchoEngine()

    async def apply(commands: Sequence[Command]) -> Sequence[Any]:
        return held.apply(commands)

    limits = Limits(QuotaClient([apply]), endpoints.groups_of)

    def closed(row: Mapping[str, Any]) -> None:
        limits.settle(row)
        on_row(row)

    ledger = Ledger(Log(folder / "spool", owner=owner), owner, closed)
    routes = GatewayRoutes(
        endpoints,
        limits,
        Asking(engine or (lambda entity: echo)),
        retrieve,
        max_body_bytes=max_body_bytes,
        feedback=None if feedback is None else feedback(ledger),
    )
    return gateway_app(routes, ledger, catalog), ledger
