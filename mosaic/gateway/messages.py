"""Anthropic's door: `/v1/messages` is the chat of `chat.py`, asked and told in other words, and `count_tokens` is what
its model would read."""

from collections.abc import AsyncIterator
from typing import Any

from mosaic.errors import EngineFailed, Unprocessable
from mosaic.gateway.asking import Asking
from mosaic.gateway.chat import Chat, for_the_engine
from mosaic.gateway.endpoints import Endpoints
from mosaic.gateway.guarding import Guarding
from mosaic.gateway.images import check_images
from mosaic.gateway.limits import Limits
from mosaic.gateway.messages_answers import MessageEvents, as_message
from mosaic.gateway.messages_requests import CountRequest, MessagesRequest
from mosaic.gateway.retold import note_chat
from mosaic.monitoring import Exchange
from mosaic.monitoring.record import compact_json
from mosaic.protocol import EngineRequest

_COUNTED = {"messages", "tools", "add_generation_prompt", "continue_final_message"}
"""The fields of a chat that a model reads."""


class Messages:
    """Answers in Anthropic's shape."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat

    async def complete(self, request: MessagesRequest, exchange: Exchange) -> dict[str, Any]:
        """The whole answer as one message."""
        chat = request.as_chat()
        note_chat(chat, exchange)
        return as_message(await self._chat.complete(chat, exchange), tells_thinking=request.tells_thinking)

    def stream(self, request: MessagesRequest, exchange: Exchange) -> AsyncIterator[bytes]:
        """The answer as Anthropic's events."""
        chat = request.as_chat()
        note_chat(chat, exchange)

        events = MessageEvents(
            exchange.request_id, lambda: exchange.get("input_tokens"), tells_thinking=request.tells_thinking
        )
        return self._chat.stream(chat, exchange, events)


class Counts:
    """Counts what a chat would be to its model, in order: resolve the endpoint, check the grant, reserve a call, mask,
    ask who would answer. Nothing is generated, so no tokens are used, and judges, which look at what a model is to
    read, are not asked."""

    def __init__(self, endpoints: Endpoints, limits: Limits, asking: Asking) -> None:
        self._endpoints, self._limits, self._asking = endpoints, limits, asking

    async def count(self, request: CountRequest, exchange: Exchange) -> dict[str, Any]:
        """{"input_tokens": how many}. Raises Unprocessable where they cannot be known: of a provider that does not
        count, and of an endpoint that looks up what it is asked."""
        chat = request.as_chat()
        note_chat(chat, exchange)
        endpoint = await self._endpoints.use(chat.model, exchange.principal, exchange.request_id)
        exchange.note_endpoint(endpoint.name, endpoint.config_version, chat.context_json)
        if endpoint.task != "chat":
            raise Unprocessable(f"{endpoint.name!r} is for {endpoint.task}, not for chat", param="model")
        if endpoint.retrieval is not None:
            told = f"{endpoint.name!r} looks up what it is asked, and what it finds is not known before"
            raise Unprocessable(told, param="model")
        check_images(chat.messages, endpoint)
        await self._limits.admit(endpoint, exchange)
        messages = await Guarding(endpoint, exchange).messages(chat)
        if exchange.is_guarded:
            exchange.note(request=None)  # not all of the guards have seen it
        body = {**for_the_engine(chat), "messages": messages}
        asked = EngineRequest(
            request_id=exchange.request_id,
            task="count",
            body={field: value for field, value in body.items() if field in _COUNTED},
        )
        async for answer in self._asking.answers(endpoint, exchange, asked):
            counted = {"input_tokens": int(answer["prompt_tokens"])}
            exchange.note_first_token()
            exchange.note(response=compact_json(counted))
            exchange.note_late(gpu_seconds=lambda: None, cost_nano_dollars=lambda: 0)
            return counted
        raise EngineFailed("the engine ended without an answer")
