"""How well texts fit together, in order: resolve the endpoint, check the grant, choose who answers, ask, shape."""

from collections.abc import Sequence
from typing import Any

from mosaic.errors import EngineFailed, Unprocessable
from mosaic.gateway.asking import Asking
from mosaic.gateway.endpoints import Endpoints
from mosaic.gateway.guarding import Guarding
from mosaic.gateway.limits import Limits
from mosaic.gateway.requests import RerankRequest, ScoreRequest
from mosaic.monitoring import Exchange
from mosaic.monitoring.record import compact_json
from mosaic.protocol import EngineRequest, Usage


class Scores:
    """Answers score and rerank requests."""

    def __init__(self, endpoints: Endpoints, limits: Limits, asking: Asking) -> None:
        self._endpoints, self._limits, self._asking = endpoints, limits, asking

    async def score(self, request: ScoreRequest, exchange: Exchange) -> dict[str, Any]:
        """A score for each pair, in their order."""
        scores, tokens = await self._ask(request, request.pairs(), exchange)
        data = [{"object": "score", "index": index, "score": score} for index, score in enumerate(scores)]
        exchange.note(response=compact_json({"object": "list", "data": data}))
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"id": exchange.request_id, "object": "list", "model": request.model, "data": data, "usage": usage}

    async def rerank(self, request: RerankRequest, exchange: Exchange) -> dict[str, Any]:
        """The documents by how well they fit the query, best first."""
        texts = request.texts()
        scores, tokens = await self._ask(request, [(request.query, text) for text in texts], exchange)
        order = sorted(range(len(texts)), key=lambda index: (-scores[index], index))[: request.top_n]
        results: list[dict[str, Any]] = [{"index": index, "relevance_score": scores[index]} for index in order]
        exchange.note(response=compact_json({"results": results}))  # the documents are in the request
        if request.return_documents:
            results = [{**one, "document": {"text": texts[index]}} for one, index in zip(results, order, strict=True)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"id": exchange.request_id, "model": request.model, "results": results, "usage": usage}

    async def _ask(
        self, request: ScoreRequest | RerankRequest, pairs: Sequence[tuple[str, str]], exchange: Exchange
    ) -> tuple[Sequence[float], int]:
        endpoint = await self._endpoints.use(request.model, exchange.principal, exchange.request_id)
        exchange.note_endpoint(endpoint.name, endpoint.config_version, request.context_json)
        if endpoint.task != "score":
            raise Unprocessable(f"{endpoint.name!r} is for {endpoint.task}, not for scores", param="model")
        await self._limits.admit(endpoint, exchange, request)
        once = list(dict.fromkeys(text for pair in pairs for text in pair))  # a query stands in each of its pairs
        found = dict(zip(once, await Guarding(endpoint, exchange).texts(once, request, "texts"), strict=True))
        pairs = [(found[left], found[right]) for left, right in pairs]
        asked = EngineRequest(request_id=exchange.request_id, task="score", body={"pairs": pairs})
        async for answer in self._asking.answers(endpoint, exchange, asked, request.user):
            exchange.note_first_token()
            exchange.note_usage(Usage(prompt_tokens=int(answer["prompt_tokens"])))
            return answer["scores"], int(answer["prompt_tokens"])
        raise EngineFailed("the engine ended without an answer")
