"""Bring a model up as a Serve application; the one place where an engine's settings become Ray's and vLLM's.

Applications are started without waiting: Serve's controller carries them on, and `mosaic status` shows how far they
are.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from mosaic.errors import BadRequest, MosaicError, Unavailable, Unprocessable
from mosaic.protocol import Wire
from mosaic.serving.doubles import EchoEngine
from mosaic.serving.endpoint import Unit
from mosaic.serving.nodes import cluster_nodes
from mosaic.serving.plan import EnginePlan, plan_engine, require_memory, reserved
from mosaic.serving.presets import read_config
from mosaic.serving.pyfunc import Pyfunc
from mosaic.serving.python_model import PythonModel
from mosaic.serving.runners import Kind, kind_of
from mosaic.serving.scaling import replica_options
from mosaic.serving.serve_calls import BUILDING, hand_in
from mosaic.serving.settings import EngineSettings
from mosaic.serving.vllm_replica import VllmReplica

DRAIN_SECONDS = 600
"""How long an engine that ends may take for its last requests; no request takes longer (`request_timeout_s`)."""

_PREFIX_ROUTING = {"request_router_class": "mosaic.serving.prefix_router.PrefixRouter"}
"""In Serve's words; the router runs in whoever asks."""
HEALTH_CHECK_SECONDS = 2
"""How often Serve looks whether an engine lives; Ray's ten are that much longer without one that has died."""
_LONGEST_REASON = 600
_AWAY = (RayError, RayServeException, ConnectionError, TimeoutError)
"""Of Ray itself: nobody's fault, and tried again."""


class EngineApp(Wire):
    """A served model's application."""

    app_name: str
    model: str
    kind: Literal["vllm", "embedder", "classifier", "pyfunc", "python", "echo"]


def start_engine(unit: Unit, default: EngineSettings, resolve: Callable[[str], Path]) -> EngineApp:
    """Start (or update) the engine that a model's architecture asks for; returns at once.

    It runs by the unit's own settings, or by `default`. `echo` is the public double. Raises what `resolve` raises for
    an unknown model, BadRequest for an architecture that nothing here can serve.
    """
    settings = unit.settings or default
    folder = None if unit.model == "echo" else resolve(unit.model)
    kind = kind_of(folder, settings)
    with its_fault(unit.model):
        return _start_kind(kind, unit, folder, settings, resolve)


def _start_kind(
    kind: Kind | None, unit: Unit, folder: Path | None, settings: EngineSettings, resolve: Callable[[str], Path]
) -> EngineApp:
    if folder is not None and kind == "mlflow":
        return deploy_pyfunc(unit, folder, settings)
    if folder is not None and kind == "python":
        return deploy_python(unit, folder, settings)
    if settings.pip:
        raise BadRequest(
            f"engine.pip is for models of MLflow's and Python classes; {unit.model!r} is neither", param="pip"
        )
    if folder is None:
        return deploy_echo(unit, settings)
    match kind:
        case "generate" | "pooling":
            return deploy_vllm(unit, folder, settings, resolve)
        case "embedder":
            return deploy_embedder(unit, folder, settings)
        case "classifier":
            return deploy_classifier(unit, folder, settings)
    architectures = read_config(folder).get("architectures") or []
    raise BadRequest(
        f"model {unit.model!r} is a {architectures}; served are causal language models, encoders, classifiers of text "
        "and cross-encoders (...ForSequenceClassification), models of MLflow's and Python classes"
    )


@contextmanager
def its_fault(model: str) -> Iterator[None]:
    """What vLLM, Serve or a library refuses is the configuration's fault, and no better when it is tried again."""
    try:
        yield
    except (RayTaskError, ValueError) as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, MosaicError):
            raise cause from None
        # A plain RayError stands for one that cannot be pickled.
        if isinstance(cause, _AWAY) and type(cause) is not RayError:
            raise
        told = " ".join(str(cause).split())[:_LONGEST_REASON]
        raise BadRequest(
            f"model {model!r} cannot be started: {type(cause).__name__}: {told}", param="served_entities"
        ) from error


def deploy_vllm(unit: Unit, folder: Path, settings: EngineSettings, resolve: Callable[[str], Path]) -> EngineApp:
    """Start (or update) the vLLM application of a base model; returns at once.

    `resolve` runs in the engine's process and turns an adapter's name into a local folder; it must pickle. Raises what
    `plan_engine` raises, and Unprocessable with the sum for an engine that finds no memory.
    """
    if settings.max_replicas_per_node is not None:
        raise BadRequest(
            "max_replicas_per_node is not for vLLM's engines, which reserve their GPUs or CPUs as a placement group; "
            "leave it out",
            param="max_replicas_per_node",
        )
    nodes = cluster_nodes()
    try:
        plan = plan_engine(settings, folder, nodes)
        require_memory({unit.app_name: (plan, settings.first_replicas)}, nodes)
    except Unavailable as error:  # a rollout tries again what is away; nothing comes free while it waits
        raise Unprocessable(error.message, param=error.param, code=error.code) from None
    arguments = {"resolve": resolve, "threads": settings.threads, "health_seconds": settings.health_timeout_seconds}
    config = vllm_config(unit.model, str(folder), settings, plan)
    if settings.routing == "prefix":
        # Serve refuses a router of one's own behind HAProxy, which would go past it. Engines have no route, so that
        # nothing comes to them through HAProxy; the one process that hands the application in is told that there is
        # none.
        away = _start_vllm_elsewhere.options(runtime_env={"env_vars": {"RAY_SERVE_ENABLE_HA_PROXY": "0"}})
        ray.get(away.remote(unit.app_name, config, arguments))
    else:
        _start_vllm(unit.app_name, config, arguments)
    return EngineApp(app_name=unit.app_name, model=unit.model, kind="vllm")


def _start_vllm(app_name: str, config: dict[str, Any], arguments: dict[str, Any]) -> None:
    # Not by Ray's `build_llm_deployment`, which needs vLLM in this process: seconds, and half a gigabyte.
    placement = config["placement_group_config"]
    with BUILDING:
        deployment = serve.deployment(
            VllmReplica,
            name=VllmReplica.__name__,
            placement_group_bundles=placement["bundles"],
            placement_group_strategy="PACK",
            **config["deployment_config"],
        )
    hand_in(deployment.bind(config, **arguments), app_name)


@ray.remote(num_cpus=0, max_calls=1)
def _start_vllm_elsewhere(app_name: str, config: dict[str, Any], arguments: dict[str, Any]) -> None:
    _start_vllm(app_name, config, arguments)


def vllm_config(model: str, folder: str, settings: EngineSettings, plan: EnginePlan | None = None) -> dict[str, Any]:
    """The engine's settings in the words of `ray.serve.llm`'s LLMConfig; planned for the cluster as it is, unless a
    plan is given."""
    plan = plan or plan_engine(settings, Path(folder), cluster_nodes())
    bundle = {"GPU": plan.gpu_share} if plan.on_gpu else {"CPU": settings.num_cpus}
    cache = {} if plan.on_gpu else {"VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gib)}
    deployment: dict[str, Any] = {
        **replica_options(settings),
        "ray_actor_options": {"num_cpus": 0},
        "max_ongoing_requests": 256,
        "graceful_shutdown_timeout_s": DRAIN_SECONDS,
        "health_check_period_s": HEALTH_CHECK_SECONDS,
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
        "log_engine_metrics": True,
    }


def deploy_embedder(unit: Unit, folder: Path, settings: EngineSettings) -> EngineApp:
    """Start (or update) an embedding model's application; returns at once."""
    ray.get(_deploy_embedder.remote(unit.app_name, unit.model, str(folder), settings))
    return EngineApp(app_name=unit.app_name, model=unit.model, kind="embedder")


@ray.remote(num_cpus=0, max_calls=1)
def _deploy_embedder(app_name: str, model: str, folder: str, settings: EngineSettings) -> None:
    from mosaic.serving.embedder import Embedder  # brings torch, which this worker pays for and no driver

    deployment = _deployment(Embedder, "embedder", settings, max_ongoing_requests=64)
    hand_in(deployment.bind(folder, model, threads=settings.threads or 2), app_name)


def deploy_classifier(unit: Unit, folder: Path, settings: EngineSettings) -> EngineApp:
    """Start (or update) a text classifier's application; returns at once."""
    ray.get(_deploy_classifier.remote(unit.app_name, unit.model, str(folder), settings))
    return EngineApp(app_name=unit.app_name, model=unit.model, kind="classifier")


@ray.remote(num_cpus=0, max_calls=1)
def _deploy_classifier(app_name: str, model: str, folder: str, settings: EngineSettings) -> None:
    from mosaic.serving.classifier import Classifier  # brings torch: see above

    _, gpus = reserved("classifier", settings)
    bound = _deployment(Classifier, "classifier", settings).bind(
        folder,
        model,
        threads=settings.threads,
        max_batch_size=settings.max_batch_size or 32,
        device="cuda" if gpus else "cpu",
    )
    hand_in(bound, app_name)


def deploy_pyfunc(unit: Unit, folder: Path, settings: EngineSettings) -> EngineApp:
    """Start (or update) the application of an MLflow model; returns at once."""
    _start_custom(Pyfunc, "mlflow", unit, folder, settings)
    return EngineApp(app_name=unit.app_name, model=unit.model, kind="pyfunc")


def deploy_python(unit: Unit, folder: Path, settings: EngineSettings) -> EngineApp:
    """Start (or update) the application of a Python class; returns at once."""
    _start_custom(PythonModel, "python", unit, folder, settings)
    return EngineApp(app_name=unit.app_name, model=unit.model, kind="python")


def _start_custom(replica: type, kind: Kind, unit: Unit, folder: Path, settings: EngineSettings) -> None:
    arguments = {"max_batch_size": settings.max_batch_size or 1, "pip": tuple(settings.pip)}
    hand_in(_deployment(replica, kind, settings).bind(str(folder), unit.model, **arguments), unit.app_name)


def deploy_echo(unit: Unit, settings: EngineSettings, *, delay_seconds: float = 0.0) -> EngineApp:
    """Start the echo double as an application."""
    hand_in(_deployment(EchoEngine, "echo", settings).bind(delay_seconds), unit.app_name)
    return EngineApp(app_name=unit.app_name, model=unit.model, kind="echo")


def _deployment(
    replica: type, kind: Kind, settings: EngineSettings, *, max_ongoing_requests: int = 256
) -> serve.Deployment:
    """Of all kinds but vLLM's, whose replicas reserve a placement group."""
    cpus, gpus = reserved(kind, settings)
    with BUILDING:
        return serve.deployment(
            replica,
            name=replica.__name__,
            **replica_options(settings),
            ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
            max_ongoing_requests=max_ongoing_requests,
            graceful_shutdown_timeout_s=DRAIN_SECONDS,
        )
