"""The platform's settings, and the catalog that they name; apart from the parts, since these need no Ray."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from mosaic.catalog import Catalog, StoreSettings
from mosaic.errors import BadRequest
from mosaic.runtime.settings import RaySettings
from mosaic.serving import flags
from mosaic.serving.settings import EngineSettings
from mosaic.settings import Settings


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
    catalog_store: StoreSettings = StoreSettings()
    """How long to wait for the catalog's database, and connections to PostgreSQL."""
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
    allow_private_providers: bool = False
    """Whether external models may be at addresses that are not public, such as a server on this network."""
    gateway_replicas: int = Field(default=1, ge=1)
    """Replicas of the gateway; each ships its own log."""
    max_body_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    """A larger request is a 413."""
    max_artifact_bytes: int = Field(default=10 * 1024**3, ge=1024)
    """A larger file of an MLflow run is a 413."""
    mlflow_url: str | None = Field(default=None, pattern="^https?://[^/]")
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
    settings = PlatformSettings.parse({**values, **changes}, source=str(file or "settings"))
    for name, engine in settings.engines.items():
        flags.check(engine, at=f"{file or 'settings'}: engines.{name}")
    return settings


def open_catalog(settings: PlatformSettings) -> Catalog:
    """The catalog in this process, made or migrated if needed."""
    return Catalog.open(settings.catalog_address, key_file=settings.key_file, store=settings.catalog_store)
