"""Serving endpoints over HTTP in Databricks' 2.0 shapes, as databricks-sdk's `serving_endpoints` asks for them.

An endpoint's `ai_gateway` is part of its configuration: to change it makes the next one. Beside Databricks' fields a
configuration may have `task` and `retrieval`, and a served entity `engine`, as in endpoint.yaml. The sizes of
Databricks' machines (`workload_size`, `workload_type`) are taken and mean nothing here: `engine` says what an engine
runs with.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from mosaic.catalog import names
from mosaic.catalog.records import Endpoint, EndpointConfig
from mosaic.catalog.unity.call import Call, route
from mosaic.catalog.unity.shapes import Answer, Asked, Nothing
from mosaic.catalog.unity.surface import milliseconds
from mosaic.errors import BadRequest
from mosaic.protocol import Principal
from mosaic.serving.ai_gateway import AiGateway
from mosaic.serving.before import Before
from mosaic.serving.endpoint import EndpointSettings
from mosaic.serving.rollout import AppState
from mosaic.serving.service import EndpointState, Serving

BASE = "/2.0/serving-endpoints"
_TASKS = {"chat": "llm/v1/chat", "complete": "llm/v1/completions", "embed": "llm/v1/embeddings"}
"""Our words for what an endpoint is asked, and Databricks'; either is taken."""


class AskedEntity(Asked):
    name: str | None = Field(default=None, max_length=255)
    entity_name: str | None = Field(default=None, max_length=1000)
    external_model: dict[str, Any] | None = None
    """In place of `entity_name`; its key is a catalog connection's, never said here."""
    entity_version: str | None = Field(default=None, max_length=20)
    engine: dict[str, Any] | None = None
    scale_to_zero_enabled: bool | None = None
    """True is the same as `scaling: {min_replicas: 0}` in `engine`; false keeps an engine of which an update says no
    more awake."""
    workload_size: str | None = None
    workload_type: str | None = None


class TrafficRoute(Asked):
    served_entity_name: str | None = None
    served_model_name: str | None = None
    """Databricks' older word for the same."""
    traffic_percentage: int


class TrafficConfig(Asked):
    routes: list[TrafficRoute] = Field(max_length=10)
    sticky: str | None = None
    """Ours: `random`, or `user` for a split in which each user keeps its served entity."""


class AskedConfig(Asked):
    name: str | None = None
    served_entities: list[AskedEntity] = Field(min_length=1, max_length=10)
    traffic_config: TrafficConfig | None = None
    task: str | None = None
    retrieval: dict[str, Any] | None = None
    """`{}` is none, which an update has to say."""


class TrackUsage(Asked):
    enabled: Literal[True]
    """Every request is in the usage tables; there is no switch."""


class AskedAiGateway(Asked):
    rate_limits: list[dict[str, Any]] | None = None
    guardrails: dict[str, Any] | None = None
    fallback_config: dict[str, Any] | None = None
    inference_table_config: dict[str, Any] | None = None
    images: dict[str, Any] | None = None
    """Ours: how many and how large the images of a chat may be."""
    cache: dict[str, Any] | None = None
    """Ours: whether answers are kept for who asks the same again."""
    usage_tracking_config: TrackUsage | None = None


class CreateEndpoint(Asked):
    name: str
    config: AskedConfig
    ai_gateway: AskedAiGateway | None = None


class AskedRateLimits(Asked):
    rate_limits: list[dict[str, Any]]


class EntityState(Answer):
    deployment: Literal["DEPLOYMENT_CREATING", "DEPLOYMENT_READY", "DEPLOYMENT_FAILED", "DEPLOYMENT_ABORTED"]
    deployment_state_message: str


class AnsweredEntity(Answer):
    name: str
    entity_name: str | None
    external_model: dict[str, Any] | None
    entity_version: str | None
    scale_to_zero_enabled: bool
    engine: dict[str, Any] | None
    state: EntityState


class AnsweredConfig(Answer):
    config_version: int
    served_entities: list[AnsweredEntity]
    traffic_config: TrafficConfig
    task: str
    retrieval: dict[str, Any] | None


class AnsweredAiGateway(Answer):
    rate_limits: list[dict[str, Any]]
    guardrails: dict[str, Any]
    fallback_config: dict[str, Any]
    inference_table_config: dict[str, Any]
    images: dict[str, Any]
    cache: dict[str, Any]
    usage_tracking_config: TrackUsage


class AnsweredRateLimits(Answer):
    rate_limits: list[dict[str, Any]]


class PendingConfig(AnsweredConfig):
    start_time: int


class State(Answer):
    ready: Literal["READY", "NOT_READY"]
    config_update: Literal["NOT_UPDATING", "IN_PROGRESS", "UPDATE_FAILED"]


class EndpointInfo(Answer):
    id: str
    name: str
    creator: str
    creation_timestamp: int
    last_updated_timestamp: int
    state: State
    state_message: str | None
    """Why it is not ready, or why the last update failed, for who may MANAGE it."""
    task: str | None
    """Databricks' word for it; none for a custom model."""
    config: AnsweredConfig | None
    pending_config: PendingConfig | None
    ai_gateway: AnsweredAiGateway


class Logs(Answer):
    logs: str


class ListedEndpoints(Answer):
    endpoints: list[EndpointInfo]


class ServingRoutes:
    def __init__(self, serving: Callable[[Principal], Serving]) -> None:
        """`serving` gives what acts for a principal."""
        self._serving = serving

    def routes(self) -> list[Route]:
        one = f"{BASE}/{{name}}"
        return [
            route("POST", BASE, self.create, asked=CreateEndpoint),
            route("GET", BASE, self.list),
            route("GET", one, self.get),
            route("PUT", f"{one}/config", self.update, asked=AskedConfig),
            route("PUT", f"{one}/ai-gateway", self.put_ai_gateway, asked=AskedAiGateway),
            route("PUT", f"{one}/rate-limits", self.put_rate_limits, asked=AskedRateLimits),
            route("DELETE", one, self.delete),
            route("GET", f"{one}/served-models/{{entity}}/logs", self.logs),
            Route(f"{one}/metrics", self.metrics, methods=["GET"]),
        ]

    def create(self, call: Call) -> EndpointInfo:
        asked = call.parse(CreateEndpoint)
        serving = self._serving(call.principal)
        held = Before({"ai_gateway": _ai_gateway(asked.ai_gateway).model_dump(mode="json")})
        return _info(serving, serving.create(_settings(serving, asked.name, asked.config, held)))

    def list(self, call: Call) -> ListedEndpoints:
        serving = self._serving(call.principal)
        found = serving.list()
        states = serving.states() if found else {}
        return ListedEndpoints(endpoints=[_info(serving, one, states) for one in found])

    def get(self, call: Call) -> EndpointInfo:
        serving = self._serving(call.principal)
        return _info(serving, serving.get(call.path["name"]))

    def update(self, call: Call) -> EndpointInfo:
        asked = call.parse(AskedConfig, name=call.path["name"])
        serving = self._serving(call.principal)
        before = Before.of(serving.get(call.path["name"]))
        return _info(serving, serving.update(_settings(serving, call.path["name"], asked, before)))

    def put_ai_gateway(self, call: Call) -> AnsweredAiGateway:
        """What its callers are held to from the next configuration on; what is not said is not held to any more."""
        wanted = _ai_gateway(call.parse(AskedAiGateway))
        self._serving(call.principal).put_ai_gateway(call.path["name"], wanted)
        return _answered_ai_gateway(wanted)

    def put_rate_limits(self, call: Call) -> AnsweredRateLimits:
        """Databricks' older path for a part of it."""
        wanted = _ai_gateway(AskedAiGateway(rate_limits=call.parse(AskedRateLimits).rate_limits))
        serving = self._serving(call.principal)
        now = AiGateway.parse(Before.of(serving.get(call.path["name"])).ai_gateway)
        serving.put_ai_gateway(call.path["name"], now.model_copy(update={"rate_limits": wanted.rate_limits}))
        return AnsweredRateLimits(rate_limits=_answered_ai_gateway(wanted).rate_limits)

    def logs(self, call: Call) -> Logs:
        """The last lines of the replicas of a served entity's engine."""
        found = self._serving(call.principal).logs(call.path["name"], call.path["entity"])
        return Logs(logs="".join(f"{line}\n" for one in found for line in one.lines))

    async def metrics(self, http: Request) -> Response:
        """In Prometheus' format, for a scraper too."""
        serving = self._serving(http.state.principal)
        return PlainTextResponse(await asyncio.to_thread(serving.export_metrics, http.path_params["name"]))

    def delete(self, call: Call) -> Nothing:
        self._serving(call.principal).delete(call.path["name"])
        return Nothing()


def _settings(serving: Serving, name: str, asked: AskedConfig, before: Before | None = None) -> EndpointSettings:
    """`before` is the configuration that an update changes: what is not asked stays as it was."""
    before = before or Before({})
    shares = _shares(asked)
    entities = []
    for number, entity in enumerate(asked.served_entities):
        given: dict[str, Any] = {"name": _entity_name(entity, number), **_what(entity)}
        given["traffic_percentage"] = shares.pop(given["name"], 0 if shares or asked.traffic_config else 100)
        engine = _engine(serving, entity, before)
        entities.append(given | ({} if engine is None else {"engine": engine}))
    if shares:
        raise BadRequest(
            f"traffic_config routes to {sorted(shares)}, and the served entities are "
            f"{[entity['name'] for entity in entities]}",
            param="traffic_config",
        )
    if asked.traffic_config is None and len(entities) > 1:
        raise BadRequest("traffic_config must say the share of each served entity", param="traffic_config")
    ours = {theirs: our for our, theirs in _TASKS.items()}
    task = before.task(_model(entity) for entity in asked.served_entities) if asked.task is None else asked.task
    retrieval = asked.retrieval or None
    if asked.retrieval is None and task in (None, "chat", _TASKS["chat"]):
        retrieval = before.retrieval
    sticky = (asked.traffic_config.sticky if asked.traffic_config else None) or before.sticky
    more = {"task": ours.get(task or "", task), "retrieval": retrieval, "ai_gateway": before.ai_gateway}
    more |= {"sticky": sticky}
    told = {"name": name, "served_entities": entities, **{key: one for key, one in more.items() if one is not None}}
    return EndpointSettings.parse(told, source="config")


def _ai_gateway(asked: AskedAiGateway | None) -> AiGateway:
    told = {} if asked is None else asked.given()
    told.pop("usage_tracking_config", None)
    return AiGateway.parse(told, source="ai_gateway")


def _answered_ai_gateway(settings: AiGateway) -> AnsweredAiGateway:
    told = settings.model_dump(mode="json", exclude_none=True)
    return AnsweredAiGateway(**told, usage_tracking_config=TrackUsage(enabled=True))


def _engine(serving: Serving, entity: AskedEntity, before: Before) -> dict[str, Any] | None:
    if entity.entity_name is None:
        return entity.engine
    was = before.engine(entity.name, _model(entity))
    engine = was if entity.engine is None else entity.engine
    if not entity.scale_to_zero_enabled:
        return _awake(was) if entity.engine is None and entity.scale_to_zero_enabled is False else engine
    if engine is None:
        engine = serving.engine_settings(_model(entity)).model_dump(mode="json")
    scaling = engine.get("scaling") or {}
    if not isinstance(scaling, dict):
        return engine  # refused with all else that is wrong with it
    if entity.engine is not None and scaling.get("min_replicas", 0) != 0:
        raise BadRequest(
            f"scale_to_zero_enabled is true, and engine.scaling.min_replicas = {scaling['min_replicas']!r}: "
            "leave one of the two out",
            param="scale_to_zero_enabled",
        )
    most = engine.get("num_replicas", 1)  # a fixed number becomes the most that there are
    return {**engine, "num_replicas": 1, "scaling": {"max_replicas": most, **scaling, "min_replicas": 0}}


def _awake(engine: dict[str, Any] | None) -> dict[str, Any] | None:
    """With a replica at least, where it would end when idle."""
    if engine is None or (scaling := engine.get("scaling")) is None or scaling["min_replicas"] != 0:
        return engine
    if scaling["max_replicas"] == 1:
        return {**engine, "scaling": None}
    return {**engine, "scaling": {**scaling, "min_replicas": 1, "scale_to_zero_after_seconds": None}}


def _shares(asked: AskedConfig) -> dict[str, int]:
    shares: dict[str, int] = {}
    for one in asked.traffic_config.routes if asked.traffic_config else ():
        to = one.served_entity_name or one.served_model_name
        if to is None:
            raise BadRequest("a route of traffic_config needs served_entity_name", param="traffic_config")
        if to in shares:
            raise BadRequest(f"traffic_config has two routes to {to!r}", param="traffic_config")
        shares[to] = one.traffic_percentage
    return shares


def _entity_name(entity: AskedEntity, number: int) -> str:
    """As Databricks makes it: the last part of the model's name, with its version."""
    if entity.name is not None:
        return entity.name
    if entity.entity_name is None:
        return f"external-{number + 1}"
    last = entity.entity_name.rpartition(".")[2].replace("@", "-").replace("/", "-")
    return f"{last}-{entity.entity_version}" if entity.entity_version else f"{last}-{number + 1}"


def _what(entity: AskedEntity) -> dict[str, Any]:
    model = {} if entity.entity_name is None else {"model": _model(entity)}
    return model | ({} if entity.external_model is None else {"external_model": entity.external_model})


def _model(entity: AskedEntity) -> str:
    if entity.entity_name is None:
        return ""
    if entity.entity_version is None:
        return entity.entity_name
    if not (entity.entity_version.isascii() and entity.entity_version.isdigit()):
        raise BadRequest(
            f"entity_version = {entity.entity_version!r} must be the number of a version", param="entity_version"
        )
    return f"{entity.entity_name}/{entity.entity_version}"


def _info(serving: Serving, endpoint: Endpoint, states: Mapping[str, AppState] | None = None) -> EndpointInfo:
    state = serving.state(endpoint, states)
    pending = endpoint.pending
    live = _config(endpoint.config, endpoint.config_version, _live_state(state)) if endpoint.config_version else None
    creating = EntityState(deployment="DEPLOYMENT_CREATING", deployment_state_message="")
    newest = endpoint.config if live is not None else _newest(endpoint)
    return EndpointInfo(
        id=endpoint.id,
        name=endpoint.served_name,
        creator=endpoint.owner,
        creation_timestamp=milliseconds(endpoint.created_at),
        last_updated_timestamp=milliseconds(endpoint.updated_at),
        state=State(ready=state.ready, config_update=state.config_update),
        state_message=state.reason,
        task=_TASKS.get(newest.get("task", "chat")),
        config=live,
        pending_config=None if pending is None else _pending(pending, creating),
        ai_gateway=_answered_ai_gateway(AiGateway.parse(newest.get("ai_gateway", {}))),
    )


def _newest(endpoint: Endpoint) -> dict[str, Any]:
    there = endpoint.pending or endpoint.failed
    return {} if there is None else there.config


def _live_state(state: EndpointState) -> EntityState:
    if state.ready == "READY":
        return EntityState(deployment="DEPLOYMENT_READY", deployment_state_message=state.scaled_to_zero or "")
    return EntityState(deployment="DEPLOYMENT_FAILED", deployment_state_message=state.reason or "")


def _pending(pending: EndpointConfig, state: EntityState) -> PendingConfig:
    told = _config(pending.config, pending.version, state)
    same = {name: getattr(told, name) for name in AnsweredConfig.model_fields}
    return PendingConfig(**same, start_time=milliseconds(pending.created_at))


def _config(config: dict[str, Any], version: int, state: EntityState) -> AnsweredConfig:
    settings = EndpointSettings.parse(config, source="the endpoint")
    entities, routes = [], []
    for entity in settings.served_entities:
        name, _, number = entity.model.partition("/")
        if not names.is_model_version(entity.model):
            name, number = entity.model, ""
        engine = None if entity.engine is None else entity.engine.model_dump(mode="json")
        external = entity.external_model
        to_zero = entity.engine is not None and entity.engine.scales_to_zero
        entities.append(
            AnsweredEntity(
                name=entity.name,
                entity_name=name or None,
                external_model=None if external is None else external.model_dump(mode="json", exclude_defaults=True),
                entity_version=number or None,
                scale_to_zero_enabled=to_zero,
                engine=engine,
                state=state,
            )
        )
        routes.append(
            TrafficRoute(
                served_entity_name=entity.name,
                served_model_name=entity.name,
                traffic_percentage=entity.traffic_percentage,
            )
        )
    retrieval = None if settings.retrieval is None else settings.retrieval.model_dump(mode="json")
    return AnsweredConfig(
        config_version=version,
        served_entities=entities,
        traffic_config=TrafficConfig(routes=routes, sticky=settings.sticky),
        task=settings.task,
        retrieval=retrieval,
    )
