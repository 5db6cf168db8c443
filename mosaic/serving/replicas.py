"""The replicas that run: where they are, what they log, and what their nodes count for Prometheus."""

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import ray
from ray.serve.context import _get_global_client
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mosaic.protocol import Wire

logger = logging.getLogger(__name__)

_SCRAPE_SECONDS, _READ_SECONDS = 10, 30
_LONGEST_LINE = 2000
"""Bytes of a line, so that the end of a file is read and not all of it."""
_MARKS = (":job_id:", ":actor_name:", ":task_name:")
"""Lines by which Ray knows whose output follows."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Replica(Wire):
    """One replica of an engine."""

    replica_id: str
    state: str
    """In Serve's words: STARTING, RUNNING, STOPPING and so on."""
    node: str | None
    """The address of its node; None before it has one."""
    pid: int | None
    started_at: datetime
    node_id: str | None = None
    worker_id: str | None = None
    log_file: str | None = None
    """Within the folder of Ray's logs on its node."""


def replicas_by_app(app_names: Sequence[str]) -> dict[str, list[Replica]]:
    """The replicas of these applications; an application that is not there has none."""
    applications = _details().get("applications", {})
    return {name: list(_replicas(applications.get(name, {}))) for name in app_names}


def _details() -> Mapping[str, Any]:
    client = _get_global_client(raise_if_no_controller_running=False)
    return {} if client is None else client.get_serve_details()


def _replicas(application: Mapping[str, Any]) -> Iterator[Replica]:
    for deployment in application.get("deployments", {}).values():
        for one in deployment.get("replicas", ()):
            yield Replica(
                replica_id=one["replica_id"],
                state=getattr(one["state"], "value", one["state"]),
                node=one.get("node_ip"),
                pid=one.get("pid"),
                started_at=datetime.fromtimestamp(one["start_time_s"], UTC),
                node_id=one.get("node_id"),
                worker_id=one.get("worker_id"),
                log_file=(one.get("log_file_path") or "").lstrip("/") or None,
            )


def log_lines(replica: Replica, lines: int) -> list[str]:
    """The last lines that a replica logged, and then those that its process and its engine's printed; none of one that
    has no place yet, or whose node is gone."""
    if replica.node_id is None or replica.worker_id is None:
        return []
    if replica.node_id == ray.get_runtime_context().get_node_id():
        return read_tails(replica.log_file, replica.worker_id, lines)
    there = NodeAffinitySchedulingStrategy(replica.node_id, soft=False)
    try:
        reading = _read_there.options(scheduling_strategy=there).remote(replica.log_file, replica.worker_id, lines)
        found: list[str] = ray.get(reading, timeout=_READ_SECONDS)
    except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError) as error:
        logger.warning("no log of replica %s on node %s: %s", replica.replica_id, replica.node, error)
        return []
    return found


@ray.remote(num_cpus=0)
def _read_there(log_file: str | None, worker_id: str, lines: int) -> list[str]:
    return read_tails(log_file, worker_id, lines)


def read_tails(log_file: str | None, worker_id: str, lines: int) -> list[str]:
    """The ends of the files of a replica in the folder of Ray's logs on this node."""
    folder = Path(ray._private.worker._global_node.get_logs_dir_path())
    own = [] if log_file is None else [folder / log_file]
    files = [*own, *sorted(folder.glob(f"worker-{worker_id}-*.err")), *sorted(folder.glob(f"worker-{worker_id}-*.out"))]
    return [line for file in files if file.is_file() for line in _tail(file, lines)]


def _tail(file: Path, lines: int) -> list[str]:
    """Without the colours that are meant for a terminal."""
    with file.open("rb") as log:
        end = log.seek(0, os.SEEK_END)
        log.seek(max(0, end - lines * _LONGEST_LINE))
        found = log.read().decode(errors="replace").splitlines()[-lines:]
    return [_COLOUR.sub("", line) for line in found if not line.startswith(_MARKS)]


def metrics_text() -> str:
    """What every node of the cluster shows Prometheus; a node that does not answer is left out, and logged."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    with ThreadPoolExecutor(min(16, len(nodes) or 1)) as pool:
        return "".join(pool.map(_scrape, nodes))


def _scrape(node: Mapping[str, Any]) -> str:
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    try:
        return httpx.get(url, timeout=_SCRAPE_SECONDS).raise_for_status().text
    except httpx.HTTPError as error:
        logger.warning("node %s shows no metrics at %s: %s", node["NodeID"], url, error)
        return ""
