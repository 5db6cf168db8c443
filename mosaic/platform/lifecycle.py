"""How a platform starts, is joined, and stops. Start reading at `up`.

up:    hold the home -> the ports -> Ray -> what fits -> the catalog and its first token -> Serve with HAProxy
       -> MLflow -> control, gateway, gateway-internal -> the endpoints and indexes that the catalog names
init:  the same platform for a driver script: joins the one that runs, starts one where none does
down:  the applications -> what is still in the logs -> Ray and every process under it
"""

import functools
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

import mosaic
from mosaic.catalog.names import INTERNAL
from mosaic.errors import Conflict, MosaicError, Unavailable
from mosaic.gateway.money import Money
from mosaic.gateway.quota_shard import CPUS as QUOTA_CPUS
from mosaic.ids import new_id
from mosaic.monitoring import INFERENCE_TABLE, SCHEMA
from mosaic.monitoring.compare import Comparison, compare
from mosaic.monitoring.feedback import FEEDBACK_SCHEMA, FEEDBACK_TABLE
from mosaic.monitoring.impact import ANSWERS_NAMED, Impact, impact
from mosaic.monitoring.payloads import make_payload_table
from mosaic.monitoring.shipper import shipper_name
from mosaic.monitoring.thread import Thread, why
from mosaic.platform import deployments
from mosaic.platform.parts import (
    GatewayEmbedder,
    Parts,
    PlatformSettings,
    build_audit_shipper,
    build_parts,
    build_shipper,
    embedder,
    internal_token,
    resolve_model,
)
from mosaic.platform.status import Part, platform_status
from mosaic.protocol import Principal
from mosaic.runtime import Cluster, connect, require_free_ports, start_head, stop_head
from mosaic.runtime.cluster import find_head
from mosaic.runtime.haproxy import serve_environment
from mosaic.runtime.home import already_running, hold, read_record, remove_record, write_record
from mosaic.serving.apps import require_fit
from mosaic.serving.endpoint import units_of
from mosaic.serving.policies import Policies
from mosaic.serving.register import Models
from mosaic.serving.serve_calls import applications
from mosaic.serving.service import Serving
from mosaic.storage.layout import check_format

if TYPE_CHECKING:
    from mosaic.serving.batch import BatchInference
    from mosaic.training import FineTuning

ADMIN = Principal(name="admin", is_admin=True)
CPUS = {
    "platform": 0.05,
    "control": 0.1,
    "gateway-internal": 0.1,
    "gateway replica": 0.1,
    "shipper": 0.05,
    "quota": QUOTA_CPUS,
}
"""Logical CPUs that the platform's own actors reserve; engines and indexes say theirs."""
CPUS_PER_EMBEDDER, CPUS_PER_INDEX, CPUS_FOR_DATA = 0.2, 0.1, 0.5


class Platform:
    """A running platform, as a driver script holds it. The rooms' objects are its attributes.

    They act for `principal`, within its grants. `catalog` and `storage` are as they are: whoever may run code in the
    cluster could reach them anyway (docs/security.md).
    """

    def __init__(self, parts: Parts, cluster: Cluster, principal: Principal = ADMIN) -> None:
        self._parts = parts
        self.cluster = cluster
        self.settings = parts.settings
        self.storage, self.catalog = parts.storage, parts.catalog
        self.principal = principal
        """Whoever the token of `init` belongs to; without one the caller is the cluster's own, and so the admin."""
        self.tables, self.indexes = parts.tables.acting(principal), parts.indexes.acting(principal)
        self.serving = Serving(
            self.catalog, parts.engines, principal, functools.partial(make_payload_table, parts.tables)
        )
        self.policies = Policies(self.catalog, principal)
        self.models = Models(self.catalog, self.storage, parts.models, principal)
        self.money = Money(self.catalog, parts.tables, principal)

    def acting(self, principal: Principal) -> "Platform":
        """The same platform for another principal."""
        return Platform(self._parts, self.cluster, principal)

    @property
    def base_url(self) -> str:
        """For OpenAI clients: `OpenAI(base_url=platform.base_url + "/v1", api_key=token)`."""
        return self.settings.base_url

    @property
    def mlflow_uri(self) -> str:
        """For MLflow's clients, with a token of the platform's in MLFLOW_TRACKING_TOKEN."""
        return self.settings.base_url

    def status(self) -> list[Part]:
        return platform_status(self._parts)

    def embedder(self, endpoint: str) -> GatewayEmbedder:
        """Texts to vectors by an embedding endpoint, as the indexes do it; raises PermissionDenied without EXECUTE."""
        self.catalog.grants.check(self.principal, "EXECUTE", "endpoint", endpoint, action="queryEndpoint")
        return embedder(self.settings, endpoint)

    def fine_tuning(self) -> "FineTuning":
        """What fine-tunes on this platform's tables and registers in its catalog."""
        from mosaic.training import FineTuning, Tracking  # brings torch, which a gateway's replica must not load

        return FineTuning(
            self.catalog,
            self.tables,
            self.storage,
            self._parts.models,
            work_folder=self.settings.home_folder / "training",
            tracking=Tracking(self.mlflow_uri, functools.partial(internal_token, self.settings)),
        )

    @property
    def batch(self) -> "BatchInference":
        """What runs models and endpoints over the rows of tables, on this cluster."""
        from mosaic.serving.batch import BatchInference  # brings Ray Data, which most drivers do without

        return BatchInference(
            self.catalog,
            self._parts.tables,
            self.storage,
            self.principal,
            engines=self.settings.engines,
            resolve=functools.partial(resolve_model, self.settings),
            base_url=self.base_url,
        )

    def why(self, request_id: str) -> Thread:
        """The thread from an answer back to its sources, as far as the principal may see it.

        Raises NotFound while its row is not shipped, PermissionDenied.
        """
        return why(self._parts.tables, self.catalog, request_id, principal=self.principal)

    def impact(
        self, table: str, *, where: str | None = None, version: int | None = None, limit: int = ANSWERS_NAMED
    ) -> Impact:
        """Every model version, index and answer that depends on a table, or on the rows for which `where` holds, as far
        as the principal may see them."""
        asked = functools.partial(impact, self._parts.tables, self.catalog, table, principal=self.principal)
        return asked(where=where, version=version, limit=limit)

    def compare(self, endpoint: str, *, since: datetime | None = None, arms: Sequence[str] = ()) -> Comparison:
        """An endpoint's arms beside each other, and which differences are no accident. Raises NotFound,
        PermissionDenied without MANAGE."""
        asked = functools.partial(compare, self._parts.tables, self.catalog, endpoint, principal=self.principal)
        return asked(since=since, arms=arms)

    def flush_ledger(self) -> int:
        """Ship what the gateways of this cluster have logged so far; returns the rows shipped by this call."""
        return sum(ray.get(actor.flush.remote(), timeout=120) for actor in _shippers())

    def flush_audit(self) -> int:
        """Bring the table system.access.audit up to this moment; returns the rows shipped by this call."""
        actor = deployments.find_platform_actor()
        assert actor is not None, "a Platform is one that runs"
        return int(ray.get(actor.flush_audit.remote(), timeout=120))

    def resume_audit(self) -> int:
        """After the catalog was restored from a backup: ship its audit trail from the last row on that is in
        system.access.audit too; that row's number."""
        return build_audit_shipper(self.settings).resume()


@dataclass(frozen=True)
class Started:
    """What `up` did."""

    platform: Platform
    first_token: str | None
    """The admin's token, at the first start only: it is not stored anywhere."""
    seconds: float


def up(settings: PlatformSettings, on_progress: Callable[[str], None] = lambda line: None) -> Started:
    """Start the platform, or raise a clear error with nothing left running. See the top of this file for the order."""
    started, home = time.monotonic(), settings.home_folder
    with hold(home, "up"):
        record = read_record(home)
        if record is not None and is_running(home, record):
            raise already_running(home, record)
        if record is not None:
            on_progress(f"the platform that ran from {home} ended without `mosaic down`; cleaning up after it")
            _clean_up(home, record)
        platform_id = new_id("plt")
        on_progress("root and catalog")
        parts = build_parts(settings)
        check_format(parts.storage, mosaic.__version__)
        require_free_ports(_ports(settings))
        environment = serve_environment(
            home,
            _run_folder(platform_id),
            metrics_port=settings.haproxy_metrics_port,
            stats_port=settings.haproxy_stats_port,
            fallback_port=settings.serve_fallback_port,
        )
        on_progress("ray")
        cluster = _cluster(settings, home, platform_id, {**environment, **_sockets(platform_id)})
        try:
            connect(cluster.address, environment)
            write_record(home, _record(settings, platform_id, cluster))
            mlflow_socket = _run_folder(platform_id) / "mlflow" / "socket"
            first_token = _start_parts(parts, environment, mlflow_socket, on_progress)
        except BaseException:
            _stop(settings, platform_id, cluster)
            remove_record(home)
            raise
    return Started(Platform(parts, cluster), first_token, time.monotonic() - started)


def _start_parts(
    parts: Parts, environment: dict[str, str], mlflow_socket: Path, on_progress: Callable[[str], None]
) -> str | None:
    settings = parts.settings
    require_fit(_needed(parts), ray.cluster_resources().get("CPU", 0.0), "in the cluster")
    if deployments.find_platform_actor() is not None:
        raise Conflict("another platform already runs in this Ray cluster; one cluster carries one platform")
    first_token = _first_token(parts)
    _renew_internal_token(parts)
    parts.catalog.ensure_schema("system.serving", owner="system")
    parts.catalog.ensure_schema("main.default")
    parts.catalog.ensure_schema("main.serving")
    if first_token is not None:
        _open_to_users(parts)
    if parts.catalog.find_table(INFERENCE_TABLE) is not None:
        parts.tables.grow(INFERENCE_TABLE, SCHEMA)  # made by a mosaic that kept less of a request
    parts.tables.create(
        INFERENCE_TABLE,
        SCHEMA,
        primary_key="request_id",
        owner="system",
        comment="A row for every request to the gateway.",
    )
    parts.tables.create(
        FEEDBACK_TABLE,
        FEEDBACK_SCHEMA,
        primary_key="feedback_id",
        owner="system",
        comment="What people say of answers, by the request's id.",
    )
    on_progress("serve with HAProxy")
    serve.start(
        proxy_location="EveryNode" if settings.ray.address else "HeadOnly",
        http_options=HTTPOptions(host=settings.host, port=settings.http_port, request_timeout_s=600),
        controller_options={"runtime_env": {"env_vars": environment}},
        logging_config=LoggingConfig(enable_access_log=False),
    )
    on_progress("mlflow, control and gateway")
    platform_actor = deployments.start_platform_actor(settings, mlflow_socket)
    serve.run_many(_applications(settings, environment, mlflow_socket), wait_for_applications_running=True)
    deployments.wait_for_platform_actor(platform_actor)
    _wait_for_http(f"{settings.base_url}/v1/models", 60)
    on_progress("endpoints and indexes of the catalog")
    for index in parts.catalog.list_indexes():
        parts.indexes.start(index.name)
    return first_token


def _applications(
    settings: PlatformSettings, environment: dict[str, str], mlflow_socket: Path
) -> list[serve.RunTarget]:
    def target(name: str, prefix: str, deployment: Any, arguments: tuple[Any, ...], replicas: int) -> serve.RunTarget:
        # A cluster that others started lacks Serve's switches, which a replica that faces HTTP needs.
        options = {"num_cpus": CPUS["control"], "runtime_env": {"env_vars": environment}}
        bound = serve.deployment(
            deployment,
            num_replicas=replicas,
            ray_actor_options=options,
            max_ongoing_requests=1000,
            graceful_shutdown_timeout_s=20,
        ).bind(settings, *arguments)
        return serve.RunTarget(target=bound, name=name, route_prefix=prefix)

    return [
        target("control", "/api", deployments.Control, (mlflow_socket,), 1),
        target("gateway", "/", deployments.Gateway, ("gateway",), settings.gateway_replicas),
        target("gateway-internal", "/internal", deployments.Gateway, ("internal",), 1),
    ]


def init(settings: PlatformSettings | None = None, *, token: str | None = None) -> Platform:
    """The platform for a driver script: the one in this job's cluster, else the one of this home, else a new one.

    With a token, what it gives acts within the grants of the token's principal. In a job (`ray job submit`) Ray says
    which cluster; a cluster without a platform gets one. Raises what `up` raises, and Unauthenticated.
    """
    joined = _init(settings)
    return joined if token is None else joined.acting(joined.catalog.check_token(token))


def _init(settings: PlatformSettings | None) -> Platform:
    asked = settings or PlatformSettings()
    cluster = find_head(asked.home_folder)
    address = asked.ray.address or _job_address() or (cluster.address if cluster else None)
    if address is None and not ray.is_initialized():
        return up(asked).platform
    connect(address or "auto", {})
    if deployments.find_platform_actor() is None:
        return up(
            asked.model_copy(update={"ray": asked.ray.model_copy(update={"address": address or "auto"})})
        ).platform
    running = deployments.running_settings()
    own = cluster is not None and cluster.address == address
    joined = cluster if own else Cluster(address=address or "auto", dashboard=None, embedded=False)
    assert joined is not None
    return Platform(build_parts(running), joined)


def join(home: Path) -> Platform:
    """The platform that runs from `home`; raises Unavailable saying what to do where none does."""
    record = read_record(home)
    if record is None or not is_running(home, record):
        died = " (it ended without `mosaic down`)" if record else ""
        raise Unavailable(f"no platform runs from {home}{died}; `mosaic up` starts one", code="platform_not_running")
    settings = PlatformSettings.model_validate(record["settings"])
    connect(record["address"], {})
    cluster = Cluster(
        address=record["address"], dashboard=record["dashboard"], embedded=record["embedded"], pid=record["pid"]
    )
    return Platform(build_parts(settings), cluster)


def down(home: Path, on_progress: Callable[[str], None] = lambda line: None) -> bool:
    """Stop the platform of `home`: requests on their way end, logs are shipped, no process stays. False if none ran."""
    with hold(home, "down"):
        record = read_record(home)
        if record is None:
            return False
        settings = PlatformSettings.model_validate(record["settings"])
        if is_running(home, record):
            on_progress("requests on their way")
            connect(record["address"], {})
            cluster = Cluster(address=record["address"], dashboard=None, embedded=record["embedded"], pid=record["pid"])
            _stop_applications(settings)
            on_progress("ray and its processes")
            _stop(settings, record["platform_id"], cluster)
        else:
            _clean_up(home, record)
        on_progress("what is left in the logs")
        build_shipper(settings).ship_once()  # after a crash too: no row waits for the next start
        remove_record(home)
        build_audit_shipper(settings).ship_once()
    return True


def is_running(home: Path, record: dict[str, Any]) -> bool:
    """Whether the platform of that record still runs."""
    if record["embedded"]:
        return find_head(home) is not None
    try:
        connect(record["address"], {})
    except MosaicError:
        return False
    return deployments.find_platform_actor() is not None


def _needed(parts: Parts) -> dict[str, float]:
    settings = parts.settings
    needed = {name: cpus for name, cpus in CPUS.items() if name != "gateway replica"}
    needed["gateway"] = CPUS["gateway replica"] * settings.gateway_replicas
    # Not those of pending configurations: what does not fit then fails by itself, and nothing else with it.
    live = [one for one in parts.catalog.endpoints.list() if one.config_version]
    units = {unit for one in live for unit in units_of(parts.catalog, one.config, one.pinned)}
    needed |= {unit.app_name: parts.engines.cpus_of(unit) for unit in sorted(units)}
    needed |= {f"index {index.name}": CPUS_PER_INDEX for index in parts.catalog.list_indexes()}
    return {**needed, "kept for Ray Data": CPUS_FOR_DATA}


def _cluster(settings: PlatformSettings, home: Path, platform_id: str, environment: dict[str, str]) -> Cluster:
    if settings.ray.address is not None:
        return Cluster(address=settings.ray.address, dashboard=None, embedded=False)
    return start_head(settings.ray, home, platform_id, environment)


def _ports(settings: PlatformSettings) -> dict[str, int]:
    ports = {
        "http_port": settings.http_port,
        "haproxy_metrics_port": settings.haproxy_metrics_port,
        "haproxy_stats_port": settings.haproxy_stats_port,
        "serve_fallback_port": settings.serve_fallback_port,
    }
    return ports if settings.ray.address else {**ports, "ray.dashboard_port": settings.ray.dashboard_port}


def _record(settings: PlatformSettings, platform_id: str, cluster: Cluster) -> dict[str, Any]:
    return {
        "platform_id": platform_id,
        "pid": cluster.pid,
        "address": cluster.address,
        "dashboard": cluster.dashboard,
        "embedded": cluster.embedded,
        "base_url": settings.base_url,
        "settings": settings.model_dump(mode="json"),
    }


def _first_token(parts: Parts) -> str | None:
    if any(token.is_admin for token in parts.catalog.list_tokens()):
        return None
    return parts.catalog.create_token("admin", kind="user", is_admin=True, comment="made by the first `mosaic up`")[1]


def _open_to_users(parts: Parts) -> None:
    """At the first start every user may ask what is served in main; from then on it is the administrators' to say."""
    grants = parts.catalog.grants
    grants.grant("catalog", "main", "users", ["USE CATALOG"], by=ADMIN)
    grants.grant("schema", "main.serving", "users", ["USE SCHEMA", "EXECUTE"], by=ADMIN)


def _renew_internal_token(parts: Parts) -> None:
    for token in parts.catalog.list_tokens():
        if token.principal == INTERNAL and token.revoked_at is None:
            parts.catalog.revoke_token(token.id)
    _, secret = parts.catalog.create_token(INTERNAL, kind="service", is_admin=False, comment="the platform's own calls")
    file = parts.settings.home_folder / "internal.token"
    file.touch(mode=0o600)
    file.write_text(secret)


def _wait_for_http(url: str, timeout_seconds: float) -> None:
    """Until HAProxy has its routes: a 401 from the gateway is an answer."""
    deadline, answer = time.monotonic() + timeout_seconds, "no answer"
    while time.monotonic() < deadline:
        try:
            response = httpx.get(url, timeout=5)
            if response.status_code == 401:
                return
            answer = f"{response.status_code} {response.text[:100]}"
        except httpx.TransportError as error:
            answer = str(error)
        time.sleep(0.1)
    raise Unavailable(f"{url} did not answer as the gateway within {timeout_seconds:g} s: {answer}")


def _shippers() -> list[Any]:
    names = {
        entry["name"]
        for entry in ray.util.list_named_actors(all_namespaces=True)
        if entry["namespace"] == deployments.NAMESPACE
    }
    wanted = [shipper_name(node["NodeID"]) for node in ray.nodes()]
    return [ray.get_actor(name, namespace=deployments.NAMESPACE) for name in wanted if name in names]


def _stop_applications(settings: PlatformSettings) -> None:
    """Let requests end, then ship every log that the gateways leave."""
    actor = deployments.find_platform_actor()
    if actor is not None:
        with suppress(ray.exceptions.RayError):  # one that does not answer starts nothing either
            ray.get(actor.stop_rollouts.remote(), timeout=60)
    for name in applications():
        serve.delete(name, _blocking=name in ("gateway", "gateway-internal"))
    for actor in _shippers():
        ray.get(actor.flush.remote(), timeout=120)


def _stop(settings: PlatformSettings, platform_id: str, cluster: Cluster) -> None:
    if cluster.embedded:
        ray.shutdown()
        stop_head(settings.home_folder, platform_id)
    else:
        serve.shutdown()
        actor = deployments.find_platform_actor()
        if actor is not None:
            ray.get(actor.stop.remote(), timeout=60)
        for entry in ray.util.list_named_actors(all_namespaces=True):
            if entry["namespace"] == deployments.NAMESPACE:
                ray.kill(ray.get_actor(entry["name"], namespace=deployments.NAMESPACE))
    shutil.rmtree(_run_folder(platform_id), ignore_errors=True)


def _clean_up(home: Path, record: dict[str, Any]) -> None:
    """After a crash: what is still marked as that platform's ends."""
    if record["embedded"]:
        stop_head(home, record["platform_id"], patience_seconds=5)
    shutil.rmtree(_run_folder(record["platform_id"]), ignore_errors=True)
    remove_record(home)


def _sockets(platform_id: str) -> dict[str, str]:
    """vLLM's sockets go where `down` deletes them; by itself it leaves them in /tmp."""
    return {"VLLM_RPC_BASE_PATH": str(_run_folder(platform_id))}


def _run_folder(platform_id: str) -> Path:
    return Path(f"/tmp/mosaic-run-{platform_id[-10:]}")


def _job_address() -> str | None:
    # Ray sets this in a submitted job's driver, and documents it as the way to say which cluster a driver joins.
    return os.environ.get("RAY_ADDRESS")
