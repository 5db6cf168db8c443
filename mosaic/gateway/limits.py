"""What a request must fit into: which of an endpoint's limits are its caller's, what to reserve, what to tell."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from mosaic.errors import MosaicError, RateLimited
from mosaic.gateway.budgets import Spending
from mosaic.gateway.endpoints import Endpoint
from mosaic.gateway.quota import Answer, Ask
from mosaic.gateway.quota_shard import QuotaClient
from mosaic.monitoring import Exchange
from mosaic.protocol import Principal
from mosaic.serving.ai_gateway import RateLimit

STEP_TOKENS = 256
"""What is reserved for an answer of which nobody said how long it may be, and each time again while it streams."""
_BYTES_PER_TOKEN = 3
"""Of a prompt, until the engine has counted; English has about 4."""
_OF_ONE: tuple[str, ...] = ("user", "service_principal")
UNITS = ("calls", "tokens")


class Sized(Protocol):
    """A request that takes tokens."""

    @property
    def prompt_bytes(self) -> int: ...

    @property
    def answer_tokens(self) -> int | None:
        """The most that its answers may have together; None if nobody said."""


class _Share(NamedTuple):
    """A bucket that a request takes from, and who shares it."""

    ask: Ask
    unit: Literal["calls", "tokens"]
    whose: str


class _Held:
    """What one request has taken."""

    def __init__(self, scope: str, shares: Sequence[_Share], answer_tokens: int) -> None:
        self.scope, self.shares, self.answer_tokens, self.extensions = scope, shares, answer_tokens, 0
        self.token_asks = [share.ask for share in shares if share.unit == "tokens"]


class Limits:
    """Holds requests to their endpoint's limits. What a request took for certain is put in place of what it reserved
    when its row is closed (`settle`), however it ended."""

    def __init__(self, quota: QuotaClient, groups_of: Callable[[Principal], Awaitable[Collection[str]]]) -> None:
        """`groups_of` awaits the names of the groups that somebody is in."""
        self._quota, self._groups_of = quota, groups_of
        self._spending = Spending(quota, groups_of)
        self._open: dict[str, _Held] = {}

    async def admit(self, endpoint: Endpoint, exchange: Exchange, request: Sized | None = None) -> None:
        """Reserve one call, the tokens that a request may take, and the money that it may cost: all of it or nothing.

        Raises RateLimited; the answer's `x-ratelimit-...` headers tell how much is left of the tightest limit either
        way.
        """
        if not endpoint.rate_limits and not endpoint.budgets:
            return
        answers = prompt = 0
        if request is not None:
            answers = STEP_TOKENS if request.answer_tokens is None else request.answer_tokens
            prompt = math.ceil(request.prompt_bytes / _BYTES_PER_TOKEN)
        if endpoint.rate_limits:
            await self._reserve(endpoint, exchange, prompt + answers, answers)
        if endpoint.budgets:
            try:
                await self._spending.admit(endpoint, exchange, input_tokens=prompt, answer_tokens=answers)
            except MosaicError:
                self._give_back(exchange.request_id)
                raise

    async def _reserve(self, endpoint: Endpoint, exchange: Exchange, tokens: int, answers: int) -> None:
        mine = await self._applying(endpoint.rate_limits, exchange.principal)
        shares = [share for limit in mine for share in _shares(endpoint.name, limit, exchange.principal, tokens)]
        if not shares:
            return
        # Before it is asked: a client that leaves meanwhile has its row closed, and what it took given back.
        self._open[exchange.request_id] = _Held(endpoint.name, shares, answers)
        answer = await self._quota.reserve(endpoint.name, exchange.request_id, [share.ask for share in shares])
        exchange.tell(_headers(answer, shares))
        if not answer.granted:
            del self._open[exchange.request_id]
            if answer.retry_after_seconds is None:
                exchange.tell({"x-should-retry": "false"})
            else:
                exchange.tell_wait(answer.retry_after_seconds)
            raise RateLimited(f"endpoint {endpoint.served_name!r}: {_refusal(answer, shares)}")

    def watched(
        self, answers: AsyncIterator[dict[str, Any]], exchange: Exchange, *, stream: bool
    ) -> AsyncIterator[dict[str, Any]]:
        """A stream that reserves on as it grows; raises RateLimited where nothing is left for it."""
        answers = self._spending.watched(answers, exchange, stream=stream)
        held = self._open.get(exchange.request_id)
        if not stream or held is None or not held.token_asks:
            return answers
        return self._reserving(answers, held, exchange)

    async def _reserving(
        self, answers: AsyncIterator[dict[str, Any]], held: _Held, exchange: Exchange
    ) -> AsyncIterator[dict[str, Any]]:
        more = [ask._replace(amount=STEP_TOKENS) for ask in held.token_asks]
        made = 0
        async for item in answers:
            counted = (item.get("usage") or {}).get("completion_tokens")
            made = made + len(item["choices"]) if counted is None else counted
            # What comes without choices is said already, and only counted: it is settled with the row. What was kept
            # takes nothing.
            while item["choices"] and not exchange.get("cached") and made > held.answer_tokens:
                held.extensions += 1
                answer = await self._quota.extend(held.scope, exchange.request_id, held.extensions, more)
                if not answer.granted:
                    told = f"the answer is cut off after {held.answer_tokens} tokens"
                    raise RateLimited(f"{_refusal(answer, held.shares)}: {told}")
                held.answer_tokens += STEP_TOKENS
            yield item

    def settle(self, row: Mapping[str, Any]) -> None:
        """When the row is closed: tokens as the engine counted them; none where it never came to that."""
        self._spending.settle(row)
        held = self._open.pop(str(row["request_id"]), None)
        if held is not None:
            tokens = (row.get("input_tokens") or 0) + (row.get("output_tokens") or 0)
            self._quota.settle(held.scope, str(row["request_id"]), {ask.bucket: tokens for ask in held.token_asks})

    def _give_back(self, request_id: str) -> None:
        """All that a request has taken, its call too: it is refused for another reason."""
        held = self._open.pop(request_id, None)
        if held is not None:
            self._quota.settle(held.scope, request_id, {share.ask.bucket: 0 for share in held.shares})

    async def _applying(self, limits: Sequence[RateLimit], principal: Principal) -> list[RateLimit]:
        groups: Collection[str] = ()
        if any(limit.key == "user_group" for limit in limits):
            groups = await self._groups_of(principal)
        own = [limit for limit in limits if limit.key in _OF_ONE and limit.principal == principal.name]
        has_own = {unit: None for limit in own for unit in UNITS if getattr(limit, unit) is not None}
        shared = [
            limit
            for limit in limits
            if limit.key == "endpoint" or (limit.key == "user_group" and limit.principal in groups)
        ]
        everybodys = [limit for limit in limits if limit.key == "user" and limit.principal is None]
        return [*own, *shared, *(limit.model_copy(update=has_own) for limit in everybodys)]


def bucket_key(limit: RateLimit) -> str:
    """What stands after the endpoint in the names of a limit's buckets, before whose they are and the unit."""
    return "user" if limit.key in _OF_ONE else limit.key


def _shares(endpoint: str, limit: RateLimit, principal: Principal, tokens: int) -> list[_Share]:
    key = bucket_key(limit)
    whom = {"user": principal.name, "user_group": limit.principal}.get(key)
    whose = {"user": f"for {whom!r}", "user_group": f"for group {whom!r}"}.get(key, "for all callers")
    amounts: dict[Literal["calls", "tokens"], int] = {"calls": 1, "tokens": tokens}
    return [
        _Share(Ask(f"{endpoint} {key} {whom} {unit}", most, amount), unit, whose)
        for unit, amount in amounts.items()
        if (most := getattr(limit, unit)) is not None
    ]


def _refusal(answer: Answer, shares: Sequence[_Share]) -> str:
    share = next(share for share in shares if share.ask.bucket == answer.refused_by)
    what = "requests" if share.unit == "calls" else "tokens"
    limit = f"{share.ask.limit} {what} a minute {share.whose}"
    if answer.retry_after_seconds is None:
        return f"this request may take {share.ask.amount} {what}, and the limit is {limit}"
    return f"the limit of {limit} is reached; try again in {answer.retry_after_seconds:.1f} s"


def _headers(answer: Answer, shares: Sequence[_Share]) -> dict[str, str]:
    """OpenAI's: of requests and of tokens what is left of the tightest limit."""
    told: dict[str, str] = {}
    for unit, name in (("calls", "requests"), ("tokens", "tokens")):
        lefts = [answer.left[share.ask.bucket] for share in shares if share.unit == unit]
        if lefts:
            tightest = min(lefts, key=lambda left: (left.remaining, left.limit))
            told[f"x-ratelimit-limit-{name}"] = str(tightest.limit)
            told[f"x-ratelimit-remaining-{name}"] = str(tightest.remaining)
            told[f"x-ratelimit-reset-{name}"] = f"{math.ceil(tightest.reset_seconds * 1e3)}ms"
    return told
