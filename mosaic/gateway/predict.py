"""One prediction by a custom model, in order: resolve the endpoint, check the grant, choose who answers, ask."""

from typing import Any

from mosaic.errors import EngineFailed, Unprocessable
from mosaic.gateway.asking import Asking
from mosaic.gateway.endpoints import Endpoints
from mosaic.gateway.limits import Limits
from mosaic.monitoring import Exchange
from mosaic.monitoring.record import compact_json
from mosaic.protocol import EngineRequest


class Predictions:
    """Answers in MLflow's scoring protocol, as Databricks' custom endpoints do."""

    def __init__(self, endpoints: Endpoints, limits: Limits, asking: Asking) -> None:
        self._endpoints, self._limits, self._asking = endpoints, limits, asking

    async def answer(self, name: str, body: dict[str, Any], exchange: Exchange) -> dict[str, Any]:
        """{"predictions": ...} for a body such as {"dataframe_records": [...]}; the model's signature says the rest."""
        endpoint = await self._endpoints.use(name, exchange.principal, exchange.request_id)
        exchange.note_endpoint(endpoint.name, endpoint.config_version)
        if endpoint.task != "predict":
            raise Unprocessable(f"{endpoint.name!r} is for {endpoint.task}, not for predictions", param="model")
        await self._limits.admit(endpoint, exchange)
        asked = EngineRequest(request_id=exchange.request_id, task="predict", body=body)
        async for answer in self._asking.answers(endpoint, exchange, asked):
            exchange.note_first_token()
            exchange.note(response=compact_json(answer))
            return answer
        raise EngineFailed("the model ended without an answer")
