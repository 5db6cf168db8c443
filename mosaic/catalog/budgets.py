"""Budgets: so much money a day or a month, for whom and what. Who holds requests to them is the gateway's quota."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Self

import sqlalchemy as sa
from pydantic import Field, model_validator

from mosaic.catalog import principals, securables
from mosaic.catalog.audit import change
from mosaic.catalog.money import check_nano_dollars
from mosaic.catalog.principals import ADMIN, Caller, as_principal
from mosaic.catalog.schema import budget, principal, securable
from mosaic.catalog.store import Store
from mosaic.errors import AlreadyExists, BadRequest, not_found
from mosaic.ids import new_id
from mosaic.protocol import Wire
from mosaic.settings import Settings

Period = Literal["day", "month"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_MOST_TAGS = 10


class Scope(Settings):
    """Which requests a budget is for: those for which all that is said here is so; none said, all of them."""

    user: str | None = None
    """One user's."""
    group: str | None = None
    """Those of everybody in a group, also through other groups; together."""
    service_principal: str | None = None
    """One service's."""
    endpoint: str | None = None
    """Those to one endpoint, by its whole name."""
    tags: dict[str, str] = Field(default_factory=dict, max_length=_MOST_TAGS)
    """Those whose `usage_context` has all of these keys with these values."""
    each_user: bool = False
    """Whether every user and service has the whole amount for itself, and not all together."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.each_user and (self.user or self.service_principal):
            raise ValueError("each_user is for many: leave user and service_principal out")
        if self.user and self.service_principal:
            raise ValueError("nobody is a user and a service: give user or service_principal")
        return self

    @property
    def whom(self) -> str | None:
        """The one user or service."""
        return self.user or self.service_principal

    def fits(self, *, whom: str | None, groups: Collection[str], endpoint: str | None, tags: Mapping[str, str]) -> bool:
        """Whether a request counts: who asks, its groups, the endpoint's whole name, the request's usage context."""
        return (
            self.whom in (None, whom)
            and (self.group is None or self.group in groups)
            and self.endpoint in (None, endpoint)
            and self.tags.items() <= tags.items()
            and not (self.each_user and whom is None)
        )


class Budget(Wire):
    """So much money a calendar day or month (UTC), counted from when it was made."""

    id: str
    name: str
    amount_nano_dollars: int
    period: Period
    scope: Scope
    created_at: datetime
    created_by: str

    def bucket(self, whom: str | None) -> str:
        """Where it is counted what somebody spends."""
        return f"{self.id} {whom}" if self.scope.each_user else self.id


def period_start(period: str, moment: datetime) -> datetime:
    """When the calendar day or month of a moment began, in UTC."""
    day = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return day.replace(day=1) if period == "month" else day


def period_end(period: str, moment: datetime) -> datetime:
    """When the next one begins."""
    start = period_start(period, moment)
    return period_start(period, start + timedelta(days=32)) if period == "month" else start + timedelta(days=1)


class Budgets:
    """`catalog.budgets`. Every change is one audit row."""

    def __init__(self, store: Store, now: Callable[[], datetime], full_name: Callable[[str], str]) -> None:
        """`full_name` gives an endpoint's whole name."""
        self._store, self._now, self._full_name = store, now, full_name

    def create(
        self, name: str, *, amount_nano_dollars: int, period: Period, scope: Scope | None = None, by: Caller = ADMIN
    ) -> Budget:
        """It holds within a second. Raises AlreadyExists, BadRequest, and NotFound for a principal or an endpoint in
        its scope that is not there: a budget for nobody would hold nobody."""
        if not _NAME.fullmatch(name):
            told = "1 to 100 of letters, digits, '_', '.', '-', beginning with a letter or digit"
            raise BadRequest(f"name = {name[:120]!r} must be {told}", param="name")
        if period not in ("day", "month"):
            raise BadRequest(f"period = {period!r} must be 'day' or 'month'", param="period")
        check_nano_dollars(amount_nano_dollars, param="amount_nano_dollars")
        scope = scope or Scope()
        if scope.endpoint is not None:
            scope = scope.model_copy(update={"endpoint": self._full_name(scope.endpoint)})
        caller, now = as_principal(by), self._now()
        row: dict[str, Any] = {"id": new_id("bud"), "name": name, "amount_nano_dollars": amount_nano_dollars}
        row |= {"period": period, "created_at": now, "created_by": caller.name}
        params = {"budget": name, "amount_nano_dollars": str(amount_nano_dollars), "period": period}
        with change(self._store, "createBudget", params, by=caller, now=now) as going:
            _check_scope(going.connection, scope)
            if going.connection.execute(sa.select(budget.c.id).where(budget.c.name == name)).first():
                raise AlreadyExists(
                    f"there is a budget {name!r}; `mosaic budget update` changes its amount", param="name"
                )
            said = scope.model_dump(exclude_defaults=True)
            going.connection.execute(budget.insert().values(**row, scope=said))
        return Budget(**row, scope=scope)

    def set_amount(self, name: str, amount_nano_dollars: int, *, by: Caller = ADMIN) -> Budget:
        """What was spent of it stays so. Raises NotFound."""
        check_nano_dollars(amount_nano_dollars, param="amount_nano_dollars")
        caller, params = as_principal(by), {"budget": name, "amount_nano_dollars": str(amount_nano_dollars)}
        with change(self._store, "updateBudget", params, by=caller, now=self._now()) as going:
            found = _get(going.connection, name)
            going.happened = found.amount_nano_dollars != amount_nano_dollars
            this = budget.c.name == name
            going.connection.execute(budget.update().where(this).values(amount_nano_dollars=amount_nano_dollars))
        return found.model_copy(update={"amount_nano_dollars": amount_nano_dollars})

    def delete(self, name: str, *, by: Caller = ADMIN) -> None:
        """It holds nobody within a second; one that is made anew counts from 0. Raises NotFound."""
        with change(self._store, "deleteBudget", {"budget": name}, by=as_principal(by), now=self._now()) as going:
            _get(going.connection, name)
            going.connection.execute(budget.delete().where(budget.c.name == name))

    def get(self, name: str) -> Budget:
        """Raises NotFound."""
        with self._store.read() as connection:
            return _get(connection, name)

    def list(self) -> Sequence[Budget]:
        """By name."""
        with self._store.read() as connection:
            return [_as_budget(row) for row in connection.execute(sa.select(budget).order_by(budget.c.name))]


def _get(connection: sa.Connection, name: str) -> Budget:
    row = connection.execute(sa.select(budget).where(budget.c.name == name)).one_or_none()
    if row is None:
        raise not_found("budget", name, connection.execute(sa.select(budget.c.name)).scalars(), param="name")
    return _as_budget(row)


def _as_budget(row: securables.Row) -> Budget:
    return Budget(**{**row._mapping, "scope": Scope.model_validate(row.scope)})


def _check_scope(connection: sa.Connection, scope: Scope) -> None:
    for field, kind in (("user", "user"), ("group", "group"), ("service_principal", "service")):
        name = getattr(scope, field)
        if name is None:
            continue
        found = principals.find(connection, name)
        if found is None or found.kind != kind:
            there = connection.execute(sa.select(principal.c.name).where(principal.c.kind == kind)).scalars()
            raise not_found(kind, name, there, param=f"scope.{field}")
    if scope.endpoint is not None and securables.find(connection, "endpoint", scope.endpoint) is None:
        live = (securable.c.kind == "endpoint") & securable.c.deleted_at.is_(None)
        there = connection.execute(sa.select(securable.c.full_name).where(live)).scalars()
        raise not_found("endpoint", scope.endpoint, there, param="scope.endpoint")
