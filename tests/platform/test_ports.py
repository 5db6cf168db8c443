"""What listens, against the table of docs/security.md; and Ray refuses who has no token."""

import ipaddress
import re
import subprocess
import sys
from pathlib import Path

import grpc
import httpx
import psutil
import pytest

from mosaic.platform import Platform
from mosaic.platform.parts import internal_token
from mosaic.runtime.cluster import marked_processes
from mosaic.runtime.home import read_record

DOCUMENT = Path(__file__).parents[2] / "docs" / "security.md"


def documented() -> dict[str, str]:
    """The table's rows: what listens -> `loopback` or `all interfaces`."""
    rows = re.findall(r"^\| ([^|]+) \| (loopback|all interfaces) \| ", DOCUMENT.read_text(), re.MULTILINE)
    return {what.strip(): address for what, address in rows}


def listening(platform: Platform) -> list[tuple[str, str, int]]:
    """(what, address, port) of every port that a process of this platform listens on."""
    record = read_record(platform.settings.home_folder)
    assert record is not None
    found = []
    for process in marked_processes(record["platform_id"]):
        try:
            connections, cmdline = process.net_connections("tcp"), " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        for connection in connections:
            if connection.status == psutil.CONN_LISTEN:
                address = ipaddress.ip_address(connection.laddr.ip)
                mapped = getattr(address, "ipv4_mapped", None) or address
                where = "loopback" if mapped.is_loopback else "all interfaces"
                found.append((_what(platform, cmdline, connection.laddr.port, where), where, connection.laddr.port))
    return found


def _what(platform: Platform, cmdline: str, port: int, where: str) -> str:
    settings = platform.settings
    by_port = {
        settings.http_port: "HAProxy: gateway and control",
        settings.haproxy_metrics_port: "HAProxy: metrics",
        settings.haproxy_stats_port: "HAProxy: statistics",
        settings.serve_fallback_port: "Serve's proxy",
        settings.ray.dashboard_port: "Ray dashboard and jobs",
    }
    if port in by_port:
        return by_port[port]
    if "ServeReplica" in cmdline and 30000 <= port <= 31000:
        return "replica HTTP"
    if "ServeReplica" in cmdline and where == "all interfaces":
        return "replica gRPC"
    if "VLLM" in cmdline or "EngineCore" in cmdline:
        return "vLLM's processes among themselves"
    return "Ray core: GCS, raylet, workers, agents"


def test_what_listens_is_what_the_document_says(platform: Platform) -> None:
    expected, found = documented(), listening(platform)
    wrong = [(what, where, port) for what, where, port in found if expected.get(what) != where]
    assert not wrong, f"not as docs/security.md says: {wrong}"
    optional = {"vLLM's processes among themselves"}
    missing = set(expected) - {what for what, _, _ in found} - optional
    assert not missing, f"documented, but nothing listens: {missing}"


def test_the_platforms_own_token_is_in_no_command_line_or_environment(platform: Platform) -> None:
    record, secret = read_record(platform.settings.home_folder), internal_token(platform.settings)
    assert record is not None and secret.startswith("mosaic_")
    seen = 0
    for process in marked_processes(record["platform_id"]):
        try:
            said = [*process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue
        assert not any(secret in one for one in said), process
        seen += 1
    assert seen > 5


def test_the_ports_that_are_open_to_all_refuse_without_rays_token(platform: Platform) -> None:
    ports = [port for what, where, port in listening(platform) if where == "all interfaces"]
    assert ports
    for port in ports:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", timeout=10)
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_ray_refuses_a_client_without_the_clusters_token(platform: Platform, tmp_path: Path) -> None:
    dashboard = platform.cluster.dashboard
    assert dashboard is not None
    assert httpx.get(f"{dashboard}/api/jobs/").status_code == 401
    program = (
        "from ray._raylet import GcsClient\n"
        f"GcsClient(address={platform.cluster.address!r}).internal_kv_get(b'x', None, timeout=5)\n"
    )
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    tried = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert tried.returncode != 0 and "InvalidAuthToken" in tried.stderr
