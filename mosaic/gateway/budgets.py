"""What a request must have money for: which budgets are its own, what to hold, what to tell."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from mosaic.catalog.budgets import Budget
from mosaic.catalog.money import dollars
from mosaic.errors import RateLimited
from mosaic.gateway.cost import most
from mosaic.gateway.endpoints import Endpoint
from mosaic.gateway.quota_shard import QuotaClient
from mosaic.gateway.spend import Charge, Standing, Verdict
from mosaic.monitoring import Exchange
from mosaic.protocol import Principal

_STEP_TOKENS, _STEP_SECONDS = 256, 10.0
"""What a stream holds money for at once beyond what its request says, and how long it is taken to have a GPU."""
_WAIT_SECONDS = 2.0
"""What is held by requests that run is free again when these end, which nobody knows."""


class _Held:
    """What one request holds."""

    def __init__(self, endpoint: Endpoint, charges: Sequence[Charge], budgets: Mapping[str, Budget]) -> None:
        self.endpoint, self.charges, self.budgets = endpoint, charges, budgets
        self.amount, self.extensions = charges[0].amount, 0
        self.input_tokens = 0


class Spending:
    """Holds requests to the budgets that are theirs. What a request did cost is put in place of what it held when its
    row is closed (`settle`), however it ended."""

    def __init__(self, quota: QuotaClient, groups_of: Callable[[Principal], Awaitable[Collection[str]]]) -> None:
        self._quota, self._groups_of = quota, groups_of
        self._open: dict[str, _Held] = {}

    async def admit(self, endpoint: Endpoint, exchange: Exchange, *, input_tokens: int, answer_tokens: int) -> None:
        """Hold what a request may cost at most, by the dearest of the entities that may answer it.

        Raises RateLimited (`budget_exceeded`). What has no price is not held to any budget.
        """
        amount = most(
            endpoint.entities,
            input_tokens=input_tokens,
            output_tokens=answer_tokens,
            seconds=_STEP_SECONDS,
            moment=datetime.now(UTC),
        )
        if amount is None:
            return
        mine = await self._applying(endpoint, exchange)
        if not mine:
            return
        charges = [Charge(bucket, one.amount_nano_dollars, amount, one.period) for bucket, one in mine.items()]
        # Before it is asked, as in `Limits.admit`.
        held = self._open[exchange.request_id] = _Held(endpoint, charges, mine)
        held.input_tokens = input_tokens
        verdict = await self._quota.hold(exchange.request_id, charges)
        if not verdict.granted:
            del self._open[exchange.request_id]
            if verdict.is_spent:
                exchange.tell({"x-should-retry": "false"})
            else:
                exchange.tell_wait(_WAIT_SECONDS)
            raise _refused(endpoint, mine, verdict, amount)

    def watched(
        self, answers: AsyncIterator[dict[str, Any]], exchange: Exchange, *, stream: bool
    ) -> AsyncIterator[dict[str, Any]]:
        """A stream that holds on as it grows; raises RateLimited where no money is left for it."""
        held = self._open.get(exchange.request_id)
        return answers if not stream or held is None else self._holding(answers, held, exchange)

    async def _holding(
        self, answers: AsyncIterator[dict[str, Any]], held: _Held, exchange: Exchange
    ) -> AsyncIterator[dict[str, Any]]:
        made, read, started = 0, held.input_tokens, datetime.now(UTC)
        async for item in answers:
            usage, said = item.get("usage") or {}, made
            made = usage.get("completion_tokens") or made + len(item["choices"])
            read = usage.get("prompt_tokens") or read
            # What comes without choices is said already, and only counted: it is paid with the row.
            while item["choices"] and self._cost(held, read, made, started) > held.amount:
                await self._hold_more(held, exchange, said)
            yield item

    def _cost(self, held: _Held, read: int, made: int, started: datetime) -> int:
        seconds = (datetime.now(UTC) - started).total_seconds()
        so_far = {"input_tokens": read, "output_tokens": made, "seconds": seconds, "moment": started}
        return most(held.endpoint.entities, **so_far) or 0  # type: ignore[arg-type]

    async def _hold_more(self, held: _Held, exchange: Exchange, said: int) -> None:
        more = {"input_tokens": 0, "output_tokens": _STEP_TOKENS, "seconds": _STEP_SECONDS}
        step = max(most(held.endpoint.entities, **more, moment=datetime.now(UTC)) or 0, 1)  # type: ignore[arg-type]
        held.extensions += 1
        charges = [charge._replace(amount=step) for charge in held.charges]
        verdict = await self._quota.hold_more(exchange.request_id, held.extensions, charges)
        if verdict.refused_by is not None:
            told, standing = _named(held.endpoint, held.budgets, verdict)
            left = f"{dollars(standing.spent)} are spent and {dollars(standing.held)} held"
            told = f"{told} has no more for this answer ({left}): it is cut off after {said} tokens"
            raise RateLimited(told, code="budget_exceeded")
        held.amount += step

    def settle(self, row: Mapping[str, Any]) -> None:
        """When the row is closed: what it cost, and nothing where it never came to that."""
        if self._open and self._open.pop(str(row["request_id"]), None) is not None:
            self._quota.pay(str(row["request_id"]), row.get("cost_nano_dollars") or 0)

    async def _applying(self, endpoint: Endpoint, exchange: Exchange) -> dict[str, Budget]:
        """Those that are this request's, by bucket."""
        whom = exchange.principal
        needs_groups = any(one.scope.group is not None for one in endpoint.budgets)
        groups = await self._groups_of(whom) if needs_groups else ()
        tags = tags_of(exchange.get("usage_context"))
        return {
            one.bucket(whom.name): one
            for one in endpoint.budgets
            if one.scope.fits(whom=whom.name, groups=groups, endpoint=endpoint.name, tags=tags)
        }


def tags_of(usage_context: str | None) -> dict[str, str]:
    """A request's own labels, as its row has them."""
    return {} if usage_context is None else json.loads(usage_context)


def _refused(endpoint: Endpoint, budgets: Mapping[str, Budget], verdict: Verdict, amount: int) -> RateLimited:
    named, standing = _named(endpoint, budgets, verdict)
    renews = f"{datetime.fromtimestamp(standing.renews_at, UTC):%Y-%m-%dT%H:%M:%SZ}"
    told = f"{named}: {dollars(standing.spent)} are spent"
    if not verdict.is_spent:
        told += f" and {dollars(standing.held)} held by requests that run; this may cost {dollars(amount)}"
        return RateLimited(f"{told}; try again, or from {renews} on", code="budget_exceeded")
    if standing.spent < standing.limit:
        told += f", and this may cost {dollars(amount)}"
    return RateLimited(f"{told}; it renews at {renews}", code="budget_exceeded")


def _named(endpoint: Endpoint, budgets: Mapping[str, Budget], verdict: Verdict) -> tuple[str, Standing]:
    assert verdict.refused_by is not None
    budget, standing = budgets[verdict.refused_by], verdict.standings[verdict.refused_by]
    of = f"budget {budget.name!r} of {dollars(standing.limit)} a {budget.period}"
    return f"endpoint {endpoint.served_name!r}: {of}", standing
