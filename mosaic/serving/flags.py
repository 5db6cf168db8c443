"""vLLM's engine flags by name and type: what `engine_kwargs` may hold, and who may give it.

The table is `flags.json`, which `flag_table` writes from the installed vLLM; nothing here imports it.
"""

import difflib
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mosaic.errors import BadRequest
from mosaic.serving.settings import EngineSettings

WITHOUT = "none"
"""As a parser's name: without one, also where the model's preset has one."""

_OURS = {
    "model": "the served entity's model",
    "served_model_name": "the served entity's model",
    "max_model_len": "engine.max_model_len",
    "enable_lora": "engine.max_lora_rank (0: without adapters)",
    "max_lora_rank": "engine.max_lora_rank",
    "max_loras": "engine.max_loras",
    "tool_call_parser": "engine.tool_call_parser",
    "reasoning_parser": "engine.reasoning_parser",
    "runner": "engine.runner",
    "distributed_executor_backend": "Ray, which places the workers",
    "disable_log_stats": "the platform, which counts what every engine does",
}
"""Flags that the settings give, by what sets them: a second place to say it would make the memory check wrong."""

ANY_OWNER = frozenset(
    {
        "async_scheduling",
        "block_size",
        "chat_template_content_format",
        "default_chat_template_kwargs",
        "disable_cascade_attn",
        "disable_chunked_mm_input",
        "disable_sliding_window",
        "dtype",
        "enable_auto_tool_choice",
        "enable_chunked_prefill",
        "enable_expert_parallel",
        "enable_prefix_caching",
        "enable_prompt_tokens_details",
        "enforce_eager",
        "exclude_tools_when_tool_choice_none",
        "fully_sharded_loras",
        "gpu_memory_utilization",
        "kv_cache_dtype",
        "language_model_only",
        "limit_mm_per_prompt",
        "logprobs_mode",
        "long_prefill_token_threshold",
        "max_logprobs",
        "max_num_batched_tokens",
        "max_num_queued_reqs",
        "max_num_queued_tokens",
        "max_num_seqs",
        "optimization_level",
        "performance_mode",
        "pipeline_parallel_size",
        "prefix_caching_hash_algo",
        "quantization",
        "scheduling_policy",
        "seed",
        "stream_interval",
        "tensor_parallel_size",
    }
)
"""Flags that load no code, read and write no file and open no port; all others are for administrators."""
_DRAFTS_WITHOUT_A_MODEL = ("ngram", "ngram_gpu", "suffix")
_DRAFT_KEYS = ("method", "num_speculative_tokens", "prompt_lookup_max", "prompt_lookup_min")

_RANGES = {
    "block_size": (1, 65_536),
    "max_num_batched_tokens": (1, 2**20),
    "max_num_seqs": (1, 65_536),
    "pipeline_parallel_size": (1, 1024),
    "stream_interval": (1, 2**20),
    "tensor_parallel_size": (1, 1024),
}
"""Of numbers that anybody may give; vLLM sets memory aside by the largest of them."""


@functools.cache
def table() -> dict[str, dict[str, Any]]:
    """What each flag may be, by name; see `flag_table.flag_table`."""
    read: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "flags.json").read_text())["flags"]
    return read


def check(settings: EngineSettings, *, at: str = "engine") -> None:
    """Raise BadRequest for a flag that vLLM does not have, a value that it does not take, or a parser of no such name.

    `at` says where the settings stand, for the error.
    """
    where = f"{at}.engine_kwargs"
    for name, value in settings.engine_kwargs.items():
        if name in _OURS:
            raise BadRequest(f"{where}: {name!r} is given by {_OURS[name]}", param=f"{where}.{name}")
        _check(name, value, table(), where, "engine flag")
        wrong = _out_of_range(name, value)
        if wrong is not None:
            raise BadRequest(f"{where}.{name} = {_shown(value)}: {wrong}", param=f"{where}.{name}")
    for field in ("tool_call_parser", "reasoning_parser"):
        given, known = getattr(settings, field), [one for one in table()[field]["choices"] if one]
        if given is not None and given not in (WITHOUT, *known):
            raise BadRequest(
                f"{at}.{field} = {given!r}: must be {WITHOUT!r} or one of {known}{_nearest(given, known)}",
                param=f"{at}.{field}",
            )


def for_administrators(engine_kwargs: Mapping[str, Any]) -> list[str]:
    """The flags among these that only administrators may give: they can load code, touch files or open ports."""
    return sorted(name for name, value in engine_kwargs.items() if name not in ANY_OWNER and not _drafts(name, value))


def _drafts(name: str, value: Any) -> bool:
    """Speculative decoding that looks drafts up in the prompt needs no second model, which would be a place."""
    return (
        name == "speculative_config"
        and isinstance(value, dict)
        and value.get("method") in _DRAFTS_WITHOUT_A_MODEL
        and all(key in _DRAFT_KEYS or key.startswith("suffix_decoding_") for key in value)
    )


def _check(name: str, value: Any, known: Mapping[str, Any], where: str, what: str) -> None:
    if name not in known:
        short = name if len(name) <= 80 else f"{name[:77]}..."
        raise BadRequest(f"{where}: vLLM has no {what} {short!r}{_nearest(name, known)}", param=f"{where}.{short}")
    taken, told = known[name], f"{where}.{name} = {_shown(value)}"
    if taken["types"] and not any(_is(value, word) for word in taken["types"]):
        raise BadRequest(f"{told}: must be {' or '.join(taken['types'])}, not {_word(value)}", param=f"{where}.{name}")
    choices = taken.get("choices")
    if choices is not None and value is not None and not _is_chosen(value, choices):
        near = _nearest(value, [one for one in choices if isinstance(one, str)])
        raise BadRequest(f"{told}: must be one of {choices}{near}", param=f"{where}.{name}")
    if isinstance(value, dict) and "fields" in taken:
        for key, one in value.items():
            _check(key, one, taken["fields"], f"{where}.{name}", "field")


def _out_of_range(name: str, value: Any) -> str | None:
    if name in _RANGES and value is not None:
        low, high = _RANGES[name]
        if not low <= value <= high:
            return f"must be from {low} to {high:,}"
    if name == "gpu_memory_utilization" and not 0 < value <= 1:
        return "must be above 0 and at most 1"
    return None


def _is_chosen(value: Any, choices: list[Any]) -> bool:
    if isinstance(value, str):
        return value.lower() in [one.lower() for one in choices if isinstance(one, str)]
    return value in choices


_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


def _is(value: Any, word: str) -> bool:
    # True is an int to Python, and no number to anybody else.
    return isinstance(value, _KINDS[word]) and (word == "boolean" or not isinstance(value, bool))


def _word(value: Any) -> str:
    return next((word for word in _KINDS if _is(value, word)), type(value).__name__)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _nearest(name: Any, known: Any) -> str:
    """ "; did you mean 'this' or 'that'?", or nothing if nothing is near."""
    near = difflib.get_close_matches(str(name).replace("-", "_").lower()[:100], sorted(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
