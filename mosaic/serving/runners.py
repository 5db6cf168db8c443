"""Which way a model is served, told from its files: written on from (vLLM), read by vLLM, or read by torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mosaic.serving.classify import label_count
from mosaic.serving.presets import read_config, read_json
from mosaic.serving.settings import EngineSettings

Runner = Literal["generate", "pooling", "embedder", "classifier"]
Kind = Runner | Literal["mlflow", "python", "echo"]

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


def kind_of(folder: Path | None, settings: EngineSettings) -> Kind | None:
    """What a model runs as; no folder is the double. Raises BadRequest for a config.json that is none."""
    if folder is None:
        return "echo"
    if (folder / "MLmodel").is_file():
        return "mlflow"
    if (folder / "mosaic-model.json").is_file():
        return "python"
    return runner_of(folder, read_config(folder), settings)


def reading(folder: Path, config: Mapping[str, Any], settings: EngineSettings) -> EngineSettings:
    """The settings of a model that vLLM only reads with: no adapters or parsers, at most the length that it has.

    That is also what its tokenizer says: RoBERTa's have 514 places, two of which no token can take.
    """
    longest = settings.max_model_len
    if longest is not None:  # else vLLM finds it by itself
        said = [
            config.get("max_position_embeddings"),
            read_json(folder / "tokenizer_config.json").get("model_max_length"),
        ]
        said += [read_json(file).get("max_seq_length") for file in folder.glob("sentence_*_config.json")]
        longest = min([longest, *(one for one in said if type(one) is int and one > 0)])
    changes = {"max_model_len": longest, "max_lora_rank": 0}
    return settings.model_copy(update={**changes, "tool_call_parser": "none", "reasoning_parser": "none"})
