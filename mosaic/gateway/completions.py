"""One completion of plain text, in order: resolve the endpoint, check the grant, choose who answers, ask, stream."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from mosaic.errors import BadRequest, Unprocessable
from mosaic.gateway.answers import FoldedText, OpenAIEvents, counted, events, noted, whole
from mosaic.gateway.asking import Asking
from mosaic.gateway.cache import Cached
from mosaic.gateway.chat import for_the_engine
from mosaic.gateway.endpoints import Endpoints
from mosaic.gateway.guarding import Guarding
from mosaic.gateway.limits import Limits
from mosaic.gateway.requests import CompletionRequest
from mosaic.monitoring import Exchange
from mosaic.protocol import EngineRequest


class Completions:
    """Answers completion requests: of endpoints whose task is `complete`, and of those that chat."""

    def __init__(self, endpoints: Endpoints, limits: Limits, asking: Asking | Cached) -> None:
        self._endpoints, self._limits, self._asking = endpoints, limits, asking

    async def complete(self, request: CompletionRequest, exchange: Exchange) -> dict[str, Any]:
        """The whole answer as one `text_completion`."""
        return await whole(self._answer(request, exchange), exchange)

    def stream(self, request: CompletionRequest, exchange: Exchange) -> AsyncIterator[bytes]:
        """The answer as server-sent events (see `answers.events`)."""
        folded = FoldedText(request.model, exchange.request_id)
        return events(self._answer(request, exchange), exchange, folded, OpenAIEvents(request.stream_options))

    async def _answer(self, request: CompletionRequest, exchange: Exchange) -> AsyncIterator[dict[str, Any]]:
        endpoint = await self._endpoints.use(request.model, exchange.principal, exchange.request_id)
        exchange.note_endpoint(endpoint.name, endpoint.config_version, request.context_json)
        if endpoint.task not in ("chat", "complete"):
            raise Unprocessable(f"{endpoint.name!r} is for {endpoint.task}, not for completions", param="model")
        if endpoint.retrieval is not None:
            told = f"{endpoint.name!r} looks up what a chat asks, which plain text does not say"
            raise Unprocessable(told, param="model")
        guarding = Guarding(endpoint, exchange)
        guarding.check_logprobs(request.logprobs is not None)
        if endpoint.input_guard is not None and request.texts is None:
            told = f"the guardrails of {endpoint.served_name!r} read text, and prompt is numbers of tokens"
            raise BadRequest(told, param="prompt")
        await self._limits.admit(endpoint, exchange, request)
        prompt: Any = request.prompt
        if request.texts is not None:
            prompt = await guarding.texts(request.texts, request, "prompt")
        engine_request = EngineRequest(
            request_id=exchange.request_id,
            task="complete",
            body={**for_the_engine(request), "prompt": prompt},
            stream=request.stream,
        )
        stream = request.stream
        asked_of = self._asking.answers(endpoint, exchange, engine_request, request.user)
        async with aclosing(guarding.gated(asked_of)) as asked:
            answers = counted(self._limits.watched(asked, exchange, stream=stream), exchange, stream=stream)
            answers = guarding.answers(answers, stream=stream)
            async for item in noted(answers, exchange, model=request.model):
                yield item
