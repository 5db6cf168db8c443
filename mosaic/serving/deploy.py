"""Bring a model up as a Serve application; the one place where an engine's settings become Ray's and vLLM's.

Applications are started without waiting: Serve's controller carries them on, and `mosaic status` shows how far they
are.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import ray
from ray import serve

from mosaic.errors import BadRequest
from mosaic.protocol import Wire
from mosaic.serving.doubles import EchoEngine
from mosaic.serving.endpoint import Unit
from mosaic.serving.pyfunc import Pyfunc
from mosaic.serving.scaling import replica_options
from mosaic.serving.settings import EngineSettings

DRAIN_SECONDS = 600
"""How long an engine that ends may take for its last requests; no request takes longer (`request_timeout_s`)."""


class EngineApp(Wire):
    """A served model's application."""

    app_name: str
    model: str
    kind: Literal["vllm", "embedder", "pyfunc", "echo"]


def start_engine(unit: Unit, default: EngineSettings, resolve: Callable[[str], Path]) -> EngineApp:
    """Start (or update) the engine that a model's architecture asks for; returns at once.

    It runs by the unit's own settings, or by `default`. `echo` is the public double. Raises what `resolve` raises for
    an unknown model, BadRequest for an architecture that nothing here can serve.
    """
    settings = unit.settings or default
    if unit.model == "echo":
        return deploy_echo(unit, settings)
    folder = resolve(unit.model)
    if (folder / "MLmodel").is_file():
        return deploy_pyfunc(unit, folder, settings)
    architectures = json.loads((folder / "config.json").read_text()).get("architectures") or []
    if any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in architectures):
        return deploy_vllm(unit, folder, settings, resolve)
    if architectures == ["BertModel"]:
        return deploy_embedder(unit, folder, settings)
    raise BadRequest(
        f"model {unit.model!r} is a {architectures}; served are causal language models, BertModel encoders "
        "and models of MLflow's"
    )


def deploy_vllm(unit: Unit, folder: Path, settings: EngineSettings, resolve: Callable[[str], Path]) -> EngineApp:
    """Start (or update) the vLLM application of a base model; returns at once.

    `resolve` runs in the engine's process and turns an adapter's name into a local folder; it must pickle.
    """
    if settings.max_replicas_per_node is not None:
        raise BadRequest(
            "max_replicas_per_node is not for vLLM's engines, which reserve their GPUs or CPUs as a placement group; "
            "leave it out",
            param="max_replicas_per_node",
        )
    ray.get(_deploy_vllm.remote(unit.app_name, unit.model, str(folder), settings, resolve))
    return EngineApp(app_name=unit.app_name, model=unit.model, kind="vllm")


@ray.remote(num_cpus=0, max_calls=1)
def _deploy_vllm(
    app_name: str, model: str, folder: str, settings: EngineSettings, resolve: Callable[[str], Path]
) -> None:
    # Importing vLLM takes seconds and half a gigabyte: this worker, which ends with the call, pays it and no driver
    # does.
    from ray.serve.llm import LLMConfig, build_llm_deployment

    from mosaic.serving.vllm import VllmReplica

    config = LLMConfig(**vllm_config(model, folder, settings))
    arguments = {"resolve": resolve, "threads": settings.threads, "health_seconds": settings.health_timeout_seconds}
    _start(build_llm_deployment(config, deployment_cls=VllmReplica, bind_kwargs=arguments), app_name)


def vllm_config(model: str, folder: str, settings: EngineSettings) -> dict[str, Any]:
    """The engine's settings in the words of `ray.serve.llm`'s LLMConfig."""
    on_gpu = settings.num_gpus > 0
    engine_kwargs: dict[str, Any] = {"dtype": "bfloat16", "max_model_len": settings.max_model_len}
    if not on_gpu:
        engine_kwargs |= {"enforce_eager": True, "worker_cls": "mosaic.serving.vllm_cpu.CpuWorker"}
    if settings.max_lora_rank:
        # vLLM takes only ranks of a fixed list: the next one up.
        rank = next(rank for rank in (8, 16, 32, 64, 128, 256, 320, 512) if rank >= settings.max_lora_rank)
        engine_kwargs |= {"enable_lora": True, "max_lora_rank": rank, "max_loras": settings.max_loras}
    bundle = {"GPU": settings.num_gpus} if on_gpu else {"CPU": settings.num_cpus}
    return {
        "model_loading_config": {"model_id": model, "model_source": folder},
        "accelerator_config": {"kind": "gpu" if on_gpu else "cpu"},
        "placement_group_config": {"bundles": [bundle]},
        "engine_kwargs": {**engine_kwargs, **settings.engine_kwargs},
        "deployment_config": {
            **replica_options(settings),
            "ray_actor_options": {"num_cpus": 0},
            "max_ongoing_requests": 256,
            "graceful_shutdown_timeout_s": DRAIN_SECONDS,
            "health_check_period_s": 5,
        },
        "runtime_env": {"env_vars": {} if on_gpu else {"VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gib)}},
        "experimental_configs": {"stream_batching_interval_ms": 0},
        "log_engine_metrics": True,
    }


def deploy_embedder(unit: Unit, folder: Path, settings: EngineSettings, *, num_cpus: float = 0.2) -> EngineApp:
    """Start (or update) an embedding model's application; returns at once."""
    ray.get(_deploy_embedder.remote(unit.app_name, unit.model, str(folder), settings, num_cpus))
    return EngineApp(app_name=unit.app_name, model=unit.model, kind="embedder")


@ray.remote(num_cpus=0, max_calls=1)
def _deploy_embedder(app_name: str, model: str, folder: str, settings: EngineSettings, num_cpus: float) -> None:
    from mosaic.serving.embedder import Embedder  # brings torch: see above

    deployment = serve.deployment(
        Embedder,
        name="Embedder",
        **replica_options(settings),
        ray_actor_options={"num_cpus": num_cpus},
        max_ongoing_requests=64,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
    )
    _start(deployment.bind(folder, model, threads=settings.threads or 2), app_name)


def deploy_pyfunc(unit: Unit, folder: Path, settings: EngineSettings) -> EngineApp:
    """Start (or update) the application of an MLflow model; returns at once."""
    deployment = serve.deployment(
        Pyfunc,
        name="Pyfunc",
        **replica_options(settings),
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        max_ongoing_requests=256,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
    )
    _start(deployment.bind(str(folder), unit.model, max_batch_size=settings.max_batch_size), unit.app_name)
    return EngineApp(app_name=unit.app_name, model=unit.model, kind="pyfunc")


def deploy_echo(
    unit: Unit,
    settings: EngineSettings,
    *,
    delay_seconds: float = 0.0,
    num_cpus: float = 0.05,
) -> EngineApp:
    """Start the echo double as an application."""
    deployment = serve.deployment(
        EchoEngine,
        name="EchoEngine",
        **replica_options(settings),
        ray_actor_options={"num_cpus": num_cpus},
        max_ongoing_requests=256,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
    )
    _start(deployment.bind(delay_seconds), unit.app_name)
    return EngineApp(app_name=unit.app_name, model=unit.model, kind="echo")


def _start(application: serve.Application, app_name: str) -> None:
    serve.run_many(
        [serve.RunTarget(target=application, name=app_name, route_prefix=None)], wait_for_applications_running=False
    )
