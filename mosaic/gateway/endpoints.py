"""From an endpoint's name to who answers for it: the catalog's record, its model versions pinned, its shares drawn."""

import asyncio
import functools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from mosaic.catalog import Catalog
from mosaic.catalog.budgets import Budget
from mosaic.catalog.names import INTERNAL
from mosaic.catalog.prices import Price
from mosaic.errors import BadRequest, NotFound, Unavailable, not_found
from mosaic.gateway.guard_whole import AskJudge, Judges
from mosaic.gateway.guards import Guard
from mosaic.gateway.sticky import arm_of
from mosaic.monitoring import Keeping
from mosaic.protocol import Adapter, Principal
from mosaic.serving.ai_gateway import GuardrailRules, InferenceTableConfig, RateLimit
from mosaic.serving.answer_cache import AnswerCache
from mosaic.serving.endpoint import EndpointSettings, Retrieval, ServedEntity, Unit, answering, unit
from mosaic.serving.external import Access, ExternalModel
from mosaic.serving.images import DEFAULT_RULES, ImageRules
from mosaic.serving.policies import in_force, require_sides, runs_here, why_unusable

logger = logging.getLogger(__name__)

EXECUTE = "EXECUTE"
"""The privilege on an endpoint with which it may be asked."""
_MOST_KEPT = 10_000
"""Names as callers write them, in any case: there could be many for one endpoint."""


@dataclass(frozen=True)
class LiveEntity:
    """A served entity with its model's name resolved to what exactly answers now."""

    name: str
    app_name: str
    model: str
    traffic_percentage: int
    version: int | None = None
    alias: str | None = None
    adapter: Adapter | None = None
    external: ExternalModel | None = None
    access: Access | None = None
    """Where the provider of an external model is, and our key there."""
    is_gone: bool = False
    """Whether the catalog has the model, version or alias no more."""
    prices: tuple[Price, ...] = ()
    """What it costs, costed and will cost: every version of a price that fits it."""
    gpus: float = 0.0
    """Of ours, that one replica of it has."""

    @property
    def version_name(self) -> str | None:
        return None if self.version is None else f"{self.model}/{self.version}"

    def columns(self) -> dict[str, Any]:
        """The columns of the inference table that say who answered."""
        return {
            "served_entity": self.name,
            "model": self.model,
            "model_version": self.version,
            "model_alias": self.alias,
            "adapter": self.adapter.name if self.adapter else None,
        }


@dataclass(frozen=True)
class Endpoint:
    """An endpoint as it answers at this moment."""

    name: str
    served_name: str
    """What callers write as `model`."""
    config_version: int
    task: str
    entities: tuple[LiveEntity, ...]
    retrieval: Retrieval | None
    created_seconds: int
    rate_limits: tuple[RateLimit, ...] = ()
    input_guard: Guard | None = None
    """What looks at what is asked."""
    output_guard: Guard | None = None
    """What looks at what is answered."""
    falls_back: bool = False
    """Whether other entities take the place of one that fails."""
    policies: tuple[str, ...] = ()
    """The catalog's, in the versions whose rules the guards have."""
    judges: Judges = field(default_factory=Judges)
    """The way to whom the guards ask."""
    lacks_policy: bool = False
    """Whether one of its policies is gone, or has rules that it cannot hold to: then nobody is answered."""
    budgets: tuple[Budget, ...] = ()
    """Those that requests to it may have to have money in."""
    keeping: Keeping | None = None
    """What of texts is kept, if not all, and in which table beside the platform's."""
    is_sticky: bool = False
    """Whether each user keeps its entity."""
    id: str = ""
    """Of the catalog: another endpoint may come to bear its name."""
    images: ImageRules = DEFAULT_RULES
    """How many and how large those of a chat may be."""
    cache: AnswerCache | None = None
    """How answers are kept, if they are."""


class Endpoints:
    """Endpoints by name and who may use them, kept as long as the catalog's revision stays the same.

    The revision is read at most every `fresh_seconds`, by the first request after that, so a change, also a grant that
    is taken back, is live in every replica within that. A denial is never kept: each is checked, and audited.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        trusted: frozenset[str] = frozenset(),
        fresh_seconds: float = 0.25,
        clock: Callable[[], float] = time.monotonic,
        ask_judge: AskJudge | None = None,
        gpus_of: Callable[[Unit], float | None] = lambda unit: 0.0,
    ) -> None:
        """`trusted` principals may use every endpoint: the platform's own calls. Judges are asked by `ask_judge`;
        `gpus_of` says how many GPUs a replica has."""
        self._catalog, self._trusted = catalog, trusted
        self._fresh_seconds, self._clock = fresh_seconds, clock
        self._ask_judge, self._gpus_of = ask_judge, gpus_of
        self._revision, self._seen_at = -1, -math.inf
        self._renewing = asyncio.Lock()
        self._kept: dict[str, asyncio.Task[Endpoint]] = {}
        self._allowed: set[tuple[str, bool, str]] = set()
        self._groups: dict[str, Sequence[str]] = {}
        self._opened: dict[tuple[str, str], Access] = {}
        self._gpus_known: dict[str, float] = {}

    async def use(self, name: str, principal: Principal, request_id: str) -> Endpoint:
        """The endpoint for a request of that principal.

        Raises NotFound (`model_not_found`) listing what the principal may use, PermissionDenied without EXECUTE, and
        Unavailable (`endpoint_not_ready`) while no configuration of it is live.
        """
        await self._renew()
        endpoint = await self._get(name, principal)
        if principal.name in self._trusted:
            return _ready(endpoint)
        # By reference, as in `_read_once`: what is checked while others see a new revision is not kept for that one.
        allowed, asked = self._allowed, (principal.name, principal.is_admin, endpoint.name)
        if asked not in allowed:
            check = functools.partial(self._catalog.grants.check, action="queryEndpoint")
            await asyncio.to_thread(check, principal, EXECUTE, "endpoint", endpoint.name)
            allowed.add(asked)
        return _ready(endpoint)

    async def look(self, name: str) -> Endpoint | None:
        """The endpoint, before it is known who may use it: for what is kept of a request. None: there is none."""
        await self._renew()
        try:
            return await self._read_once(name)
        except (NotFound, BadRequest):  # what is wrong with the name is said by `use`
            return None

    async def groups_of(self, principal: Principal) -> Sequence[str]:
        """The groups that somebody is in, directly or through groups."""
        kept = self._groups
        if principal.name not in kept:
            kept[principal.name] = await asyncio.to_thread(self._catalog.principals.groups_of, principal.name)
        return kept[principal.name]

    async def _get(self, name: str, principal: Principal) -> Endpoint:
        try:
            return await self._read_once(name)
        except NotFound as error:
            told = error.message
            if error.code == "endpoint_not_found":
                told = not_found("endpoint", name, await asyncio.to_thread(self._usable, principal)).message
            raise NotFound(told, param="model", code="model_not_found") from None

    async def _read_once(self, name: str) -> Endpoint:
        """As kept, or read for all who ask meanwhile: after a change of the catalog that is everybody at once."""
        kept = self._kept  # by reference: what is read while others see a new revision is not kept for that one
        reading = kept.get(name)
        if reading is None:
            # A database: never on the loop that streams. A task, since who began it may leave before it has ended.
            reading = kept[name] = asyncio.create_task(asyncio.to_thread(self._read, name))
            reading.add_done_callback(lambda done: kept.pop(name) if done.cancelled() or done.exception() else None)
        return reading.result() if reading.done() else await asyncio.shield(reading)

    async def _renew(self) -> None:
        """Forget what is kept if the catalog may have changed since."""
        if self._clock() - self._seen_at < self._fresh_seconds:
            return
        async with self._renewing:
            now = self._clock()
            if now - self._seen_at >= self._fresh_seconds:
                revision = await asyncio.to_thread(self._catalog.revision)
                if revision != self._revision or len(self._kept) > _MOST_KEPT:
                    self._revision, self._kept, self._allowed, self._groups = revision, {}, set(), {}
                self._seen_at = now

    async def list(self, principal: Principal) -> Sequence[Endpoint]:
        """The endpoints that the principal may use, by name."""
        await self._renew()
        names = await asyncio.to_thread(self._usable, principal)
        return [await self._get(name, principal) for name in names]

    def _usable(self, principal: Principal) -> Sequence[str]:
        """Names as callers write them."""
        records = [one for one in self._catalog.endpoints.list() if one.config_version]
        is_allowed = self._catalog.grants.is_allowed
        if principal.name not in self._trusted:
            records = [one for one in records if is_allowed(principal, EXECUTE, "endpoint", one.name)]
        return [record.served_name for record in records]

    def _read(self, name: str) -> Endpoint:
        record = self._catalog.endpoints.get(name)
        if not record.config_version:
            created = int(record.created_at.timestamp())
            return Endpoint(record.name, record.served_name, 0, "none", (), None, created)
        settings = EndpointSettings.parse(record.config, source=f"endpoint {record.name}")
        guarded = self._guarded(settings)
        return Endpoint(
            name=record.name,
            served_name=record.served_name,
            config_version=record.config_version,
            task=settings.task,
            entities=tuple(self._live(entity, record.pinned) for entity in settings.served_entities),
            retrieval=settings.retrieval,
            created_seconds=int(record.created_at.timestamp()),
            rate_limits=settings.ai_gateway.rate_limits,
            falls_back=settings.ai_gateway.fallback_config.enabled,
            budgets=tuple(one for one in self._catalog.budgets.list() if one.scope.endpoint in (None, record.name)),
            **guarded,
            keeping=_keeping(record.name, settings.ai_gateway.inference_table_config),
            is_sticky=settings.sticky == "user",
            id=record.id,
            images=settings.ai_gateway.images,
            cache=settings.ai_gateway.cache if settings.ai_gateway.cache.enabled else None,
        )

    def _guarded(self, settings: EndpointSettings) -> dict[str, Any]:
        """The fields that say what looks at what is asked and answered."""
        try:
            now = in_force(self._catalog, settings.ai_gateway.guardrails)
            require_sides(settings.task, now)
        except (NotFound, BadRequest) as error:
            logger.warning("the policies of endpoint %s cannot be held: %s", settings.name, error.message)
            return {"lacks_policy": True, "input_guard": Guard()}
        unusable = {one.endpoint: why_unusable(self._catalog, one.endpoint) for one in now.judges}
        run_here = frozenset(one.endpoint for one in now.judges if runs_here(self._catalog, one.endpoint))
        problems = {name: why for name, why in unusable.items() if why is not None}
        return {
            "input_guard": _guard(now.input),
            "output_guard": _guard(now.output),
            "policies": now.policies,
            "judges": Judges(self._ask_judge, problems, run_here),
        }

    def _live(self, entity: ServedEntity, pinned: Mapping[str, str]) -> LiveEntity:
        external = entity.external_model
        if external is not None:
            access = self._access(external)
            told = (entity.name, "", external.name, entity.traffic_percentage)
            prices = self._catalog.prices.of(f"{external.provider}/{external.name}")
            return LiveEntity(*told, external=external, access=access, is_gone=access is None, prices=prices)
        try:
            now = answering(self._catalog, pinned.get(entity.model, entity.model))
        except NotFound:  # not passed on: its message names models that the caller may not be meant to know
            return LiveEntity(entity.name, "", entity.model, entity.traffic_percentage, is_gone=True)
        version, engine = now.version, unit(now.engine_model, entity.engine)
        model = entity.model if version is None else version.model
        return LiveEntity(
            name=entity.name,
            app_name=engine.app_name,
            model=model,
            traffic_percentage=entity.traffic_percentage,
            version=None if version is None else version.version,
            alias=entity.model.partition("@")[2] or None,
            adapter=Adapter(name=version.full_name) if version is not None and now.is_adapter else None,
            prices=self._catalog.prices.of(model),
            gpus=self._gpus(engine),
        )

    def _gpus(self, engine: Unit) -> float:
        """Asked once for each engine: to know it a model's files are looked at."""
        if (known := self._gpus_known.get(engine.app_name)) is None:
            known = self._gpus_of(engine)
            if known is not None:
                self._gpus_known[engine.app_name] = known
        return known or 0.0

    def _access(self, external: ExternalModel) -> Access | None:
        """None if the connection is gone, or says no address that can be one. Secrets are opened once for each state of
        it: that is a row of the audit."""
        try:
            there = self._catalog.connections.get(external.connection)
        except NotFound:
            return None
        state = (there.etag, external.provider)
        if state not in self._opened:
            secrets = self._catalog.connections.secrets(there.name, by=INTERNAL)
            try:
                self._opened[state] = Access.of(external, there.spec["options"], secrets)
            except BadRequest as error:
                logger.warning("connection %s cannot be used: %s", there.name, error.message)
                return None
        return self._opened[state]


def _keeping(endpoint: str, config: InferenceTableConfig) -> Keeping | None:
    """None for what is kept of most: all, in the platform's table alone."""
    keeping = Keeping(config.table_of(endpoint), config.sampling_fraction, config.redact == "texts")
    return None if keeping == Keeping() else keeping


def _guard(rules: Sequence[GuardrailRules]) -> Guard | None:
    return _made(tuple(one.model_dump_json() for one in rules)) if rules else None


@functools.lru_cache(maxsize=1000)
def _made(rules: Sequence[str]) -> Guard:
    """By their JSON: a schema in them has no hash."""
    return Guard(*map(GuardrailRules.model_validate_json, rules))


def _ready(endpoint: Endpoint) -> Endpoint:
    """Without the reason, which may name what the caller is not meant to know."""
    if not endpoint.config_version:
        told = f"endpoint {endpoint.served_name!r} is not ready: no configuration of it runs yet"
        raise Unavailable(f"{told}; `mosaic endpoint get` says why", param="model", code="endpoint_not_ready")
    if endpoint.lacks_policy:
        told = f"a policy of endpoint {endpoint.served_name!r} is gone, or cannot be held to by it"
        raise Unavailable(f"{told}; without it nobody is answered", param="model", code="policy_gone")
    return endpoint


def choose(endpoint: Endpoint, request_id: str, unit: str | None = None) -> LiveEntity:
    """The entity that answers this request: the one that the unit keeps, or else drawn by the shares from the request's
    id; either way a row explains itself.

    Raises Unavailable if its model is gone and no other may take its place.
    """
    entity = _drawn(endpoint, request_id) if unit is None else arm_of(endpoint.entities, unit)
    has_other = endpoint.falls_back and not all(one.is_gone for one in endpoint.entities)
    if entity.is_gone and not has_other:
        raise Unavailable(
            f"served entity {entity.name!r} of endpoint {endpoint.served_name!r} has no model any more",
            param="model",
            code="model_gone",
        )
    return entity


def _drawn(endpoint: Endpoint, request_id: str) -> LiveEntity:
    draw = int.from_bytes(blake2b(request_id.encode(), digest_size=8).digest()) % 100
    for entity in endpoint.entities:
        if draw < entity.traffic_percentage:
            return entity
        draw -= entity.traffic_percentage
    raise AssertionError("the shares of an endpoint add up to 100")
