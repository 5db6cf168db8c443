"""Models of OpenAI, and of any server that speaks its protocol at another address."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from mosaic.errors import Unprocessable
from mosaic.gateway.providers.failures import final_after_first
from mosaic.gateway.providers.upstream import Http, Upstream
from mosaic.protocol import EngineRequest
from mosaic.serving.external import Access, ExternalModel

_PATHS = {"chat": "/chat/completions", "complete": "/completions", "embed": "/embeddings"}
_DONE = b"[DONE]"


class OpenAICompatible:
    """An Engine (`mosaic.protocol`) for `chat`, `complete` and `embed`.

    Fields of the request are passed on as they are, so that what the provider does not know is its refusal. A stream's
    usage comes last, in a chunk of its own, wherever the provider puts it; one that reports none leaves it out.
    """

    def __init__(self, model: ExternalModel, access: Access, http: Http) -> None:
        headers = {"authorization": f"Bearer {access.api_key}"} if access.api_key else {}
        self._upstream = Upstream(model, access, http, headers)

    def answer(self, request: EngineRequest) -> AsyncIterator[dict[str, Any]]:
        """See `mosaic.protocol.Engine`; raises Provider* errors, and EngineDied after the first chunk."""
        return final_after_first(self._answer(request))

    async def _answer(self, request: EngineRequest) -> AsyncGenerator[dict[str, Any]]:
        upstream = self._upstream
        if request.task not in _PATHS:
            raise Unprocessable(f"the provider of {upstream.model.name!r} does not {request.task}", param="model")
        path, body = _PATHS[request.task], {**request.body, "model": upstream.model.name}
        if request.task == "embed":
            yield _embedded(upstream, await upstream.whole(path, body), len(body["input"]))
        elif not request.stream:
            yield whole(upstream, await upstream.whole(path, body), is_chat=request.task == "chat")
        else:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
            chunks = Chunks(upstream, is_chat=request.task == "chat")
            async with aclosing(upstream.events(path, body, is_last=_DONE.__eq__)) as events:
                async for data in events:
                    if data != _DONE and (chunk := chunks.add(data)) is not None:
                        yield chunk
            if (last := chunks.end()) is not None:
                yield last


class Chunks:
    """A stream's chunks, checked for what the gateway reads of them.

    Who speaks is said with the first word: until then nothing has left, and another entity may still be asked.
    """

    def __init__(self, upstream: Upstream, *, is_chat: bool) -> None:
        self._upstream, self._is_chat = upstream, is_chat
        self._head: dict[str, Any] = {}
        self._opening: dict[int, dict[str, Any]] = {}
        self._usage: dict[str, Any] | None = None
        self._begun: set[int] = set()
        self._ended: set[int] = set()

    def add(self, data: bytes) -> dict[str, Any] | None:
        """The chunk to send, if it says anything."""
        chunk = self._upstream.parsed(data)
        if chunk.get("error"):
            raise self._upstream.failures.of_event(chunk["error"])
        self._usage = _usage(self._upstream, chunk.pop("usage", None)) or self._usage
        choices = _choices(self._upstream, chunk, "delta" if self._is_chat else "text")
        if not choices:
            return None
        if not self._begun:
            self._head = {field: value for field, value in chunk.items() if field != "choices"}
            if not any(self._says(choice) for choice in choices):
                self._opening |= {choice["index"]: choice["delta"] for choice in choices if self._is_chat}
                return None
        for choice in choices:
            self._begun.add(choice["index"])
            if choice.get("finish_reason"):
                self._ended.add(choice["index"])
            if self._opening:
                choice["delta"] = {**self._opening.pop(choice["index"], {}), **choice["delta"]}
        return chunk

    def end(self) -> dict[str, Any] | None:
        """The chunk with the usage. An answer of which a part did not say why it ended was cut, [DONE] or not."""
        if not self._ended or self._begun != self._ended:
            raise self._upstream.failures.failed("ended its answer unfinished", code="provider_broke_off")
        return None if self._usage is None else {**self._head, "choices": [], "usage": self._usage}

    def _says(self, choice: dict[str, Any]) -> bool:
        told = choice["delta"] if self._is_chat else {"text": choice["text"]}
        return bool(choice.get("finish_reason")) or any(value for field, value in told.items() if field != "role")


def whole(upstream: Upstream, answer: dict[str, Any], *, is_chat: bool) -> dict[str, Any]:
    """The answer as it came; raises for one that reports an error, or that the gateway could not read."""
    if answer.get("error"):  # some servers say so with status 200
        raise upstream.failures.of_event(answer["error"])
    if not _choices(upstream, answer, "message" if is_chat else "text"):
        raise upstream.malformed("no choices")
    _usage(upstream, answer.get("usage"))
    return answer


def _choices(upstream: Upstream, answer: dict[str, Any], field: str) -> list[dict[str, Any]]:
    """The choices, each with an index and with what `field` is for, as the gateway reads it."""
    kind = str if field == "text" else dict
    choices = answer.get("choices")
    if not isinstance(choices, list):
        raise upstream.malformed("an object without choices")
    for choice in choices:
        if not isinstance(choice, dict) or not isinstance(choice.get(field), kind):
            raise upstream.malformed(f"a choice without {field}")
        if not isinstance(choice.setdefault("index", 0), int):
            raise upstream.malformed("a choice whose index is no number")
        logprobs = choice.get("logprobs") or {}
        if not isinstance(logprobs, dict) or not all(isinstance(one, list | None) for one in logprobs.values()):
            raise upstream.malformed("logprobs that are none")
        if field != "text":
            _check_said(upstream, choice[field], is_piece=field == "delta")
    return choices


def _check_said(upstream: Upstream, said: dict[str, Any], *, is_piece: bool) -> None:
    """A message or a piece of one: texts are texts, and pieces of calls have a number, which some servers leave out."""
    for name in ("content", "reasoning", "reasoning_content"):
        if not isinstance(said.get(name), str | None):
            raise upstream.malformed(f"{name} that is no text")
    calls = said.get("tool_calls")
    if calls is None:
        return
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise upstream.malformed("tool_calls that are none")
    for place, call in enumerate(calls):
        function = call.get("function")
        if not isinstance(function, dict | None) or not isinstance((function or {}).get("arguments"), str | None):
            raise upstream.malformed("a call of a tool without arguments")
        if is_piece and not isinstance(call.setdefault("index", place), int):
            raise upstream.malformed("a call of a tool whose index is no number")


def _usage(upstream: Upstream, usage: object) -> dict[str, Any] | None:
    if usage is None:
        return None
    if not isinstance(usage, dict):
        raise upstream.malformed("a usage that is no object")
    counts = usage.get("prompt_tokens"), usage.get("completion_tokens") or 0
    if not all(type(count) is int and count >= 0 for count in counts):
        raise upstream.malformed("a usage without counts of tokens")
    return usage


def _embedded(upstream: Upstream, answer: dict[str, Any], count: int) -> dict[str, Any]:
    data, usage = answer.get("data"), _usage(upstream, answer.get("usage"))
    if not isinstance(data, list) or len(data) != count:
        raise upstream.malformed(f"other than {count} embeddings")
    try:
        vectors = [one["embedding"] for one in sorted(data, key=lambda one: one["index"])]
    except (TypeError, KeyError):
        raise upstream.malformed("embeddings without their numbers") from None
    if not all(isinstance(vector, list) and vector for vector in vectors):
        raise upstream.malformed("an embedding that is no list of numbers")
    return {"embeddings": vectors, "prompt_tokens": usage["prompt_tokens"] if usage else 0}
