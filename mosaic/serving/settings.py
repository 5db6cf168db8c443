"""How a model's engine runs; apart from what needs Ray to be imported."""

import json
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from mosaic.serving.scaling import Scaling
from mosaic.settings import Settings

_LONGEST_KWARGS, _DEEPEST_KWARGS = 16_384, 10


class EngineSettings(Settings):
    """How a model's engine runs."""

    num_replicas: int = Field(default=1, ge=1, le=1000)
    """Engines of this model; Ray spreads the requests."""
    scaling: Scaling | None = None
    """As many engines as is asked for, down to none, in place of `num_replicas`."""
    max_replicas_per_node: int | None = Field(default=None, ge=1, le=100)
    """Engines on one node at most; not for vLLM's, which reserve their place in another way."""
    health_timeout_seconds: float = Field(default=60, gt=0, le=86_400)
    """How long a vLLM engine may be silent after it was asked for one token before it is taken to hang, and
    replaced."""
    num_cpus: float = Field(default=0.4, gt=0, le=1024)
    """Logical CPUs that a replica reserves (its threads take what the machine has)."""
    num_gpus: float = Field(default=0, ge=0, le=1024)
    """GPUs of a replica; 0 runs it on the CPU."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """Threads of a CPU engine's arithmetic; None: one per core of the machine that it starts on."""
    max_batch_size: int = Field(default=1, ge=1, le=1024)
    """Requests that a custom model (MLflow's) answers at once; more than 1 only for models that answer row by row."""
    max_model_len: int = Field(default=1024, ge=1, le=100_000_000)
    """Tokens of prompt and answer together."""
    max_lora_rank: int = Field(default=16, ge=0, le=512)
    """Largest rank of an adapter; 0 starts the engine without adapters."""
    max_loras: int = Field(default=2, ge=1, le=1024)
    """Adapters that one batch may mix."""
    kv_cache_gib: int = Field(default=1, ge=1, le=65_536)
    """GiB for the KV cache on the CPU (on a GPU, vLLM takes what is free)."""
    engine_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Passed to vLLM's engine as they are, last; some of them load code, so that only administrators give them."""

    @model_validator(mode="after")
    def _one_number(self) -> Self:
        if self.scaling is not None and self.num_replicas != 1:
            raise ValueError(
                f"num_replicas = {self.num_replicas} is a fixed number and scaling a range: give one of the two"
            )
        return self

    @property
    def first_replicas(self) -> int:
        """Engines that start at first."""
        return self.num_replicas if self.scaling is None else self.scaling.first_replicas

    @property
    def scales_to_zero(self) -> bool:
        return self.scaling is not None and self.scaling.min_replicas == 0

    @field_validator("engine_kwargs")
    @classmethod
    def _small(cls, given: dict[str, Any]) -> dict[str, Any]:
        try:
            size = len(json.dumps(given))
        except (RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"is no JSON: {type(error).__name__}") from None
        if size > _LONGEST_KWARGS or _depth(given) > _DEEPEST_KWARGS:
            raise ValueError(f"must have at most {_LONGEST_KWARGS} characters of JSON, {_DEEPEST_KWARGS} levels deep")
        return given


def _depth(value: Any) -> int:
    within = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max((_depth(one) for one in within), default=0)
