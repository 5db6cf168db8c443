"""One moderation, in order: resolve the endpoint, check the grant, choose who answers, ask its classifier, shape.

A classifier's labels are the categories; one that says that nothing is wrong, by its name (`_HARMLESS`), is none.
"""

import re
from typing import Annotated, Any, ClassVar

from pydantic import Field

from mosaic.errors import EngineFailed, Unprocessable
from mosaic.gateway.asking import Asking
from mosaic.gateway.endpoints import Endpoints
from mosaic.gateway.limits import Limits
from mosaic.gateway.requests import InContext, Text
from mosaic.monitoring import Exchange
from mosaic.monitoring.record import compact_json
from mosaic.protocol import EngineRequest

_FLAGGED = 0.5
"""The score from which a category holds."""
_HARMLESS = re.compile(r"safe|ok|neutral|normal|none|clean|benign|harmless|nontoxic|(not|non|no)[-_ ].+", re.IGNORECASE)
_NAMELESS = re.compile(r"LABEL_\d+")


class ModerationRequest(InContext):
    """/v1/moderations."""

    model: str = Field(min_length=1)
    """An endpoint whose model tells labels of texts apart."""
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=256)]
    answer_tokens: ClassVar[int] = 0

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input

    @property
    def prompt_bytes(self) -> int:
        return sum(len(text.encode()) for text in self.texts)


class Moderations:
    """Answers with what a classifier found."""

    def __init__(self, endpoints: Endpoints, limits: Limits, asking: Asking) -> None:
        self._endpoints, self._limits, self._asking = endpoints, limits, asking

    async def answer(self, request: ModerationRequest, exchange: Exchange) -> dict[str, Any]:
        """OpenAI's shape, with the classifier's own labels; raises Unprocessable for an endpoint that tells none."""
        endpoint = await self._endpoints.use(request.model, exchange.principal, exchange.request_id)
        exchange.note_endpoint(endpoint.name, endpoint.config_version, request.context_json)
        if endpoint.task != "predict":
            told = f"{endpoint.name!r} is for {endpoint.task}; moderations need a text classifier (task: predict)"
            raise Unprocessable(told, param="model")
        await self._limits.admit(endpoint, exchange, request)
        asked = EngineRequest(request_id=exchange.request_id, task="predict", body={"inputs": request.texts})
        async for answer in self._asking.answers(endpoint, exchange, asked):
            exchange.note_first_token()
            results = [_result(one, endpoint.name) for one in _predictions(answer, endpoint.name, len(request.texts))]
            found = {"id": exchange.request_id, "model": request.model, "results": results}
            exchange.note(response=compact_json(found))
            return found
        raise EngineFailed("the model ended without an answer")


def _predictions(answer: dict[str, Any], name: str, count: int) -> list[Any]:
    predictions = answer.get("predictions")
    if not isinstance(predictions, list) or len(predictions) != count:
        raise _no_classifier(name, f"it has other than one prediction for each of {count} texts")
    return predictions


def _result(prediction: Any, name: str) -> dict[str, Any]:
    scores = prediction.get("scores") if isinstance(prediction, dict) else None
    if not isinstance(scores, dict) or not all(isinstance(score, int | float) for score in scores.values()):
        raise _no_classifier(name, "its predictions have no scores by label")
    if any(_NAMELESS.fullmatch(label) for label in scores):
        raise _no_classifier(name, f"its labels {sorted(scores)} say nothing")
    found = {label: float(score) for label, score in scores.items() if not _HARMLESS.fullmatch(label)}
    categories = {label: score >= _FLAGGED for label, score in found.items()}
    return {
        "flagged": any(categories.values()),
        "categories": categories,
        "category_scores": found,
        "category_applied_input_types": {label: ["text"] for label in found},
    }


def _no_classifier(name: str, why: str) -> Unprocessable:
    return Unprocessable(f"{name!r} cannot moderate: {why}", param="model")
