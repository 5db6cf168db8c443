"""A chat's answer in the shape of OpenAI's Responses: whole, and as the events of its streams, in their order.

response.created, response.in_progress,
for each item response.output_item.added, its parts and deltas, their ends, response.output_item.done,
then response.completed or response.incomplete; or where it fails response.failed
"""

from typing import Any

import orjson

from mosaic.errors import MosaicError
from mosaic.gateway.responses_requests import ResponsesRequest

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""By a chat's finish_reason; with the others an answer is whole."""
_EVENTS = {
    "message": "response.output_text",
    "reasoning": "response.reasoning_text",
    "function_call": "response.function_call_arguments",
}
"""By an item's type: how the events that tell it begin."""
_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}
_REASONING = ("reasoning", "reasoning_content")


def as_response(answer: dict[str, Any], request: ResponsesRequest) -> dict[str, Any]:
    """The response that a `chat.completion` is."""
    (choice,) = answer["choices"]
    said, response_id = choice["message"], answer["id"]
    output: list[dict[str, Any]] = []
    status = _status(choice.get("finish_reason"))
    if thought := next((said[field] for field in _REASONING if said.get(field)), None):
        output.append(_thought(_item_id("reasoning", response_id, len(output)), thought))
    if said.get("content"):
        output.append(_said(_item_id("message", response_id, len(output)), said["content"], "completed"))
    for call in said.get("tool_calls") or ():
        called = (call["id"], call["function"]["name"], call["function"]["arguments"])
        output.append(_called(_item_id("function_call", response_id, len(output)), *called, "completed"))
    if output and "status" in output[-1]:  # what was cut off is what came last
        output[-1]["status"] = status
    told: dict[str, Any] = {"status": status, "output": output, "usage": as_usage(answer.get("usage") or {})}
    told |= {"incomplete_details": _details(choice.get("finish_reason")), "mosaic": answer.get("mosaic")}
    return {**_head(response_id, answer, request), **told}


def as_usage(usage: dict[str, Any]) -> dict[str, Any]:
    """Of a chat's."""
    read, written = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    details = usage.get("prompt_tokens_details") or {}
    cached, kept = details.get("cached_tokens") or 0, details.get("cache_creation_tokens") or 0
    reasoned = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": kept},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": reasoned},
        "total_tokens": read + written,
    }


class ResponseEvents:
    """`answers.Events` of one stream."""

    def __init__(self, request_id: str, request: ResponsesRequest) -> None:
        self._id, self._request = request_id, request
        self._sequence = 0
        self._response: dict[str, Any] = {}
        self._output: list[dict[str, Any]] = []
        self._open: _Open | None = None
        self._calls: dict[int, _Open] = {}
        self._finish_reason: str | None = None
        self._usage: dict[str, Any] = {}

    def chunk(self, chunk: dict[str, Any]) -> bytes:
        told: list[bytes] = []
        if not self._response:
            self._response = _head(self._id, chunk, self._request)
            begun = {**self._response, "mosaic": chunk.get("mosaic")}
            told += [self._event("response.created", response=begun)]
            told += [self._event("response.in_progress", response=begun)]
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk["choices"]:
            delta = choice["delta"]
            for field in _REASONING:
                if text := delta.get(field):
                    told += self._say("reasoning", text)
            if text := delta.get("content"):
                told += self._say("message", text)
            for piece in delta.get("tool_calls") or ():
                told += self._call(piece)
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
        return b"".join(told)

    def end(self) -> bytes:
        status = _status(self._finish_reason)
        told = self._close(status)
        ended = {"status": status, "incomplete_details": _details(self._finish_reason), "output": self._output}
        response = {**self._response, **ended, "usage": as_usage(self._usage)}
        return b"".join([*told, self._event(f"response.{status}", response=response)])

    def error(self, error: MosaicError) -> bytes:
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        failed = {"status": "failed", "error": {"code": code, "message": error.message}, "output": self._output}
        return self._event("response.failed", response={**self._response, **failed})

    def _say(self, kind: str, text: str) -> list[bytes]:
        told: list[bytes] = []
        if self._open is None or self._open.kind != kind:
            told += self._begin(_Open(kind, self._id, len(self._output) + (self._open is not None)))
        assert self._open is not None
        return [*told, self._delta(self._open, text)]

    def _call(self, piece: dict[str, Any]) -> list[bytes]:
        told: list[bytes] = []
        number, function = piece["index"], piece.get("function") or {}
        if number not in self._calls:
            call = _Open("function_call", self._id, len(self._output) + (self._open is not None))
            call.call_id, call.name = piece.get("id") or "", function.get("name") or ""
            self._calls[number] = call
            told += self._begin(call)
        if arguments := function.get("arguments"):
            told.append(self._delta(self._calls[number], arguments))
        return told

    def _begin(self, item: "_Open") -> list[bytes]:
        told = self._close("completed")
        self._open = item
        told.append(self._event("response.output_item.added", output_index=item.index, item=item.as_begun()))
        if item.has_part:
            told.append(self._event("response.content_part.added", **item.place, part=_part(item.kind, "")))
        return told

    def _delta(self, item: "_Open", text: str) -> bytes:
        item.pieces.append(text)
        return self._event(f"{item.event}.delta", **item.place, **item.beside, delta=text)

    def _close(self, status: str) -> list[bytes]:
        item, self._open = self._open, None
        if item is None:
            return []
        text, whole = "".join(item.pieces), item.as_whole(status)
        said = {"text": text} if item.has_part else {"arguments": text, "name": item.name}
        told = [self._event(f"{item.event}.done", **item.place, **item.beside, **said)]
        if item.has_part:
            told.append(self._event("response.content_part.done", **item.place, part=_part(item.kind, text)))
        self._output.append(whole)
        return [*told, self._event("response.output_item.done", output_index=item.index, item=whole)]

    def _event(self, kind: str, **told: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._sequence, **told}
        self._sequence += 1
        return f"event: {kind}\ndata: ".encode() + orjson.dumps(event) + b"\n\n"


class _Open:
    """An item of the output that is being told."""

    def __init__(self, kind: str, response_id: str, index: int) -> None:
        self.kind, self.index = kind, index
        self.id = _item_id(kind, response_id, index)
        self.event = _EVENTS[kind]
        self.pieces: list[str] = []
        self.call_id = self.name = ""
        self.has_part = kind != "function_call"
        self.place = {"item_id": self.id, "output_index": index, **({"content_index": 0} if self.has_part else {})}
        self.beside: dict[str, Any] = {"logprobs": []} if kind == "message" else {}

    def as_begun(self) -> dict[str, Any]:
        begun = self._item("", "in_progress")
        return {**begun, "content": []} if self.has_part else begun

    def as_whole(self, status: str) -> dict[str, Any]:
        return self._item("".join(self.pieces), status)

    def _item(self, text: str, status: str) -> dict[str, Any]:
        if self.kind == "reasoning":
            return _thought(self.id, text)
        if self.kind == "message":
            return _said(self.id, text, status)
        return _called(self.id, self.call_id, self.name, text, status)


def _head(response_id: str, answer: dict[str, Any], request: ResponsesRequest) -> dict[str, Any]:
    """What a response says beside its output: what was asked of it."""
    asked = request.model_dump(exclude_none=True, by_alias=True)
    return {
        "id": response_id,
        "object": "response",
        "created_at": answer.get("created") or 0,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata or {},
        "model": answer["model"],
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": request.temperature,
        "text": asked.get("text") or {"format": {"type": "text"}},
        "tool_choice": asked.get("tool_choice", "auto"),
        "tools": asked.get("tools", []),
        "top_p": request.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": request.user,
    }


def _status(finish_reason: str | None) -> str:
    return "incomplete" if finish_reason in _INCOMPLETE else "completed"


def _details(finish_reason: str | None) -> dict[str, str] | None:
    return {"reason": _INCOMPLETE[finish_reason]} if finish_reason in _INCOMPLETE else None


def _item_id(kind: str, response_id: str, index: int) -> str:
    """The request's id under the prefix that the item's type has, and its place."""
    return f"{_PREFIXES[kind]}_{response_id.partition('_')[2] or response_id}_{index}"


def _part(kind: str, text: str) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": []}


def _said(item_id: str, text: str, status: str) -> dict[str, Any]:
    content = [_part("message", text)]
    return {"id": item_id, "type": "message", "role": "assistant", "status": status, "content": content}


def _thought(item_id: str, text: str) -> dict[str, Any]:
    return {"id": item_id, "type": "reasoning", "summary": [], "content": [_part("reasoning", text)]}


def _called(item_id: str, call_id: str, name: str, arguments: str, status: str) -> dict[str, Any]:
    called = {"call_id": call_id, "name": name, "arguments": arguments}
    return {"id": item_id, "type": "function_call", "status": status, **called}
