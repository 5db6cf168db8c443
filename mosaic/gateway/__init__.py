"""One governed door to every model: `gateway.chat` tells the order of a request."""

from mosaic.gateway.chat import Chat, Retriever
from mosaic.gateway.embed import Embeddings
from mosaic.gateway.endpoints import Endpoints
from mosaic.gateway.predict import Predictions
from mosaic.gateway.routes import GatewayRoutes, gateway_app

__all__ = ["Chat", "Embeddings", "Endpoints", "GatewayRoutes", "Predictions", "Retriever", "gateway_app"]
