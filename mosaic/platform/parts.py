"""The platform's settings, and its parts built from them: the one file that knows every room."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import Field

from mosaic.catalog import Catalog
from mosaic.client import Client
from mosaic.data import Shipper, Tables
from mosaic.data.audit_table import AuditShipper
from mosaic.data.sql import Sql
from mosaic.errors import BadRequest, Conflict
from mosaic.models import ModelResolver, ModelSource
from mosaic.monitoring import INFERENCE_TABLE, lost, to_arrow
from mosaic.runtime import RaySettings
from mosaic.serving import EngineSettings
from mosaic.settings import Settings
from mosaic.storage import Storage
from mosaic.vector import Indexes


class PlatformSettings(Settings):
    """Everything that can be set; `cluster/local.yaml` is the laptop's."""

    storage: str = "~/.mosaic"
    """The root address of all durable data: a local folder, or s3://, gs://, abfss://."""
    storage_options: dict[str, str] = Field(default_factory=dict)
    """Options of the object store, in deltalake's spelling (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...)."""
    home: str | None = None
    """Folder on this machine for logs, spools, caches and the SQLite catalog; the root itself if that is local."""
    catalog_url: str | None = None
    """SQLAlchemy URL of the catalog; SQLite in the home if not given."""
    catalog_key_file: str | None = None
    """File of the key that encrypts connections' secrets, the same on every node; `catalog.key` in the home if not
    given, made at the first secret."""
    ray: RaySettings = RaySettings()
    """Which Ray cluster."""
    host: str = "127.0.0.1"
    """Where the gateway listens; loopback unless there is a network policy around it (docs/security.md)."""
    http_port: int = Field(default=8000, ge=1, le=65535)
    """Port of the gateway and of control."""
    haproxy_metrics_port: int = Field(default=9101, ge=1, le=65535)
    """Port of HAProxy's Prometheus metrics, on loopback."""
    haproxy_stats_port: int = Field(default=8404, ge=1, le=65535)
    """Port of HAProxy's statistics page, on loopback."""
    serve_fallback_port: int = Field(default=8500, ge=1, le=65535)
    """Port of Serve's own proxy, which HAProxy falls back to while no replica is there; on `host`."""
    gateway_replicas: int = Field(default=1, ge=1)
    """Replicas of the gateway; each ships its own log."""
    max_body_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    """A larger request is a 413."""
    max_artifact_bytes: int = Field(default=10 * 1024**3, ge=1024)
    """A larger file of an MLflow run is a 413."""
    mlflow_url: str | None = None
    """Address of an MLflow server to keep runs in, in place of the platform's own; control stays the door to it."""
    engines: dict[str, EngineSettings] = Field(default_factory=dict)
    """How the engine of a model runs, by the model's name; what is not named runs with the defaults."""

    @property
    def home_folder(self) -> Path:
        if self.home is not None:
            return Path(self.home).expanduser().resolve()
        return Path("~/.mosaic" if "://" in self.storage else self.storage).expanduser().resolve()

    @property
    def catalog_address(self) -> str:
        return self.catalog_url or f"sqlite:///{self.home_folder / 'catalog.db'}"

    @property
    def key_file(self) -> Path:
        if self.catalog_key_file is not None:
            return Path(self.catalog_key_file).expanduser().resolve()
        return self.home_folder / "catalog.key"

    @property
    def base_url(self) -> str:
        """Where the gateway answers on this machine."""
        return f"http://127.0.0.1:{self.http_port}"


def load_settings(file: Path | str | None, **changes: Any) -> PlatformSettings:
    """Settings from a YAML file (if given) with `changes` on top; raises BadRequest naming the field and the file."""
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = yaml.safe_load(Path(file).read_text()) or {}
        except OSError as error:
            raise BadRequest(f"settings file {str(file)!r} cannot be read: {error.strerror}") from None
        except yaml.YAMLError as error:
            raise BadRequest(f"settings file {str(file)!r} is not YAML: {error}") from None
        if not isinstance(values, dict):
            raise BadRequest(f"settings file {str(file)!r} must be a mapping of settings, not {type(values).__name__}")
    return PlatformSettings.parse({**values, **changes}, source=str(file or "settings"))


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


def build_parts(settings: PlatformSettings) -> Parts:
    """Build the parts in this process; no Ray needed."""
    storage = Storage(settings.storage, settings.storage_options)
    catalog = Catalog.open(settings.catalog_address, key_file=settings.key_file)
    tables = Tables(storage, catalog)

    def source_of(name: str) -> ModelSource:
        version = catalog.get_model_version(name)
        if version.status != "READY":
            raise Conflict(f"model version {version.full_name!r} is still being uploaded", param="model")
        return ModelSource(name=version.full_name, address=version.source, checksums=version.checksums)

    models = ModelResolver(settings.home_folder / "models", storage, source_of)
    indexes = Indexes(storage, tables, catalog, functools.partial(embedder, settings))
    return Parts(settings, storage, catalog, tables, models, indexes, Sql(tables, catalog))


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


def internal_token(settings: PlatformSettings) -> str:
    """The token of the platform's own calls; `up` writes it, readable by its user alone."""
    return (settings.home_folder / "internal.token").read_text()


def resolve_model(settings: PlatformSettings, name: str) -> Path:
    """A model's name to a local folder, in whatever process this runs."""
    return build_parts(settings).models.resolve(name)


def build_shipper(settings: PlatformSettings) -> Shipper:
    """The shipper of this node's request logs into the inference table."""
    tables = build_parts(settings).tables
    return Shipper(spool(settings), functools.partial(tables.delta, INFERENCE_TABLE), to_arrow=to_arrow, lost=lost)


def build_audit_shipper(settings: PlatformSettings) -> AuditShipper:
    """What carries the catalog's audit trail into the lakehouse."""
    parts = build_parts(settings)
    return AuditShipper(parts.tables, parts.catalog)


def spool(settings: PlatformSettings) -> Path:
    """The folder of this node's request logs."""
    return settings.home_folder / "spool"
