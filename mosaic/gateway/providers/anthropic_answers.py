"""What Anthropic's Messages API answers, as OpenAI's `chat.completion` and its chunks.

Counts of a stream are cumulative: the last of each is the count, not their sum.
"""

from typing import Any

import orjson

from mosaic.gateway.providers.upstream import Upstream

_FINISH_REASONS = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""Of those that are not `stop`."""
_DELTAS = {
    "text_delta": ("text", "content"),
    "thinking_delta": ("thinking", "reasoning"),
    "input_json_delta": ("partial_json", "arguments"),
}
"""By a delta's type: its field, and the field of ours that it goes to."""


def whole(upstream: Upstream, answer: dict[str, Any]) -> dict[str, Any]:
    """A message as a `chat.completion`; raises ProviderFailed for what is none."""
    try:
        texts: dict[str, list[str]] = {"text": [], "thinking": []}
        calls = []
        for block in answer["content"]:
            if block["type"] in texts:
                texts[block["type"]].append(block[block["type"]])
            elif block["type"] == "tool_use":
                arguments = orjson.dumps(block["input"]).decode()
                function = {"name": block["name"], "arguments": arguments}
                calls.append({"id": block["id"], "type": "function", "function": function})
        text = "".join(texts["text"])
        message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else "")}
        message |= {"reasoning": "".join(texts["thinking"])} if texts["thinking"] else {}
        message |= {"tool_calls": calls} if calls else {}
        choice = {"index": 0, "message": message, "finish_reason": _finish_reason(answer["stop_reason"])}
        usage = as_usage(answer["usage"])
    except (KeyError, TypeError, ValueError):
        raise upstream.malformed("what is no message") from None
    return {"object": "chat.completion", "choices": [choice], "usage": usage}


def as_usage(usage: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's counts: its `prompt_tokens` include what came from the cache, Anthropic's `input_tokens` do not.

    Raises ValueError for counts that are none.
    """
    if not isinstance(usage, dict):
        raise ValueError("usage must be an object")
    names = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
    counts = [usage.get(name) or 0 for name in names]
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("counts of tokens must be whole numbers")
    fresh, read, written, output = counts
    prompt = fresh + read + written
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": read, "cache_creation_tokens": written},
    }


class Chunks:
    """A stream's events, one by one, to `chat.completion.chunk`s."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._has_begun = self._is_whole = False
        self._finish_reason: str | None = None
        self._usage: dict[str, Any] = {}
        self._calls: dict[int, int] = {}
        """By the number of a block, the number of its tool call."""
        self._without_arguments: set[int] = set()

    def add(self, data: bytes) -> dict[str, Any] | None:
        """The chunk that an event makes, if it makes one; raises ProviderFailed for what is no event."""
        event = self._upstream.parsed(data)
        kind = event.get("type")
        if kind == "error":
            raise self._upstream.failures.of_event(event.get("error"))
        try:
            match kind:
                case "message_start":
                    self._count(event["message"]["usage"])
                case "content_block_start" if event["content_block"]["type"] == "tool_use":
                    return self._begin_call(event["index"], event["content_block"])
                case "content_block_delta":
                    return self._delta(event["index"], event["delta"])
                case "content_block_stop" if event["index"] in self._without_arguments:
                    return self._arguments(event["index"], "{}")
                case "message_delta":
                    self._count(event.get("usage") or {})
                    self._finish_reason = _finish_reason(event["delta"]["stop_reason"])
                    return self._chunk({}, self._finish_reason)
                case "message_stop":
                    self._is_whole = True
        except (KeyError, TypeError, ValueError):
            raise self._upstream.malformed(f"a {kind} that is none") from None
        return None  # pings, signatures and events of tomorrow

    def end(self) -> dict[str, Any]:
        """The chunk with the usage; raises ProviderFailed for a stream that was cut."""
        if not self._is_whole or self._finish_reason is None:
            raise self._upstream.failures.failed("ended its answer unfinished", code="provider_broke_off")
        try:
            usage = as_usage(self._usage)
        except ValueError:
            raise self._upstream.malformed("a usage without counts of tokens") from None
        return {"object": "chat.completion.chunk", "choices": [], "usage": usage}

    def _count(self, usage: dict[str, Any]) -> None:
        if not isinstance(usage, dict):
            raise TypeError("usage must be an object")
        self._usage |= {name: count for name, count in usage.items() if count is not None}

    def _begin_call(self, block: int, begun: dict[str, Any]) -> dict[str, Any]:
        number = self._calls[block] = len(self._calls)
        self._without_arguments.add(block)
        function = {"name": begun["name"], "arguments": ""}
        return self._chunk(
            {"tool_calls": [{"index": number, "id": begun["id"], "type": "function", "function": function}]}
        )

    def _delta(self, block: int, delta: dict[str, Any]) -> dict[str, Any] | None:
        if delta["type"] not in _DELTAS:
            return None
        theirs, ours = _DELTAS[delta["type"]]
        piece = delta[theirs]
        if not isinstance(piece, str):
            raise TypeError(f"{theirs} must be text")
        if not piece:
            return None
        return self._arguments(block, piece) if ours == "arguments" else self._chunk({ours: piece})

    def _arguments(self, block: int, piece: str) -> dict[str, Any]:
        self._without_arguments.discard(block)
        return self._chunk({"tool_calls": [{"index": self._calls[block], "function": {"arguments": piece}}]})

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        if not self._has_begun:
            self._has_begun, delta = True, {"role": "assistant", **delta}
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return {"object": "chat.completion.chunk", "choices": [choice]}


def _finish_reason(reason: str) -> str:
    if not isinstance(reason, str):
        raise TypeError("stop_reason must be text")
    return _FINISH_REASONS.get(reason, "stop")
