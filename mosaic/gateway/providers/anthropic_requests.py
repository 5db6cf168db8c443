"""A chat in OpenAI's fields as a request of Anthropic's Messages API (https://docs.anthropic.com/en/api/messages).

Every field is translated exactly or is a 400 that names it; what says only the default is left out.
"""

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from mosaic.errors import BadRequest, UnsupportedField

_SAYS_NOTHING: dict[str, Any] = {
    "n": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
    "min_p": 0,
    "min_tokens": 0,
    "logprobs": False,
    "top_logprobs": 0,
    "ignore_eos": False,
    "include_stop_str_in_output": False,
    "skip_special_tokens": True,
    "logit_bias": {},
    "stop_token_ids": [],
    "bad_words": [],
    "parallel_tool_calls": True,
    "add_generation_prompt": True,
    "continue_final_message": False,
}
"""Fields that Anthropic does not have, or not so, with the value that asks for nothing."""
_MESSAGE_FIELDS = {"role", "content", "tool_calls", "tool_call_id"}


def as_anthropic(body: Mapping[str, Any], *, model: str, max_tokens: int, stream: bool) -> dict[str, Any]:
    """The request's body; `max_tokens` where the request says no limit, which Anthropic's must.

    Raises UnsupportedField for what cannot be said there, BadRequest for arguments of tools that are not JSON.
    """
    goes_on = bool(body.get("continue_final_message"))
    system, messages = _conversation(body["messages"], goes_on=goes_on)
    asked: dict[str, Any] = {"model": model, "max_tokens": max_tokens, "messages": messages}
    asked |= {"system": system} if system else {}
    asked |= {"stream": True} if stream else {}
    for field, value in body.items():
        if value is None or field == "messages" or (field in _SAYS_NOTHING and value == _SAYS_NOTHING[field]):
            continue
        if field in ("continue_final_message", "add_generation_prompt") and goes_on:
            continue  # said by the last message, which is the assistant's
        translate = _FIELDS.get(field)
        if translate is None:
            raise UnsupportedField(f"{field} cannot be asked of Anthropic's models", param=field)
        asked |= translate(value)
    return asked | _tool_choice(body)


def _temperature(value: float) -> dict[str, Any]:
    if value > 1:
        raise UnsupportedField(f"temperature = {value} is above 1, where Anthropic's ends", param="temperature")
    return {"temperature": value}


def _response_format(value: Mapping[str, Any]) -> dict[str, Any]:
    if value["type"] == "text":
        return {}
    if value["type"] != "json_schema":
        told = "Anthropic's models take a schema (json_schema) and no other response_format"
        raise UnsupportedField(told, param="response_format")
    named = value["json_schema"]
    described = {"description": named["description"]} if named.get("description") else {}
    return {"output_config": {"format": {"type": "json_schema", "schema": {**described, **named["schema"]}}}}


def _tools(value: list[Mapping[str, Any]]) -> dict[str, Any]:
    return {"tools": [_tool(tool["function"]) for tool in value]}


def _tool(function: Mapping[str, Any]) -> dict[str, Any]:
    kept = {field: function[field] for field in ("description", "strict") if function.get(field) is not None}
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    return {"name": function["name"], "input_schema": schema, **kept}


def _tool_choice(body: Mapping[str, Any]) -> dict[str, Any]:
    """Two of OpenAI's fields in one."""
    choice, one_at_a_time = body.get("tool_choice"), body.get("parallel_tool_calls") is False
    if not body.get("tools") or (choice is None and not one_at_a_time):
        return {}
    if isinstance(choice, Mapping):
        chosen: dict[str, Any] = {"type": "tool", "name": choice["function"]["name"]}
    else:
        chosen = {"type": {"required": "any"}.get(choice or "auto", choice or "auto")}
    if one_at_a_time and chosen["type"] != "none":
        chosen["disable_parallel_tool_use"] = True
    return {"tool_choice": chosen}


def _elsewhere(_: object) -> dict[str, Any]:
    return {}


_FIELDS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "max_tokens": lambda value: {"max_tokens": value},
    "max_completion_tokens": lambda value: {"max_tokens": value},
    "temperature": _temperature,
    "top_p": lambda value: {"top_p": value},
    "top_k": lambda value: {"top_k": value} if value else {},  # 0 draws from all, as Anthropic does unasked
    "stop": lambda value: {"stop_sequences": [value] if isinstance(value, str) else value} if value else {},
    "response_format": _response_format,
    "tools": _tools,
    "tool_choice": _elsewhere,
    "parallel_tool_calls": _elsewhere,
}
"""How each field is said; those of `_elsewhere` are said by `_tool_choice`."""


def _conversation(messages: list[dict[str, Any]], *, goes_on: bool) -> tuple[list[dict[str, Any]], list[Any]]:
    """What is told before the conversation, and the conversation; results of tools are the user's to say there."""
    system: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    for place, message in enumerate(messages):
        at = f"messages.{place}"
        for field, value in message.items():
            if value is not None and field not in _MESSAGE_FIELDS:
                raise UnsupportedField(f"{at}.{field} cannot be told to Anthropic's models", param=f"{at}.{field}")
        role, blocks = message["role"], _blocks(message.get("content"), at)
        if role in ("system", "developer"):
            if turns:
                told = f"{at}: Anthropic's models take what the system says only before the conversation"
                raise UnsupportedField(told, param=f"{at}.role")
            system += blocks
        elif role == "tool":
            result = {"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": blocks}
            if turns and any(block["type"] == "tool_result" for block in turns[-1]["content"]):
                turns[-1]["content"].append(result)  # all results of one turn must be in the next
            else:
                turns.append({"role": "user", "content": [result]})
        else:
            calls = [_tool_use(call, at) for call in message.get("tool_calls") or ()]
            turns.append({"role": role, "content": blocks + calls})
    ends_with_assistant = bool(turns) and turns[-1]["role"] == "assistant"
    if goes_on and not ends_with_assistant:
        told = "continue_final_message needs a last message of the assistant"
        raise BadRequest(told, param="continue_final_message")
    if ends_with_assistant and not goes_on:
        told = (
            "Anthropic's models go on with a last message of the assistant, and so need continue_final_message = true"
        )
        raise UnsupportedField(told, param=f"messages.{len(messages) - 1}.role")
    return system, turns


def _blocks(content: str | list[Mapping[str, Any]] | None, at: str) -> list[dict[str, Any]]:
    """Without empty texts, which Anthropic refuses and which say nothing."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
    return [
        _image(part["image_url"], f"{at}.content.{place}") if part["type"] == "image_url" else dict(part)
        for place, part in enumerate(parts)
        if part["type"] == "image_url" or part["text"]
    ]


def _image(image: Mapping[str, Any], at: str) -> dict[str, Any]:
    if image.get("detail", "auto") != "auto":
        told = f"{at}: Anthropic's models choose by themselves how closely they look: leave detail out"
        raise UnsupportedField(told, param=f"{at}.image_url.detail")
    url = image["url"]
    if url[:5].lower() != "data:":
        return {"type": "image", "source": {"type": "url", "url": url}}
    head, _, data = url.partition(",")
    media_type = head[len("data:") :].partition(";")[0].lower()
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}


def _tool_use(call: Mapping[str, Any], at: str) -> dict[str, Any]:
    function = call["function"]
    try:
        arguments = orjson.loads(function["arguments"] or "{}")
    except orjson.JSONDecodeError:
        arguments = None
    if not isinstance(arguments, dict):
        raise BadRequest(f"{at}: arguments of {function['name']!r} are not a JSON object", param=f"{at}.tool_calls")
    return {"type": "tool_use", "id": call["id"], "name": function["name"], "input": arguments}
