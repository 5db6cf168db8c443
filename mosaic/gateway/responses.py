"""OpenAI's newer door to models: `/v1/responses` is the chat of `chat.py`, asked and told in other words."""

from collections.abc import AsyncIterator
from typing import Any

from mosaic.gateway.chat import Chat
from mosaic.gateway.responses_answers import ResponseEvents, as_response
from mosaic.gateway.responses_requests import ResponsesRequest
from mosaic.gateway.retold import note_chat
from mosaic.monitoring import Exchange


class Responses:
    """Answers in the shape of OpenAI's Responses."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat

    async def complete(self, request: ResponsesRequest, exchange: Exchange) -> dict[str, Any]:
        """The whole answer as one response."""
        chat = request.as_chat()
        note_chat(chat, exchange)
        return as_response(await self._chat.complete(chat, exchange), request)

    def stream(self, request: ResponsesRequest, exchange: Exchange) -> AsyncIterator[bytes]:
        """The answer as OpenAI's events."""
        chat = request.as_chat()
        note_chat(chat, exchange)
        return self._chat.stream(chat, exchange, ResponseEvents(exchange.request_id, request))
