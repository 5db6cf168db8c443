"""The rows of the inference table that model versions and indexes gave, counted, the newest ones named.

One pass over the rows since the first of those versions was made: Delta's own statistics leave files and row groups of
earlier requests, and of other models and indexes, unread. What is held in memory is one batch and the newest answers.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from mosaic.catalog.bearers import Span
from mosaic.data import Tables
from mosaic.errors import NotFound
from mosaic.monitoring.record import INFERENCE_TABLE, SCHEMA

_COLUMNS = ("request_id", "request_time", "principal", "endpoint", "model", "model_version")
_RETRIEVAL = ("retrieved_index", "retrieved_version", "retrieved_ids")
_CLOCKS_DIFFER = timedelta(hours=1)
"""At most: an answer's time is its gateway's, a run's that of whoever started it."""

Keys = Callable[[int], pa.Array | None]
"""The ids of the rows that are asked about, in a version of the table; None if they are not known."""


class Named(NamedTuple):
    """A model or an index, and which bearer of the name."""

    name: str
    securable_id: str | None
    """None: all that ever bore it."""


@dataclass
class Sought:
    """What an answer has to come from."""

    since: datetime
    models: dict[Named, set[int]] = field(default_factory=dict)
    """Versions by model."""
    indexes: dict[Named, set[int]] = field(default_factory=dict)
    """Versions by index; an empty set: every one."""
    keys: dict[Named, Keys] = field(default_factory=dict)
    """By index, if only answers count that were given one of these rows."""
    spans: dict[Named, list[Span]] = field(default_factory=dict)
    """When the name meant this one; left out: always."""


@dataclass
class Found:
    """What came from it."""

    by_endpoint: Counter[str | None] = field(default_factory=Counter)
    by_model: Counter[tuple[Named, int]] = field(default_factory=Counter)
    by_index: Counter[Named] = field(default_factory=Counter)
    given_rows: int = 0
    undecided: int = 0
    """Answers that are counted in as if they had been given such rows, since which ones a version had is not known."""
    newest: list[dict[str, Any]] = field(default_factory=list)
    """Newest first, with `through_model`, `through_index`, and whether it is known that it was `given_rows` of them."""


def find_answers(tables: Tables, sought: Sought, limit: int, named_in: Callable[[str], list[Span]]) -> Found:
    """All answers that came from what is sought; `newest` has at most `limit`, from the times at which those of an
    endpoint may be named."""
    found = Found()
    if not sought.models and not sought.indexes:
        return found
    newest: pa.Table | None = None
    for batch in _scan(tables, sought):
        through_model = _through_models(batch, sought, found)
        through_index, given_rows, undecided = _through_indexes(batch, sought, found)
        found.given_rows += pc.sum(given_rows).as_py() or 0
        found.undecided += pc.sum(undecided).as_py() or 0
        for name, mask in (("model", through_model), ("index", through_index)):
            batch = batch.append_column(f"through_{name}", mask)
        batch = batch.append_column("given_rows", given_rows).filter(pc.or_(through_model, through_index))
        for group in batch.group_by("endpoint").aggregate([([], "count_all")]).to_pylist():
            found.by_endpoint[group["endpoint"]] += group["count_all"]
        shown = batch.filter(_may_be_named(batch, named_in))
        newest = shown if newest is None else pa.concat_tables([newest, shown])
        newest = newest.sort_by([("request_time", "descending"), ("request_id", "descending")]).slice(0, limit)
    found.newest = [] if newest is None else newest.to_pylist()
    return found


def _scan(tables: Tables, sought: Sought) -> Iterator[pa.Table]:
    since = (sought.since - _CLOCKS_DIFFER).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    either = [f"(model = {_text(one.name)} AND {_span(vs, 'model_version')})" for one, vs in sought.models.items()]
    either += [
        f"(retrieved_index = {_text(one.name)} AND {_span(vs, 'retrieved_version') if vs else 'true'})"
        for one, vs in sought.indexes.items()
    ]
    predicate = f"request_time >= TIMESTAMP '{since}' AND ({' OR '.join(either)})"
    try:
        delta = tables.delta(INFERENCE_TABLE)
    except NotFound:  # nothing was ever served here
        return
    schema = pa.schema([pa.field(name, SCHEMA.field(name).type) for name in (*_COLUMNS, *_RETRIEVAL)])
    for batch in pa.RecordBatchReader.from_stream(delta.scan(columns=[*_COLUMNS, *_RETRIEVAL], predicate=predicate)):
        yield pa.Table.from_batches([batch]).select(schema.names).cast(schema)  # from the engine's own kinds of strings


def _span(versions: set[int], column: str) -> str:
    """What file statistics can decide; which versions exactly is decided on the rows."""
    return f"{column} BETWEEN {min(versions)} AND {max(versions)}"


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _through_models(batch: pa.Table, sought: Sought, found: Found) -> pa.Array:
    mask = _nowhere(batch)
    for named, versions in sought.models.items():
        of_model = pc.and_(_is(batch, "model", named, sought), _is_in(batch["model_version"], versions))
        for group in batch.filter(of_model).group_by("model_version").aggregate([([], "count_all")]).to_pylist():
            found.by_model[named, group["model_version"]] += group["count_all"]
        mask = pc.or_(mask, of_model)
    return mask


def _through_indexes(batch: pa.Table, sought: Sought, found: Found) -> tuple[pa.Array, pa.Array, pa.Array]:
    """Which rows of the batch came from an index; which of them are known to have been given rows that are asked about;
    for which that cannot be known."""
    mask, given, undecided = _nowhere(batch), _nowhere(batch), _nowhere(batch)
    for named, versions in sought.indexes.items():
        of_index = _is(batch, "retrieved_index", named, sought)
        if versions:
            of_index = pc.and_(of_index, _is_in(batch["retrieved_version"], versions))
        if named in sought.keys:
            decided, not_known = _by_keys(batch, of_index, sought.keys[named])
            given, undecided = pc.or_(given, decided), pc.or_(undecided, not_known)
            of_index = pc.or_(decided, not_known)
        if count := pc.sum(of_index).as_py():
            found.by_index[named] += count
        mask = pc.or_(mask, of_index)
    return mask, given, undecided


def _by_keys(batch: pa.Table, of_index: pa.Array, keys_of: Keys) -> tuple[pa.Array, pa.Array]:
    """Which of the index's rows were given rows with the keys that are asked about, and for which that is not known."""
    given, undecided = _nowhere(batch), _nowhere(batch)
    for version in sorted(pc.unique(batch.filter(of_index)["retrieved_version"]).to_pylist(), reverse=True):
        of_version = pc.fill_null(pc.and_(of_index, pc.equal(batch["retrieved_version"], version)), False)
        keys = keys_of(version)
        if keys is None:
            undecided = pc.or_(undecided, of_version)
        else:
            given = pc.or_(given, pc.and_(of_version, _given_one_of(batch["retrieved_ids"], keys)))
    return given, undecided


def _is(batch: pa.Table, column: str, named: Named, sought: Sought) -> pa.Array:
    of_name = pc.fill_null(pc.equal(batch[column], named.name), False)
    spans = sought.spans.get(named)
    return of_name if spans is None else pc.and_(of_name, within(batch, spans))


def within(batch: pa.Table, spans: Iterable[Span]) -> pa.Array:
    """Which requests came in one of the times."""
    mask, times = _nowhere(batch), batch["request_time"]
    for first, end in spans:
        one = pc.invert(_nowhere(batch))
        if first is not None:
            one = pc.and_(one, pc.greater_equal(times, pa.scalar(first, times.type)))
        if end is not None:
            one = pc.and_(one, pc.less(times, pa.scalar(end, times.type)))
        mask = pc.or_(mask, one)
    return mask


def _may_be_named(batch: pa.Table, named_in: Callable[[str], list[Span]]) -> pa.Array:
    mask = _nowhere(batch)
    for name in pc.unique(batch["endpoint"]).to_pylist():
        if name is not None and (spans := named_in(name)):
            of_endpoint = pc.fill_null(pc.equal(batch["endpoint"], name), False)
            mask = pc.or_(mask, pc.and_(of_endpoint, within(batch, spans)))
    return mask


def _given_one_of(lists: pa.ChunkedArray, keys: pa.Array) -> pa.Array:
    """Which of the lists have one of the keys."""
    lists = lists.combine_chunks()
    hit = pc.is_in(pc.list_flatten(lists), keys.cast(lists.type.value_type))
    parents = pc.list_parent_indices(lists).filter(hit)
    return pc.is_in(pa.array(range(len(lists)), parents.type), parents)


def _is_in(column: pa.ChunkedArray, versions: set[int]) -> pa.ChunkedArray:
    return pc.is_in(column, pa.array(sorted(versions), pa.int64()))


def _nowhere(batch: pa.Table) -> pa.Array:
    return pa.repeat(False, batch.num_rows)
