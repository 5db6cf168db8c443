"""How a model's engine runs; apart from what needs Ray to be imported."""

import json
from typing import Any, Literal, Self

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
    """Logical CPUs that a replica reserves (its threads take what the machine has); the small embedder 0.2 unless
    another number than the default is asked for."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Where an engine runs: `auto` takes GPUs for vLLM's where the Ray cluster has some, and the CPU elsewhere; custom
    models have a GPU with `gpu`."""
    num_gpus: float = Field(default=0, ge=0, le=1024)
    """GPUs of a replica; 0 is one for each worker of a vLLM engine that runs on GPUs, and for other models one with
    `accelerator: gpu` and none without."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """Threads of a CPU engine's arithmetic; None: one per core of the machine that it starts on."""
    max_batch_size: int | None = Field(default=None, ge=1, le=1024)
    """What a custom model answers at once: texts of a classifier (None: 32), requests to a model of MLflow's or
    rows to a Python class (None: 1; more only for those that answer row by row)."""
    pip: list[str] = Field(default_factory=list, max_length=100)
    """Packages that a model of MLflow's or a Python class needs beyond the platform's own, as pip takes them; that
    installs code, so that only administrators name them."""
    max_model_len: int | None = Field(default=1024, ge=1, le=100_000_000)
    """Tokens of prompt and answer together; None: as many as the model can and the KV cache holds."""
    max_lora_rank: int = Field(default=16, ge=0, le=512)
    """Largest rank of an adapter; 0 starts the engine without adapters."""
    max_loras: int = Field(default=2, ge=1, le=1024)
    """Adapters that one batch may mix."""
    runner: Literal["auto", "generate", "pooling"] = "auto"
    """Whether vLLM writes on (`generate`) or reads only, for embeddings and scores (`pooling`); `auto`: as the model's
    files tell."""
    kv_cache_gib: int = Field(default=1, ge=1, le=65_536)
    """GiB for the KV cache on the CPU (on a GPU, vLLM takes what is free)."""
    tool_call_parser: str | None = Field(default=None, max_length=100)
    """What finds tool calls in answers, by vLLM's name; None: as the model's preset says, `none`: nothing."""
    reasoning_parser: str | None = Field(default=None, max_length=100)
    """What tells reasoning from answers, by vLLM's name; None: as the model's preset says, `none`: nothing."""
    routing: Literal["pow2", "prefix"] = "pow2"
    """Which replica is asked: the less busy of two, or the one that has seen the longest part of the prompt."""
    engine_kwargs: dict[str, Any] = Field(default_factory=dict)
    """vLLM's own flags, last; checked by name and type. Some load code, so that only administrators give them."""

    @field_validator("pip")
    @classmethod
    def _requirements(cls, given: list[str]) -> list[str]:
        for one in given:
            if not one.strip() or one.lstrip().startswith("-") or len(one) > 500 or not one.isprintable():
                raise ValueError(f"{one[:100]!r} must be a requirement such as 'humanize==4.9', not an option of pip's")
        return given

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
