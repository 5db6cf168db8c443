"""One chat request, in order. Start reading here: the order of steps lives in this file and nowhere else.

    authenticated (runtime/asgi.py) -> resolve the endpoint -> check the grant -> reserve what it may take
        -> guard what is asked -> look up -> choose who answers -> ask its engine, or the next one that may answer
        -> guard what is answered -> stream -> settle what it took -> the row is on disk -> the last byte

What limits do is in `limits`, guardrails in `guarding`, the choice and its next ones in `asking`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from mosaic.errors import Unprocessable
from mosaic.gateway.answers import Events, FoldedChat, OpenAIEvents, counted, events, noted, whole
from mosaic.gateway.asking import Asking
from mosaic.gateway.cache import Cached
from mosaic.gateway.endpoints import Endpoint, Endpoints
from mosaic.gateway.guarding import Guarding
from mosaic.gateway.images import check_images
from mosaic.gateway.limits import Limits
from mosaic.gateway.requests import ChatRequest, Generation
from mosaic.monitoring import Exchange
from mosaic.protocol import EngineRequest, Message, Retrieved

Retriever = Callable[[str, str, int, str], Awaitable[tuple[Retrieved, list[dict[str, Any]]]]]
"""(index, question, how many, request id) -> what was found, and its columns."""

_NOT_FOR_THE_ENGINE = {"model", "messages", "prompt", "stream", "stream_options", "user", "metadata", "usage_context"}


class Chat:
    """Answers chat requests. `asking` finds who answers, `retrieve` looks up in an index."""

    def __init__(self, endpoints: Endpoints, limits: Limits, asking: Asking | Cached, retrieve: Retriever) -> None:
        self._endpoints, self._limits, self._asking, self._retrieve = endpoints, limits, asking, retrieve

    async def complete(self, request: ChatRequest, exchange: Exchange) -> dict[str, Any]:
        """The whole answer as one `chat.completion`."""
        return await whole(self._answer(request, exchange), exchange)

    def stream(self, request: ChatRequest, exchange: Exchange, told: Events | None = None) -> AsyncIterator[bytes]:
        """The answer as server-sent events (see `answers.events`), OpenAI's unless `told` in others."""
        folded = FoldedChat(request.model, exchange.request_id)
        return events(self._answer(request, exchange), exchange, folded, told or OpenAIEvents(request.stream_options))

    async def _answer(self, request: ChatRequest, exchange: Exchange) -> AsyncIterator[dict[str, Any]]:
        endpoint = await self._endpoints.use(request.model, exchange.principal, exchange.request_id)
        exchange.note_endpoint(endpoint.name, endpoint.config_version, request.context_json)
        if endpoint.task != "chat":
            raise Unprocessable(f"{endpoint.name!r} is for {endpoint.task}, not for chat", param="model")
        if any(isinstance(message.content, list) for message in request.messages):
            check_images(request.messages, endpoint)
        guarding = Guarding(endpoint, exchange)
        guarding.check_logprobs(request.logprobs)
        await self._limits.admit(endpoint, exchange, request)

        messages = await guarding.messages(request)
        messages, retrieved = await self._look_up(messages, endpoint, exchange)

        engine_request = EngineRequest(
            request_id=exchange.request_id,
            task="chat",
            body={**for_the_engine(request), "messages": messages},
            stream=request.stream,
        )
        stream = request.stream
        asked_of = self._asking.answers(endpoint, exchange, engine_request, request.user)
        async with aclosing(guarding.gated(asked_of)) as asked:
            answers = counted(self._limits.watched(asked, exchange, stream=stream), exchange, stream=stream)
            answers = guarding.answers(answers, stream=stream)
            async for item in noted(answers, exchange, model=request.model, retrieved=retrieved):
                yield item

    async def _look_up(
        self, messages: list[dict[str, Any]], endpoint: Endpoint, exchange: Exchange
    ) -> tuple[list[dict[str, Any]], Retrieved | None]:
        retrieval = endpoint.retrieval
        if retrieval is None:
            return messages, None
        place = next((n for n in range(len(messages) - 1, -1, -1) if messages[n]["role"] == "user"), None)
        if place is None:
            raise Unprocessable(
                f"{endpoint.name!r} looks up the last user message, and there is none", param="messages"
            )
        question = Message.model_validate(messages[place]).text
        retrieved, entries = await self._retrieve(retrieval.index, question, retrieval.num_results, exchange.request_id)
        exchange.note_retrieved(retrieved)
        system, user = retrieval.messages(question, entries)
        messages[place] = user.model_dump(exclude_none=True)
        if messages[0]["role"] not in ("system", "developer"):
            messages.insert(0, system.model_dump(exclude_none=True))
        return messages, retrieved


def for_the_engine(request: Generation) -> dict[str, Any]:
    """The fields that are the engine's to honour."""
    return request.model_dump(exclude=_NOT_FOR_THE_ENGINE, exclude_none=True, by_alias=True)
