"""Serving endpoints as their users handle them: made, changed, looked at, waited for and deleted, within grants."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Literal, NoReturn, Protocol

from mosaic.catalog import Catalog
from mosaic.catalog.names import is_model_version, parse_model_version, parse_version
from mosaic.catalog.policies import POLICY
from mosaic.catalog.records import Endpoint, EndpointConfig
from mosaic.errors import Conflict, NotFound, PermissionDenied, Unavailable, not_found
from mosaic.protocol import Principal, Wire
from mosaic.serving import flags
from mosaic.serving.ai_gateway import AiGateway, Guardrails, RateLimit
from mosaic.serving.before import Before
from mosaic.serving.description import Description, ReplicaLog, Seen, described, logs_of, measured
from mosaic.serving.endpoint import EndpointSettings, Unit, answering, is_place, pins_of, unit_of
from mosaic.serving.external import Access, ExternalModel
from mosaic.serving.metrics import EntityMetrics, entity_metrics
from mosaic.serving.policies import attached, check_judges, detached, in_force, judged_by, require_sides
from mosaic.serving.rollout import SCALED_TO_ZERO, AppState, short_reason
from mosaic.serving.settings import EngineSettings

_POLL_SECONDS = 0.1
_PREDICTING = ("mlflow", "classifier", "python")
"""Kinds of registered models whose endpoints have the task `predict`."""


class Engines(Seen, Protocol):
    """What is asked about the engines before a configuration is proposed, and how they are; `serving.apps.ServeApps` is
    one."""

    def states(self, *, replicas: bool = False) -> dict[str, AppState]:
        """`replicas`: also, as the reason of what runs, which have none at the moment."""

    def require_model(self, unit: Unit) -> None: ...

    def require_room(self, units: set[Unit]) -> None: ...


class EndpointState(Wire):
    """How an endpoint is, in Databricks' words."""

    ready: Literal["READY", "NOT_READY"]
    """Whether the live configuration's engines run; without one it is not ready."""
    config_update: Literal["NOT_UPDATING", "IN_PROGRESS", "UPDATE_FAILED"]
    reason: str | None = None
    """Why it is not ready, or the last update failed; told to who may MANAGE it."""
    scaled_to_zero: str | None = None
    """Which engines end when idle and have; the next request starts them, and waits."""


class Serving:
    """`platform.serving`: acts for a principal, within its grants."""

    def __init__(
        self,
        catalog: Catalog,
        engines: Engines,
        principal: Principal,
        make_table: Callable[[Principal, str], None] | None = None,
    ) -> None:
        """`make_table` makes an endpoint's own inference table by its name, for a principal, or finds it there."""
        self._catalog, self._engines, self._principal = catalog, engines, principal
        self._make_table = make_table

    def create(self, settings: EndpointSettings) -> Endpoint:
        """A new endpoint; returns at once, while its engines start (see `wait`).

        Raises AlreadyExists, NotFound for a model or index that is not there, PermissionDenied, and Unavailable for
        engines that do not fit, with the sum.
        """
        return self._propose(settings, new=True)

    def update(self, settings: EndpointSettings) -> Endpoint:
        """Another configuration for an endpoint; the one before serves until this one is rolled out.

        Raises as `create`, and NotFound if there is none of the name.
        """
        return self._propose(settings, new=False)

    def put(self, settings: EndpointSettings) -> Endpoint:
        """`create`, or `update` if there is one of the name."""
        return self._propose(settings, new=self._catalog.endpoints.find(settings.name) is None)

    def put_ai_gateway(self, name: str, wanted: AiGateway) -> Endpoint:
        """The endpoint's newest configuration once more, with these limits for its callers. Raises as `update`."""
        config = {**Before.of(self._managed(name, "updateServingEndpoint")).config, "ai_gateway": wanted.model_dump()}
        return self.update(EndpointSettings.parse(config, source=f"endpoint {name}"))

    def attach_policy(self, name: str, policy: str) -> Endpoint:
        """The endpoint's newest configuration once more, with a policy attached: `main.default.pii/3`,
        `main.default.pii@prod` or, for always the newest, `main.default.pii`. Raises as `update`."""
        return self._put_guardrails(name, lambda guardrails: attached(guardrails, policy))

    def detach_policy(self, name: str, policy: str) -> Endpoint:
        """The endpoint's newest configuration once more, without a policy. Raises as `update`, and NotFound if it is
        not attached."""
        return self._put_guardrails(name, lambda guardrails: detached(guardrails, policy))

    def _put_guardrails(self, name: str, change: Callable[[Guardrails], Guardrails]) -> Endpoint:
        before = Before.of(self._managed(name, "updateServingEndpoint"))
        now = AiGateway.parse(before.ai_gateway, source=f"endpoint {name}")
        return self.put_ai_gateway(name, now.model_copy(update={"guardrails": change(now.guardrails)}))

    def get(self, name: str) -> Endpoint:
        """Raises NotFound, PermissionDenied without BROWSE."""
        full = self._catalog.endpoints.full_name(name)
        self._catalog.grants.check(self._principal, "BROWSE", "endpoint", full, action="getServingEndpoint")
        return self._catalog.endpoints.get(full)

    def list(self) -> Sequence[Endpoint]:
        """Those that the principal may know of, by name."""
        return [one for one in self._catalog.endpoints.list() if self._may("BROWSE", one)]

    def configs(self, name: str) -> Sequence[EndpointConfig]:
        """Every configuration that it had or was to have, oldest first. Raises NotFound, PermissionDenied without
        MANAGE."""
        full = self._catalog.endpoints.full_name(name)
        self._catalog.grants.check(self._principal, "MANAGE", "endpoint", full, action="getServingEndpoint")
        return self._catalog.endpoints.configs(full)

    def delete(self, name: str) -> None:
        """Its engines end once their last requests have, if nothing else is served by them.

        Raises NotFound, and Conflict while it is the judge of others.
        """
        full = self._catalog.endpoints.full_name(name)
        check = self._catalog.grants.check
        by = check(self._principal, "MANAGE", "endpoint", full, action="deleteServingEndpoint")
        if judged := judged_by(self._catalog, full):
            may_know = self._catalog.grants.is_allowed
            seen = [one for one in judged if may_know(self._principal, "BROWSE", "endpoint", one)]
            told = f"is the judge of {seen or 'endpoints that you may not see'}; let another judge them first"
            raise Conflict(f"endpoint {full!r} {told}", param="name", code="endpoint_judges")
        self._catalog.endpoints.delete(full, by=by)

    def state(self, endpoint: Endpoint, states: Mapping[str, AppState] | None = None) -> EndpointState:
        """How it is now; `states` are the engines' if they are known already."""
        states = self._engines.states(replicas=True) if states is None else states
        not_running = self._not_running(endpoint, states)
        told = endpoint.failed.reason if endpoint.failed is not None else not_running
        updating: Literal["NOT_UPDATING", "IN_PROGRESS", "UPDATE_FAILED"] = "NOT_UPDATING"
        if endpoint.pending is not None:
            updating = "IN_PROGRESS"
        elif endpoint.failed is not None:
            updating = "UPDATE_FAILED"
        return EndpointState(
            ready="READY" if not_running is None else "NOT_READY",
            config_update=updating,
            reason=told if self._may("MANAGE", endpoint) else None,
            scaled_to_zero=self._scaled_to_zero(endpoint, states) if not_running is None else None,
        )

    def states(self) -> Mapping[str, AppState]:
        """Of all engines, for several endpoints at once."""
        return self._engines.states(replicas=True)

    def engine_settings(self, model: str) -> EngineSettings:
        """How the platform runs the engine that answers for a model (an adapter's base) if a configuration says nothing
        about it."""
        with suppress(NotFound):  # refused with the configuration
            model = answering(self._catalog, model).engine_model
        return self._engines.settings_of(Unit(model, ""))

    def describe(self, name: str) -> Description:
        """An endpoint with its engines and where they run. Raises NotFound, PermissionDenied without MANAGE."""
        endpoint, states = self._managed(name, "getServingEndpoint"), self._engines.states(replicas=True)
        state = self.state(endpoint, states)
        return described(
            self._catalog, self._engines, endpoint, states, (state.ready, state.config_update, state.reason)
        )

    def logs(self, name: str, entity: str | None = None, *, lines: int = 200) -> Sequence[ReplicaLog]:
        """The last lines of each replica of an endpoint's engines, or of one served entity's.

        Raises NotFound, PermissionDenied without MANAGE.
        """
        return logs_of(self._catalog, self._engines, self._managed(name, "getServingEndpointLogs"), entity, lines)

    def metrics(self, name: str) -> Sequence[EntityMetrics]:
        """By served entity: requests, times, tokens, queue, KV cache; since the gateways that run were started, and
        some seconds late. Raises NotFound, PermissionDenied without BROWSE."""
        engines, samples = measured(self._catalog, self._engines, self.get(name))
        return entity_metrics(samples, engines)

    def export_metrics(self, name: str) -> str:
        """What there is about an endpoint and its engines in Prometheus' format. Raises as `metrics`."""
        return "".join(f"{one.line}\n" for one in measured(self._catalog, self._engines, self.get(name))[1])

    def _managed(self, name: str, action: str) -> Endpoint:
        full = self._catalog.endpoints.full_name(name)
        self._catalog.grants.check(self._principal, "MANAGE", "endpoint", full, action=action)
        return self._catalog.endpoints.get(full)

    def wait(self, name: str, *, timeout_seconds: float = 1800) -> Endpoint:
        """Until the endpoint's last configuration is live and its engines run.

        Raises Unavailable with the engine's own reason (`engine_failed`) if that failed, or at the time limit.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            endpoint = self.get(name)
            if endpoint.failed is not None:
                raise Unavailable(
                    f"config {endpoint.failed.version} of endpoint {name!r} failed: {endpoint.failed.reason}",
                    code="engine_failed",
                )
            told = self._not_running(endpoint, self._engines.states())
            if endpoint.pending is not None:
                told = "it is being rolled out"
            elif endpoint.config_version and pins_of(self._catalog, endpoint.config) != endpoint.pinned:
                told = "an alias that it names has moved, and it follows"
            if told is None:
                return endpoint
            if time.monotonic() > deadline:
                raise Unavailable(f"endpoint {name!r} is not ready after {timeout_seconds:g} s: {told}")
            time.sleep(_POLL_SECONDS)

    def _may(self, privilege: str, endpoint: Endpoint) -> bool:
        try:
            return self._catalog.grants.is_allowed(self._principal, privilege, "endpoint", endpoint.name)
        except NotFound:  # dropped since it was read
            return False

    def _not_running(self, endpoint: Endpoint, states: Mapping[str, AppState]) -> str | None:
        """What of the live configuration does not run; None if all does."""
        if not endpoint.config_version:
            return "no configuration of it is live yet"
        for entity in EndpointSettings.parse(endpoint.config, source=f"endpoint {endpoint.name}").own_entities:
            try:
                unit = unit_of(self._catalog, entity, endpoint.pinned)
            except NotFound:
                return f"the model of {entity.name!r} is gone"
            there = states.get(unit.app_name, AppState("starting"))
            if there.state != "running":
                why = f": {short_reason(there.reason)}" if there.reason else ""
                return f"the engine of {entity.name!r} is {there.state}{why}"
        return None

    def _scaled_to_zero(self, endpoint: Endpoint, states: Mapping[str, AppState]) -> str | None:
        """What of a configuration whose engines run has no replica at the moment."""
        entities = EndpointSettings.parse(endpoint.config, source=f"endpoint {endpoint.name}").own_entities
        apps = {entity.name: unit_of(self._catalog, entity, endpoint.pinned).app_name for entity in entities}
        idle = [name for name, app in apps.items() if states[app].reason == SCALED_TO_ZERO]
        return f"the engine of {', '.join(map(repr, idle))} is {SCALED_TO_ZERO}" if idle else None

    def _propose(self, settings: EndpointSettings, *, new: bool) -> Endpoint:
        full = self._catalog.endpoints.full_name(settings.name)
        by = self._check(full, settings, new=new)
        if "task" not in settings.model_fields_set and self._are_custom(settings):
            told = {**settings.model_dump(mode="json"), "task": "predict"}
            settings = EndpointSettings.parse(told, source=f"endpoint {settings.name!r}, whose models predict")
        units = {unit_of(self._catalog, entity, {}) for entity in settings.own_entities}
        for unit in units:
            self._engines.require_model(unit)
        self._engines.require_room(units)
        self._make_inference_table(full, settings, new=new)
        return self._catalog.endpoints.propose(
            full, config=settings.model_dump(mode="json"), owner=self._principal.name, new=new, by=by
        )

    def _make_inference_table(self, full: str, settings: EndpointSettings, *, new: bool) -> None:
        """The endpoint's own, before the configuration that names it; one that names the same finds it there."""
        config = settings.ai_gateway.inference_table_config
        before = {} if new else Before.of(self._catalog.endpoints.get(full)).ai_gateway
        name = config.table_of(full)
        if name is None:
            return
        is_same = name == AiGateway.parse(before).inference_table_config.table_of(full)
        if is_same and self._catalog.find_table(name) is not None:
            return
        if self._make_table is None:
            raise Unavailable("no tables can be made here", param="inference_table_config")
        self._make_table(self._principal, name)

    def _check_model(self, by: Principal, model: str) -> Principal:
        """EXECUTE on a registered model, and on the base of an adapter, whose engine starts with it; only
        administrators serve an adapter of a place."""
        check = self._catalog.grants.check
        if is_model_version(model):
            of = parse_model_version(model).model
            by = check(by, "EXECUTE", "model", of, action="createServingEndpoint")
            base = answering(self._catalog, model).engine_model
            if is_place(base) and not self._catalog.principals.is_administrator(self._principal):
                self._deny(
                    of,
                    f"the base model of adapter {model!r} is {base!r}, a place, which only administrators may serve "
                    "from; register the base model, and the adapter with its version as base_model",
                )
            if is_model_version(base) and parse_model_version(base).model != of:
                by = check(by, "EXECUTE", "model", parse_model_version(base).model, action="createServingEndpoint")
        return by

    def _deny(self, full: str, told: str) -> NoReturn:
        error = PermissionDenied(told, param="served_entities")
        self._catalog.audit.deny("createServingEndpoint", {"full_name": full}, error, by=self._principal)
        raise error

    def _are_custom(self, settings: EndpointSettings) -> bool:
        """Whether all that is served predict: models of MLflow's, classifiers, classes."""
        versions = [answering(self._catalog, entity.model).version for entity in settings.own_entities]
        return len(versions) == len(settings.served_entities) and all(
            version is not None and version.kind in _PREDICTING for version in versions
        )

    def _check_external(self, by: Principal, external: ExternalModel) -> Principal:
        """USE CONNECTION, and that the connection says where the provider is; the key stays where it is."""
        check = self._catalog.grants.check
        by = check(by, "USE CONNECTION", "connection", external.connection, action="createServingEndpoint")
        Access.of(external, self._catalog.connections.get(external.connection).spec["options"], {})
        return by

    def _check_guardrails(self, by: Principal, full: str, settings: EndpointSettings) -> Principal:
        """EXECUTE on policies, and on the judges of its own rules; those of a policy's its maker may ask."""
        check, guardrails = self._catalog.grants.check, settings.ai_gateway.guardrails
        for policy in guardrails.policies:
            name = parse_version(policy, POLICY).model
            by = check(by, "EXECUTE", POLICY, name, action="createServingEndpoint")
        for judge in guardrails.judges:
            asked = self._catalog.endpoints.full_name(judge.endpoint)
            by = check(by, "EXECUTE", "endpoint", asked, action="createServingEndpoint")
        held = in_force(self._catalog, guardrails)
        require_sides(settings.task, held)
        check_judges(self._catalog, held.judges, of=full)
        return by

    def _require_principal(self, limit: RateLimit) -> None:
        """A limit for somebody who is not there would hold nobody to anything."""
        assert limit.principal is not None
        kind: Literal["group", "service", "user"] = "user"
        if limit.key in ("user_group", "service_principal"):
            kind = "group" if limit.key == "user_group" else "service"
        there = [one.name for one in self._catalog.principals.list(kind)]
        if limit.principal not in there:
            raise not_found(kind, limit.principal, there, param="rate_limits.principal")

    def _check(self, full: str, settings: EndpointSettings, *, new: bool) -> Principal:
        """Who makes or changes it; raises PermissionDenied unless the principal may, and may use all that it serves."""
        check = self._catalog.grants.check
        if new:
            schema = full.rpartition(".")[0]
            by = check(self._principal, "CREATE MODEL", "schema", schema, action="createServingEndpoint")
        else:
            by = check(self._principal, "MANAGE", "endpoint", full, action="updateServingEndpoint")
        is_admin = self._catalog.principals.is_administrator(self._principal)
        for entity in settings.served_entities:
            if entity.external_model is not None:
                by = self._check_external(by, entity.external_model)
                continue
            if is_place(entity.model) and not is_admin:
                self._deny(
                    full,
                    f"model {entity.model!r} is a place, which only administrators may serve from; register it, and "
                    "name its version, such as main.ml.bot/3",
                )
            if entity.engine is not None:
                flags.check(entity.engine, at=f"served entity {entity.name!r}: engine")
                given = flags.for_administrators(entity.engine.engine_kwargs)
                if given and not is_admin:
                    self._deny(
                        full,
                        f"engine_kwargs {given} can load code, touch files or open ports, and only administrators may "
                        f"give them; anybody may give {sorted(flags.ANY_OWNER)}",
                    )
            if entity.engine is not None and entity.engine.pip and not is_admin:
                self._deny(full, "engine.pip installs code, and only administrators may name packages")
            by = self._check_model(by, entity.model)
        for limit in settings.ai_gateway.rate_limits:
            if limit.principal is not None:
                self._require_principal(limit)
        by = self._check_guardrails(by, full, settings)
        group = settings.ai_gateway.cache.group
        if group is not None and group not in (there := [one.name for one in self._catalog.principals.list("group")]):
            raise not_found("group", group, there, param="cache.group")
        if settings.retrieval is not None:
            by = check(by, "SELECT", "index", settings.retrieval.index, action="createServingEndpoint")
        return by
