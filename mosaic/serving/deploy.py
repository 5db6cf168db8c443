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

from mosaic.errors import BadRequest, Unavailable, Unprocessable
from mosaic.protocol import Wire
from mosaic.serving.doubles import EchoEngine
from mosaic.serving.endpoint import Unit
from mosaic.serving.nodes import cluster_nodes
from mosaic.serving.plan import EnginePlan, plan_engine, require_memory
from mosaic.serving.pyfunc import Pyfunc
from mosaic.serving.settings import EngineSettings

DRAIN_SECONDS = 600
"""How long an engine that ends may take for its last requests; no request takes longer (`request_timeout_s`)."""

_PREFIX_ROUTING = {"request_router_class": "mosaic.serving.prefix_router.PrefixRouter"}
"""In Serve's words; the router runs in whoever asks."""


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
        return deploy_echo(unit)
    folder = resolve(unit.model)
    if (folder / "MLmodel").is_file():
        return deploy_pyfunc(unit, folder, settings)
    architectures = architectures_of(folder)
    if is_vllms(architectures):
        return deploy_vllm(unit, folder, settings, resolve)
    if architectures == ["BertModel"]:
        return deploy_embedder(unit, folder, threads=settings.threads or 2)
    raise BadRequest(
        f"model {unit.model!r} is a {architectures}; served are causal language models, BertModel encoders "
        "and models of MLflow's"
    )


def architectures_of(folder: Path) -> list[str]:
    """By the model's own config.json."""
    return json.loads((folder / "config.json").read_text()).get("architectures") or []


def is_vllms(architectures: list[str]) -> bool:
    """Whether vLLM serves a model of these."""
    return any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in architectures)


def deploy_vllm(unit: Unit, folder: Path, settings: EngineSettings, resolve: Callable[[str], Path]) -> EngineApp:
    """Start (or update) the vLLM application of a base model; returns at once.

    `resolve` runs in the engine's process and turns an adapter's name into a local folder; it must pickle. Raises what
    `plan_engine` raises, and Unprocessable with the sum for an engine that finds no memory.
    """
    nodes = cluster_nodes()
    try:
        plan = plan_engine(settings, folder, nodes)
        require_memory({unit.app_name: (plan, settings.num_replicas)}, nodes)
    except Unavailable as error:  # a rollout tries again what is away; nothing comes free while it waits
        raise Unprocessable(error.message, param=error.param, code=error.code) from None
    # Serve refuses a router of one's own behind HAProxy, which would go past it. Engines have no route, so that nothing
    # comes to them through HAProxy; the one process that hands the application in is told that there is none.
    told = {"RAY_SERVE_ENABLE_HA_PROXY": "0"} if settings.routing == "prefix" else {}
    deploy = _deploy_vllm.options(runtime_env={"env_vars": told})
    ray.get(deploy.remote(unit.app_name, unit.model, str(folder), settings, plan, resolve))
    return EngineApp(app_name=unit.app_name, model=unit.model, kind="vllm")


@ray.remote(num_cpus=0, max_calls=1)
def _deploy_vllm(
    app_name: str,
    model: str,
    folder: str,
    settings: EngineSettings,
    plan: EnginePlan,
    resolve: Callable[[str], Path],
) -> None:
    # Importing vLLM takes seconds and half a gigabyte: this worker, which ends with the call, pays it and no driver
    # does.
    from ray.serve.llm import LLMConfig, build_llm_deployment

    from mosaic.serving.vllm import VllmReplica

    config = LLMConfig(**vllm_config(model, folder, settings, plan))
    arguments = {"resolve": resolve, "threads": settings.threads}
    _start(build_llm_deployment(config, deployment_cls=VllmReplica, bind_kwargs=arguments), app_name)


def vllm_config(model: str, folder: str, settings: EngineSettings, plan: EnginePlan | None = None) -> dict[str, Any]:
    """The engine's settings in the words of `ray.serve.llm`'s LLMConfig; planned for the cluster as it is, unless a
    plan is given."""
    plan = plan or plan_engine(settings, Path(folder), cluster_nodes())
    bundle = {"GPU": plan.gpu_share} if plan.on_gpu else {"CPU": settings.num_cpus}
    cache = {} if plan.on_gpu else {"VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gib)}
    deployment: dict[str, Any] = {
        "num_replicas": settings.num_replicas,
        "ray_actor_options": {"num_cpus": 0},
        "max_ongoing_requests": 256,
        "graceful_shutdown_timeout_s": DRAIN_SECONDS,
    }
    if settings.routing == "prefix":
        deployment["request_router_config"] = _PREFIX_ROUTING
    return {
        "model_loading_config": {"model_id": model, "model_source": folder},
        "accelerator_config": {"kind": "gpu" if plan.on_gpu else "cpu"},
        "placement_group_config": {"bundles": [bundle] * plan.workers},
        "engine_kwargs": plan.engine_kwargs,
        "deployment_config": deployment,
        "runtime_env": {"env_vars": cache},
        "experimental_configs": {"stream_batching_interval_ms": 0},
        "log_engine_metrics": False,
    }


def deploy_embedder(unit: Unit, folder: Path, *, num_cpus: float = 0.2, threads: int = 2) -> EngineApp:
    """Start (or update) an embedding model's application; returns at once."""
    ray.get(_deploy_embedder.remote(unit.app_name, unit.model, str(folder), num_cpus, threads))
    return EngineApp(app_name=unit.app_name, model=unit.model, kind="embedder")


@ray.remote(num_cpus=0, max_calls=1)
def _deploy_embedder(app_name: str, model: str, folder: str, num_cpus: float, threads: int) -> None:
    from mosaic.serving.embedder import Embedder  # brings torch: see above

    deployment = serve.deployment(
        Embedder,
        name="Embedder",
        ray_actor_options={"num_cpus": num_cpus},
        max_ongoing_requests=64,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
    )
    _start(deployment.bind(folder, model, threads=threads), app_name)


def deploy_pyfunc(unit: Unit, folder: Path, settings: EngineSettings) -> EngineApp:
    """Start (or update) the application of an MLflow model; returns at once."""
    deployment = serve.deployment(
        Pyfunc,
        name="Pyfunc",
        num_replicas=settings.num_replicas,
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        max_ongoing_requests=256,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
    )
    _start(deployment.bind(str(folder), unit.model, max_batch_size=settings.max_batch_size), unit.app_name)
    return EngineApp(app_name=unit.app_name, model=unit.model, kind="pyfunc")


def deploy_echo(unit: Unit, *, delay_seconds: float = 0.0, num_cpus: float = 0.05) -> EngineApp:
    """Start the echo double as an application."""
    deployment = serve.deployment(
        EchoEngine,
        name="EchoEngine",
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
