"""One governed door to every model: `chat` tells the order of a request, and the other files are its steps.

what comes in     routes, requests, openapi; messages*, responses*, retold: the same chat in other words
one request       chat, and its shorter kin: completions, embed, score, predict, moderate
who may, who is   endpoints, sticky
how much          limits -> quota; budgets -> spend; both by the actor in quota_shard, reached by quota_socket; cost;
                  money: who asks about it
what may be said  guarding -> guards -> guard_*; schemas, images
who answers       asking, cache, providers/
what goes out     answers, feedback
without Ray       doubles
"""

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
