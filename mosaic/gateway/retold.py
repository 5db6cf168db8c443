"""Requests of other shapes, once they are chats: what is done with them is what is done with every chat."""

from typing import Any

from pydantic import ValidationError

from mosaic.errors import BadRequest
from mosaic.gateway.images import as_logged
from mosaic.gateway.requests import ChatRequest
from mosaic.monitoring import Exchange
from mosaic.settings import explain


def retold(fields: dict[str, Any]) -> ChatRequest:
    """The chat of these fields; raises BadRequest for what its own shape allows and a chat does not."""
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        raise BadRequest(f"as a chat: {explain(error, ChatRequest)}") from None


def note_chat(chat: ChatRequest, exchange: Exchange) -> None:
    """The row keeps a request as the chat that it is, so that whoever reads rows reads one shape; its path says by
    which door it came. What guardrails read is kept by them."""
    if not exchange.is_guarded:
        exchange.note(request=as_logged(chat.model_dump(exclude_none=True, by_alias=True)))
