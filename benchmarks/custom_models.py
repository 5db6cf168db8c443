"""A text classifier behind the gateway: requests per second with batching against without, and one client alone.

    python -m benchmarks.custom_models

MiniLM with three labels (untrained, which costs the same) answers at two endpoints of one platform, of which one has
`max_batch_size: 1`. 32 clients in a process of their own ask with real tweets, one in each request; the two take
turns, round by round. Printed are the median and the range of the rounds, and of the ratios within each round.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from tests.local import free_ports

ROUNDS, CLIENTS, SECONDS, ALONE_SECONDS, WANTED = 5, 32, 6.0, 3.0, 1.5
ENDPOINTS = {"without": 1, "batching": 32}
TWEETS = Path(__file__).parents[1] / "jobs" / "data" / "tweets_ground_truth.tsv"


def main() -> None:
    from mosaic.platform import PlatformSettings, down, up
    from mosaic.serving.endpoint import EndpointSettings, ServedEntity
    from mosaic.serving.settings import EngineSettings

    with tempfile.TemporaryDirectory() as scratch:
        ports = dict(
            zip(
                ("http_port", "haproxy_metrics_port", "haproxy_stats_port", "serve_fallback_port", "dashboard"),
                free_ports(5),
                strict=True,
            )
        )
        ray = {"num_cpus": 4, "dashboard_port": ports.pop("dashboard"), "object_store_memory_bytes": 300_000_000}
        settings = PlatformSettings.parse({"storage": f"{scratch}/root", "ray": ray, **ports})
        platform = up(settings).platform
        try:
            token = platform.catalog.create_token("bench", is_admin=False)[1]
            folder = untrained(platform.models.resolve("all-minilm-l6-v2"), Path(scratch) / "classifier")
            platform.models.register("main.bench.moods", folder, alias="live")
            for name, size in ENDPOINTS.items():
                engine = EngineSettings(num_cpus=0.2, threads=1, max_batch_size=size)
                entity = ServedEntity(name="minilm", model="main.bench.moods@live", engine=engine)
                platform.serving.put(EndpointSettings(name=name, served_entities=[entity]))
            for name in ENDPOINTS:
                platform.serving.wait(name)
            measure(platform.base_url, token)
        finally:
            down(settings.home_folder)


def measure(base_url: str, token: str) -> None:
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in ENDPOINTS}
    alone: dict[str, list[dict[str, Any]]] = {name: [] for name in ENDPOINTS}
    for number in range(ROUNDS + 1):
        for name in ENDPOINTS:
            found = load(base_url, token, name, CLIENTS, SECONDS)
            single = load(base_url, token, name, 1, ALONE_SECONDS)
            if number:  # the first one warms up
                rounds[name].append(found)
                alone[name].append(single)
    for name in ENDPOINTS:
        told = [f"{CLIENTS} clients: {shown([one['per_second'] for one in rounds[name]])} requests/s"]
        told.append(f"p50 {shown([one['p50_ms'] for one in rounds[name]])} ms")
        told.append(f"1 client: p50 {shown([one['p50_ms'] for one in alone[name]], 1)} ms")
        told.append(f"errors {sum(one['errors'] for one in (*rounds[name], *alone[name]))}")
        print(f"{name:9} {'; '.join(told)}")
    pairs = zip(rounds["batching"], rounds["without"], strict=True)
    ratios = [batched["per_second"] / single["per_second"] for batched, single in pairs]
    verdict = "passed" if min(ratios) >= WANTED else "inconclusive" if max(ratios) >= WANTED else "failed"
    print(f"ratio     {shown(ratios, 2)}; wanted {WANTED}: {verdict}")


def load(base_url: str, token: str, endpoint: str, clients: int, seconds: float) -> dict[str, Any]:
    url = f"{base_url}/serving-endpoints/{endpoint}/invocations"
    asked = json.dumps({"url": url, "token": token, "clients": clients, "seconds": seconds})
    command = [sys.executable, "-m", "benchmarks.custom_models", "load"]
    done = subprocess.run(command, input=asked, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


async def ask(url: str, token: str, clients: int, seconds: float) -> dict[str, Any]:
    texts = [line.split("\t")[2] for line in TWEETS.read_text(encoding="utf-8").splitlines()]
    taken: list[float] = []
    errors = 0
    connector = aiohttp.TCPConnector(limit=clients)
    async with aiohttp.ClientSession(connector=connector, headers={"authorization": f"Bearer {token}"}) as session:
        end = time.perf_counter() + seconds

        async def client(number: int) -> None:
            nonlocal errors
            place = number
            while (began := time.perf_counter()) < end:
                async with session.post(url, json={"inputs": [texts[place % len(texts)]]}) as answer:
                    predicted = (await answer.json()).get("predictions", [])
                if answer.status == 200 and len(predicted) == 1:
                    taken.append(time.perf_counter() - began)
                else:
                    errors += 1
                place += clients

        started = time.perf_counter()
        await asyncio.gather(*(client(number) for number in range(clients)))
        lasted = time.perf_counter() - started
    return {"per_second": len(taken) / lasted, "p50_ms": 1000 * statistics.median(taken), "errors": errors}


def untrained(base: Path, folder: Path) -> Path:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    AutoModelForSequenceClassification.from_pretrained(base, num_labels=3).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def shown(values: list[float], digits: int = 0) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


if __name__ == "__main__":
    if sys.argv[1:] == ["load"]:
        print(json.dumps(asyncio.run(ask(**json.load(sys.stdin)))))
    else:
        main()
