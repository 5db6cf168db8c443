"""External models behind an endpoint: OpenAI's protocol at any address, and Anthropic's. `engines` is where to start.

`upstream` has the HTTP of a request, `failures` what each way to fail is called, `breaker` when a provider is left
alone, `addresses` where one may be, `doubles` a server to try all of it against.
"""

from mosaic.gateway.providers.anthropic import Anthropic
from mosaic.gateway.providers.breaker import Breaker, BreakerSettings, Pass, RetryBudget
from mosaic.gateway.providers.engines import ProviderEngines
from mosaic.gateway.providers.failures import outcome
from mosaic.gateway.providers.openai_compatible import OpenAICompatible
from mosaic.gateway.providers.upstream import Http

__all__ = [
    "Anthropic",
    "Breaker",
    "BreakerSettings",
    "Http",
    "OpenAICompatible",
    "Pass",
    "ProviderEngines",
    "RetryBudget",
    "outcome",
]
