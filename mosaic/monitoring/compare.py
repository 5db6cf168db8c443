"""An endpoint's arms beside each other: what each took, cost and was said to be worth, and what of it is no accident.

    rows of the inference table, and feedback -> each arm's figures (arms.py) -> differences with intervals
        (intervals.py) -> a sentence for each

An interval of 95 % is of its metric alone: of twenty that are looked at, one is expected to say something by accident,
and so is who looks every hour until one does.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

from mosaic.catalog import Catalog
from mosaic.catalog.privileges import MANAGE
from mosaic.catalog.records import Endpoint
from mosaic.data import Tables
from mosaic.errors import BadRequest, not_found
from mosaic.monitoring.arms import ArmRows, read_arms
from mosaic.monitoring.bearers import Bearers
from mosaic.monitoring.intervals import (
    Interval,
    Sample,
    difference_of_means,
    difference_of_rates,
    ratio_of_means,
    ratio_of_quantiles,
)
from mosaic.protocol import Principal, Wire

SINCE = timedelta(days=7)
_SURPRISING = 4.0
"""Standard deviations of a count from what its share would have it be: once in 16,000 experiments without a fault."""


class Arm(Wire):
    """What one served entity did; times and tokens are of answers with status 200 that a model gave."""

    name: str
    requests: int
    """That it was drawn for; of these some were answered from what was kept, or by another."""
    units: int
    """How many users they were of, if users keep their arm; as many as requests otherwise."""
    cached: int
    fell_back: int
    """How many another entity answered."""
    error_rate: float | None
    latency_p50_milliseconds: float | None
    latency_p95_milliseconds: float | None
    first_token_p50_milliseconds: float | None
    """Of streams."""
    first_token_p95_milliseconds: float | None
    input_tokens: float | None
    """Of a request, at the mean."""
    output_tokens: float | None
    cost_nano_dollars: float | None
    """Of a request, at the mean; None where there are no prices."""
    feedback: float | None
    """The mean of what people said of its answers."""
    ratings: int


class Verdict(Wire):
    """One arm beside the baseline, in one metric."""

    metric: str
    arm: str
    baseline: str
    difference: float | None
    """Of the arm from the baseline: relative (0.1 is a tenth more), or in the metric's own unit; None for too little to
    say anything."""
    low: float | None
    high: float | None
    """Of the interval of 95 %."""
    is_relative: bool
    is_shown: bool
    """Whether the interval leaves out 0."""
    text: str


class Comparison(Wire):
    endpoint: str
    since: datetime
    unit: Literal["request", "user"]
    """What was drawn an arm for, and so is counted as independent."""
    config_versions: tuple[int, ...]
    arms: tuple[Arm, ...]
    """The baseline first."""
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]


Of = Callable[[ArmRows], Sample]
Shown = Callable[[Sample, Sample], Interval | None]


class _Metric(NamedTuple):
    name: str
    of: Of
    value: Callable[[Sample], float]
    shown: Shown
    less: str
    more: str
    is_relative: bool = True
    unit: str = "%"
    scale: float = 100.0


def _quantile(name: str, column: str, q: float, *, streamed_only: bool = False) -> _Metric:
    return _Metric(
        name,
        lambda arm: arm.answered(column, streamed_only=streamed_only),
        lambda sample: sample.quantile(q),
        lambda a, b: ratio_of_quantiles(a, b, q),
        "faster",
        "slower",
    )


def _mean(name: str, less: str, more: str) -> _Metric:
    return _Metric(name, lambda arm: arm.answered(name), lambda sample: sample.mean, ratio_of_means, less, more)


def _absolute(name: str, of: Of, shown: Shown, less: str, more: str, unit: str, scale: float) -> _Metric:
    return _Metric(name, of, lambda sample: sample.mean, shown, less, more, False, unit, scale)


_METRICS = (
    _absolute("error_rate", ArmRows.failures, difference_of_rates, "failing less", "failing more", " points", 100.0),
    _quantile("latency_p50_milliseconds", "duration_milliseconds", 0.5),
    _quantile("latency_p95_milliseconds", "duration_milliseconds", 0.95),
    _quantile("first_token_p50_milliseconds", "first_token_milliseconds", 0.5, streamed_only=True),
    _quantile("first_token_p95_milliseconds", "first_token_milliseconds", 0.95, streamed_only=True),
    _mean("input_tokens", "reading less", "reading more"),
    _mean("output_tokens", "writing less", "writing more"),
    _mean("cost_nano_dollars", "cheaper", "dearer"),
    _absolute("feedback", ArmRows.ratings, difference_of_means, "liked less", "liked more", "", 1.0),
)


def compare(
    tables: Tables,
    catalog: Catalog,
    endpoint: str,
    *,
    since: datetime | None = None,
    arms: Sequence[str] = (),
    principal: Principal | None = None,
) -> Comparison:
    """The arms of an endpoint, from rows of the last seven days if no other time is said.

    `arms` names those that are compared, the baseline first; without it all that answered, the one with the most
    requests first. Raises NotFound for an endpoint or an arm that is not there, PermissionDenied without MANAGE.
    """
    full = catalog.endpoints.full_name(endpoint)
    if principal is not None:
        catalog.grants.check(principal, MANAGE, "endpoint", full, action="compareServedEntities")
    live = catalog.endpoints.get(full)
    since = since or datetime.now(UTC) - SINCE
    if since.tzinfo is None:
        raise BadRequest(f"since = {since.isoformat()} needs a time zone, such as Z", param="since")
    bearers = Bearers(catalog)
    spans = bearers.spans("endpoint", full, bearers.living("endpoint", full))
    found = {one.name: one for one in read_arms(tables, full, since, spans)}
    rows = _chosen(found, arms)
    unit: Literal["request", "user"] = "user" if any(one.is_sticky for one in rows) else "request"
    verdicts = [_verdict(metric, rows[0], other) for other in rows[1:] for metric in _METRICS]
    versions = sorted({version for one in rows for version in one.versions})
    return Comparison(
        endpoint=full,
        since=since,
        unit=unit,
        config_versions=tuple(versions),
        arms=tuple(map(_arm, rows)),
        verdicts=tuple(one for one in verdicts if one is not None),
        notes=(*_notes(rows, versions), *_mismatches(found.values(), versions, live)),
    )


def _chosen(found: dict[str, ArmRows], arms: Sequence[str]) -> list[ArmRows]:
    if not arms:
        return sorted(found.values(), key=lambda one: (-one.requests, one.name))
    for name in arms:
        if name not in found:
            raise not_found("served entity", name, found, param="arms")
    if len(set(arms)) != len(arms):
        raise BadRequest(f"arms = {list(arms)} names one of them twice", param="arms")
    return [found[name] for name in arms]


def _arm(rows: ArmRows) -> Arm:
    values = {metric.name: _value(metric, rows) for metric in _METRICS}
    return Arm(
        name=rows.name,
        requests=rows.requests,
        units=rows.units,
        cached=rows.cached,
        fell_back=rows.fell_back,
        ratings=len(rows.ratings().values),
        **values,
    )


def _value(metric: _Metric, rows: ArmRows) -> float | None:
    sample = metric.of(rows)
    return metric.value(sample) if len(sample.values) else None


def _verdict(metric: _Metric, baseline: ArmRows, other: ArmRows) -> Verdict | None:
    """None where neither has such a thing at all."""
    a, b = metric.of(baseline), metric.of(other)
    if not len(a.values) and not len(b.values):
        return None
    told = {"metric": metric.name, "arm": other.name, "baseline": baseline.name, "is_relative": metric.is_relative}
    interval = metric.shown(a, b) if len(a.values) and len(b.values) else None
    if interval is None:
        text = f"{other.name}: too little to say"
        return Verdict(**told, difference=None, low=None, high=None, is_shown=False, text=text)
    one, two = metric.value(a), metric.value(b)
    difference = two / one - 1 if metric.is_relative else two - one
    is_shown = interval.low > 0 or interval.high < 0
    text = _sentence(metric, other.name, difference, interval, is_shown)
    return Verdict(**told, difference=difference, low=interval.low, high=interval.high, is_shown=is_shown, text=text)


def _sentence(metric: _Metric, arm: str, difference: float, interval: Interval, is_shown: bool) -> str:
    scaled = [metric.scale * one for one in (difference, *interval)]
    unit = f" {metric.unit}" if metric.unit == "%" else metric.unit
    if not is_shown:
        return f"no difference shown (95 % CI {scaled[1]:+.2g} to {scaled[2]:+.2g}{unit})"
    by, low, high = abs(scaled[0]), *sorted(map(abs, scaled[1:]))
    word = metric.less if difference < 0 else metric.more
    return f"{arm} is {word} by {by:.2g}{unit} (95 % CI {low:.2g} to {high:.2g})"


def _mismatches(all_arms: Collection[ArmRows], versions: Sequence[int], live: Endpoint) -> Iterator[str]:
    """Arms that have not the share that they should: then some requests are lost, and what is left is no fair
    sample (a sample ratio mismatch; Fabijan and others 2019)."""
    if list(versions) != [live.config_version]:
        return
    total = sum(one.units for one in all_arms)
    counts = {one.name: one.units for one in all_arms}
    for entity in live.config["served_entities"]:
        share = entity["traffic_percentage"] / 100
        count = counts.get(entity["name"], 0)
        if abs(count - total * share) > _SURPRISING * math.sqrt(total * share * (1 - share)):
            told = f"{entity['name']} has {count} of {total}, where its share is {share:.0%}"
            yield f"{told}: as if some were lost, so that what is left may be no fair sample"


def _notes(rows: Sequence[ArmRows], versions: Collection[int]) -> list[str]:
    told = []
    if len(rows) < 2:
        told.append("there is one arm at most: nothing to compare")
    if len(versions) > 1:
        told.append(
            f"{len(versions)} configurations answered meanwhile: where shares changed, arms answered at different times"
        )
    if any(one.cached for one in rows):
        told.append("what was kept from earlier answers counts for no arm's times, tokens, cost or errors")
    return told
