"""Settings of a platform of its own, for tests beside whatever else runs on this machine."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
import yaml
from starlette.types import ASGIApp

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


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """The address of an application on a port of loopback, in a thread of this process."""
    port = free_ports(1)[0]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def local_settings(root: Path, **changes: object) -> PlatformSettings:
    """A platform of its own under `root`, beside whatever else runs on this machine."""
    http, metrics, stats, fallback, dashboard = free_ports(5)
    values: dict[str, object] = {
        "storage": str(root),
        "http_port": http,
        "haproxy_metrics_port": metrics,
        "haproxy_stats_port": stats,
        "serve_fallback_port": fallback,
        "allow_private_providers": True,
        "ray": RaySettings(num_cpus=4, dashboard_port=dashboard, object_store_memory_bytes=300_000_000),
        **changes,
    }
    return PlatformSettings.parse(values)


def write_settings(settings: PlatformSettings, file: Path) -> Path:
    """The settings as a file for `mosaic ... -f`."""
    file.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    return file


def mosaic(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """`mosaic ...`, as a user types it."""
    return subprocess.run(
        [sys.executable, "-m", "mosaic.cli", *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )
