"""What a request costs: by the price that is valid when its served entity is asked, from what its row says at the end.

A model of ours may cost by the token, by the second of a GPU, or both. `gpu_seconds` are the seconds from when the
entity is asked until the row is closed, times the GPUs of one of its replicas: how long the request had them, with
others beside it. What a GPU costs is so divided among those who used it only if the price allows for how many these
are; docs/gateway.md says how.
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime

from mosaic.catalog.prices import price_at
from mosaic.gateway.endpoints import LiveEntity
from mosaic.monitoring import Exchange


class Bill:
    """What asking one served entity costs; of several that a request was passed to, the last one's counts."""

    def __init__(self, exchange: Exchange, entity: LiveEntity) -> None:
        self._exchange, self._gpus, self._started = exchange, entity.gpus, time.perf_counter()
        self._price = price_at(entity.prices, datetime.now(UTC))
        exchange.note(price_version=None if self._price is None else self._price.version)
        exchange.note_late(gpu_seconds=self._gpu_seconds, cost_nano_dollars=self._cost)

    def _gpu_seconds(self) -> float | None:
        return self._gpu_milliseconds() / 1e3 if self._gpus else None

    def _cost(self) -> int | None:
        """None if nobody has said what the model costs: not known, and not nothing."""
        if self._price is None:
            return None
        row = self._exchange.get
        return self._price.cost(
            input_tokens=row("input_tokens") or 0,
            cached_input_tokens=row("cached_input_tokens") or 0,
            output_tokens=row("output_tokens") or 0,
            gpu_milliseconds=self._gpu_milliseconds(),
        )

    def _gpu_milliseconds(self) -> int:
        return round((time.perf_counter() - self._started) * self._gpus * 1e3)


def note_entity(exchange: Exchange, entity: LiveEntity, entities: Sequence[LiveEntity]) -> None:
    """Who is asked, of those who may be, and what it costs if any of these costs anything."""
    exchange.note(**entity.columns())
    if any(one.prices or one.gpus for one in entities):
        Bill(exchange, entity)


def most(
    entities: Sequence[LiveEntity], *, input_tokens: int, output_tokens: int, seconds: float, moment: datetime
) -> int | None:
    """The most that a request may cost, whichever of its entities answers; None if none of them has a price."""
    costs = [
        price.cost(
            input_tokens=input_tokens, output_tokens=output_tokens, gpu_milliseconds=round(seconds * one.gpus * 1e3)
        )
        for one in entities
        if (price := price_at(one.prices, moment)) is not None
    ]
    return max(costs, default=None)
