"""From an engine's settings to how it starts: on which device, with how many workers, which flags and how much memory.

Plain functions of the settings, the model's folder and what the cluster has; nothing starts here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mosaic.errors import BadRequest, Unavailable, Unprocessable
from mosaic.protocol import Wire
from mosaic.serving import flags, memory, presets
from mosaic.serving.memory import GIB, Need
from mosaic.serving.nodes import Gpu, Node
from mosaic.serving.runners import Kind, reading, runner_of
from mosaic.serving.settings import EngineSettings

_MOST_WORKERS = 1024
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM knows."""
_GPU_SHARE = 0.92
"""Of a GPU's memory that vLLM takes by itself."""
_FOR_GPUS = ("tensor_parallel_size", "pipeline_parallel_size", "enable_expert_parallel", "gpu_memory_utilization")
"""Flags that split a model over GPUs: one spec runs on both, and on the CPU there is nothing to split."""


_SMALL: dict[Kind | None, float] = {"embedder": 0.2, "echo": 0.05}
"""Logical CPUs of replicas that need less than others and no GPU, unless another number than the default is asked
for."""


class EnginePlan(Wire):
    """How an engine starts."""

    on_gpu: bool
    workers: int
    """Processes that share the model, one GPU each; 1 on the CPU."""
    gpu_share: float
    """Of a GPU that each of them reserves."""
    engine_kwargs: dict[str, Any]
    """All of vLLM's flags."""
    need: Need
    """What each worker takes of its device's memory."""


def plan_engine(settings: EngineSettings, folder: Path, nodes: Sequence[Node]) -> EnginePlan:
    """How the model in a folder starts.

    Raises BadRequest for a flag or a number of GPUs that cannot be, Unprocessable for a context that the KV cache
    cannot hold, Unavailable for GPUs in a cluster that has none.
    """
    flags.check(settings)
    config = presets.read_config(folder)
    only_reads = runner_of(folder, config, settings) == "pooling"
    if only_reads:
        settings = reading(folder, config, settings)
    workers, share = _workers(settings), min(settings.num_gpus or 1.0, 1.0)
    on_gpu = _is_on_gpu(settings, nodes)
    given = dict(settings.engine_kwargs)
    kwargs: dict[str, Any] = {"dtype": "bfloat16", "max_model_len": settings.max_model_len or -1}
    if on_gpu:
        kwargs["gpu_memory_utilization"] = round(_GPU_SHARE * share, 3)
        _require_share(given.get("gpu_memory_utilization", 0), share)
    else:
        kwargs |= {"enforce_eager": True, "worker_cls": "mosaic.serving.vllm_cpu.CpuWorker"}
        given = {key: value for key, value in given.items() if key not in _FOR_GPUS}
    if only_reads:
        kwargs |= {"runner": "pooling"} if on_gpu else {"runner": "pooling", "dtype": "float32"}
    kwargs |= _adapters(settings) | _parsers(settings, folder) | given
    need = _need(settings, folder, kwargs, on_gpu)
    return EnginePlan(on_gpu=on_gpu, workers=workers if on_gpu else 1, gpu_share=share, engine_kwargs=kwargs, need=need)


def require_memory(plans: Mapping[str, tuple[EnginePlan, int]], nodes: Sequence[Node]) -> None:
    """Raise with the sum if engines, by name with their number of replicas, find no room on the nodes together.

    Unprocessable for one that no node could ever hold, Unavailable for what is not free now. A node's memory that
    nothing could measure (GPUs that are not NVIDIA's) is taken to suffice.
    """
    free = {node.name: node.free for node in nodes}
    gpus = [gpu for node in nodes for gpu in node.gpus]
    for name, (plan, replicas) in plans.items():
        if plan.on_gpu:
            _require_gpus(name, plan, replicas, gpus)
            continue
        for _ in range(replicas):
            roomiest = max(free, key=lambda one: free[one], default=None)
            if roomiest is not None and free[roomiest] < plan.need.total:
                _refuse_cpu(name, plan, replicas, nodes, free)
            if roomiest is not None:
                free[roomiest] -= plan.need.total


def reserved(kind: Kind | None, settings: EngineSettings, plan: EnginePlan | None = None) -> tuple[float, float]:
    """(logical CPUs, GPUs) that each replica reserves; `plan` is a vLLM engine's, once it is known.

    A `kind` of None is a model that has yet to be fetched, and is taken for one of vLLM's. Raises BadRequest for GPUs
    that such a replica has no use for, or that Ray does not give.
    """
    gpus, on_gpu = settings.num_gpus, settings.accelerator == "gpu"
    if plan is not None:
        return (0.0, plan.workers * plan.gpu_share) if plan.on_gpu else (settings.num_cpus, 0.0)
    if kind in (None, "generate", "pooling"):
        return (0.0, gpus or 1.0) if gpus or on_gpu else (settings.num_cpus, 0.0)
    if kind in _SMALL:
        if gpus or on_gpu:
            raise BadRequest(
                f"engine.accelerator = {settings.accelerator!r} with num_gpus = {gpus:g}: this model's replica runs on "
                "the CPU (an embedding model on a GPU: runner = 'pooling')",
                param="engine.num_gpus" if gpus else "engine.accelerator",
            )
        default = settings.num_cpus == EngineSettings.model_fields["num_cpus"].default
        return _SMALL[kind] if default else settings.num_cpus, 0.0
    if gpus and settings.accelerator == "cpu":
        raise _either(gpus)
    if gpus > 1 and gpus != int(gpus):
        raise BadRequest(f"engine.num_gpus = {gpus:g}: must be whole, or less than 1", param="engine.num_gpus")
    return settings.num_cpus, gpus or float(on_gpu)


def gpus_of(kind: Kind, settings: EngineSettings) -> float:
    """GPUs that a replica has in a cluster that has some. Raises BadRequest as `reserved`."""
    if kind in ("generate", "pooling"):
        return 0.0 if settings.accelerator == "cpu" else _workers(settings) * min(settings.num_gpus or 1.0, 1.0)
    return reserved(kind, settings)[1]


def _either(gpus: float) -> BadRequest:
    return BadRequest(
        f"engine.num_gpus = {gpus:g} with accelerator = 'cpu': leave the one or the other out", param="engine.num_gpus"
    )


def _require_share(utilization: float, share: float) -> None:
    if utilization > share:
        raise BadRequest(
            f"engine.engine_kwargs.gpu_memory_utilization = {utilization:g}, and num_gpus = {share:g} is the part of a "
            "GPU that the engine reserves: must be at most that",
            param="engine.engine_kwargs.gpu_memory_utilization",
        )


def _is_on_gpu(settings: EngineSettings, nodes: Sequence[Node]) -> bool:
    there = any(node.gpu_count for node in nodes)
    if settings.accelerator == "cpu":
        if settings.num_gpus:
            raise _either(settings.num_gpus)
        return False
    if not there and (settings.accelerator == "gpu" or settings.num_gpus):
        raise Unavailable(
            f"engine.accelerator = {settings.accelerator!r} with num_gpus = {settings.num_gpus:g}, and no machine of "
            "the Ray cluster has a GPU; 'auto' with num_gpus = 0 runs on the CPU where there is none",
            param="engine.accelerator",
            code="does_not_fit",
        )
    return there


def _workers(settings: EngineSettings) -> int:
    tensor = settings.engine_kwargs.get("tensor_parallel_size", 1)
    pipeline = settings.engine_kwargs.get("pipeline_parallel_size", 1)
    workers: int = tensor * pipeline
    told = f"tensor_parallel_size {tensor} x pipeline_parallel_size {pipeline} = {workers} workers"
    if workers > _MOST_WORKERS:
        raise BadRequest(f"{told}: at most {_MOST_WORKERS}", param="engine.engine_kwargs")
    if workers > 1 and settings.accelerator == "cpu":
        raise BadRequest(f"{told}, and accelerator = 'cpu' has one", param="engine.engine_kwargs")
    gpus = settings.num_gpus
    if gpus and gpus != workers and not (gpus < 1 and workers == 1):
        raise BadRequest(
            f"engine.num_gpus = {gpus:g}, and {told} take one GPU each: give num_gpus = {workers}, or parallel sizes "
            "to match (a part of a GPU, such as 0.5, is for one worker)",
            param="engine.num_gpus",
        )
    return workers


def _adapters(settings: EngineSettings) -> dict[str, Any]:
    if not settings.max_lora_rank:
        return {}
    rank = next(rank for rank in _LORA_RANKS if rank >= settings.max_lora_rank)
    return {"enable_lora": True, "max_lora_rank": rank, "max_loras": settings.max_loras}


def _parsers(settings: EngineSettings, folder: Path) -> dict[str, Any]:
    """What the model's preset says, and the settings' own words over it."""
    preset = presets.preset_of(folder)
    found = dict(preset.flags)
    tools = settings.tool_call_parser or preset.tool_call_parser
    reasoning = settings.reasoning_parser or preset.reasoning_parser
    if tools is not None and tools != flags.WITHOUT:
        # `auto` is how OpenAI's clients ask when they send tools, and vLLM refuses it without the second flag.
        found |= {"tool_call_parser": tools, "enable_auto_tool_choice": True}
    if reasoning is not None and reasoning != flags.WITHOUT:
        found["reasoning_parser"] = reasoning
    return found


def _need(settings: EngineSettings, folder: Path, kwargs: Mapping[str, Any], on_gpu: bool) -> Need:
    config = presets.read_json(folder / "config.json")
    shape = memory.shape_of(config)
    tensor, stages = kwargs.get("tensor_parallel_size", 1), kwargs.get("pipeline_parallel_size", 1)
    is_made_small = kwargs.get("quantization") is not None and "quantization_config" not in config
    weights = memory.weight_bytes(folder, kwargs["dtype"], quantise=is_made_small) // (tensor * stages)
    one = adapters = 0
    if shape is not None:
        kept = kwargs.get("kv_cache_dtype", "auto")
        how = {
            "dtype": kwargs["dtype"] if kept == "auto" else kept,
            "tensor_parallel": tensor,
            "stages": stages,
            "block": kwargs.get("block_size") or (16 if on_gpu else 128),
        }
        one = memory.kv_cache_bytes(shape, settings.max_model_len or 1, **how)
        if kwargs.get("enable_lora"):
            slot = memory.adapter_bytes(shape, kwargs["max_lora_rank"], tensor_parallel=tensor)
            adapters = slot * kwargs["max_loras"] // stages
    if on_gpu:
        return Need(weights, one, adapters, memory.GPU_OVERHEAD)
    cache = kwargs.get("kv_cache_memory_bytes") or settings.kv_cache_gib * GIB
    if shape is not None and one > cache:
        fits = memory.longest(shape, cache, settings.max_model_len or 1, **how)
        raise Unprocessable(
            f"engine.max_model_len = {settings.max_model_len:,} takes {one / GIB:.2f} GiB of KV cache, and the "
            f"{cache / GIB:g} GiB of kv_cache_gib hold {fits:,} tokens: lower the one or raise the other",
            param="engine.max_model_len",
            code="does_not_fit",
        )
    # Each adapter is kept once more beside its slot, and here both are in the machine's memory.
    return Need(weights, cache, 2 * adapters, memory.CPU_OVERHEAD)


def _refuse_cpu(name: str, plan: EnginePlan, replicas: int, nodes: Sequence[Node], free: Mapping[str, int]) -> None:
    told = ", ".join(
        f"{node.name} has {max(free[node.name], 0) / GIB:.2f} GiB free of {node.memory / GIB:.2f}" for node in nodes
    )
    each = f" for each of {replicas} replicas" if replicas > 1 else ""
    message = (
        f"{name} takes {plan.need.told()} of memory{each}, and {told}: lower kv_cache_gib, max_loras or num_replicas, "
        "or serve a smaller or quantised model"
    )
    if all(plan.need.total > node.memory for node in nodes):
        raise Unprocessable(message, param="engine", code="does_not_fit")
    raise Unavailable(message, param="engine", code="does_not_fit")


def _require_gpus(name: str, plan: EnginePlan, replicas: int, gpus: Sequence[Gpu]) -> None:
    if not gpus:
        return
    share = plan.engine_kwargs["gpu_memory_utilization"]
    room = max(int(gpu.memory * share) for gpu in gpus)
    if plan.need.total > room:
        raise Unprocessable(
            f"each of {plan.workers} workers of {name} takes {plan.need.told()} of a GPU, and {share:g} of the "
            f"largest is {room / GIB:.2f} GiB: lower max_model_len, max_loras or max_lora_rank, raise "
            "tensor_parallel_size or gpu_memory_utilization, or serve a quantised model",
            param="engine",
            code="does_not_fit",
        )
    per_gpu = int(1 / plan.gpu_share + 1e-9)
    large_enough = [gpu for gpu in gpus if plan.need.total <= gpu.memory * share]
    fitting = sum(min(per_gpu, int(gpu.free / (gpu.memory * share))) for gpu in large_enough)
    if fitting < plan.workers * replicas:
        told = ", ".join(f"{gpu.free / GIB:.2f} of {gpu.memory / GIB:.2f}" for gpu in gpus)
        raise Unavailable(
            f"{plan.workers * replicas} workers of {name} each set aside {share:g} of a GPU's memory, and of it are "
            f"free in GiB: {told}; lower gpu_memory_utilization or num_replicas, or wait until another engine ends",
            param="engine",
            code="does_not_fit",
        )
