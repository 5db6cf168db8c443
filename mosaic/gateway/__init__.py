"""One governed door to every model: `gateway.chat` tells the order of a request."""

from mosaic.gateway.asking import Asking
from mosaic.gateway.chat import Retriever
from mosaic.gateway.endpoints import Endpoints, LiveEntity
from mosaic.gateway.feedback import Feedback
from mosaic.gateway.limits import Limits
from mosaic.gateway.providers import ProviderEngines
from mosaic.gateway.quota_shard import QuotaClient, ensure_shards
from mosaic.gateway.routes import GatewayRoutes, gateway_app

__all__ = [
    "Asking",
    "Endpoints",
    "Feedback",
    "GatewayRoutes",
    "Limits",
    "LiveEntity",
    "ProviderEngines",
    "QuotaClient",
    "Retriever",
    "ensure_shards",
    "gateway_app",
]
