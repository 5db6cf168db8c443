"""Write what the installed vLLM takes: `python -m mosaic.serving.flag_table mosaic/serving/flags.json`.

Importing vLLM takes seconds and half a gigabyte, and a driver, the command line and control have no vLLM at all; they
read the table. A contract test holds it against the installed vLLM.
"""

import dataclasses
import enum
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any

CHAT_FLAGS = (
    "chat_template",
    "chat_template_content_format",
    "default_chat_template_kwargs",
    "enable_auto_tool_choice",
    "enable_force_include_usage",
    "enable_log_deltas",
    "enable_log_outputs",
    "enable_prompt_tokens_details",
    "exclude_tools_when_tool_choice_none",
    "max_log_len",
    "response_role",
    "return_tokens_as_token_ids",
    "tool_call_parser",
    "tool_parser_plugin",
    "trust_request_chat_template",
)
"""Of vLLM's own server, those that say how an engine chats; the others are about HTTP, which is the gateway's."""
_FILLED_IN_BY_VLLM = ("target_model_config", "target_parallel_config", "draft_model_config", "draft_parallel_config")
_WORDS = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


def flag_table() -> dict[str, Any]:
    """By name what each flag may be: `types` in JSON's words, `choices` where only those are taken, `fields` where it
    is a configuration of its own."""
    import vllm
    from vllm.config.speculative import SpeculativeConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import FrontendArgs
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.model_executor.model_loader import LoadFormats
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    chat = [one for one in dataclasses.fields(FrontendArgs) if one.name in CHAT_FLAGS]
    own = [one for one in dataclasses.fields(AsyncEngineArgs) if not one.name.startswith("_")]
    # A batch job leaves the server's flags out of its engine's arguments, by these names.
    assert not set(CHAT_FLAGS) & {one.name for one in own}
    flags = {one.name: _taken(one.type, one.default) for one in (*own, *chat)}
    flags["speculative_config"]["fields"] = _fields(SpeculativeConfig)
    listed = {
        "quantization": QUANTIZATION_METHODS,
        "load_format": typing.get_args(LoadFormats),
        "reasoning_parser": ["", *ReasoningParserManager.list_registered()],
        "tool_call_parser": ToolParserManager.list_registered(),
    }
    for name, choices in listed.items():
        flags[name]["choices"] = sorted(choices)
    return {"vllm": vllm.__version__.partition("+")[0], "flags": dict(sorted(flags.items()))}


def _taken(annotation: Any, default: Any = dataclasses.MISSING, *, nested: bool = False) -> dict[str, Any]:
    words: set[str] = set()
    choices: set[str | int] = set()
    fields: dict[str, Any] = {}
    for one in _members(annotation):
        origin = typing.get_origin(one) or one
        if origin is typing.Literal:
            choices.update(typing.get_args(one))
            words.update(_WORDS[type(choice)] for choice in typing.get_args(one))
        elif isinstance(origin, type) and issubclass(origin, enum.Enum):
            values = {choice.value if isinstance(choice.value, int) else choice.name for choice in origin}
            choices.update(values)
            words.update(_WORDS[type(choice)] for choice in values)
        elif dataclasses.is_dataclass(origin):
            words.add("object")
            if not nested:
                fields = _fields(origin)
        elif origin in (list, set, tuple):
            words.add("array")
        elif origin is dict:
            words.add("object")
        elif origin in _WORDS:
            words.add(_WORDS[origin])
    if default is None:
        words.add("null")
    # A text beside the literals means that they are not all there is.
    closed = choices and str not in _members(annotation) and "array" not in words
    found: dict[str, Any] = {"types": sorted(words)}
    if closed:
        found["choices"] = sorted(choices, key=str)
    return found | ({"fields": fields} if fields else {})


def _members(annotation: Any) -> list[Any]:
    """The alternatives of a type; a text is one that vLLM leaves unresolved, of which the builtin parts count."""
    if isinstance(annotation, str):
        known = {"str": str, "bool": bool, "int": int, "float": float, "None": type(None)}
        parts = [part.strip() for part in annotation.split("|")]
        return [known.get(part, dict) for part in parts]
    if typing.get_origin(annotation) is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [one for part in typing.get_args(annotation) for one in _members(part)]
    return [annotation]


def _fields(config: Any) -> dict[str, Any]:
    return {
        one.name: _taken(one.type, one.default, nested=True)
        for one in sorted(dataclasses.fields(config), key=lambda one: one.name)
        if one.init and not one.name.startswith("_") and one.name not in _FILLED_IN_BY_VLLM
    }


def render(table: dict[str, Any]) -> str:
    """One flag a line, so that a new vLLM's changes can be read in a diff."""
    lines = [f"    {json.dumps(name)}: {json.dumps(taken)}" for name, taken in table["flags"].items()]
    flags = ",\n".join(lines)
    return f'{{\n  "vllm": {json.dumps(table["vllm"])},\n  "flags": {{\n{flags}\n  }}\n}}\n'


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render(flag_table()))
