"""What was spent of each budget in the period that runs, by the inference table: for a quota that has lost its own
record (`quota_shard`), and for who looks while none runs."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from mosaic.catalog import Catalog
from mosaic.catalog.budgets import Budget, period_start
from mosaic.data import Tables
from mosaic.errors import NotFound
from mosaic.gateway.budgets import tags_of
from mosaic.monitoring.usage import scan

_ASKED = ["principal", "endpoint", "usage_context"]


def spent_by_bucket(tables: Tables, catalog: Catalog, now: datetime | None = None) -> dict[tuple[str, str], int]:
    """Nano-dollars by bucket and period: of the requests since the period began, or the budget was made if that was
    later, whose rows are shipped. Members of groups are those of now."""
    now = now or datetime.now(UTC)
    budgets = catalog.budgets.list()
    spent: dict[tuple[str, str], int] = defaultdict(int)
    if not budgets:
        return spent
    groups: dict[str | None, Sequence[str]] = {None: ()}
    begins = {one.id: max(period_start(one.period, now), one.created_at) for one in budgets}
    for batch in scan(tables, [*_ASKED, "cost_nano_dollars"], since=min(begins.values()), until=None):
        priced = batch.filter(pc.is_valid(batch["cost_nano_dollars"]))
        for budget in budgets:
            for whom, endpoint, context, cost in _sums(priced, begins[budget.id]):
                if whom not in groups:
                    groups[whom] = _groups_of(catalog, str(whom))
                if _counts(budget, whom, groups[whom], endpoint, context):
                    spent[budget.bucket(whom), budget.period] += cost
    return spent


def _sums(batch: pa.Table, since: datetime) -> list[tuple[str | None, str | None, str | None, int]]:
    times = batch["request_time"]
    young = batch.filter(pc.greater_equal(times, pa.scalar(since, times.type)))
    summed = young.group_by(_ASKED).aggregate([("cost_nano_dollars", "sum")])
    return [(*(row[name] for name in _ASKED), row["cost_nano_dollars_sum"]) for row in summed.to_pylist()]


def _counts(budget: Budget, whom: str | None, groups: Sequence[str], endpoint: str | None, context: str | None) -> bool:
    return budget.scope.fits(whom=whom, groups=groups, endpoint=endpoint, tags=tags_of(context))


def _groups_of(catalog: Catalog, name: str) -> Sequence[str]:
    try:
        return catalog.principals.groups_of(name)
    except NotFound:
        return ()
