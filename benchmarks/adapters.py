"""From an adapter to its first token on an engine that runs: registered, served by an endpoint of its own, asked.

    python benchmarks/adapters.py

The packaged chat model serves; each round registers another version of an adapter of rank 16 with weights of its own,
makes an endpoint for it and asks that until it answers. Printed are the median and the range, in seconds, and whether
the engine is still the one that was started first.
"""

import socket
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from openai import NotFoundError, OpenAI
from peft import LoraConfig, get_peft_model
from ray import serve
from transformers import AutoModelForCausalLM

from mosaic.platform import Platform, PlatformSettings, down, up
from mosaic.runtime.settings import RaySettings
from mosaic.serving.endpoint import EndpointSettings, ServedEntity
from mosaic.training.settings import LINEAR_LAYERS

ROUNDS, BASE, MODEL = 5, "smollm2-135m-instruct", "main.bench.adapter"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings = of_its_own(Path(folder))
        started = up(settings)
        try:
            measure(started.platform, str(started.first_token), Path(folder))
        finally:
            down(settings.home_folder)


def measure(platform: Platform, token: str, folder: Path) -> None:
    client = OpenAI(base_url=f"{platform.base_url}/v1", api_key=token, max_retries=0)
    served(platform, "base", BASE)
    ask(client, "base")
    began = engine_of(platform)
    platform.catalog.ensure_schema("main.bench")
    platform.catalog.create_model(MODEL, owner="admin")
    whole, first = [], []
    for number in range(1, ROUNDS + 1):
        adapter = random_adapter(platform, folder / str(number), number)
        start = time.monotonic()
        platform.catalog.create_model_version(MODEL, source=str(adapter), kind="adapter", base_model=BASE)
        served(platform, f"tuned-{number}", f"{MODEL}/{number}")
        live = time.monotonic()
        ask(client, f"tuned-{number}")
        whole.append(time.monotonic() - start)
        first.append(time.monotonic() - live)
    print(f"registered to first token   {shown(whole)}")
    print(f"  of which after it is live {shown(first)}")
    print(f"the same engine throughout  {engine_of(platform) == began}")


def served(platform: Platform, name: str, model: str) -> None:
    platform.serving.put(EndpointSettings(name=name, served_entities=[ServedEntity(name="e", model=model)]))
    platform.serving.wait(name)


def ask(client: OpenAI, model: str) -> None:
    """One token, as soon as the gateway knows the endpoint."""
    while True:
        try:
            client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hello"}], max_tokens=1)
            return
        except NotFoundError:
            time.sleep(0.02)


def engine_of(platform: Platform) -> dict[str, float]:
    """When each engine's application was started."""
    applications = serve.status().applications.items()
    return {name: one.last_deployed_time_s for name, one in applications if name.startswith("engine-")}


def random_adapter(platform: Platform, folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(platform.models.resolve(BASE))
    config = LoraConfig(r=16, lora_alpha=32, target_modules=list(LINEAR_LAYERS), init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder)
    return folder


def of_its_own(root: Path) -> PlatformSettings:
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(5)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        http, metrics, stats, fallback, dashboard = (probe.getsockname()[1] for probe in probes)
    return PlatformSettings(
        storage=str(root / "root"),
        http_port=http,
        haproxy_metrics_port=metrics,
        haproxy_stats_port=stats,
        serve_fallback_port=fallback,
        ray=RaySettings(dashboard_port=dashboard),
    )


def shown(rounds: list[float]) -> str:
    return f"{statistics.median(rounds):.2f} ({min(rounds):.2f} to {max(rounds):.2f})"


if __name__ == "__main__":
    main()
