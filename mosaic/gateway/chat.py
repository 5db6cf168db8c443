"""One chat request, in order. Start reading here: the order of steps lives in this file and nowhere else.

    authenticated (runtime/asgi.py) -> resolve the endpoint -> check the grant -> look up -> choose who answers
        -> ask its engine -> stream -> the row is on disk -> the last byte

What is not here yet has its place between these lines: quota after the grant, guards around the engine.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from mosaic.errors import EngineFailed, MosaicError, Unprocessable
from mosaic.gateway.endpoints import Endpoint, Endpoints, LiveEntity, choose
from mosaic.monitoring import Exchange
from mosaic.monitoring.record import compact_json
from mosaic.protocol import ChatRequest, Engine, EngineRequest, Retrieved, Usage

Retriever = Callable[[str, str, int, str], Awaitable[tuple[Retrieved, list[dict[str, Any]]]]]
"""(index, question, how many, request id) -> what was found, and its columns."""

_NOT_FOR_THE_ENGINE = {"model", "messages", "stream", "stream_options", "user", "metadata"}


class Chat:
    """Answers chat requests. `engine` gives the engine of a served entity, `retrieve` looks up in an index."""

    def __init__(self, endpoints: Endpoints, engine: Callable[[str], Engine], retrieve: Retriever) -> None:
        self._endpoints, self._engine, self._retrieve = endpoints, engine, retrieve

    async def complete(self, request: ChatRequest, exchange: Exchange) -> dict[str, Any]:
        """The whole answer as one `chat.completion`."""
        async for answer in self._answer(request, exchange):
            exchange.note(response=compact_json(answer))
            return answer
        raise EngineFailed("the engine ended without an answer")

    async def stream(self, request: ChatRequest, exchange: Exchange) -> AsyncIterator[bytes]:
        """Server-sent events, ending with [DONE]; what fails after the first chunk is an `error` event without [DONE].

        The row is durable before [DONE] leaves: a client that has its whole answer has a row, whatever dies next.
        """
        status, folded = 500, _Folded(request.model, exchange.request_id)
        wants_usage = request.stream_options is not None and request.stream_options.include_usage
        try:
            async for chunk in self._answer(request, exchange):
                folded.add(chunk)
                if chunk["choices"] or wants_usage:
                    yield b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"
            status = 200
            exchange.note(response=folded.as_json())
            await exchange.close(status)
            yield b"data: [DONE]\n\n"
        except MosaicError as error:
            status = error.status
            exchange.note(error=error.message)
            if not folded.chunks:
                raise  # nothing has left yet: the client gets a status, not a broken stream
            event = {"error": {"message": error.message, "type": "server_error", "param": None, "code": error.code}}
            yield b"data: " + json.dumps(event).encode() + b"\n\n"
        except (GeneratorExit, asyncio.CancelledError):
            status = 499  # the client went away; what it read is recorded
            raise
        finally:
            if folded.chunks and not exchange.closed:
                exchange.note(response=folded.as_json())
                exchange.close_now(status)

    async def _answer(self, request: ChatRequest, exchange: Exchange) -> AsyncIterator[dict[str, Any]]:
        endpoint = await self._endpoints.use(request.model, exchange.principal, exchange.request_id)
        exchange.note(endpoint=endpoint.name, endpoint_config_version=endpoint.config_version)
        if endpoint.task != "chat":
            raise Unprocessable(f"{endpoint.name!r} is for {endpoint.task}, not for chat", param="model")

        messages, retrieved = await self._look_up(request, endpoint, exchange)
        entity = choose(endpoint, exchange.request_id)
        exchange.note(**entity.columns())

        asked = request.model_dump(exclude=_NOT_FOR_THE_ENGINE, exclude_none=True)
        engine_request = EngineRequest(
            request_id=exchange.request_id,
            task="chat",
            body={**asked, "messages": messages},
            adapter=entity.adapter,
            stream=request.stream,
        )
        first = True
        async for item in self._engine(entity.app_name).answer(engine_request):
            if usage := item.get("usage"):
                exchange.note_usage(
                    Usage(prompt_tokens=usage["prompt_tokens"], completion_tokens=usage["completion_tokens"])
                )
            item |= {"id": exchange.request_id, "model": request.model}
            if first:
                first = False
                exchange.note_first_token()
                item["mosaic"] = _disclosure(entity, retrieved)
            yield item

    async def _look_up(
        self, request: ChatRequest, endpoint: Endpoint, exchange: Exchange
    ) -> tuple[list[dict[str, Any]], Retrieved | None]:
        messages = [message.model_dump(exclude_none=True) for message in request.messages]
        retrieval = endpoint.retrieval
        if retrieval is None:
            return messages, None
        place = next((n for n in range(len(messages) - 1, -1, -1) if messages[n]["role"] == "user"), None)
        if place is None:
            raise Unprocessable(
                f"{endpoint.name!r} looks up the last user message, and there is none", param="messages"
            )
        question = str(messages[place]["content"])
        retrieved, entries = await self._retrieve(retrieval.index, question, retrieval.num_results, exchange.request_id)
        exchange.note_retrieved(retrieved)
        system, user = retrieval.messages(question, entries)
        messages[place] = user.model_dump(exclude_none=True)
        if messages[0]["role"] not in ("system", "developer"):
            messages.insert(0, system.model_dump(exclude_none=True))
        return messages, retrieved


def _disclosure(entity: LiveEntity, retrieved: Retrieved | None) -> dict[str, Any]:
    """What the first chunk says beside OpenAI's fields: which arm answers, and from what."""
    return {
        "served_entity": entity.name,
        "model": entity.version_name or entity.model,
        "retrieved": retrieved.model_dump() if retrieved else None,
    }


class _Folded:
    """The chunks of a stream, put together as the one completion that the row keeps."""

    def __init__(self, model: str, request_id: str) -> None:
        self._head = {"id": request_id, "object": "chat.completion", "model": model}
        self._content: list[str] = []
        self._finish_reason: str | None = None
        self._usage: dict[str, Any] | None = None
        self.chunks = 0

    def add(self, chunk: dict[str, Any]) -> None:
        self.chunks += 1
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk["choices"]:
            self._content.append(choice["delta"].get("content") or "")
            self._finish_reason = choice.get("finish_reason") or self._finish_reason

    def as_json(self) -> str:
        message = {"role": "assistant", "content": "".join(self._content)}
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason}
        return compact_json({**self._head, "choices": [choice], "usage": self._usage})
