"""Prices, budgets and usage as people and programs ask for them: what may be known and changed by whom.

Administrators (who may MANAGE the metastore) set prices and budgets. Everybody signed in may read prices, and how the
budgets are that hold them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from mosaic.catalog import Catalog
from mosaic.catalog.budgets import Budget, Period, Scope
from mosaic.catalog.names import METASTORE
from mosaic.catalog.prices import Price
from mosaic.data import Tables
from mosaic.errors import NotFound, not_found
from mosaic.gateway.limits import UNITS, bucket_key
from mosaic.gateway.quota import Left
from mosaic.gateway.quota_actors import QuotaView
from mosaic.gateway.spend import Standing
from mosaic.monitoring.usage import Usage, usage
from mosaic.protocol import Principal, Wire
from mosaic.serving.ai_gateway import RateLimit
from mosaic.serving.endpoint import EndpointSettings


class BudgetState(Wire):
    """A budget, and how it is in the period that runs."""

    name: str
    amount_nano_dollars: int
    period: Period
    scope: Scope
    whom: str | None
    """Of one that everybody has for itself: whose it is; None where it is nobody's in particular."""
    spent_nano_dollars: int
    held_nano_dollars: int
    """By requests that have not ended."""
    left_nano_dollars: int
    """Less than 0 where answers cost more than was known before."""
    renews_at: datetime
    created_at: datetime
    created_by: str


class LimitState(Wire):
    """One rate limit of an endpoint, and how it is at this moment."""

    key: str
    whom: str | None
    """Of one that each user has: whose it is."""
    unit: str
    """`calls` or `tokens`."""
    limit: int
    remaining: int
    reset_seconds: float


class Money:
    """`platform.money`; acts for a principal, within its grants."""

    def __init__(
        self, catalog: Catalog, tables: Tables, principal: Principal, quota: Callable[[], QuotaView] = QuotaView
    ) -> None:
        self._catalog, self._tables, self._principal, self._quota = catalog, tables, principal, quota

    # Prices

    def set_price(self, model: str, *, valid_from: datetime | None = None, **amounts: int | None) -> Price:
        """As `catalog.prices.set`. Raises PermissionDenied."""
        given: dict[str, Any] = {name: amount for name, amount in amounts.items() if amount is not None}
        return self._catalog.prices.set(model, valid_from=valid_from, by=self._manage("setPrice"), **given)

    def list_prices(self, model: str | None = None) -> Sequence[Price]:
        """Every version, oldest first."""
        return self._catalog.prices.list(model)

    # Budgets

    def create_budget(
        self, name: str, *, amount_nano_dollars: int, period: Period, scope: Scope | None = None
    ) -> Budget:
        """As `catalog.budgets.create`. Raises PermissionDenied."""
        by = self._manage("createBudget")
        create = self._catalog.budgets.create
        return create(name, amount_nano_dollars=amount_nano_dollars, period=period, scope=scope, by=by)

    def set_budget(self, name: str, amount_nano_dollars: int) -> Budget:
        """Another amount. Raises PermissionDenied, NotFound."""
        by = self._manage("updateBudget")
        return self._catalog.budgets.set_amount(name, amount_nano_dollars, by=by)

    def delete_budget(self, name: str) -> None:
        """Raises PermissionDenied, NotFound."""
        self._catalog.budgets.delete(name, by=self._manage("deleteBudget"))

    def list_budgets(self) -> list[BudgetState]:
        """By name: those that hold the principal, of which everybody's as its own is; administrators see all."""
        return self._states(self._known())

    def show_budget(self, name: str, whom: str | None = None) -> BudgetState:
        """One of these; of one that everybody has for itself `whom` is whose, the principal if not given.

        Raises NotFound also for one that the principal may not know of.
        """
        known = {budget.name: budget for budget in self._known()}
        if name not in known:
            raise not_found("budget", name, known, param="name")
        if whom is not None and whom != self._principal.name and not self._is_administrator:
            raise not_found("budget", f"{name} of {whom}", known, param="whom")
        return self._states([known[name]], whom)[0]

    # What is used, and what is left

    def usage(
        self, *, by: Sequence[str] = (), since: datetime | None = None, until: datetime | None = None
    ) -> list[Usage]:
        """As `monitoring.usage`, of the requests that the principal may know of."""
        return usage(self._tables, self._catalog, by=by, since=since, until=until, principal=self._principal)

    def limits(self, endpoint: str) -> list[LimitState]:
        """What is left now of an endpoint's rate limits, also by user; who may MANAGE it sees that. Raises NotFound,
        PermissionDenied."""
        name = self._catalog.endpoints.full_name(endpoint)
        self._catalog.grants.check(self._principal, "MANAGE", "endpoint", name, action="getServingEndpointQuota")
        record = self._catalog.endpoints.get(name)
        settings = EndpointSettings.parse(record.config, source=f"endpoint {name}") if record.config else None
        wanted = settings.ai_gateway.rate_limits if settings else ()
        buckets = self._quota().left(name) if wanted else {}
        return [
            state
            for limit in wanted
            for unit in UNITS
            if getattr(limit, unit) is not None
            for state in _limit_states(name, limit, unit, buckets)
        ]

    @property
    def _is_administrator(self) -> bool:
        return self._catalog.grants.is_allowed(self._principal, "MANAGE", METASTORE, METASTORE)

    def _manage(self, action: str) -> Principal:
        return self._catalog.grants.check(self._principal, "MANAGE", METASTORE, METASTORE, action=action)

    def _known(self) -> Sequence[Budget]:
        every = self._catalog.budgets.list()
        if not every or self._is_administrator:
            return every
        try:
            mine = self._catalog.principals.groups_of(self._principal.name)
        except NotFound:
            mine = ()
        return [budget for budget in every if _holds(budget.scope, self._principal.name, mine)]

    def _states(self, budgets: Sequence[Budget], whom: str | None = None) -> list[BudgetState]:
        if not budgets:
            return []
        whose = whom or self._principal.name
        asked = [(one.bucket(whose), one.amount_nano_dollars, one.period) for one in budgets]
        standings = self._quota().standings(asked)
        return [_state(budget, one, whose) for budget, one in zip(budgets, standings, strict=True)]


def _holds(scope: Scope, name: str, groups: Sequence[str]) -> bool:
    """Whether a budget is for somebody by name, by group or for each; what is for all together is the administrators'
    to know of."""
    return scope.whom == name or scope.group in groups or scope.each_user


def _state(budget: Budget, standing: Standing, whose: str) -> BudgetState:
    return BudgetState(
        **{field: getattr(budget, field) for field in ("name", "amount_nano_dollars", "period", "scope")},
        whom=whose if budget.scope.each_user else budget.scope.whom,
        spent_nano_dollars=standing.spent,
        held_nano_dollars=standing.held,
        left_nano_dollars=budget.amount_nano_dollars - standing.spent - standing.held,
        renews_at=datetime.fromtimestamp(standing.renews_at, UTC),
        created_at=budget.created_at,
        created_by=budget.created_by,
    )


def _limit_states(endpoint: str, limit: RateLimit, unit: str, buckets: Mapping[str, Left]) -> Iterator[LimitState]:
    """Of one that each user has, those who asked lately; a line without a name if nobody did."""
    most: int = getattr(limit, unit)
    prefix = f"{endpoint} {bucket_key(limit)} "
    whose: list[str | None] = [limit.principal]
    if limit.key == "user" and limit.principal is None:
        taken = [one for one in sorted(buckets) if one.startswith(prefix) and one.endswith(f" {unit}")]
        whose = [one.removeprefix(prefix).removesuffix(f" {unit}") for one in taken] or [None]
    for whom in whose:
        left = buckets.get(f"{prefix}{whom} {unit}")
        yield LimitState(
            key=limit.key,
            whom=whom,
            unit=unit,
            limit=most,
            remaining=most if left is None else max(0, most - (left.limit - left.remaining)),
            reset_seconds=0.0 if left is None else round(left.reset_seconds, 3),
        )
