"""Usage: requests, tokens and money by user, model, day, endpoint or tag, from the inference table.

One pass over the rows of a time, a batch at a time; what is held in memory is a row for each group. The money for what
nobody has priced is not known, and not nothing: `unpriced` counts such requests.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc

from mosaic.catalog import Catalog
from mosaic.data import Tables
from mosaic.errors import BadRequest, NotFound
from mosaic.monitoring.answers import within
from mosaic.monitoring.record import INFERENCE_TABLE, SCHEMA
from mosaic.monitoring.viewer import Viewer
from mosaic.protocol import Principal, Wire

Key = Literal["user", "model", "day", "endpoint", "tag"]
KEYS: tuple[Key, ...] = get_args(Key)
_COLUMN = {"user": "principal", "model": "model", "day": "request_date", "endpoint": "endpoint", "tag": "usage_context"}
_SUMMED = ("input_tokens", "output_tokens", "cost_nano_dollars", "gpu_seconds")
MOST_GROUPS = 100_000


class Usage(Wire):
    """What one group used; of `by` the fields that were asked for."""

    user: str | None = None
    model: str | None = None
    day: str | None = None
    """`2026-01-31`, in UTC."""
    endpoint: str | None = None
    tag: str | None = None
    """`team=search`, of the request's `usage_context`; a request with several counts in each."""
    requests: int
    failed: int
    """Of these, those that were not answered with a 200."""
    input_tokens: int
    output_tokens: int
    cost_nano_dollars: int
    unpriced: int
    """Answered requests of models that nobody has priced; what they cost is in no sum."""
    gpu_seconds: float


def usage(
    tables: Tables,
    catalog: Catalog,
    *,
    by: Sequence[str] = (),
    since: datetime | None = None,
    until: datetime | None = None,
    principal: Principal | None = None,
) -> list[Usage]:
    """By the keys in their order; one row without any. Of the requests that the principal may know of: its own, and
    those to endpoints that it may MANAGE; administrators, and the platform itself, of all.

    Raises BadRequest for a key that is none, or comes twice, and for more groups than can be shown.
    """
    unknown = [key for key in by if key not in KEYS]
    if unknown or len(set(by)) != len(by):
        raise BadRequest(f"by = {','.join(by)!r} must be some of {','.join(KEYS)}, each once", param="by")
    viewer = Viewer(catalog, principal)
    columns = [_COLUMN[key] for key in by]
    sums: dict[tuple[Any, ...], list[Any]] = defaultdict(lambda: [0] * 7)
    for batch in scan(tables, [*columns, "model", "status_code", *_SUMMED], since=since, until=until):
        for keys, counted in _grouped(batch.filter(_may_know(batch, viewer)), columns):
            for group in _by_tag(keys, by):
                sums[group] = [old + new for old, new in zip(sums[group], counted, strict=True)]
        if len(sums) > MOST_GROUPS:
            told = (
                f"by = {','.join(by)!r} has more than {MOST_GROUPS} groups: ask for a shorter time, or for fewer keys"
            )
            raise BadRequest(told, param="by")
    ordered = sorted(sums.items(), key=lambda one: [str(value or "") for value in one[0]])
    return [_as_usage(by, group, counted) for group, counted in ordered]


def scan(
    tables: Tables, columns: Sequence[str], *, since: datetime | None, until: datetime | None
) -> Iterator[pa.Table]:
    """The rows of a time, with the columns that are asked for and who asked what when; null where the table has been
    made without."""
    try:
        delta = tables.delta(INFERENCE_TABLE)
    except NotFound:  # nothing was ever served here
        return
    names = dict.fromkeys([*columns, "principal", "endpoint", "request_time"])
    schema = pa.schema([SCHEMA.field(one) for one in names])
    there = {field.name for field in delta.schema().fields}
    bounds = [f"request_time >= {_time(since)}"] if since else []
    bounds += [f"request_time < {_time(until)}"] if until else []
    found = delta.scan(columns=[one for one in schema.names if one in there], predicate=" AND ".join(bounds) or None)
    for batch in pa.RecordBatchReader.from_stream(found):
        table = pa.Table.from_batches([batch])
        for name in schema.names:
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(len(table), schema.field(name).type))
        yield table.select(schema.names).cast(schema)  # from the engine's own kinds of strings


def _may_know(batch: pa.Table, viewer: Viewer) -> pa.Array:
    if viewer.sees_everything or viewer.principal is None:
        return pa.repeat(True, len(batch))
    mask = pc.fill_null(pc.equal(batch["principal"], viewer.principal.name), False)
    for endpoint in pc.unique(batch["endpoint"]).to_pylist():
        if endpoint is not None and (spans := viewer.managed(endpoint)):
            of_this = pc.fill_null(pc.equal(batch["endpoint"], endpoint), False)
            mask = pc.or_(mask, pc.and_(of_this, within(batch, spans)))
    return mask


def _grouped(batch: pa.Table, columns: Sequence[str]) -> Iterator[tuple[list[Any], list[Any]]]:
    """The keys of each group of a batch, and what is counted of it in the order of `Usage`."""
    is_answered = pc.equal(batch["status_code"], 200)
    has_no_price = pc.and_(pc.is_valid(batch["model"]), pc.is_null(batch["cost_nano_dollars"]))
    counts = {"failed": pc.invert(is_answered), "unpriced": pc.and_(is_answered, has_no_price)}
    for name, mask in counts.items():
        batch = batch.append_column(name, mask.cast(pa.int64()))
    summed = ("failed", *_SUMMED[:3], "unpriced", "gpu_seconds")
    told = [("request_time", "count"), *((name, "sum") for name in summed)]
    for row in batch.group_by(list(columns)).aggregate(told).to_pylist():
        counted = [row["request_time_count"], *(row[f"{name}_sum"] or 0 for name in summed)]
        yield [row[name] for name in columns], counted


def _by_tag(keys: Sequence[Any], by: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """A group of each tag."""
    if "tag" not in by:
        yield tuple(keys)
        return
    place = by.index("tag")
    tags = json.loads(keys[place]) if keys[place] else {}
    named: list[str | None] = [f"{key}={value}" for key, value in sorted(tags.items())]
    for tag in named or [None]:
        yield (*keys[:place], tag, *keys[place + 1 :])


def _as_usage(by: Sequence[str], group: Sequence[Any], counted: Sequence[Any]) -> Usage:
    named = {key: None if value is None else str(value) for key, value in zip(by, group, strict=True)}
    requests, failed, read, written, cost, unpriced, seconds = counted
    return Usage(
        **named,
        requests=requests,
        failed=failed,
        input_tokens=read,
        output_tokens=written,
        cost_nano_dollars=cost,
        unpriced=unpriced,
        gpu_seconds=round(seconds, 3),
    )


def _time(moment: datetime) -> str:
    return f"TIMESTAMP '{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}'"
