"""What the gateway costs before a provider that answers at once: the provider alone, mosaic, and LiteLLM's proxy.

    python -m benchmarks.gateway [rounds]

The provider is the package's double (`mosaic.gateway.providers.doubles`) in a process of its own; all requests are
chats whose answer comes whole, by wrk, which is compiled. mosaic checks a token, a grant and one limit and has each
request's row on the disk before it answers; LiteLLM checks its key and a limit and keeps nothing. The sides take turns
within every round, on the same cores as provider and wrk. Then 64 streams at once with a word every 20 ms: how long
after the provider each word arrives. Last, what each feature costs that is switched on.

Needs `wrk` (Debian has it). LiteLLM is installed into an environment of its own, under the folder of temporary files.
"""

import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import yaml

from benchmarks.serving import running_platform, shown
from mosaic.platform import Platform
from mosaic.serving.endpoint import EndpointSettings
from tests.local import free_ports

LITELLM = "litellm[proxy]==1.108.1"
SECONDS, CLIENTS, STREAMS, WORDS, PACE_MS = 8, 32, 64, 100, 20
KEY = "sk-benchmark-0123456789"
EVERY = {"calls": 100_000_000, "key": "user"}
Side = tuple[str, str, str]
"""URL up to /v1, model, key."""


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as scratch, provider() as url, running_platform(Path(scratch)) as platform:
        platform.catalog.connections.create(
            "double", connection_type="OPENAI", options={"base_url": f"{url}/v1", "api_key": KEY}, owner="admin"
        )
        token = platform.catalog.create_token("bench", kind="user", is_admin=True)[1]
        ours = f"{platform.base_url}/v1"
        serve(platform, "plain", rate_limits=[EVERY])
        with litellm(url) as theirs:
            sides = {
                "provider alone": (f"{url}/v1", "m1", KEY),
                "mosaic": (ours, "plain", token),
                "LiteLLM": (theirs, "m1", KEY),
            }
            whole(sides, rounds)
            streams(sides, rounds)
        features(platform, ours, token, rounds)


def whole(sides: dict[str, Side], rounds: int) -> None:
    rates: dict[str, list[float]] = {name: [] for name in sides}
    alone: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for side in sides.values():
        wrk(side, CLIENTS, 3)  # warms up
    for _ in range(rounds):
        for name, side in sides.items():
            rates[name].append(wrk(side, CLIENTS, SECONDS)["rate"])
            alone[name].append(wrk(side, 1, SECONDS))
    print(f"{'':16}{f'requests/s, {CLIENTS} clients':>30}{'p50 ms, 1 client':>30}{'p99 ms, 1 client':>30}")
    for name in sides:
        row = [shown([one[key] for one in alone[name]], "", 2) for key in ("p50", "p99")]
        print(f"{name:16}{shown(rates[name], '', 0):>30}{row[0]:>30}{row[1]:>30}")
    ratio = [ours / theirs for ours, theirs in zip(rates["mosaic"], rates["LiteLLM"], strict=True)]
    print(f"mosaic / LiteLLM by round: {shown(ratio, '', 2)}; wanted 5")
    for key, wanted in (("p50", 4), ("p99", 20)):
        for name in ("mosaic", "LiteLLM"):
            added = [one[key] - bare[key] for one, bare in zip(alone[name], alone["provider alone"], strict=True)]
            told = f"; wanted {wanted}" if name == "mosaic" else ""
            print(f"{name} adds to {key} at 1 client: {shown(added, 'ms', 2)}{told}", flush=True)


def streams(sides: dict[str, Side], rounds: int) -> None:
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.gateway", "--streams", json.dumps(side)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            found[name].append(json.loads(done.stdout.splitlines()[-1])["p99_ms"])
    for name in sides:
        added = [one - bare for one, bare in zip(found[name], found["provider alone"], strict=True)]
        more = "" if name == "provider alone" else f", {shown(added, 'ms', 1)} more than the provider alone"
        told = "; wanted 5" if name == "mosaic" else ""
        print(
            f"{name}: p99 of a word's delay, {STREAMS} streams: {shown(found[name], 'ms', 1)}{more}{told}", flush=True
        )


def features(platform: Platform, url: str, token: str, rounds: int) -> None:
    """One at a time, against the same endpoint without any."""
    mask, block = {"pii": {"behavior": "MASK"}}, {"invalid_keywords": ["nightjar"]}
    kinds: dict[str, dict[str, Any]] = {
        "none": {},
        "one limit": {"rate_limits": [EVERY]},
        "three limits": {"rate_limits": [EVERY, {**EVERY, "key": "endpoint"}, {"tokens": 10**12}]},
        "keywords": {"guardrails": {"input": block}},
        "personal data in": {"guardrails": {"input": mask}},
        "personal data in and out": {"guardrails": {"input": mask, "output": mask}},
        "fallback": {"fallback_config": {"enabled": True}},
    }
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    for kind, given in kinds.items():
        serve(platform, kind.replace(" ", "-"), **given)
    for turn in range(rounds + 1):
        for kind in kinds:
            rate = wrk((url, kind.replace(" ", "-"), token), CLIENTS, SECONDS if turn else 3)["rate"]
            rates[kind] += [rate] if turn else []
    for kind in kinds:
        cost = [1e3 / one - 1e3 / none for one, none in zip(rates[kind], rates["none"], strict=True)]
        print(f"{kind:26}{shown(rates[kind], 'requests/s', 0):>36}{shown(cost, 'ms a request', 2):>36}", flush=True)


def serve(platform: Platform, name: str, **ai_gateway: Any) -> None:
    external = {"provider": "custom", "name": "m1", "connection": "double", "max_concurrency": 1000}
    entities = [{"name": "double", "external_model": external}]
    told = {"name": name, "served_entities": entities, "ai_gateway": ai_gateway}
    platform.serving.put(EndpointSettings.parse(told))
    platform.serving.wait(name)
    time.sleep(0.4)


def wrk(side: Side, clients: int, seconds: int) -> dict[str, float]:
    """Requests a second, and milliseconds; raises RuntimeError if any request was answered with another status."""
    url, model, key = side
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "tell me of rivers and towns " * 8}]})
    script = (
        f"wrk.method = 'POST'\nwrk.body = '{body}'\nwrk.headers['content-type'] = 'application/json'\n"
        f"wrk.headers['authorization'] = 'Bearer {key}'\n"
    )
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}", "--latency", "--timeout", "30", "-s", file.name]
        told = subprocess.run([*command, f"{url}/chat/completions"], check=True, stdout=subprocess.PIPE, text=True)
    if "Non-2xx" in told.stdout or "Socket errors" in told.stdout:
        raise RuntimeError(told.stdout)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", told.stdout)
    assert rate is not None
    return {"rate": float(rate[1]), "p50": _milliseconds("50%", told.stdout), "p99": _milliseconds("99%", told.stdout)}


def _milliseconds(share: str, told: str) -> float:
    found = re.search(rf"{share}\s+([\d.]+)(us|ms|s)", told)
    assert found is not None, told
    return float(found[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[found[2]]


async def delays(side: Side) -> float:
    """p99 of how much later than its place in the pace each word of the streams arrives, in ms.

    The pace begins with the first word of a stream: what is asked is how evenly words pass, not when the first comes.
    """
    late: list[float] = []

    async def one() -> None:
        url, model, key = side
        place = urlsplit(url)
        asked = f"tokens: {WORDS} slow: {PACE_MS} ms"
        body = json.dumps({"model": model, "stream": True, "messages": [{"role": "user", "content": asked}]}).encode()
        head = (
            f"POST {place.path}/chat/completions HTTP/1.1\r\nhost: {place.netloc}\r\ncontent-type: application/json\r\n"
            f"authorization: Bearer {key}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        writer.write(head.encode() + body)
        arrivals: list[float] = []
        while piece := await reader.read(65536):
            now = time.perf_counter()
            arrivals += [now] * len(re.findall(rb'"content":\s*"[^"]', piece))
        writer.close()
        if len(arrivals) < WORDS:
            raise RuntimeError(f"{len(arrivals)} of {WORDS} words came")
        # The provider's own pace is a little over what it says: the median gap is taken for it.
        pace = (arrivals[-1] - arrivals[0]) / (len(arrivals) - 1)
        offsets = [arrival - arrivals[0] - number * pace for number, arrival in enumerate(arrivals)]
        late.extend((offset - min(offsets)) * 1e3 for offset in offsets)

    await asyncio.gather(*(one() for _ in range(STREAMS)))
    return statistics.quantiles(late, n=100)[98]


@contextmanager
def provider() -> Iterator[str]:
    (port,) = free_ports(1)
    with _process([sys.executable, "-m", "mosaic.gateway.providers.doubles", "--port", str(port)], port) as url:
        yield url


@contextmanager
def litellm(upstream: str) -> Iterator[str]:
    home = Path(tempfile.gettempdir()) / "mosaic-litellm"
    if not (home / "bin" / "litellm").exists():
        venv.create(home, with_pip=True)
        subprocess.run([home / "bin" / "pip", "install", "-q", LITELLM], check=True)
    (port,) = free_ports(1)
    model = {"model": "openai/m1", "api_base": f"{upstream}/v1", "api_key": KEY, "rpm": 100_000_000}
    config = {
        "model_list": [{"model_name": "m1", "litellm_params": model}],
        "general_settings": {"master_key": KEY},
        "litellm_settings": {"num_retries": 0, "telemetry": False},
    }
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(config, file)
        file.flush()
        command = [str(home / "bin" / "litellm"), "--config", file.name, "--port", str(port), "--host", "127.0.0.1"]
        with _process([*command, "--num_workers", "1"], port, seconds=180) as url:
            yield f"{url}/v1"


@contextmanager
def _process(command: list[str], port: int, seconds: float = 60) -> Iterator[str]:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = subprocess.Popen(command, env={**os.environ, "LITELLM_LOG": "ERROR"}, **quiet)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + seconds
    try:
        while True:
            try:
                httpx.get(url, timeout=5)
                break
            except httpx.TransportError:
                if time.monotonic() > deadline or started.poll() is not None:
                    raise RuntimeError(f"{command[0]} did not start") from None
                time.sleep(0.2)
        yield url
    finally:
        started.terminate()
        started.wait()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--streams"]:
        print(json.dumps({"p99_ms": asyncio.run(delays(tuple(json.loads(sys.argv[2]))))}))
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 5)
