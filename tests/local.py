"""Settings of a platform of its own, for tests beside whatever else runs on this machine."""

import socket
from pathlib import Path

from mosaic.platform import PlatformSettings
from mosaic.runtime import RaySettings


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def local_settings(root: Path, **changes: object) -> PlatformSettings:
    """A platform of its own under `root`, beside whatever else runs on this machine."""
    http, mlflow, metrics, stats, fallback, dashboard = free_ports(6)
    values: dict[str, object] = {
        "storage": str(root),
        "http_port": http,
        "mlflow_port": mlflow,
        "haproxy_metrics_port": metrics,
        "haproxy_stats_port": stats,
        "serve_fallback_port": fallback,
        "ray": RaySettings(num_cpus=4, dashboard_port=dashboard, object_store_memory_bytes=300_000_000),
        **changes,
    }
    return PlatformSettings.parse(values)
