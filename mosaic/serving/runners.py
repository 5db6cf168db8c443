"""Which way a model is served, told from its files: written on from (vLLM), read by vLLM, or read by torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mosaic.serving.classify import label_count
from mosaic.serving.settings import EngineSettings

Runner = Literal["generate", "pooling", "embedder", "classifier"]

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
    if ENCODERS.issuperset(architectures or ["none"]) or label_count(config) == 1:
        return "pooling"
    return "classifier" if label_count(config) > 1 else None


def reading(config: Mapping[str, Any], settings: EngineSettings) -> EngineSettings:
    """The settings of a model that vLLM only reads with: no adapters or parsers, at most the length that it has."""
    lengths = [one for one in (config.get("max_position_embeddings"), settings.max_model_len) if one is not None]
    changes = {"max_model_len": min(lengths, default=None), "max_lora_rank": 0}
    return settings.model_copy(update={**changes, "tool_call_parser": "none", "reasoning_parser": "none"})
