"""Which way a model is served, told from its files: written on from (vLLM), read by vLLM, or embedded by torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mosaic.serving.settings import EngineSettings

Runner = Literal["generate", "pooling", "embedder"]

_GENERATES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
ENCODERS = {
    "RobertaModel",
    "XLMRobertaModel",
    "ModernBertModel",
    "NomicBertModel",
    "GteModel",
    "GteNewModel",
    "Gemma2Model",
    "Gemma3TextModel",
    "LlamaModel",
    "LlamaBidirectionalModel",
    "MistralModel",
    "Qwen2Model",
    "JinaEmbeddingsV5Model",
}
"""Architectures that vLLM embeds with; `runner: pooling` asks it for any other."""


def runner_of(folder: Path, config: Mapping[str, Any], settings: EngineSettings) -> Runner | None:
    """`config` is the folder's config.json. None: nothing here serves it.

    An embedding model is one that says so (sentence-transformers' modules.json) or one of ENCODERS; a cross-encoder
    has a head with one score.
    """
    architectures = config.get("architectures") or []
    if settings.runner != "auto":
        return settings.runner
    if any(name.endswith(_GENERATES) for name in architectures):
        return "pooling" if (folder / "modules.json").is_file() else "generate"
    if architectures == ["BertModel"]:
        return "embedder"
    if ENCODERS.issuperset(architectures or ["none"]) or is_cross_encoder(config):
        return "pooling"
    return None


def is_cross_encoder(config: Mapping[str, Any]) -> bool:
    """Whether it scores how well two texts fit; transformers writes `id2label` unless there are two labels."""
    labels = len(config.get("id2label") or "??")
    return labels == 1 and any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or [])


def pooling_kwargs(config: Mapping[str, Any], settings: EngineSettings) -> dict[str, Any]:
    """What vLLM is told for a model that it only reads: no adapters, and at most the length that the model has."""
    own = config.get("max_position_embeddings") or settings.max_model_len
    kwargs: dict[str, Any] = {"runner": "pooling", "max_model_len": min(int(own), settings.max_model_len)}
    return kwargs if settings.num_gpus else kwargs | {"dtype": "float32"}
