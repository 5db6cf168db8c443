"""How each part of the platform is: healthy, starting, or failed and why."""

from collections.abc import Callable
from typing import Literal

import ray

from mosaic.catalog.records import Endpoint
from mosaic.errors import MosaicError, NotFound
from mosaic.gateway.quota_shard import shard_name
from mosaic.monitoring.shipper import shipper_name
from mosaic.platform.parts import Parts
from mosaic.protocol import Wire
from mosaic.serving.endpoint import EndpointSettings, ServedEntity, unit_of
from mosaic.serving.serve_calls import applications

State = Literal["healthy", "starting", "failed", "stopped"]
_SERVE_STATES: dict[str, State] = {
    "RUNNING": "healthy",
    "DEPLOYING": "starting",
    "NOT_STARTED": "starting",
    "DELETING": "stopped",
}


class Part(Wire):
    """One part's state."""

    part: str
    state: State
    detail: str = ""
    """Why, when it is not healthy; what it is, when it is."""


MayKnow = Callable[[str, str], bool]
"""(kind, name) -> whether who asks may know of that index or endpoint."""


def platform_status(parts: Parts, may_know: MayKnow = lambda kind, name: True) -> list[Part]:
    """Every part, in the order in which they start; this process must have joined the cluster."""
    return [
        _ray(),
        _catalog(parts),
        _mlflow(),
        *_applications(),
        _quota(),
        *_shippers(),
        _audit(),
        *_indexes(parts, may_know),
        *_endpoints(parts, may_know),
    ]


def _ray() -> Part:
    total, free = ray.cluster_resources(), ray.available_resources()
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    return Part(
        part="ray",
        state="healthy",
        detail=f"{nodes} node(s), {free.get('CPU', 0):.2f} of {total.get('CPU', 0):g} logical CPUs free",
    )


def _catalog(parts: Parts) -> Part:
    try:
        tables, models = len(parts.catalog.list_tables()), len(parts.catalog.list_models())
    except MosaicError as error:
        return Part(part="catalog", state="failed", detail=error.message)
    return Part(part="catalog", state="healthy", detail=f"{tables} tables, {models} models")


def _mlflow() -> Part:
    try:
        actor = ray.get_actor("platform", namespace="mosaic")
        healthy = ray.get(actor.mlflow_is_healthy.remote(), timeout=10)
    except (ValueError, ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
        return Part(part="mlflow", state="failed", detail=_first_line(error))
    if healthy:
        return Part(part="mlflow", state="healthy")
    return Part(part="mlflow", state="starting", detail="it does not answer; it is started again when it has died")


def _applications() -> list[Part]:
    parts = []
    for name, application in sorted(applications().items()):
        state = _SERVE_STATES.get(application.status, "failed")
        reasons = [application.message, *(d.message for d in application.deployments.values() if d.message)]
        detail = (
            ""
            if state == "healthy"
            else next((_first_line(reason) for reason in reasons if reason), application.status)
        )
        parts.append(Part(part=name, state=state, detail=detail))
    return parts


def _shippers() -> list[Part]:
    parts = []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        try:
            actor = ray.get_actor(shipper_name(node["NodeID"]), namespace="mosaic")
            status = ray.get(actor.status.remote(), timeout=10)
        except ValueError:
            continue  # no gateway on that node
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
            parts.append(Part(part="shipper", state="failed", detail=_first_line(error)))
            continue
        failed = status["last_error"]
        left_out = "".join(f", {rows} left out of {table}" for table, rows in status["left_out"].items())
        parts.append(
            Part(
                part="shipper",
                state="failed" if failed else "healthy",
                detail=failed or f"{status['shipped_rows']} rows shipped{left_out}",
            )
        )
    return parts


def _quota() -> Part:
    """What holds requests to the limits of their endpoints."""
    try:
        shard = ray.get_actor(shard_name(0), namespace="mosaic")
        detail = f"{ray.get(shard.buckets.remote(), timeout=10)} limits in use"
    except (ValueError, ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
        return Part(part="quota", state="failed", detail=_first_line(error))
    return Part(part="quota", state="healthy", detail=detail)


def _audit() -> Part:
    """The audit trail's way into the lakehouse."""
    try:
        actor = ray.get_actor("platform", namespace="mosaic")
        status = ray.get(actor.audit_status.remote(), timeout=10)
    except (ValueError, ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
        return Part(part="audit", state="failed", detail=_first_line(error))
    failed = status["last_error"]
    return Part(
        part="audit",
        state="failed" if failed else "healthy",
        detail=failed or f"{status['shipped_rows']} rows shipped",
    )


def _indexes(parts: Parts, may_know: MayKnow) -> list[Part]:
    found = []
    for record in parts.catalog.list_indexes():
        if not may_know("index", record.name):
            continue
        try:
            status = parts.indexes.status(record.name)
        except MosaicError as error:
            found.append(Part(part=f"index {record.name}", state="failed", detail=error.message))
            continue
        found.append(
            Part(
                part=f"index {record.name}",
                state="healthy" if status.version == status.table_version else "starting",
                detail=f"{status.num_rows} rows, exact at version {status.version} of {status.table_version}",
            )
        )
    return found


def _endpoints(parts: Parts, may_know: MayKnow) -> list[Part]:
    """An endpoint is as healthy as the engines behind it."""
    there = applications()
    found = []
    for record in parts.catalog.endpoints.list():
        if not may_know("endpoint", record.name):
            continue
        states: list[State] = []
        told: list[str] = []
        for entity in _entities(record):
            arm = f"{entity.name} {entity.traffic_percentage} %"
            if entity.external_model is not None:
                states.append("healthy")
                told.append(f"{arm} ({entity.external_model.provider})")
                continue
            try:
                app_name = unit_of(parts.catalog, entity, record.pinned).app_name
            except NotFound:
                states.append("failed")
                told.append(f"{arm} (its model {entity.model} is gone)")
                continue
            application = there.get(app_name)
            states.append(_SERVE_STATES.get(application.status, "failed") if application else "stopped")
            told.append(arm)
        if record.pending is not None:
            told.append(f"config {record.pending.version} is being rolled out")
            states.append("healthy" if states else "starting")
        elif record.failed is not None:
            told.append(f"config {record.failed.version} failed: {_first_line(record.failed.reason)}")
            states.append("healthy" if states else "failed")
        worst = next((state for state in ("failed", "stopped", "starting") if state in states), "healthy")
        found.append(Part(part=f"endpoint {record.served_name}", state=worst, detail=", ".join(told)))
    return found


def _entities(record: Endpoint) -> list[ServedEntity]:
    """Those of the live configuration."""
    if not record.config_version:
        return []
    return EndpointSettings.parse(record.config, source=f"endpoint {record.name}").served_entities


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
