"""Models of Anthropic, asked by its Messages API: start reading here, the translation is in the two files beside."""

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import orjson

from mosaic.errors import Unprocessable
from mosaic.gateway.providers.anthropic_answers import Chunks, whole
from mosaic.gateway.providers.anthropic_requests import as_anthropic
from mosaic.gateway.providers.failures import final_after_first
from mosaic.gateway.providers.upstream import Http, Upstream
from mosaic.protocol import EngineRequest
from mosaic.serving.external import Access, ExternalModel

_PATH, _COUNT_PATH = "/v1/messages", "/v1/messages/count_tokens"
_VERSION = "2023-06-01"


class Anthropic:
    """An Engine (`mosaic.protocol`) for `chat` and `count`; a field that cannot be translated is UnsupportedField."""

    def __init__(self, model: ExternalModel, access: Access, http: Http) -> None:
        key = {"x-api-key": access.api_key} if access.api_key else {}
        self._upstream = Upstream(model, access, http, {"anthropic-version": _VERSION, **key})

    def answer(self, request: EngineRequest) -> AsyncIterator[dict[str, Any]]:
        """See `mosaic.protocol.Engine`; raises Provider* errors, and EngineDied after the first chunk."""
        return final_after_first(self._answer(request))

    async def _answer(self, request: EngineRequest) -> AsyncGenerator[dict[str, Any]]:
        upstream, model = self._upstream, self._upstream.model
        if request.task == "count":
            yield {"prompt_tokens": await self._counted(request)}
            return
        if request.task != "chat":
            raise Unprocessable(f"the provider of {model.name!r} does not {request.task}", param="model")
        body = as_anthropic(request.body, model=model.name, max_tokens=model.max_tokens, stream=request.stream)
        head = {"id": request.request_id, "created": int(time.time()), "model": model.name}
        if not request.stream:
            yield {**head, **whole(upstream, await upstream.whole(_PATH, body))}
            return
        chunks = Chunks(upstream)
        async with aclosing(upstream.events(_PATH, body, is_last=_is_last)) as events:
            async for data in events:
                if (chunk := chunks.add(data)) is not None:
                    yield {**head, **chunk}
        yield {**head, **chunks.end()}

    async def _counted(self, request: EngineRequest) -> int:
        upstream, model = self._upstream, self._upstream.model
        body = as_anthropic(request.body, model=model.name, max_tokens=model.max_tokens, stream=False)
        del body["max_tokens"]
        count = (await upstream.whole(_COUNT_PATH, body)).get("input_tokens")
        if type(count) is not int or count < 0:
            raise upstream.malformed("what is no count of tokens")
        return count


def _is_last(data: bytes) -> bool:
    """Told without parsing each event twice; a text that quotes the words is looked at again."""
    if b'"message_stop"' not in data:
        return False
    event = orjson.loads(data)
    return isinstance(event, dict) and event.get("type") == "message_stop"
