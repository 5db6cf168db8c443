"""Prices, budgets, usage and what is left of rate limits over HTTP, below /api/2.0/mosaic; who may do what is said in
`money`. Money is whole nano-dollars."""

import re
from collections.abc import Callable
from datetime import UTC, datetime

from pydantic import Field
from starlette.routing import Route

from mosaic.catalog.budgets import Budget, Period, Scope
from mosaic.catalog.prices import Price
from mosaic.catalog.unity.call import Call, Query, route
from mosaic.catalog.unity.shapes import Answer, Asked, Nothing
from mosaic.errors import BadRequest
from mosaic.gateway.money import BudgetState, LimitState, Money
from mosaic.monitoring.usage import KEYS, Usage
from mosaic.protocol import Principal, Wire

BASE = "/2.0/mosaic"
_USAGE = (
    Query("by", f"some of {', '.join(KEYS)}, with commas between; all together if not given"),
    Query("from", "the first moment, such as 2026-01-31 or 2026-01-31T10:00:00Z; from the beginning if not given"),
    Query("to", "the first moment that is not meant any more; until now if not given"),
)
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class SetPrice(Asked):
    model: str
    input_nano_dollars_per_million: int = Field(default=0, strict=True)
    cached_input_nano_dollars_per_million: int | None = Field(default=None, strict=True)
    output_nano_dollars_per_million: int = Field(default=0, strict=True)
    gpu_second_nano_dollars: int = Field(default=0, strict=True)
    valid_from: datetime | None = None


class CreateBudget(Asked):
    name: str
    amount_nano_dollars: int = Field(strict=True)
    period: Period
    scope: Scope = Scope()


class UpdateBudget(Asked):
    amount_nano_dollars: int = Field(strict=True)


class ListedPrices(Answer):
    prices: list[Price]


class MadeBudget(Answer):
    budget: Budget


class ListedBudgets(Answer):
    budgets: list[BudgetState]


class Used(Answer):
    usage: list[Usage]


class Limits(Answer):
    limits: list[LimitState]


class MoneyRoutes:
    """`money_of` gives what acts for a principal."""

    def __init__(self, money_of: Callable[[Principal], Money]) -> None:
        self._of = money_of

    def routes(self) -> list[Route]:
        budget = f"{BASE}/budgets/{{name}}"
        return [
            route("GET", f"{BASE}/prices", self.list_prices, query=(Query("model", "only of this model or pattern"),)),
            route("POST", f"{BASE}/prices", self.set_price, asked=SetPrice),
            route("GET", f"{BASE}/budgets", self.list_budgets),
            route("POST", f"{BASE}/budgets", self.create_budget, asked=CreateBudget),
            route("GET", budget, self.show_budget, query=(Query("whom", "of one for each user, whose"),)),
            route("PATCH", budget, self.update_budget, asked=UpdateBudget),
            route("DELETE", budget, self.delete_budget),
            route("GET", f"{BASE}/usage", self.usage, query=_USAGE),
            route("GET", f"{BASE}/endpoints/{{name}}/quota", self.limits),
        ]

    def list_prices(self, call: Call) -> Wire:
        return ListedPrices(prices=list(self._of(call.principal).list_prices(call.find("model"))))

    def set_price(self, call: Call) -> Wire:
        return self._of(call.principal).set_price(**call.parse(SetPrice).model_dump())

    def list_budgets(self, call: Call) -> Wire:
        return ListedBudgets(budgets=self._of(call.principal).list_budgets())

    def create_budget(self, call: Call) -> Wire:
        asked = call.parse(CreateBudget)
        made = self._of(call.principal).create_budget(
            asked.name, amount_nano_dollars=asked.amount_nano_dollars, period=asked.period, scope=asked.scope
        )
        return MadeBudget(budget=made)

    def show_budget(self, call: Call) -> Wire:
        return self._of(call.principal).show_budget(call.path["name"], call.find("whom"))

    def update_budget(self, call: Call) -> Wire:
        amount = call.parse(UpdateBudget).amount_nano_dollars
        return MadeBudget(budget=self._of(call.principal).set_budget(call.path["name"], amount))

    def delete_budget(self, call: Call) -> Wire:
        self._of(call.principal).delete_budget(call.path["name"])
        return Nothing()

    def usage(self, call: Call) -> Wire:
        by = [key.strip() for key in (call.find("by") or "").split(",") if key.strip()]
        since, until = _moment(call, "from"), _moment(call, "to")
        return Used(usage=self._of(call.principal).usage(by=by, since=since, until=until))

    def limits(self, call: Call) -> Wire:
        return Limits(limits=self._of(call.principal).limits(call.path["name"]))


def _moment(call: Call, parameter: str) -> datetime | None:
    said = call.find(parameter)
    if said is None:
        return None
    try:
        moment = datetime.fromisoformat(said)
    except ValueError:
        moment = None
    if moment is None or (moment.tzinfo is None and not _DAY.fullmatch(said)):
        told = "a day, such as 2026-01-31, or a moment with its zone, such as 2026-01-31T10:00:00Z"
        raise BadRequest(f"{parameter} = {said[:80]!r} must be {told}", param=parameter)
    return moment.replace(tzinfo=moment.tzinfo or UTC)
