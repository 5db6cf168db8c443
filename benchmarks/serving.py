"""What the gateway costs before a real engine: vLLM's own server, Ray's `build_openai_app` and mosaic, side by side.

    python -m benchmarks.serving [rounds]

All three serve the packaged chat model with the same flags, the same CPU worker and one engine each, on this machine at
the same time; they take turns within every round. Before that: how long from `endpoint create` to the first token,
beside how long vLLM's own server takes, and how long an adapter takes that is added to an engine that runs.
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from ray import serve

from benchmarks._streams import load
from benchmarks.engine_cpu import random_adapter
from mosaic.platform import Platform
from mosaic.platform.lifecycle import join
from mosaic.serving.deploy import vllm_config
from mosaic.serving.endpoint import APP_PREFIX, EndpointSettings, ServedEntity
from mosaic.serving.plan import plan_engine
from mosaic.serving.settings import EngineSettings
from tests.local import free_ports, local_settings, mosaic, write_settings

MODEL, ENDPOINT = "smollm2-135m-instruct", "helper"
ENGINE = EngineSettings()
Peer = Callable[[int, int, int, int], dict[str, Any]]
"""(clients, requests of each, tokens, salt) -> what `_streams.load` found."""


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as scratch, running_platform(Path(scratch)) as platform:
        folder = platform.models.resolve(MODEL)
        token = platform.catalog.create_token("bench", kind="user", is_admin=True)[1]
        starts(platform, token, folder, rounds)
        seconds_to_first_token(platform, token, ENDPOINT, ENGINE)
        added = [seconds_of_adapter(platform, token, folder, Path(scratch), number) for number in range(rounds)]
        print(f"adapter added to a running engine, to its first token: {shown(added, 's', 2)}", flush=True)
        with vllm_server(folder) as (bare, _):
            peers: dict[str, Peer] = {
                "vLLM's server": peer(bare, MODEL),
                "build_openai_app": peer(ray_app(platform, folder), MODEL),
                "mosaic": peer(f"{platform.base_url}/v1", ENDPOINT, token),
            }
            compare(peers, rounds)


def starts(platform: Platform, token: str, folder: Path, rounds: int) -> None:
    """vLLM's server from its start to its first token, and mosaic from `endpoint create`, one after the other."""
    bare, created = [], []
    for number in range(rounds):
        with vllm_server(folder) as (_, seconds):
            bare.append(seconds)
        name, engine = f"start-{number}", ENGINE.model_copy(update={"max_model_len": 1000 - number})
        created.append(seconds_to_first_token(platform, token, name, engine))
        platform.serving.delete(name)
        wait_for_end_of_engines()
    print(f"vLLM's server, from start to first token: {shown(bare, 's', 1)}")
    print(f"mosaic, from endpoint create to first token: {shown(created, 's', 1)}", flush=True)


def compare(peers: dict[str, Peer], rounds: int) -> None:
    first: dict[str, list[float]] = {name: [] for name in peers}
    rates: dict[str, list[float]] = {name: [] for name in peers}
    for ask in peers.values():
        ask(16, 1, 16, 999)  # warms up
    for turn in range(rounds):
        for name, ask in peers.items():
            alone = ask(1, 15, 24, turn * 2)["first_token_seconds"]
            first[name].append(statistics.median(alone) * 1000)
            many = ask(16, 3, 48, turn * 2 + 1)
            rates[name].append(many["output_tokens"] / many["seconds"])
    print(f"{'':18}{'first token, 1 client, ms':>32}{'output tokens/s, 16 clients':>32}")
    for name in peers:
        print(f"{name:18}{shown(first[name], '', 1):>32}{shown(rates[name], '', 0):>32}")
    added = [ours - theirs for ours, theirs in zip(first["mosaic"], first["vLLM's server"], strict=True)]
    ratio = [ours / theirs for ours, theirs in zip(rates["mosaic"], rates["vLLM's server"], strict=True)]
    ray = [ours / theirs for ours, theirs in zip(rates["mosaic"], rates["build_openai_app"], strict=True)]
    print(f"mosaic adds to vLLM's server {shown(added, 'ms', 1)} to the first token; tokens/s {shown(ratio, '', 2)}")
    print(f"tokens/s against build_openai_app {shown(ray, '', 2)}", flush=True)


def shown(values: list[float], unit: str, digits: int) -> str:
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} {unit} ({low} to {high})".replace("  ", " ")


def peer(url: str, model: str, token: str = "") -> Peer:
    def ask(clients: int, each: int, tokens: int, salt: int) -> dict[str, Any]:
        return load(url, model, token=token, clients=clients, each=each, tokens=tokens, salt=salt)

    return ask


@contextmanager
def running_platform(scratch: Path) -> Iterator[Platform]:
    settings = local_settings(scratch / "root")
    file = write_settings(settings, scratch / "settings.yaml")
    started = mosaic("up", "-f", str(file))
    if started.returncode:
        raise RuntimeError(started.stderr)
    try:
        yield join(settings.home_folder)
    finally:
        mosaic("down", "-f", str(file))


@contextmanager
def vllm_server(folder: Path) -> Iterator[tuple[str, float]]:
    """Its address, and how many seconds it took to its first token."""
    flags = plan_engine(ENGINE, folder, ()).engine_kwargs
    given = [f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}") for name, value in flags.items()]
    port = free_ports(1)[0]
    place = ["--model", str(folder), "--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": str(ENGINE.kv_cache_gib), "VLLM_LOGGING_LEVEL": "ERROR"}
    began = time.monotonic()
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks._vllm_in_one_process", *place, *given, "--disable-uvicorn-access-log"],
        env=environment,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}/v1"
    try:
        yield url, wait_for_first_token(url, MODEL, "", began)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def wait_for_end_of_engines() -> None:
    while any(name.startswith(APP_PREFIX) for name in serve.status().applications):
        time.sleep(0.5)


def wait_for_first_token(url: str, model: str, token: str, began: float) -> float:
    asked = {"model": model, "messages": [{"role": "user", "content": "ping"}], "max_tokens": 1}
    headers = {"authorization": f"Bearer {token}"} if token else {}
    while time.monotonic() - began < 300:
        try:
            answer = httpx.post(f"{url}/chat/completions", json=asked, headers=headers, timeout=60)
            if answer.status_code == 200:
                return time.monotonic() - began
        except httpx.HTTPError:
            pass
        time.sleep(0.05)
    raise RuntimeError(f"no answer of {model} at {url}")


def ray_app(platform: Platform, folder: Path) -> str:
    """`build_openai_app` in the same Ray and behind the same HAProxy, tuned the same way."""
    from ray.serve.llm import LLMConfig, build_openai_app

    config = LLMConfig(
        **vllm_config(MODEL, str(folder), ENGINE, plan_engine(ENGINE, folder, ())),
        server_cls="benchmarks._ray_server:OneProcessServer",
    )
    serve.run(build_openai_app({"llm_configs": [config]}), name="peer", route_prefix="/peer")
    url = f"{platform.base_url}/peer/v1"
    wait_for_first_token(url, MODEL, "", time.monotonic())
    return url


def seconds_to_first_token(platform: Platform, token: str, name: str, engine: EngineSettings) -> float:
    began = time.monotonic()
    entities = [ServedEntity(name="base", model=MODEL, engine=engine)]
    platform.serving.put(EndpointSettings(name=name, served_entities=entities))
    return wait_for_first_token(f"{platform.base_url}/v1", name, token, began)


def seconds_of_adapter(platform: Platform, token: str, folder: Path, scratch: Path, number: int) -> float:
    """From `endpoint create` with a registered adapter to its first token, on the engine of `helper`."""
    model, source = f"main.bench.adapter{number}", random_adapter(folder, scratch / f"adapter-{number}")
    platform.catalog.ensure_schema("main.bench")
    platform.catalog.create_model(model, owner="admin")
    platform.catalog.create_model_version(model, source=str(source), kind="adapter", base_model=MODEL)
    began = time.monotonic()
    entities = [ServedEntity(name="adapted", model=f"{model}/1", engine=ENGINE)]
    platform.serving.put(EndpointSettings(name=f"adapted-{number}", served_entities=entities))
    return wait_for_first_token(f"{platform.base_url}/v1", f"adapted-{number}", token, began)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
