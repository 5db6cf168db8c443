"""Looking at the quota's actors from another process, which has joined their cluster."""

from collections.abc import Iterator, Sequence
from typing import Any

import ray

from mosaic.errors import Unavailable
from mosaic.gateway.quota import Left
from mosaic.gateway.quota_shard import BUDGETS, shard_name, shard_of
from mosaic.gateway.spend import Standing

_PATIENCE_SECONDS = 30


class QuotaView:
    """What is left, as the shards have it at this moment. Raises Unavailable while they are away."""

    def left(self, endpoint: str) -> dict[str, Left]:
        """By bucket, those that somebody took from lately."""
        found: dict[str, Left] = _ask(endpoint, "left", endpoint)
        return found

    def standings(self, budgets: Sequence[tuple[str, int, str]]) -> list[Standing]:
        """Of budgets, each told as (bucket, limit, period)."""
        found: list[Standing] = _ask(BUDGETS, "standings", budgets)
        return found


def _ask(scope: str, method: str, *arguments: Any) -> Any:
    shards = list(_shards())
    if not shards:
        raise Unavailable("the quota does not run; `mosaic up` starts a platform with it", code="quota_away")
    actor = shards[shard_of(scope, len(shards))]
    try:
        return ray.get(getattr(actor, method).remote(*arguments), timeout=_PATIENCE_SECONDS)
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
        raise Unavailable(f"the quota is away: {error}", code="quota_away") from None


def _shards() -> Iterator[Any]:
    number = 0
    while True:
        try:
            yield ray.get_actor(shard_name(number), namespace="mosaic")
        except ValueError:
            return
        number += 1
