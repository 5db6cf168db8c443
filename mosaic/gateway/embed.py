"""One embeddings request, in order: resolve the endpoint, check the grant, choose who answers, ask, shape."""

from base64 import b64encode
from typing import Any

import numpy as np

from mosaic.errors import BadRequest, EngineFailed, Unprocessable
from mosaic.gateway.asking import Asking
from mosaic.gateway.endpoints import Endpoints
from mosaic.gateway.guarding import Guarding
from mosaic.gateway.limits import Limits
from mosaic.gateway.requests import EmbeddingRequest
from mosaic.monitoring import Exchange
from mosaic.monitoring.record import compact_json
from mosaic.protocol import EngineRequest, Usage

MAX_TEXTS = 2048
"""OpenAI's limit of texts in one request."""


class Embeddings:
    """Answers embedding requests."""

    def __init__(self, endpoints: Endpoints, limits: Limits, asking: Asking) -> None:
        self._endpoints, self._limits, self._asking = endpoints, limits, asking

    async def answer(self, request: EmbeddingRequest, exchange: Exchange) -> dict[str, Any]:
        """The response body of /v1/embeddings."""
        endpoint = await self._endpoints.use(request.model, exchange.principal, exchange.request_id)
        exchange.note_endpoint(endpoint.name, endpoint.config_version, request.context_json)
        if endpoint.task != "embed":
            raise Unprocessable(f"{endpoint.name!r} is for {endpoint.task}, not for embeddings", param="model")
        texts = request.texts
        if not 1 <= len(texts) <= MAX_TEXTS or not all(texts):
            raise BadRequest(
                f"input must be 1 to {MAX_TEXTS} texts, none of them empty; got {len(texts)}", param="input"
            )
        await self._limits.admit(endpoint, exchange, request)
        texts = await Guarding(endpoint, exchange).texts(texts, request, "input")

        body: dict[str, Any] = {"input": texts}
        if request.dimensions is not None:
            body["dimensions"] = request.dimensions
        asked = EngineRequest(request_id=exchange.request_id, task="embed", body=body)
        async for answer in self._asking.answers(endpoint, exchange, asked, request.user):
            return self._shape(request, answer, exchange)
        raise EngineFailed("the engine ended without an answer")

    def _shape(self, request: EmbeddingRequest, answer: dict[str, Any], exchange: Exchange) -> dict[str, Any]:
        vectors, tokens = answer["embeddings"], int(answer["prompt_tokens"])
        exchange.note_usage(Usage(prompt_tokens=tokens))
        # The vectors follow from model and input, both in the row: it keeps their shape, not a hundred times its own
        # size.
        exchange.note(response=compact_json({"object": "list", "embeddings": [len(vectors), len(vectors[0])]}))
        if request.encoding_format == "base64":
            vectors = [b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode() for vector in vectors]
        return {
            "object": "list",
            "data": [{"object": "embedding", "index": n, "embedding": vector} for n, vector in enumerate(vectors)],
            "model": request.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
