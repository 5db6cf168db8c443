"""Which Ray cluster; apart from what needs Ray to be imported."""

from mosaic.settings import Settings


class RaySettings(Settings):
    """Which Ray cluster the platform runs on."""

    address: str | None = None
    """Address of a running cluster to join (`auto` or `host:port`); None starts an embedded one on this machine."""
    num_cpus: float = 2
    """Logical CPUs of the embedded cluster; the whole main job fits into 2."""
    num_gpus: int = 0
    """GPUs of the embedded cluster."""
    object_store_memory_bytes: int = 1_000_000_000
    """Shared memory of the embedded cluster's object store."""
    dashboard_port: int = 8265
    """Port of the embedded cluster's dashboard and job submission, on loopback."""
