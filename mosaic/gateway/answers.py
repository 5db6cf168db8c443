"""What an engine answers to a chat or a completion, on its way to the client: noted, as events, and folded into the
one answer that the row keeps."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Protocol

import orjson

from mosaic.errors import EngineFailed, MosaicError
from mosaic.gateway.requests import StreamOptions
from mosaic.monitoring import Exchange
from mosaic.monitoring.record import compact_json
from mosaic.protocol import Retrieved

Answers = AsyncIterator[dict[str, Any]]


class Events(Protocol):
    """What a stream says to its client, as server-sent events; b"" says nothing."""

    def chunk(self, chunk: dict[str, Any]) -> bytes: ...

    def end(self) -> bytes: ...

    def error(self, error: MosaicError) -> bytes: ...


class OpenAIEvents:
    """Chunks as they are, and [DONE]."""

    def __init__(self, options: StreamOptions | None) -> None:
        self._wants_usage = options is not None and options.include_usage

    def chunk(self, chunk: dict[str, Any]) -> bytes:
        if not chunk["choices"] and not self._wants_usage:
            return b""
        return b"data: " + orjson.dumps(chunk) + b"\n\n"

    def end(self) -> bytes:
        return b"data: [DONE]\n\n"

    def error(self, error: MosaicError) -> bytes:
        told = {"message": error.message, "type": "server_error", "param": None, "code": error.code}
        return b"data: " + orjson.dumps({"error": told}) + b"\n\n"


class Folded(Protocol):
    """The chunks of a stream, put together as the one answer that would have come without `stream`."""

    chunks: int

    def add(self, chunk: dict[str, Any]) -> None: ...

    def as_json(self) -> str: ...


async def counted(answers: Answers, exchange: Exchange, *, stream: bool) -> Answers:
    """The answers with their usage in the row. An engine may count with every chunk, so that the row of an answer that
    is broken off says what it took; clients are told the sum alone."""
    async for item in answers:
        if usage := item.get("usage"):
            if exchange.get("cached"):  # it took nothing
                usage = {"prompt_tokens": 0}
            exchange.note(input_tokens=usage["prompt_tokens"], output_tokens=usage.get("completion_tokens") or 0)
            cached = _detail(usage, "prompt_tokens_details", "cached_tokens")
            reasoned = _detail(usage, "completion_tokens_details", "reasoning_tokens")
            if cached is not None or reasoned is not None:
                exchange.note(cached_input_tokens=cached, reasoning_tokens=reasoned)
            if stream and item["choices"]:
                del item["usage"]
        yield item


def _detail(usage: dict[str, Any], of: str, name: str) -> int | None:
    """A finer count, if it is one: a provider may say anything there."""
    details = usage.get(of)
    count = details.get(name) if isinstance(details, dict) else None
    return count if type(count) is int and count >= 0 else None


async def noted(answers: Answers, exchange: Exchange, *, model: str, retrieved: Retrieved | None = None) -> Answers:
    """The answers under the request's own id. The first, whose time is in the row, says beside OpenAI's fields who
    answers and from what."""
    first = True
    async for item in answers:
        item |= {"id": exchange.request_id, "model": model}
        if first:
            first = False
            exchange.note_first_token()
            item["mosaic"] = {
                "served_entity": exchange.get("served_entity"),
                "model": model_name(exchange.get("model"), exchange.get("model_version")),
                "retrieved": retrieved.model_dump() if retrieved else None,
            }
        yield item


def model_name(model: str, version: int | None) -> str:
    return model if version is None else f"{model}/{version}"


async def whole(answers: Answers, exchange: Exchange) -> dict[str, Any]:
    """The one answer of a request without `stream`."""
    async for answer in answers:
        exchange.note(response=compact_json(answer))
        return answer
    raise EngineFailed("the engine ended without an answer")


async def events(answers: Answers, exchange: Exchange, folded: Folded, told: Events) -> AsyncIterator[bytes]:
    """Server-sent events, to the end that says so; what fails after the first chunk is an error without that end.

    The row is durable before the end leaves: a client that has its whole answer has a row, whatever dies next.
    """
    status = 500
    try:
        async for chunk in answers:
            folded.add(chunk)
            if said := told.chunk(chunk):
                yield said
        status = 200
        exchange.note(response=folded.as_json())
        await exchange.close(status)
        yield told.end()
    except MosaicError as error:
        status = error.status
        exchange.note_error(error)
        if not folded.chunks:
            raise  # nothing has left yet: the client gets a status, not a broken stream
        yield told.error(error)
    except (GeneratorExit, asyncio.CancelledError):
        status = 499  # the client went away; what it read is recorded
        raise
    finally:
        if folded.chunks and not exchange.closed:
            exchange.note(response=folded.as_json())
            exchange.close_now(status)


class FoldedChat:
    """Of `chat.completion.chunk`s: text, reasoning and calls of tools are told in pieces, each choice by its index."""

    def __init__(self, model: str, request_id: str) -> None:
        self._head = {"id": request_id, "object": "chat.completion", "model": model}
        self._choices: dict[int, _FoldedChoice] = {}
        self._usage: dict[str, Any] | None = None
        self.chunks = 0

    def add(self, chunk: dict[str, Any]) -> None:
        self.chunks += 1
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk["choices"]:
            self._choices.setdefault(choice.get("index", 0), _FoldedChoice()).add(choice)

    def as_json(self) -> str:
        choices = [{"index": index, **self._choices[index].whole()} for index in sorted(self._choices)]
        return compact_json({**self._head, "choices": choices, "usage": self._usage})


class _FoldedChoice:
    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {}
        """By the field of the message: content, and reasoning as the engine calls it."""
        self._calls: dict[int, dict[str, Any]] = {}
        self._logprobs: list[Any] = []
        self._finish_reason: str | None = None

    def add(self, choice: dict[str, Any]) -> None:
        delta = choice["delta"]
        for field in ("content", "reasoning", "reasoning_content"):
            if text := delta.get(field):
                self._texts.setdefault(field, []).append(text)
        for piece in delta.get("tool_calls") or ():
            call = self._calls.setdefault(piece["index"], {"type": "function", "function": {"arguments": ""}})
            told = piece.get("function") or {}
            call |= {"id": piece["id"]} if piece.get("id") else {}
            call["function"] |= {"name": told["name"]} if told.get("name") else {}
            call["function"]["arguments"] += told.get("arguments") or ""
        self._logprobs += (choice.get("logprobs") or {}).get("content") or ()
        self._finish_reason = choice.get("finish_reason") or self._finish_reason

    def whole(self) -> dict[str, Any]:
        texts = {field: "".join(pieces) for field, pieces in self._texts.items()}
        message: dict[str, Any] = {"role": "assistant", "content": None if self._calls else "", **texts}
        if self._calls:
            message["tool_calls"] = [self._calls[index] for index in sorted(self._calls)]
        logprobs = {"logprobs": {"content": self._logprobs}} if self._logprobs else {}
        return {"message": message, **logprobs, "finish_reason": self._finish_reason}


class FoldedText:
    """Of the chunks of a `text_completion`, each choice by its index."""

    def __init__(self, model: str, request_id: str) -> None:
        self._head = {"id": request_id, "object": "text_completion", "model": model}
        self._texts: dict[int, list[str]] = {}
        self._logprobs: dict[int, dict[str, list[Any]]] = {}
        self._finish_reasons: dict[int, str] = {}
        self._usage: dict[str, Any] | None = None
        self.chunks = 0

    def add(self, chunk: dict[str, Any]) -> None:
        self.chunks += 1
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk["choices"]:
            index = choice.get("index", 0)
            self._texts.setdefault(index, []).append(choice.get("text") or "")
            for field, values in (choice.get("logprobs") or {}).items():
                self._logprobs.setdefault(index, {}).setdefault(field, []).extend(values or ())
            if reason := choice.get("finish_reason"):
                self._finish_reasons[index] = reason

    def as_json(self) -> str:
        choices = [
            {
                "index": index,
                "text": "".join(self._texts[index]),
                **({"logprobs": self._logprobs[index]} if index in self._logprobs else {}),
                "finish_reason": self._finish_reasons.get(index),
            }
            for index in sorted(self._texts)
        ]
        return compact_json({**self._head, "choices": choices, "usage": self._usage})
