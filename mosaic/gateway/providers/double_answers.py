"""What the double of a provider says, in OpenAI's shapes and in Anthropic's."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

_FAULT = re.compile(r"fault: *(429 retry-after|error event|[a-z]+|\d{3})")
_NUMBER = re.compile(r"(slow|tokens|cached): *(\d+)")
_CALL = re.compile(r"call: *(\w+) *(\{.*\})?", re.DOTALL)


@dataclass(frozen=True)
class Asked:
    """What a request asks of the double, read from its model's name and its last message (`doubles` has the words)."""

    model: str
    fault: str
    slow_milliseconds: int
    words: tuple[str, ...]
    """The answer, each with the space before it."""
    call: tuple[str, str] | None
    """(name, arguments) of the tool that is called instead."""
    prompt_tokens: int
    cached_tokens: int

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> "Asked":
        texts = _texts(body)
        return _read(str(body.get("model", "")), texts[-1] if texts else "", sum(len(text.split()) for text in texts))


@lru_cache(maxsize=1024)
def _read(model: str, text: str, prompt_tokens: int) -> Asked:
    told = f"{model}\n{text}"
    fault, call = _FAULT.search(told), _CALL.match(text)
    numbers = {name: int(number) for name, number in _NUMBER.findall(told)}
    said = [f"w{n}" for n in range(numbers["tokens"])] if "tokens" in numbers else text.split(" ")
    return Asked(
        model=model,
        fault=fault[1] if fault else "",
        slow_milliseconds=numbers.get("slow", 0),
        words=(said[0], *(f" {word}" for word in said[1:])),
        call=(call[1], call[2] or "{}") if call else None,
        prompt_tokens=prompt_tokens,
        cached_tokens=min(numbers.get("cached", 0), prompt_tokens),
    )


def _texts(body: Mapping[str, Any]) -> list[str]:
    if "messages" in body:
        return [_text(body.get("system"))] * ("system" in body) + [
            _text(message.get("content")) for message in body["messages"]
        ]
    given = body.get("prompt", body.get("input", ""))
    return [str(one) for one in given] if isinstance(given, list) else [str(given)]


def _text(content: object) -> str:
    if isinstance(content, list):
        return "".join(_text(part.get("text", part.get("content"))) for part in content)
    return content if isinstance(content, str) else ""


class OpenAIShapes:
    """Chats, completions and embeddings."""

    def __init__(self, asked: Asked, path: str) -> None:
        self._asked, self._is_chat = asked, path.endswith("/chat/completions")
        kind = "chat.completion" if self._is_chat else "text_completion"
        self._head = {"id": "double", "object": kind, "created": 0, "model": asked.model}

    def whole(self) -> dict[str, Any]:
        text, call = "".join(self._asked.words), self._asked.call
        message: dict[str, Any] = {"role": "assistant", "content": None if call else text}
        if call and self._is_chat:
            function = {"name": call[0], "arguments": call[1]}
            message["tool_calls"] = [{"id": "call_double", "type": "function", "function": function}]
        said = {"message": message} if self._is_chat else {"text": text}
        choice = {"index": 0, **said, "finish_reason": self._finish_reason}
        return {**self._head, "choices": [choice], "usage": self._usage()}

    def events(self) -> list[bytes]:
        events = [self._event(delta) for delta in self._deltas()]
        events.append(self._event({} if self._is_chat else {"text": ""}, self._finish_reason))
        usage = {**self._head, "object": self._chunk_kind, "choices": [], "usage": self._usage()}
        return [*events, b"data: " + orjson.dumps(usage) + b"\n\n", b"data: [DONE]\n\n"]

    def error_event(self) -> bytes:
        return b'data: {"error": {"message": "the double was asked to fail", "type": "server_error"}}\n\n'

    @staticmethod
    def error(status: int, message: str) -> dict[str, Any]:
        kind = "server_error" if status >= 500 else "invalid_request_error"
        return {"error": {"message": message, "type": kind, "param": "messages", "code": f"double_{status}"}}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self._is_chat else "text_completion"

    @property
    def _finish_reason(self) -> str:
        return "tool_calls" if self._asked.call and self._is_chat else "stop"

    def _deltas(self) -> list[dict[str, Any]]:
        if not self._is_chat:
            return [{"text": word} for word in self._asked.words]
        if self._asked.call is None:
            return [{"role": "assistant", "content": ""}, *({"content": word} for word in self._asked.words)]
        name, arguments = self._asked.call
        begun = {"index": 0, "id": "call_double", "type": "function", "function": {"name": name, "arguments": ""}}
        pieces = [{"index": 0, "function": {"arguments": piece}} for piece in _pieces(arguments)]
        return [{"role": "assistant", "tool_calls": [begun]}, *({"tool_calls": [piece]} for piece in pieces)]

    def _event(self, told: dict[str, Any], finish_reason: str | None = None) -> bytes:
        said = {"delta": told} if self._is_chat else told
        choice = {"index": 0, **said, "finish_reason": finish_reason}
        return b"data: " + orjson.dumps({**self._head, "object": self._chunk_kind, "choices": [choice]}) + b"\n\n"

    def _usage(self) -> dict[str, Any]:
        read, written = self._asked.prompt_tokens, len(self._asked.words)
        details = {"cached_tokens": self._asked.cached_tokens}
        counts = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        return {**counts, "prompt_tokens_details": details}


class AnthropicShapes:
    """Messages."""

    def __init__(self, asked: Asked, path: str) -> None:
        self._asked = asked

    def whole(self) -> dict[str, Any]:
        call = self._asked.call
        block: dict[str, Any] = {"type": "text", "text": "".join(self._asked.words)}
        if call:
            block = {"type": "tool_use", "id": "call_double", "name": call[0], "input": orjson.loads(call[1])}
        return {**self._head(), "content": [block], "stop_reason": self._stop_reason, "usage": self._usage()}

    def events(self) -> list[bytes]:
        call = self._asked.call
        block: dict[str, Any] = {"type": "text", "text": ""}
        pieces: list[dict[str, Any]] = [{"type": "text_delta", "text": word} for word in self._asked.words]
        if call:
            block = {"type": "tool_use", "id": "call_double", "name": call[0], "input": {}}
            arguments = ["", *_pieces(call[1])] if call[1] != "{}" else [""]
            pieces = [{"type": "input_json_delta", "partial_json": piece} for piece in arguments]
        begun = {**self._head(), "content": [], "stop_reason": None, "usage": {**self._usage(), "output_tokens": 1}}
        ended = {"stop_reason": self._stop_reason, "stop_sequence": None}
        return [
            _named("message_start", message=begun),
            _named("content_block_start", index=0, content_block=block),
            _named("ping"),
            *(_named("content_block_delta", index=0, delta=piece) for piece in pieces),
            _named("content_block_stop", index=0),
            _named("message_delta", delta=ended, usage={"output_tokens": len(self._asked.words)}),
            _named("message_stop"),
        ]

    def error_event(self) -> bytes:
        return _named("error", error={"type": "overloaded_error", "message": "Overloaded"})

    @staticmethod
    def error(status: int, message: str) -> dict[str, Any]:
        kinds = {400: "invalid_request_error", 401: "authentication_error", 429: "rate_limit_error"}
        return {"type": "error", "error": {"type": kinds.get(status, "api_error"), "message": message}}

    @property
    def _stop_reason(self) -> str:
        return "tool_use" if self._asked.call else "end_turn"

    def _head(self) -> dict[str, Any]:
        return {"id": "msg_double", "type": "message", "role": "assistant", "model": self._asked.model}

    def _usage(self) -> dict[str, int]:
        """What was read from the cache is not among the `input_tokens`."""
        cached = self._asked.cached_tokens
        fresh = self._asked.prompt_tokens - cached
        return {"input_tokens": fresh, "cache_read_input_tokens": cached, "output_tokens": len(self._asked.words)}


def _named(kind: str, **told: Any) -> bytes:
    return f"event: {kind}\ndata: ".encode() + orjson.dumps({"type": kind, **told}) + b"\n\n"


def _pieces(text: str) -> list[str]:
    return [text[start : start + 4] for start in range(0, len(text), 4)]
