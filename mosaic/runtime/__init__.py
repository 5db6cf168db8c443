"""Ray glue: an embedded Ray for a laptop, joining a cluster, and the parts of HTTP that every application shares."""

from mosaic.runtime.asgi import Authenticate, ShapeErrors, error_body
from mosaic.runtime.cluster import Cluster, RaySettings, connect, require_free_ports, start_head, stop_head

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
