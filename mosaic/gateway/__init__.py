"""One governed door to every model: `gateway.chat` tells the order of a request."""

from mosaic.gateway.asking import Asking
from mosaic.gateway.chat import Chat, Retriever
from mosaic.gateway.completions import Completions
from mosaic.gateway.embed import Embeddings
from mosaic.gateway.endpoints import Endpoints, LiveEntity
from mosaic.gateway.limits import Limits
from mosaic.gateway.predict import Predictions
from mosaic.gateway.providers import ProviderEngines
from mosaic.gateway.quota_shard import QuotaClient, ensure_shards
from mosaic.gateway.routes import GatewayRoutes, gateway_app
from mosaic.gateway.score import Scores

__all__ = [
    "Asking",
    "Chat",
    "Completions",
    "Embeddings",
    "Endpoints",
    "GatewayRoutes",
    "Limits",
    "LiveEntity",
    "Predictions",
    "ProviderEngines",
    "QuotaClient",
    "Retriever",
    "Scores",
    "ensure_shards",
    "gateway_app",
]
