"""The platform's parts, built from its settings: the one file that knows every room."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mosaic.catalog import Catalog, files
from mosaic.catalog.names import INTERNAL
from mosaic.catalog.privileges import EXECUTE_UNSAFE
from mosaic.client import Client
from mosaic.data import Shipper, Tables
from mosaic.data.audit_table import AuditShipper
from mosaic.data.sql import Sql
from mosaic.errors import BadRequest, Conflict, PermissionDenied
from mosaic.models import ModelResolver, ModelSource
from mosaic.monitoring import lost
from mosaic.monitoring.destinations import Destinations
from mosaic.monitoring.endpoint_usage import USAGE_TABLE, usage_table
from mosaic.monitoring.retention import Retention
from mosaic.platform.settings import PlatformSettings as PlatformSettings
from mosaic.platform.settings import open_catalog
from mosaic.serving.ai_gateway import AiGateway
from mosaic.storage import Storage
from mosaic.vector import Indexes

if TYPE_CHECKING:
    from mosaic.gateway.guard_whole import AskJudge
    from mosaic.serving.apps import ServeApps


@dataclass(frozen=True)
class Parts:
    """The rooms' objects, as one process holds them."""

    settings: PlatformSettings
    storage: Storage
    catalog: Catalog
    tables: Tables
    models: ModelResolver
    indexes: Indexes
    sql: Sql

    @property
    def engines(self) -> "ServeApps":
        """The engines in the Ray cluster that this process has joined."""
        from mosaic.serving.apps import ServeApps  # brings Ray Serve, which most commands do without

        resolve = functools.partial(resolve_model, self.settings)
        return ServeApps(self.catalog, self.settings.engines, resolve, self.models.check, self.models.local)


def build_parts(settings: PlatformSettings) -> Parts:
    """Build the parts in this process; no Ray needed."""
    storage = Storage(settings.storage, settings.storage_options)
    catalog = open_catalog(settings)
    tables = Tables(storage, catalog)

    def source_of(name: str) -> ModelSource:
        version = catalog.get_model_version(name)
        if version.status != "READY":
            raise Conflict(f"model version {version.full_name!r} is still being uploaded", param="model")
        pickles = files.pickles_of(storage, version)
        allow_with = _missing_to_run(catalog, version.model) if pickles else ()
        return ModelSource(
            name=version.full_name,
            address=version.source,
            checksums=version.checksums,
            pickles=pickles,
            may_run_code=not allow_with,
            allow_with=allow_with,
        )

    models = ModelResolver(settings.home_folder / "models", storage, source_of)
    indexes = Indexes(storage, tables, catalog, functools.partial(embedder, settings))
    computed = {USAGE_TABLE: usage_table(tables)}
    sql = Sql(storage, tables, catalog, base_url=settings.base_url, system_tables=computed)
    return Parts(settings, storage, catalog, tables, models, indexes, sql)


def _missing_to_run(catalog: Catalog, model: str) -> tuple[str, ...]:
    """The commands that would let the platform load pickles of a model; none if it may. A denial is written down."""
    try:
        catalog.grants.check(INTERNAL, EXECUTE_UNSAFE, "model", model, action="loadModelVersion")
        return ()
    except PermissionDenied:
        told = catalog.grants.explain(INTERNAL, EXECUTE_UNSAFE, "model", model)
        missing = [(link.privilege, link.kind, link.name) for link in told.links if link.reason is None]
        asked = missing or [(EXECUTE_UNSAFE, "model", model)]
        return tuple(f'mosaic grants add {INTERNAL} "{privilege}" {kind} {name}' for privilege, kind, name in asked)


def embedder(settings: PlatformSettings, endpoint: str) -> "GatewayEmbedder":
    """What an index embeds with: the endpoint, asked through the internal gateway."""
    return GatewayEmbedder(Client(f"{settings.base_url}/internal", internal_token(settings)), endpoint)


class GatewayEmbedder:
    """Texts to vectors by an embedding endpoint; pickles, so that it travels to the index's actor."""

    def __init__(self, client: Client, endpoint: str) -> None:
        self._client, self._endpoint = client, endpoint

    def __call__(self, texts: list[str], /) -> npt.NDArray[np.float32]:
        return self._client.embed(self._endpoint, texts)

    async def embed_async(self, texts: list[str], /, parent_request_id: str | None = None) -> npt.NDArray[np.float32]:
        return await self._client.embed_async(self._endpoint, texts, parent_request_id=parent_request_id)


def asker(settings: PlatformSettings) -> "AskJudge":
    """How the gateway asks a judge: another endpoint, through the internal gateway, with a row of its own."""
    # Who waits for a verdict waits for no restart: what has none is the rule's to decide.
    client = Client(f"{settings.base_url}/internal", internal_token(settings), patience_seconds=1)

    async def ask(endpoint: str, body: dict[str, Any], request_id: str) -> dict[str, Any]:
        asked = {"model": endpoint, **body}
        return await client.ask_async("/v1/chat/completions", asked, parent_request_id=request_id)

    return ask


def internal_token(settings: PlatformSettings) -> str:
    """The token of the platform's own calls; `up` writes it, readable by its user alone."""
    return (settings.home_folder / "internal.token").read_text()


def resolve_model(settings: PlatformSettings, name: str) -> Path:
    """A model's name to a local folder, in whatever process this runs."""
    return build_parts(settings).models.resolve(name)


def build_shipper(settings: PlatformSettings) -> Shipper:
    """The shipper of this node's request logs into the inference table."""
    parts = build_parts(settings)
    return Shipper(spool(settings), Destinations(parts.tables, parts.storage), lost=lost)


def retentions(catalog: Catalog) -> Iterator[Retention]:
    """Of the endpoints that keep what they are asked for some time only."""
    for one in catalog.endpoints.list():
        try:
            config = AiGateway.parse(one.config.get("ai_gateway") or {}).inference_table_config
        except BadRequest:  # one configuration that cannot be read must not hold up the others
            continue
        if config.retention_days is not None:
            yield Retention(one.name, config.table_of(one.name), config.retention_days)


def spent_so_far(settings: PlatformSettings) -> dict[tuple[str, str], int]:
    """What was spent of each budget, for a quota that has no record of its own."""
    from mosaic.gateway.spend_rebuilt import spent_by_bucket

    parts = build_parts(settings)
    return spent_by_bucket(parts.tables, parts.catalog)


def build_audit_shipper(settings: PlatformSettings) -> AuditShipper:
    """What carries the catalog's audit trail into the lakehouse."""
    parts = build_parts(settings)
    return AuditShipper(parts.tables, parts.catalog)


def spool(settings: PlatformSettings) -> Path:
    """The folder of this node's request logs."""
    return settings.home_folder / "spool"
