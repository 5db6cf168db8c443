"""Start, find, join and stop a Ray cluster; on a laptop an embedded one bound to loopback."""

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import ray
from ray._private import ray_constants
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

from mosaic.errors import BadRequest, Conflict, Unavailable
from mosaic.protocol import Wire
from mosaic.runtime.home import head_is_alive
from mosaic.runtime.settings import RaySettings

MARKER = "MOSAIC_PLATFORM_ID"
"""Set in the environment of the embedded Ray and so inherited by every process under it: what `mosaic down` looks
for."""


LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Makes an embedded Ray use loopback for everything: all of its ports, the object manager's and the agents' too,
listen there alone. Ray does so by default where it supports no clusters; `_node_ip_address="127.0.0.1"` alone it
replaces by the machine's."""

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "1"}
"""Nothing is reported to anybody outside, and a job's output is its own."""
MANY_SMALL_ACTORS = {"RAY_worker_maximum_startup_concurrency": "16"}
"""Ray expects about as many processes as logical CPUs; ours reserve a fraction each, and start side by side."""
AS_OTHERS = {"RAY_worker_niceness": "0"}
"""Ray starts workers at niceness 15, behind whatever else runs on the machine. Here workers are the gateway and the
engines, which somebody waits for. Who wants it otherwise sets the variable."""


class Cluster(Wire):
    """A running Ray cluster."""

    address: str
    dashboard: str | None
    """Where the dashboard and job submission answer."""
    embedded: bool
    pid: int | None = None
    """The process that owns an embedded cluster."""


def start_head(settings: RaySettings, home: Path, platform_id: str, environment: Mapping[str, str]) -> Cluster:
    """Start the embedded cluster and wait until it is up (about 6 s); its log is `home/logs/head.log`.

    Raises Unavailable with the end of that log when Ray does not come up.
    """
    record_file, log_file = home / "head.json", home / "logs" / "head.log"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    record_file.unlink(missing_ok=True)
    spec = {
        "num_cpus": settings.num_cpus,
        "num_gpus": settings.num_gpus,
        "object_store_memory_bytes": settings.object_store_memory_bytes,
        "dashboard_port": settings.dashboard_port,
        "temp_dir": _ray_folder(platform_id),
        "record_file": str(record_file),
        "lock_file": str(home / "head.lock"),
    }
    pid = _spawn(
        [sys.executable, "-m", "mosaic.runtime.head", json.dumps(spec)],
        _head_environment(environment, platform_id),
        log_file,
    )
    deadline = time.monotonic() + 120
    while not record_file.exists():
        ended, _ = os.waitpid(pid, os.WNOHANG)
        if ended or time.monotonic() > deadline:
            if not ended:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            end = log_file.read_text(errors="replace").strip().splitlines()[-8:]
            raise Unavailable("the embedded Ray did not start; the end of its log:\n  " + "\n  ".join(end))
        time.sleep(0.1)
    cluster = find_head(home)
    assert cluster is not None
    return cluster


def _spawn(command: list[str], environment: Mapping[str, str], log_file: Path) -> int:
    """A process of its own session that outlives this one; its output goes to the file. (Popen would want it waited
    for.)"""
    with log_file.open("ab") as log, open(os.devnull, "rb") as nothing:
        actions = [(os.POSIX_SPAWN_DUP2, nothing.fileno(), 0)]
        actions += [(os.POSIX_SPAWN_DUP2, log.fileno(), descriptor) for descriptor in (1, 2)]
        return os.posix_spawn(command[0], command, dict(environment), file_actions=actions, setsid=True)


def _head_environment(environment: Mapping[str, str], platform_id: str) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_ADDRESS")}
    # `python jobs/...` in a submitted job must be the Python that mosaic is installed in.
    path = os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", "")])
    ours = {**LOOPBACK, **MANY_SMALL_ACTORS, **QUIET, **environment, MARKER: platform_id, "PATH": path}
    return {**AS_OTHERS, **inherited, **ours}


def find_head(home: Path) -> Cluster | None:
    """The embedded cluster that is running under `home`, or None."""
    record_file = home / "head.json"
    if not head_is_alive(home) or not record_file.exists():
        return None
    record = json.loads(record_file.read_text())
    return Cluster(address=record["address"], dashboard=record["dashboard"], embedded=True, pid=record["pid"])


def stop_head(home: Path, platform_id: str, *, patience_seconds: float = 30) -> list[int]:
    """End the embedded cluster and every process that carries its mark; returns the ids that had to be killed."""
    cluster = find_head(home)
    if cluster is not None and cluster.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(cluster.pid, signal.SIGTERM)
    # The caller itself may run under the cluster (a job that calls `down`): it must outlive its own stop.
    own = {os.getpid(), os.getppid()}
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline:
        left = [process for process in marked_processes(platform_id) if process.pid not in own]
        if not left:
            break
        if not any(process.pid == (cluster.pid if cluster else None) for process in left):
            for process in left:  # Ray is gone: what is left has nobody to tell it
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.terminate()
        time.sleep(0.2)
    killed = []
    for process in marked_processes(platform_id):
        if process.pid not in own:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                killed.append(process.pid)
    if cluster is not None and cluster.pid is not None:
        with contextlib.suppress(ChildProcessError):  # ours only if this very process started it
            os.waitpid(cluster.pid, os.WNOHANG)
    (home / "head.json").unlink(missing_ok=True)
    shutil.rmtree(_ray_folder(platform_id), ignore_errors=True)
    return killed


def _ray_folder(platform_id: str) -> str:
    # AF_UNIX paths are limited to 107 bytes and Ray's are long, so its sessions cannot live under an arbitrary home.
    return f"/tmp/mosaic-ray-{platform_id[-10:]}"


def marked_processes(platform_id: str) -> Iterator[psutil.Process]:
    """Every living process that inherited the platform's mark."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARKER) == platform_id and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def connect(address: str, environment: Mapping[str, str]) -> None:
    """Make this process a driver of the cluster at `address`; a process that already is one stays it.

    `environment` goes to every worker of this driver, for clusters whose nodes were started without it. Raises
    Unavailable naming the address where nothing answers, and Conflict where the cluster's token is not ours.
    """
    if ray.is_initialized():
        return
    # With an explicit address Ray 2.60 sends its token only when told to; one that is there is meant to be sent.
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    if address.startswith("127."):
        ray_constants.ENABLE_RAY_CLUSTER = (
            False  # see LOOPBACK: otherwise Ray would look for itself on the machine's address
        )
    try:
        ray.init(
            address=address,
            namespace="mosaic",
            log_to_driver=False,
            logging_level="WARNING",
            runtime_env={"env_vars": dict(environment)},
        )
    except ConnectionError as error:
        raise Unavailable(f"no Ray cluster answers at {address!r}: {_first_line(error)}", param="ray.address") from None
    except (PermissionError, ray.exceptions.AuthenticationError) as error:
        raise Conflict(f"the Ray cluster at {address!r} refuses this token: {_first_line(error)}") from None


def require_free_ports(ports: Mapping[str, int], host: str = "127.0.0.1") -> None:
    """Raise BadRequest naming the first setting whose port somebody else listens on, and who if that can be seen."""
    for setting, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                raise BadRequest(
                    f"port {port} ({setting}) on {host} is taken{_listener(port)}; stop that, or set another port",
                    param=setting,
                    code="port_taken",
                ) from None


def _listener(port: int) -> str:
    for connection in psutil.net_connections("tcp"):
        if connection.status != psutil.CONN_LISTEN or not connection.laddr or not connection.pid:
            continue
        if connection.laddr.port == port:
            with contextlib.suppress(psutil.NoSuchProcess):
                return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
