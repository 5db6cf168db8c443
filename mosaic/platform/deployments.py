"""What runs on Ray: the gateway's replicas, control's, and the actor that keeps the platform's own record and
MLflow."""

import functools
import gc
import logging
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import ray
from ray import serve
from starlette.types import ASGIApp

from mosaic.catalog.names import INTERNAL
from mosaic.data import Log
from mosaic.data.retention import purge
from mosaic.errors import NotFound, Unavailable
from mosaic.gateway import (
    Asking,
    Endpoints,
    Feedback,
    GatewayRoutes,
    Limits,
    LiveEntity,
    ProviderEngines,
    QuotaClient,
    ensure_shards,
    gateway_app,
)
from mosaic.ids import new_id
from mosaic.monitoring import Ledger
from mosaic.monitoring.feedback import requests_finder
from mosaic.monitoring.retention import purge_payloads
from mosaic.monitoring.shipper import Shipping, ensure_shipper
from mosaic.platform.control import control_app
from mosaic.platform.mlflow_proxy import mlflow_door
from mosaic.platform.parts import (
    PlatformSettings,
    asker,
    build_audit_shipper,
    build_parts,
    build_shipper,
    retentions,
    spent_so_far,
    spool,
)
from mosaic.protocol import Engine, Retrieved
from mosaic.serving import ServeEngine
from mosaic.serving.metrics import Meter
from mosaic.serving.rollout import Rollouts
from mosaic.training.tracking import MlflowServer

logger = logging.getLogger(__name__)

NAMESPACE = "mosaic"
PLATFORM_ACTOR = "platform"
_PURGE_EVERY_SECONDS = 3600
_MOST_ENGINES = 1000
"""That a gateway keeps ways to: every version and every setting is another one."""


@serve.ingress()
class Gateway:
    """One replica of the gateway."""

    def __init__(self, settings: PlatformSettings, role: str) -> None:
        _log_with_serve()
        parts = build_parts(settings)
        replica = f"{role}-{new_id('gw')[-8:]}"
        judge, internal = asker(settings), frozenset({INTERNAL})
        endpoints = Endpoints(parts.catalog, trusted=internal, ask_judge=judge, gpus_of=parts.engines.gpus_of)
        shards = ensure_shards(settings.home_folder / "quota", rebuild=functools.partial(spent_so_far, settings))
        limits = Limits(QuotaClient(shards), endpoints.groups_of)
        meter = Meter()

        def closed(row: Mapping[str, Any]) -> None:
            limits.settle(row)
            meter.record(row)

        self._ledger = Ledger(Log(spool(settings), owner=replica), replica, closed)
        self._shipper = ensure_shipper(functools.partial(build_shipper, settings))
        engines: dict[str, ServeEngine] = {}
        providers = ProviderEngines(allow_private=settings.allow_private_providers)

        def engine(entity: LiveEntity) -> Engine:
            if entity.external is not None and entity.access is not None:
                return providers.engine(entity.external, entity.access)
            app_name = entity.app_name
            found = engines.pop(app_name) if app_name in engines else ServeEngine(app_name)
            engines[app_name] = found
            if len(engines) > _MOST_ENGINES:
                del engines[next(iter(engines))]  # the one that was not asked for the longest time
            return found

        async def retrieve(index: str, text: str, k: int, request_id: str) -> tuple[Retrieved, list[dict[str, Any]]]:
            found = await parts.indexes.query_async(index, text, k, request_id=request_id)
            hits = found.hits
            return (
                Retrieved(index=found.index, version=found.version, ids=[hit.id for hit in hits]),
                [hit.payload for hit in hits],
            )

        limit_bytes = settings.max_body_bytes
        feedback = Feedback(requests_finder(spool(settings), parts.tables), parts.catalog, self._ledger)
        routes = GatewayRoutes(
            endpoints, limits, Asking(engine), retrieve, max_body_bytes=limit_bytes, feedback=feedback
        )
        self._app = gateway_app(routes, self._ledger, parts.catalog)
        # What imports have left behind stays: to look at it again would hold up streams for 0.1 s.
        gc.collect()
        gc.freeze()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._app

    def __del__(self) -> None:
        if hasattr(self, "_ledger"):
            self._ledger.close()


@serve.ingress()
class Control:
    """One replica of control: what is slow or changes things, apart from the loop that streams."""

    def __init__(self, settings: PlatformSettings, mlflow_socket: Path) -> None:
        _log_with_serve()
        parts = build_parts(settings)
        door = mlflow_door(settings, mlflow_socket, parts.catalog, trusted=frozenset({INTERNAL}))
        self._app = control_app(parts, door)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._app


class PlatformActor:
    """Knows the settings that the platform was started with, owns the MLflow server, carries the audit trail into the
    lakehouse, rolls out what endpoints are to be, and purges what was dropped long ago; detached, restarted by Ray."""

    def __init__(self, settings: PlatformSettings, mlflow_socket: Path) -> None:
        self._settings = settings
        own = settings.mlflow_url is None
        self._mlflow = MlflowServer(settings.home_folder / "mlflow", mlflow_socket) if own else None
        self._audit = Shipping(functools.partial(build_audit_shipper, settings))
        threading.Thread(target=_purge_now_and_then, args=(settings,), name="purge", daemon=True).start()
        parts = build_parts(settings)
        self._rollouts = Rollouts(parts.catalog, parts.engines)
        threading.Thread(target=self._rollouts.run, name="rollouts", daemon=True).start()

    def settings(self) -> PlatformSettings:
        return self._settings

    def mlflow_is_healthy(self) -> bool:
        if self._mlflow is not None:
            return self._mlflow.is_healthy()
        try:
            return httpx.get(f"{self._settings.mlflow_url}/health", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def flush_audit(self) -> int:
        return self._audit.flush()

    def stop_rollouts(self) -> None:
        """Before engines end for good: a missing one would be started again."""
        self._rollouts.stop()

    def audit_status(self) -> dict[str, Any]:
        return self._audit.status()

    def stop(self) -> None:
        if self._mlflow is not None:
            self._mlflow.stop()


def _purge_now_and_then(settings: PlatformSettings) -> None:
    """The data of what was dropped goes once its time to come back is over, and what endpoints have kept long enough;
    looked for every hour, and of these once a day, since they are counted in days."""
    parts, done_for = build_parts(settings), None
    while True:
        today = datetime.now(UTC).date()
        try:
            if today != done_for and purge_payloads(
                parts.tables, parts.storage, retentions(parts.catalog), today=today
            ):
                done_for = today
        except Exception:  # a boundary, as the next one
            logger.exception("purging what endpoints have kept failed")
        try:
            done = purge(parts.storage, parts.catalog, now=datetime.now(UTC), by=INTERNAL)
            for one in done.removed:
                logger.info("purged %s %s at %s", one.kind, one.name, one.location)
        except Exception:  # a boundary: storage or database may be away for a while, and the next hour tries again
            logger.exception("purging failed")
        time.sleep(_PURGE_EVERY_SECONDS)


def _log_with_serve() -> None:
    """What mosaic logs in a replica goes to the replica's log file, where the dashboard shows it."""
    for handler in logging.getLogger("ray.serve").handlers:
        logging.getLogger("mosaic").addHandler(handler)


def find_platform_actor() -> Any | None:
    """The platform's actor in the cluster that this process has joined, or None."""
    try:
        return ray.get_actor(PLATFORM_ACTOR, namespace=NAMESPACE)
    except ValueError:
        return None


def start_platform_actor(settings: PlatformSettings, mlflow_socket: Path) -> Any:
    """Start it; MLflow takes its time beside whatever starts next (see `wait_for_platform_actor`)."""
    options = ray.remote(PlatformActor).options(
        name=PLATFORM_ACTOR,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0.05,
        max_restarts=-1,
        max_concurrency=4,
    )
    return options.remote(settings, mlflow_socket)


def wait_for_platform_actor(actor: Any) -> None:
    """Wait until MLflow answers; raises Unavailable with the reason."""
    try:
        ray.get(actor.mlflow_is_healthy.remote(), timeout=120)
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
        raise Unavailable(f"the platform's actor did not start: {error}") from None


def running_settings() -> PlatformSettings:
    """The settings of the platform that runs in the joined cluster; raises NotFound."""
    actor = find_platform_actor()
    if actor is None:
        raise NotFound("no platform runs in this Ray cluster; `mosaic up` starts one", code="platform_not_found")
    settings: PlatformSettings = ray.get(actor.settings.remote(), timeout=60)
    return settings
