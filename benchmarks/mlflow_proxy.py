"""What control adds to a call of MLflow's API: the same calls on the bare server's socket and through control.

    python benchmarks/mlflow_proxy.py

In each round both take turns, call by call; control runs in a process of its own, without HAProxy before it. Printed
are the medians of the rounds' p50 and their range, in milliseconds.
"""

import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import uvicorn
from starlette.types import Receive, Scope, Send

from mosaic.platform import PlatformSettings
from mosaic.platform.control import control_app
from mosaic.platform.mlflow_proxy import mlflow_door
from mosaic.platform.parts import build_parts
from mosaic.training import MlflowServer

ROUNDS, CALLS, FILES, FILE_BYTES = 5, 150, 10, 10 * 1024 * 1024
API, ARTIFACTS = "/api/2.0/mlflow", "/api/2.0/mlflow-artifacts/artifacts"

Call = Callable[[httpx.Client], httpx.Response]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings, place = PlatformSettings(storage=f"{folder}/root"), Path(folder) / "run" / "socket"
        token = build_parts(settings).catalog.create_token("ann")[1]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        control = multiprocessing.get_context("spawn").Process(target=serve, args=(settings, place, port), daemon=True)
        with MlflowServer(settings.home_folder / "mlflow", place):
            control.start()
            bare = httpx.Client(transport=httpx.HTTPTransport(uds=str(place)), base_url="http://localhost", timeout=60)
            through = httpx.Client(
                base_url=f"http://127.0.0.1:{port}", headers={"authorization": f"Bearer {token}"}, timeout=60
            )
            wait_for(through)
            measure(bare, through)
        control.kill()


def measure(bare: httpx.Client, through: httpx.Client) -> None:
    made = through.post(f"{API}/runs/create", json={"experiment_id": "0"}).raise_for_status()
    run_id = made.json()["run"]["info"]["run_id"]
    path, content = f"{ARTIFACTS}/0/{run_id}/artifacts/file.bin", os.urandom(FILE_BYTES)
    metrics = [{"key": f"m{number}", "value": 0.5, "timestamp": 1, "step": 0} for number in range(10)]
    calls: list[tuple[str, int, Call]] = [
        ("runs/get", CALLS, lambda to: to.get(f"{API}/runs/get", params={"run_id": run_id})),
        (
            "runs/log-batch, 10 metrics",
            CALLS,
            lambda to: to.post(f"{API}/runs/log-batch", json={"run_id": run_id, "metrics": metrics}),
        ),
        ("a file of 10 MB up", FILES, lambda to: to.put(path, content=content)),
        ("a file of 10 MB down", FILES, lambda to: to.get(path)),
    ]
    for name, count, call in calls:
        rounds: dict[str, list[float]] = {"bare": [], "control": [], "added": []}
        for _ in range(ROUNDS):
            taken = [(timed(call, bare), timed(call, through)) for _ in range(count)]
            direct, proxied = (statistics.median(column) for column in zip(*taken, strict=True))
            rounds["bare"].append(direct)
            rounds["control"].append(proxied)
            rounds["added"].append(proxied - direct)
        shown = ", ".join(
            f"{what} {statistics.median(taken):.1f} ({min(taken):.1f} to {max(taken):.1f})"
            for what, taken in rounds.items()
        )
        print(f"{name}: p50 in ms: {shown}")


def timed(call: Call, client: httpx.Client) -> float:
    started = time.perf_counter()
    call(client).raise_for_status()
    return (time.perf_counter() - started) * 1000


def wait_for(client: httpx.Client) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            client.get(f"{API}/experiments/get", params={"experiment_id": "0"}).raise_for_status()
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError("control did not start")


def serve(settings: PlatformSettings, place: Path, port: int) -> None:
    """Control's application, as Serve calls it with the route prefix /api."""
    parts = build_parts(settings)
    app = control_app(parts, mlflow_door(settings, place, parts.catalog, trusted=frozenset()))

    async def prefixed(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "root_path": "/api"}, receive, send)

    uvicorn.run(prefixed, host="127.0.0.1", port=port, log_level="error", lifespan="off")


if __name__ == "__main__":
    main()
