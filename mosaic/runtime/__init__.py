"""Ray glue: an embedded Ray for a laptop, joining a cluster, and the parts of HTTP that every application shares."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mosaic.runtime.asgi import Authenticate, ShapeErrors, error_body
    from mosaic.runtime.cluster import Cluster, connect, require_free_ports, start_head, stop_head
    from mosaic.runtime.settings import RaySettings

__all__ = [
    "Authenticate",
    "Cluster",
    "RaySettings",
    "ShapeErrors",
    "connect",
    "error_body",
    "require_free_ports",
    "start_head",
    "stop_head",
]

_HOMES = {
    "Authenticate": "asgi",
    "ShapeErrors": "asgi",
    "error_body": "asgi",
    "Cluster": "cluster",
    "connect": "cluster",
    "require_free_ports": "cluster",
    "start_head": "cluster",
    "stop_head": "cluster",
    "RaySettings": "settings",
}


def __getattr__(name: str) -> Any:
    # Looked up when it is asked for: whoever only wants the settings, or HTTP's parts, does not pay for Ray.
    if name in _HOMES:
        return getattr(importlib.import_module(f"mosaic.runtime.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'mosaic.runtime' has no attribute {name!r}")
