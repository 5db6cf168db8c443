"""What there is to see of an endpoint: how it is, its engines, and where they run and log."""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from mosaic.catalog import Catalog
from mosaic.catalog.records import Endpoint
from mosaic.errors import NotFound, not_found
from mosaic.protocol import Wire
from mosaic.serving.endpoint import EndpointSettings, ServedEntity, Unit, unit_of
from mosaic.serving.metrics import EngineOf, Sample, of_endpoint, parse
from mosaic.serving.policies import told_policies
from mosaic.serving.replicas import Replica
from mosaic.serving.rollout import AppState
from mosaic.serving.settings import EngineSettings


class EntityDescription(Wire):
    """A served entity, and the engine that answers for it."""

    name: str
    model: str
    """With its version, where it is one of the catalog's."""
    traffic_percentage: int
    app_name: str | None
    """The Serve application of its engine, which may have other entities too; None if the catalog lacks the model, or
    a provider has it."""
    state: Literal["starting", "running", "failed", "ending"]
    reason: str
    settings: EngineSettings | None
    """What its engine runs with."""
    replicas: list[Replica]

    @property
    def engine(self) -> EngineOf | None:
        if self.app_name is None:
            return None
        return EngineOf(self.app_name, frozenset(one.replica_id for one in self.replicas))


class Description(Wire):
    """An endpoint as it is at this moment."""

    name: str
    owner: str
    task: str
    config_version: int
    """The number of the live configuration; 0 while none is, and the entities are then those that are to be."""
    ready: Literal["READY", "NOT_READY"]
    config_update: Literal["NOT_UPDATING", "IN_PROGRESS", "UPDATE_FAILED"]
    reason: str | None
    policies: list[str]
    """The guardrails' policies as they are attached, and the versions that this means now."""
    entities: list[EntityDescription]


class ReplicaLog(Wire):
    """The end of what one replica logged and printed."""

    entity: str
    replica_id: str
    node: str | None
    lines: list[str]


class Seen(Protocol):
    """What is to be seen of engines; `serving.apps.ServeApps` shows it."""

    def settings_of(self, unit: Unit) -> EngineSettings: ...

    def replicas(self, app_names: Sequence[str]) -> dict[str, list[Replica]]: ...

    def log_lines(self, replica: Replica, lines: int) -> list[str]: ...

    def metrics_text(self) -> str:
        """Of the whole cluster, in Prometheus' format."""


def described(
    catalog: Catalog,
    engines: Seen,
    endpoint: Endpoint,
    states: Mapping[str, AppState],
    state: tuple[Literal["READY", "NOT_READY"], Literal["NOT_UPDATING", "IN_PROGRESS", "UPDATE_FAILED"], str | None],
) -> Description:
    config = endpoint.in_use[0][0] if endpoint.in_use else {}
    return Description(
        name=endpoint.name,
        owner=endpoint.owner,
        task=config.get("task", "chat"),
        config_version=endpoint.config_version,
        ready=state[0],
        config_update=state[1],
        reason=state[2],
        policies=told_policies(catalog, config),
        entities=_entities(catalog, engines, endpoint, states),
    )


def logs_of(catalog: Catalog, engines: Seen, endpoint: Endpoint, entity: str | None, lines: int) -> list[ReplicaLog]:
    """Raises NotFound for a served entity that the endpoint lacks."""
    entities = _entities(catalog, engines, endpoint, {})
    if entity is not None:
        there = {one.name: one for one in entities}
        if entity not in there:
            raise not_found("served entity", entity, sorted(there))
        entities = [there[entity]]
    return [
        ReplicaLog(entity=one.name, replica_id=each.replica_id, node=each.node, lines=engines.log_lines(each, lines))
        for one in entities
        for each in one.replicas
    ]


def measured(catalog: Catalog, engines: Seen, endpoint: Endpoint) -> tuple[dict[str, EngineOf], list[Sample]]:
    """An endpoint's engines by served entity, and what is counted of it and of them."""
    found = {one.name: one.engine for one in _entities(catalog, engines, endpoint, {}) if one.engine is not None}
    return found, of_endpoint(parse(engines.metrics_text()), endpoint.name, found)


def _entities(
    catalog: Catalog, engines: Seen, endpoint: Endpoint, states: Mapping[str, AppState]
) -> list[EntityDescription]:
    """Those of the live configuration; of the pending one while none is live."""
    if not endpoint.in_use:
        return []
    config, pinned = endpoint.in_use[0]
    entities = EndpointSettings.parse(config, source=f"endpoint {endpoint.name}").served_entities
    units = {entity.name: _find_unit(catalog, entity, pinned) for entity in entities}
    replicas = engines.replicas([unit.app_name for unit in units.values() if unit is not None])
    found = []
    for entity in entities:
        unit, model = units[entity.name], pinned.get(entity.model, entity.model)
        if entity.external_model is not None:
            there, name, settings = AppState("running", "a provider answers"), None, None
            model = f"{entity.external_model.provider}: {entity.external_model.name}"
        elif unit is None:
            there, name, settings = AppState("failed", "the catalog has its model no more"), None, None
        else:
            name, settings = unit.app_name, engines.settings_of(unit)
            there = states.get(name, AppState("ending", "it does not run"))
        found.append(
            EntityDescription(
                name=entity.name,
                model=model,
                traffic_percentage=entity.traffic_percentage,
                app_name=name,
                state=there.state,
                reason=there.reason,
                settings=settings,
                replicas=[] if name is None else replicas[name],
            )
        )
    return found


def _find_unit(catalog: Catalog, entity: ServedEntity, pinned: Mapping[str, str]) -> Unit | None:
    try:
        return None if entity.external_model is not None else unit_of(catalog, entity, pinned)
    except NotFound:
        return None
