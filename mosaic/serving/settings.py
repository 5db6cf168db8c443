"""How a model's engine runs; apart from what needs Ray to be imported."""

from typing import Any

from pydantic import Field

from mosaic.settings import Settings


class EngineSettings(Settings):
    """How a model's engine runs."""

    num_replicas: int = 1
    """Engines of this model; Ray spreads the requests."""
    num_cpus: float = 0.4
    """Logical CPUs that a replica reserves (its threads take what the machine has)."""
    num_gpus: float = 0
    """GPUs of a replica; 0 runs it on the CPU."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of a CPU engine's arithmetic; None: one per core of the machine that it starts on."""
    max_batch_size: int = Field(default=1, ge=1, le=1024)
    """Requests that a custom model (MLflow's) answers at once; more than 1 only for models that answer row by row."""
    max_model_len: int = 1024
    """Tokens of prompt and answer together."""
    max_lora_rank: int = 16
    """Largest rank of an adapter; 0 starts the engine without adapters."""
    max_loras: int = 2
    """Adapters that one batch may mix."""
    kv_cache_gib: int = 1
    """GiB for the KV cache on the CPU (on a GPU, vLLM takes what is free)."""
    engine_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Passed to vLLM's engine as they are, last."""
