"""A chat's answer in the shape of Anthropic's Messages API: whole, and as the events of its streams.

    message_start, then for each block content_block_start, content_block_delta ..., content_block_stop,
    then message_delta, message_stop; or where it fails `error`, and no message_stop

`providers/anthropic_answers` translates the other way.
"""

import json
from collections.abc import Callable
from typing import Any

import orjson

from mosaic.errors import EngineFailed, MosaicError
from mosaic.runtime.asgi import anthropic_error_body

_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
"""By OpenAI's finish_reason; the others are `end_turn`."""
_REASONING = ("reasoning", "reasoning_content")
_BEGUN: dict[str, dict[str, Any]] = {
    "text": {"type": "text", "text": ""},
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
}


def as_message(answer: dict[str, Any], *, tells_thinking: bool = True) -> dict[str, Any]:
    """The message that a `chat.completion` is. Raises EngineFailed where the arguments of a tool are no JSON object,
    which a message cannot say."""
    (choice,) = answer["choices"]
    said = choice["message"]
    content: list[dict[str, Any]] = []
    thought = next((said[field] for field in _REASONING if said.get(field)), None)
    if thought and tells_thinking:
        content.append({"type": "thinking", "thinking": thought, "signature": ""})
    if said.get("content"):
        content.append({"type": "text", "text": said["content"]})
    content += [_tool_use(call) for call in said.get("tool_calls") or ()]
    return {
        **_head(answer),
        "content": content,
        **_stop(choice, calls_tools=bool(said.get("tool_calls"))),
        "usage": as_usage(answer.get("usage") or {}),
        "mosaic": answer.get("mosaic"),
    }


def as_usage(usage: dict[str, Any]) -> dict[str, int]:
    """Anthropic's counts: its `input_tokens` are without what came from the cache, OpenAI's are with it."""
    details = usage.get("prompt_tokens_details") or {}
    read, written = details.get("cached_tokens") or 0, details.get("cache_creation_tokens") or 0
    return {
        "input_tokens": max(0, (usage.get("prompt_tokens") or 0) - read - written),
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": written,
        "output_tokens": usage.get("completion_tokens") or 0,
    }


class MessageEvents:
    """`answers.Events` of one stream. `tokens_read` says how many tokens the model has read, if that is known when it
    begins; the last event but one has the counts."""

    def __init__(self, request_id: str, tokens_read: Callable[[], int | None], *, tells_thinking: bool) -> None:
        self._request_id, self._tokens_read, self._tells_thinking = request_id, tokens_read, tells_thinking
        self._has_begun = False
        self._blocks = 0
        self._open: str | None = None
        """What the open block is of: text, thinking, or the number of a tool's call."""
        self._calls: dict[int, int] = {}
        """By the number of a call, the number of its block."""
        self._last: dict[str, Any] = {}
        self._usage: dict[str, Any] = {}

    def chunk(self, chunk: dict[str, Any]) -> bytes:
        told: list[bytes] = []
        if not self._has_begun:
            self._has_begun = True
            told.append(self._start(chunk))
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk["choices"]:
            delta = choice["delta"]
            for field in _REASONING:
                if self._tells_thinking and (text := delta.get(field)):
                    self._begin("thinking", told)
                    told.append(self._delta({"type": "thinking_delta", "thinking": text}))
            if text := delta.get("content"):
                self._begin("text", told)
                told.append(self._delta({"type": "text_delta", "text": text}))
            for piece in delta.get("tool_calls") or ():
                self._call(piece, told)
            if choice.get("finish_reason"):
                self._last = choice
        return b"".join(told)

    def end(self) -> bytes:
        told = self._close()
        usage = as_usage(self._usage)
        told.append(_event("message_delta", delta=_stop(self._last, calls_tools=bool(self._calls)), usage=usage))
        return b"".join([*told, _event("message_stop")])

    def error(self, error: MosaicError) -> bytes:
        told = anthropic_error_body(error, self._request_id)
        return b"event: error\ndata: " + orjson.dumps(told) + b"\n\n"

    def _start(self, chunk: dict[str, Any]) -> bytes:
        usage = {"input_tokens": self._tokens_read() or 0, "output_tokens": 0}
        stop = {"stop_reason": None, "stop_sequence": None}
        message = {**_head(chunk), "content": [], **stop, "usage": usage, "mosaic": chunk.get("mosaic")}
        return _event("message_start", message=message)

    def _call(self, piece: dict[str, Any], told: list[bytes]) -> None:
        number, function = piece["index"], piece.get("function") or {}
        if number not in self._calls:
            self._calls[number] = self._blocks
            begun: dict[str, Any] = {
                "type": "tool_use",
                "id": piece.get("id"),
                "name": function.get("name"),
                "input": {},
            }
            self._begin(str(number), told, begun)
        if arguments := function.get("arguments"):
            told.append(self._delta({"type": "input_json_delta", "partial_json": arguments}, self._calls[number]))

    def _begin(self, what: str, told: list[bytes], begun: dict[str, Any] | None = None) -> None:
        if self._open != what:
            told += self._close()
            told.append(_event("content_block_start", index=self._blocks, content_block=begun or _BEGUN[what]))
            self._open, self._blocks = what, self._blocks + 1

    def _close(self) -> list[bytes]:
        if self._open is None:
            return []
        self._open = None
        return [_event("content_block_stop", index=self._blocks - 1)]

    def _delta(self, delta: dict[str, Any], block: int | None = None) -> bytes:
        return _event("content_block_delta", index=self._blocks - 1 if block is None else block, delta=delta)


def _head(answer: dict[str, Any]) -> dict[str, Any]:
    return {"id": answer["id"], "type": "message", "role": "assistant", "model": answer["model"]}


def _stop(choice: dict[str, Any], *, calls_tools: bool) -> dict[str, Any]:
    """Why it ended, and at which of the request's sequences, where the engine says so (vLLM's `stop_reason`)."""
    reason, sequence = choice.get("finish_reason"), choice.get("stop_reason")
    if reason == "stop" and calls_tools:  # a tool that had to be called
        reason = "tool_calls"
    if reason == "stop" and isinstance(sequence, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": sequence}
    return {"stop_reason": _STOP_REASONS.get(str(reason), "end_turn"), "stop_sequence": None}


def _tool_use(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        told = f"the model called {function['name']!r} with arguments that are no JSON object"
        raise EngineFailed(told, code="malformed_tool_call")
    return {"type": "tool_use", "id": call["id"], "name": function["name"], "input": arguments}


def _event(kind: str, **told: Any) -> bytes:
    return f"event: {kind}\ndata: ".encode() + orjson.dumps({"type": kind, **told}) + b"\n\n"
