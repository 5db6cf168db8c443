"""Who answers: the served entity that the shares draw, and the next ones while it fails and nothing has left yet.

    draw by the shares -> left alone by its breaker? -> ask -> what failed before the first chunk: the next one

A failure after the first chunk is the answer's end, with an error: its reader has a part, and no other goes on with it.
"""

import time
from collections.abc import AsyncGenerator, Callable, Hashable, Sequence
from contextlib import aclosing
from typing import Any

from mosaic.errors import MosaicError, Unavailable
from mosaic.gateway.cost import note_entity
from mosaic.gateway.endpoints import Endpoint, LiveEntity, choose
from mosaic.gateway.providers import Breaker, Pass, RetryBudget, outcome
from mosaic.gateway.sticky import unit_of
from mosaic.monitoring import Exchange
from mosaic.monitoring.record import compact_json
from mosaic.protocol import Engine, EngineRequest

Answers = AsyncGenerator[dict[str, Any]]
_MOST_KEPT = 10_000


class Asking:
    """Asks served entities, and keeps in mind which of them fail; one of these for each gateway.

    Entities without another to take their place are asked however they are, unless a provider has them: an engine of
    ours that is not well waits, or says so, by itself.
    """

    def __init__(self, engine: Callable[[LiveEntity], Engine], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine, self._clock = engine, clock
        self._breakers: dict[Hashable, Breaker] = {}
        self._budget = RetryBudget()

    async def answers(
        self, endpoint: Endpoint, exchange: Exchange, request: EngineRequest, user: str | None = None
    ) -> Answers:
        """What the entity answers that is asked last; it is in the exchange's row, with those before it. `user` is whom
        the request names as its user.

        Raises what that one raised, and Unavailable (`entities_left_alone`) while all of them are left alone.
        """
        drawn = draw(endpoint, exchange, user)
        if not endpoint.falls_back and drawn.external is None:
            note_entity(exchange, drawn, endpoint.entities)
            async for item in self._engine(drawn).answer(_for(drawn, request)):
                yield item
            return
        self._budget.note_request(now=self._clock())
        entities, attempts, failed = _in_turn(endpoint, drawn), list[dict[str, str]](), None
        if drawn.is_gone:
            attempts.append({"entity": drawn.name, "error": "model_gone"})
        for entity in entities:
            passed = self._breaker(entity).admit(now=self._clock())
            if passed is None:
                attempts.append({"entity": entity.name, "error": "left alone"})
                continue
            note_entity(exchange, entity, endpoint.entities)
            has_begun = False
            try:
                async with aclosing(self._attempt(entity, passed, request)) as answers:
                    async for item in answers:
                        if attempts and not has_begun:
                            exchange.note(attempts=compact_json(attempts))
                        has_begun = True
                        yield item
                return
            except MosaicError as error:
                failed = error
                attempts.append({"entity": entity.name, "error": error.code})
                if has_begun or not self._may_go_on(error, entity is entities[-1]):
                    break
        exchange.note(attempts=compact_json(attempts))
        failed = failed or self._left_alone(endpoint, entities)
        if failed.retry_after_seconds is not None:
            exchange.tell_wait(failed.retry_after_seconds)
        raise failed

    async def _attempt(
        self, entity: LiveEntity, passed: Pass, request: EngineRequest
    ) -> AsyncGenerator[dict[str, Any]]:
        """What one entity answers, with how it ended told to its breaker."""
        error: BaseException | None = None
        has_begun = False
        try:
            async with aclosing(self._engine(entity).answer(_for(entity, request))) as answers:  # type: ignore[type-var]
                async for item in answers:
                    has_begun = True
                    yield item
        except BaseException as ended:
            # Who wants one answer takes it and goes; from a stream that is a client that has gone, which says nothing.
            is_served = has_begun and not request.stream and isinstance(ended, GeneratorExit)
            error = None if is_served else ended
            raise
        finally:
            wait = getattr(error, "retry_after_seconds", None)
            self._breaker(entity).record(passed, outcome(error), now=self._clock(), retry_after_seconds=wait)

    def _may_go_on(self, error: MosaicError, is_last: bool) -> bool:
        return error.may_fail_over and not is_last and self._budget.take(now=self._clock())

    def _breaker(self, entity: LiveEntity) -> Breaker:
        """By what is asked, whichever endpoints ask it."""
        key = (entity.app_name, entity.external, entity.access)
        if key not in self._breakers:
            if len(self._breakers) >= _MOST_KEPT:
                del self._breakers[next(iter(self._breakers))]
            self._breakers[key] = Breaker()
        return self._breakers[key]

    def _left_alone(self, endpoint: Endpoint, entities: Sequence[LiveEntity]) -> Unavailable:
        """Nobody was asked."""
        now = self._clock()
        wait = min(self._breaker(entity).open_seconds(now=now) for entity in entities)
        told = f"every served entity of endpoint {endpoint.served_name!r} has failed lately and is left alone for now"
        error = Unavailable(f"{told}; try again in {wait:.1f} s", code="entities_left_alone")
        error.retry_after_seconds = wait
        return error


def draw(endpoint: Endpoint, exchange: Exchange, user: str | None) -> LiveEntity:
    """The entity whose turn it is, and in the row for whom it was drawn if each user keeps its own. Raises as
    `choose`."""
    unit = None
    if endpoint.is_sticky:
        unit = unit_of(endpoint.name, exchange.principal.name, user)
        exchange.note(randomization_unit=unit)
    return choose(endpoint, exchange.request_id, unit)


def _for(entity: LiveEntity, request: EngineRequest) -> EngineRequest:
    return request if entity.adapter is None else request.model_copy(update={"adapter": entity.adapter})


def _in_turn(endpoint: Endpoint, drawn: LiveEntity) -> list[LiveEntity]:
    """The one that was drawn, and if others may take its place those in their order."""
    if not endpoint.falls_back:
        return [drawn]
    return [one for one in (drawn, *(one for one in endpoint.entities if one is not drawn)) if not one.is_gone]
