"""What is known of model families: which parsers understand their answers, and which flags they want.

A preset holds by the family (`model_type` of config.json) and by the marks that the chat template writes: models of one
family are trained on several formats, and the template says which. What the settings say wins.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mosaic.errors import BadRequest

_TEXT_CONFIGS = ("text_config", "llm_config")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_LARGEST, _MOST_LAYERS = 2**64, 10_000
"""Of numbers in config.json: memory is added up from them."""
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")


class Preset(NamedTuple):
    """By vLLM's names; None: nothing is known."""

    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    flags: Mapping[str, Any] = {}


class _Rule(NamedTuple):
    families: tuple[str, ...]
    """Beginnings of `model_type`; empty: any."""
    mark: str
    """In the chat template; empty: whatever it says."""
    parser: str
    but_not: str = "\0"
    """With this in the template the rule does not hold."""


TOOLS = (
    _Rule(("gpt_oss",), "", "openai"),
    _Rule(("deepseek_v32",), "", "deepseek_v32"),
    _Rule(("deepseek_v3",), "tool['type']", "deepseek_v3"),
    _Rule(("deepseek_v3",), "tool▁call▁begin", "deepseek_v31"),
    _Rule(("glm4_moe",), "<arg_key>", "glm45"),
    _Rule(("kimi_k2",), "", "kimi_k2"),
    _Rule(("minimax_m2",), "", "minimax_m2"),
    _Rule(("seed_oss",), "", "seed_oss"),
    _Rule(("hunyuan_v1_moe",), "<tool_calls>", "hunyuan_a13b"),
    _Rule(("gemma4",), "", "gemma4"),
    _Rule(("granite",), "<|tool_call|>", "granite"),
    _Rule(("granite",), "<tool_call>", "granite4"),
    _Rule(("ernie4_5",), "<tool_call>", "ernie45"),
    _Rule(("olmo3",), "<function_calls>", "olmo3"),
    _Rule(("internlm",), "<|plugin|>", "internlm"),
    _Rule(("jamba",), "<tool_calls>", "jamba"),
    _Rule(("lfm2",), "<|tool_list_start|>", "lfm2"),
    _Rule(("phi3",), "functools", "phi4_mini_json"),
    _Rule(("llama4",), "<|python_start|>", "llama4_pythonic"),
    _Rule(("llama",), "ipython", "llama3_json"),
    _Rule(("mistral", "mixtral", "ministral", "pixtral"), "[TOOL_CALLS]", "mistral"),
    _Rule((), "<function=", "qwen3_coder", but_not="ipython"),
    # What Hermes' models began and Qwen's took up: JSON between two tags, whatever the architecture.
    _Rule((), "<tool_call>", "hermes", but_not="<arg_key>"),
)
REASONING = (
    _Rule(("gpt_oss",), "", "openai_gptoss"),
    _Rule(("deepseek_v3",), "</think>", "deepseek_v3"),
    _Rule(("glm4_moe",), "</think>", "glm45"),
    _Rule(("minimax_m2",), "</think>", "minimax_m2"),
    _Rule(("seed_oss",), "<seed:think>", "seed_oss"),
    _Rule(("hunyuan_v1_moe",), "<think>", "hunyuan_a13b"),
    _Rule(("gemma4",), "", "gemma4"),
    _Rule(("granite",), "Here is my thought process", "granite"),
    _Rule(("ernie4_5",), "</think>", "ernie45"),
    _Rule(("olmo3",), "<think>", "olmo3"),
    _Rule(("mistral", "ministral"), "[THINK]", "mistral"),
    _Rule(("qwen3",), "enable_thinking", "qwen3"),
    _Rule(("qwen3",), "assistant\\n<think>\\n", "deepseek_r1"),
    # DeepSeek-R1's distillations, QwQ and what was trained on them: the template opens the thought itself.
    _Rule(("qwen2", "llama"), "<think>\\n", "deepseek_r1"),
)


def preset_of(folder: Path) -> Preset:
    """What is known of the model in a folder."""
    config = read_json(folder / "config.json")
    family, template = str(config.get("model_type", "")), chat_template(folder)
    tools, reasoning = (_chosen(rules, family, template) for rules in (TOOLS, REASONING))
    # vLLM sets memory aside for images and sounds, which nothing here hands it.
    sees = "vision_config" in config or "audio_config" in config
    return Preset(tools, reasoning, {"language_model_only": True} if sees else {})


def chat_template(folder: Path) -> str:
    """How the model's tokenizer writes a conversation, or nothing."""
    for name in _TEMPLATE_FILES:
        if name.endswith(".jinja"):
            if (folder / name).is_file():
                return (folder / name).read_text(encoding="utf-8", errors="replace")
            continue
        found = read_json(folder / name).get("chat_template")
        if isinstance(found, list):  # several by name
            found = next((one.get("template") for one in found if one.get("name") in ("tool_use", "default")), "")
        if isinstance(found, str) and found:
            return found
    return ""


def _chosen(rules: tuple[_Rule, ...], family: str, template: str) -> str | None:
    for rule in rules:
        if rule.families and not family.startswith(rule.families):
            continue
        if rule.mark in template and rule.but_not not in template:
            return rule.parser
    return None


def read_json(file: Path) -> dict[str, Any]:
    """A file's object; empty where there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def read_config(folder: Path, *, param: str = "served_entities") -> dict[str, Any]:
    """A model's config.json, empty where there is none.

    Raises BadRequest, of the field `param`, for one that is no object, or that has something else than transformers
    writes where the platform reads it.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise BadRequest(f"the model's config.json is no JSON: {str(error)[:200]}", param=param) from None
    if not isinstance(config, dict):
        raise BadRequest(f"the model's config.json must be an object, not {type(config).__name__}", param=param)
    texts = [config[key] for key in _TEXT_CONFIGS if isinstance(config.get(key), dict)]
    wrong = next((told for one in (config, *texts) for told in _wrong(one)), None)
    if wrong is not None:
        raise BadRequest(f"the model's config.json: {wrong}", param=param)
    return config


def _wrong(config: Mapping[str, Any]) -> Iterator[str]:
    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        yield f"architectures = {str(names)[:80]} must be a list of names"
    if not isinstance(config.get("id2label", {}), dict | None):
        yield f"id2label = {str(config['id2label'])[:80]} must be an object"
    longest = config.get("max_position_embeddings")
    if longest is not None and type(longest) is not int:
        yield f"max_position_embeddings = {str(longest)[:80]!r} must be an integer"
    for name, given in config.items():
        most = _MOST_LAYERS if name in _LAYERS else _LARGEST
        if type(given) is int and given > most:
            yield f"{name[:80]} must be at most {most:,}"
