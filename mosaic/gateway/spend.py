"""What was spent of each budget: hold before a request, hold more while it runs, pay when it has ended.

Plain Python with the clock passed in, as `quota`; the same actor has both. Where a window of the quota slides, a budget
is of a calendar day or month, and nothing is remembered of a request once it has paid: an account is the sum of what
was paid, and what requests that run hold. All that is held and paid of a request is of the period in which it began.

All calls are idempotent by the request's id, as those of the quota.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from mosaic.catalog.budgets import period_end, period_start
from mosaic.gateway.quota import FORGET_SECONDS


class Charge(NamedTuple):
    """What a request would take from one budget, in nano-dollars."""

    bucket: str
    limit: int
    amount: int
    period: str
    """`day` or `month`."""


class Standing(NamedTuple):
    """How a budget is in the period that runs."""

    limit: int
    spent: int
    held: int
    """By requests that have not ended."""
    renews_at: float


class Verdict(NamedTuple):
    """Granted as a whole or not at all."""

    standings: dict[str, Standing]
    """By bucket, as they are after it."""
    refused_by: str | None = None
    """The bucket that it does not fit into; of several one that is spent, before one that is only held."""
    is_spent: bool = False
    """Whether that one has no room for it until it renews, whatever becomes of the requests that run."""

    @property
    def granted(self) -> bool:
        return self.refused_by is None


class _Account:
    __slots__ = ("ends", "held", "spent")

    def __init__(self, ends: float) -> None:
        self.ends, self.spent, self.held = ends, 0, 0


class _Request:
    __slots__ = ("at", "extensions", "held", "verdict")

    def __init__(self, at: float, held: dict[str, str], verdict: Verdict) -> None:
        self.at, self.verdict, self.extensions = at, verdict, 0
        self.held: dict[str, tuple[str, int]] = {bucket: (account, 0) for bucket, account in held.items()}
        """By bucket: its account, and how much."""


class Spend:
    """The accounts of all budgets. Times are seconds of one clock that never goes back."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._requests: dict[str, _Request] = {}
        """In the order in which they came."""

    def hold(self, request_id: str, charges: Sequence[Charge], now: float) -> Verdict:
        """Hold all amounts, or none of them. Of a budget that is spent not even nothing is given."""
        if (known := self._requests.get(request_id)) is not None:
            return known.verdict
        self._forget(now)
        accounts = {charge.bucket: account_of(charge.bucket, charge.period, now) for charge in charges}
        verdict = self._judge(charges, accounts, now)
        if verdict.granted:
            known = self._requests[request_id] = _Request(now, accounts, verdict)
            self._add(known, charges)
            known.verdict = self._told(charges, accounts, now)
            return known.verdict
        return verdict

    def hold_more(self, request_id: str, number: int, charges: Sequence[Charge], now: float) -> Verdict:
        """Hold more for a request that runs, all or nothing; `number` counts from 1. One that is not known any more is
        taken up anew."""
        known = self._requests.get(request_id)
        if known is None:
            verdict = self.hold(request_id, charges, now)
            if verdict.granted:
                self._requests[request_id].extensions = number
            return verdict
        if number <= known.extensions:
            return known.verdict
        accounts = {bucket: account for bucket, (account, _) in known.held.items()}
        mine = [charge for charge in charges if charge.bucket in accounts]
        verdict = self._judge(mine, accounts, now)
        if verdict.granted:
            known.extensions = number
            self._add(known, mine)
            verdict = known.verdict = self._told(mine, accounts, now)
        return verdict

    def pay(self, request_id: str, cost: int) -> None:
        """Put what a request did cost in place of what it held, in each of its budgets; the first time counts."""
        known = self._requests.pop(request_id, None)
        if known is not None:
            for account, amount in known.held.values():
                there = self._accounts[account]
                there.held -= amount
                there.spent += cost

    def standing(self, bucket: str, limit: int, period: str, now: float) -> Standing:
        """How a budget is at this moment."""
        account = account_of(bucket, period, now)
        there = self._accounts.get(account)
        ends = period_end(period, _utc(now)).timestamp()
        return Standing(limit, 0, 0, ends) if there is None else Standing(limit, there.spent, there.held, ends)

    def put(self, spent: Mapping[tuple[str, str], int], now: float) -> None:
        """Begin with what was spent in the periods that run, by bucket and period: after all else was lost."""
        for (bucket, period), amount in spent.items():
            self._account(account_of(bucket, period, now), period, now).spent = amount

    def state(self) -> dict[str, Any]:
        """All of it as JSON; `restore` has it back."""
        accounts = {name: [one.ends, one.spent, one.held] for name, one in self._accounts.items()}
        requests = [
            [request_id, one.at, one.extensions, [[bucket, *held] for bucket, held in one.held.items()]]
            for request_id, one in self._requests.items()
        ]
        return {"accounts": accounts, "requests": requests}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name, (ends, spent, held) in state["accounts"].items():
            account = self._accounts[name] = _Account(ends)
            account.spent, account.held = spent, held
        for request_id, at, extensions, held in state["requests"]:
            request = self._requests[request_id] = _Request(at, {}, Verdict({}))
            request.extensions = extensions
            request.held = {bucket: (account, amount) for bucket, account, amount in held}

    def _judge(self, charges: Sequence[Charge], accounts: Mapping[str, str], now: float) -> Verdict:
        refused, spent = list[str](), list[str]()
        for charge in charges:
            there = self._account(accounts[charge.bucket], charge.period, now)
            room = charge.limit - there.spent
            if room <= 0 or charge.amount > room:
                spent.append(charge.bucket)
            elif charge.amount > room - there.held:
                refused.append(charge.bucket)
        told = self._told(charges, accounts, now)
        if spent or refused:
            return told._replace(refused_by=(spent or refused)[0], is_spent=bool(spent))
        return told

    def _told(self, charges: Sequence[Charge], accounts: Mapping[str, str], now: float) -> Verdict:
        standings = {}
        for charge in charges:
            there = self._account(accounts[charge.bucket], charge.period, now)
            standings[charge.bucket] = Standing(charge.limit, there.spent, there.held, there.ends)
        return Verdict(standings)

    def _add(self, request: _Request, charges: Sequence[Charge]) -> None:
        for charge in charges:
            account, amount = request.held[charge.bucket]
            self._accounts[account].held += charge.amount
            request.held[charge.bucket] = (account, amount + charge.amount)

    def _account(self, name: str, period: str, now: float) -> _Account:
        there = self._accounts.get(name)
        if there is None:
            there = self._accounts[name] = _Account(period_end(period, _utc(now)).timestamp())
        return there

    def _forget(self, now: float) -> None:
        """Requests whose gateway died give back what they held; accounts of periods that are over go, one each time,
        in turns."""
        while self._requests:
            oldest = next(iter(self._requests))
            if self._requests[oldest].at > now - FORGET_SECONDS:
                break
            for account, amount in self._requests.pop(oldest).held.values():
                self._accounts[account].held -= amount
        if self._accounts:
            name, there = next(iter(self._accounts.items()))
            del self._accounts[name]
            if there.ends + FORGET_SECONDS > now:
                self._accounts[name] = there


def account_of(bucket: str, period: str, now: float) -> str:
    """A bucket in the period of a moment."""
    return f"{bucket} {period_start(period, _utc(now)):%Y-%m-%d} {period}"


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
