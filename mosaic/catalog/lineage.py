"""Runs, and what each read and made at which exact version; from these edges anything can be followed to its origin
(`trace`), and to all that was made from it (`descendants`).

A name may be taken again after its bearer was dropped, and versions then begin anew: an edge keeps the id of what bore
the name when it was noted, and leads nowhere else. One that was noted of a name without bearer counts for all of them.

What an edge's detail may say about a table: of an input the `columns` and the `predicate` that were read (without them:
the whole table), of an output the `mode` of the write (`overwrite`: nothing of the versions before is left in it).
"""

import hashlib
import json
import sys
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa

from mosaic.catalog import names, securables
from mosaic.catalog.bearers import bearer_at, list_bearers
from mosaic.catalog.records import LineageNode, Run, RunEdge
from mosaic.catalog.schema import run, run_edge
from mosaic.catalog.securables import Row
from mosaic.errors import BadRequest, Conflict, not_found
from mosaic.ids import new_id
from mosaic.protocol import Wire

END_STATES = ("finished", "failed", "cancelled")
WRITE_MODES = ("append", "delete", "merge", "overwrite")
LARGEST_VERSION = 2**63 - 1
"""Delta counts its versions in 64 bits, and so does the catalog's database."""

_CHUNK = 500
"""Values in one statement: SQLite has a limit."""

_CONDITIONS = 100
"""Conditions in one statement, for the same reason."""


class Thing(NamedTuple):
    """Something at a version, as edges name it."""

    kind: str
    name: str
    version: int | None


class _Known(NamedTuple):
    """A thing, and what bears its name."""

    thing: Thing
    securable_id: str | None
    """None: whatever did."""


class Read(Wire):
    """What a run read on the way to something that was made by way of it."""

    run_id: str
    read: RunEdge


class Use(Wire):
    """A run that read something, and all that it made."""

    run_id: str
    run_kind: str
    run_name: str
    started_at: datetime
    runs_between: int
    """How many runs lie on the shortest way to what it made: 1 if it read the thing that was asked about."""
    read: RunEdge
    made: tuple[RunEdge, ...]


class Descendants(Wire):
    """All that was made from a thing."""

    uses: tuple[Use, ...]
    """Nearest first."""
    cut_off: bool
    """Whether there is more below that was not followed, since the path is too long."""

    def things(self) -> list[Thing]:
        """What was made, nearest first, each once."""
        return list(dict.fromkeys(Thing(made.kind, made.name, made.version) for use in self.uses for made in use.made))


def start(connection: sa.Connection, *, now: datetime, **columns: Any) -> str:
    """Write down a run that starts; its id."""
    run_id = new_id("run")
    values = {"status": "running", "metrics": {}, "started_at": now, **columns}
    connection.execute(run.insert().values(id=run_id, **values))
    name, detail = _program()
    code = {"run_id": run_id, "direction": "code", "kind": "code", "name": name, "version": None, "detail": detail}
    connection.execute(run_edge.insert().values(code))
    return run_id


def add_edge(
    connection: sa.Connection, run_id: str, direction: str, thing: Thing, detail: dict[str, Any] | None
) -> None:
    """Write down that a running run read or made something; the same edge again replaces the detail."""
    _check_detail(direction, detail or {})
    row = _get_row(connection, run_id, lock=True)
    if row.status != "running":
        raise Conflict(f"run {run_id} is already {row.status}; it can have no new {direction}", param="run_id")
    bearer = securables.find(connection, thing.kind, thing.name)
    values = {"direction": direction, **thing._asdict(), "securable_id": bearer and bearer.id}
    same = (run_edge.c[name].is_not_distinct_from(value) for name, value in values.items())
    of_run = sa.and_(run_edge.c.run_id == run_id, *same)
    if connection.execute(run_edge.update().where(of_run).values(detail=detail)).rowcount == 0:
        connection.execute(run_edge.insert().values(run_id=run_id, detail=detail, **values))


def finish(connection: sa.Connection, run_id: str, *, now: datetime, **columns: Any) -> None:
    """End a run; raises Conflict if it has ended before."""
    row = _get_row(connection, run_id, lock=True)
    if row.status != "running":
        raise Conflict(f"run {run_id} is already {row.status}", param="run_id")
    connection.execute(run.update().where(run.c.id == run_id).values(finished_at=now, **columns))


def get(connection: sa.Connection, run_id: str) -> Run:
    """A run with its edges; raises NotFound with the newest runs."""
    return _as_runs(connection, [_get_row(connection, run_id)])[0]


def list_runs(
    connection: sa.Connection,
    kind: str | None,
    status: str | None,
    limit: int,
    before: str | None = None,
    edge_kind: str | None = None,
) -> list[Run]:
    """Runs, newest first: those older than the run `before`, with an edge to something of `edge_kind`."""
    query = sa.select(run).order_by(run.c.id.desc()).limit(limit)
    if kind is not None:
        query = query.where(run.c.kind == kind)
    if status is not None:
        query = query.where(run.c.status == status)
    if before is not None:
        query = query.where(run.c.id < before)
    if edge_kind is not None:
        query = query.where(sa.exists().where(run_edge.c.run_id == run.c.id, run_edge.c.kind == edge_kind))
    return _as_runs(connection, connection.execute(query).all())


def runs_with(connection: sa.Connection, direction: str, asked: Thing) -> list[Run]:
    """The runs with that edge at exactly that version (None: at any version), oldest first."""
    known = _known(connection, asked, None)
    chosen = _is_of(direction, known)
    if asked.version is not None:
        chosen &= run_edge.c.version == asked.version
    ids = sa.select(run_edge.c.run_id).where(chosen)
    return _as_runs(connection, connection.execute(sa.select(run).where(run.c.id.in_(ids)).order_by(run.c.id)).all())


def trace(connection: sa.Connection, asked: Thing, max_depth: int, at: datetime | None = None) -> LineageNode:
    """What a thing was made from, and that from what, up to what no recorded run made.

    The rows of a table's version come from all recorded writes from the last one on that replaced all rows (mode
    `overwrite`): its parents are what any of their runs read, the newest run's first. Of what these read of one table
    between two such writes the newest version is a node, which has the origins of the older ones; they are its
    `earlier_versions`. So the tree grows with what is different in it, and not with how often a table was written.

    Nodes that several runs share are one value in the tree. A thing that was made from itself ends there, and a path of
    more than `max_depth` runs is cut off, which its last node says. `at` says who is meant, if several bore the name.
    """
    return _Trace(connection).node(_known(connection, asked, at), None, max_depth, ())


def ancestors(connection: sa.Connection, asked: Thing, at: datetime | None = None) -> list[Read]:
    """Every read of every run that a thing was made by, directly or by way of other things, however long the way is.

    As `trace` goes, but as a list, and nothing is left out. The cost grows with the edges that are found.
    """
    walk, found = _Writes(connection), list[Read]()
    runs_seen, level = set[str](), {_known(connection, asked, at)}
    seen = set(level)
    while level:
        made_by = walk.runs(level) - runs_seen
        runs_seen |= made_by
        inputs = _edges_by_run(connection, sorted(made_by), "input")
        read = [Read(run_id=run_id, read=edge) for run_id in sorted(made_by) for edge in _edges(inputs[run_id])]
        found.extend(read)
        level = {_of_edge(one.read) for one in read} - seen
        seen |= level
    return found


def descendants(
    connection: sa.Connection, asked: Thing, max_depth: int, without: Collection[tuple[str, int | None]] = ()
) -> Descendants:
    """All that was made from a thing, directly or by way of other things; every thing is looked up once.

    Level by level, in a few queries for each name that a level holds: the cost grows with the edges that are found.
    With version None every use of the thing counts. `without` are uses of it to leave out: run and the version it read.

    A version of a table lives on in later ones until a write that is known to replace all rows (mode `overwrite`): a
    later version may hold rows of it, and so may what was made from that.
    """
    found: dict[tuple[str, _Known], Use] = {}
    start = _known(connection, asked, None)
    left_out, seen, level = set(without), {start}, {start}
    for depth in range(1, max_depth + 1):
        uses = list(_uses(connection, level, depth, of_any_version=depth == 1))
        if depth == 1:
            uses = [use for use in uses if (use.run_id, use.read.version) not in left_out]
        for use in uses:
            found.setdefault((use.run_id, _of_edge(use.read)), use)
        level = {_of_edge(made) for use in uses for made in use.made} - seen
        seen |= level
        if not level:
            return Descendants(uses=tuple(found.values()), cut_off=False)
    more = any(True for _ in _uses(connection, level, max_depth + 1, of_any_version=max_depth == 0))
    return Descendants(uses=tuple(found.values()), cut_off=more)


def normalised(kind: str, name: str, version: int | None) -> Thing:
    """An edge's thing as it is stored: names in the catalog in lower case, a version in the name moved to `version`."""
    names.check_edge_kind(kind, "kind")
    if not name:
        raise BadRequest(f"the {kind} of an edge needs a name", param="name")
    check_version(kind, name, version)
    if kind == "table":
        name, written = names.parse_table_version(name)
    elif kind == "model" and ("/" in name or "@" in name):
        asked = names.parse_model_version(name)
        if asked.alias is not None:
            raise BadRequest(
                f"an edge needs the exact version; {name!r} is an alias, which can be moved: look it up first",
                param="name",
            )
        name, written = asked.model, asked.version
    elif kind in ("model", "index", "endpoint"):
        name, written = names.parse_object(name, kind), None
    else:
        written = None
    if written is not None and version is not None and written != version:
        raise BadRequest(f"{kind} {name!r} is given at two versions, {written} and {version}", param="version")
    return Thing(kind, name, written if version is None else version)


def check_version(kind: str, name: str, version: int | None) -> None:
    """Raises BadRequest for what cannot be a version."""
    if version is None or (type(version) is int and 0 <= version <= LARGEST_VERSION):
        return
    raise BadRequest(
        f"version {version!r} of {kind} {name!r} must be a whole number from 0 to {LARGEST_VERSION}, or None",
        param="version",
    )


def _known(connection: sa.Connection, asked: Thing, at: datetime | None) -> _Known:
    """A name as somebody said it at a moment; with None as somebody says it today: what bears it, or bore it last."""
    bearer = bearer_at(list_bearers(connection, asked.kind, asked.name), at)
    return _Known(asked, None if bearer is None else bearer.id)


def _of_edge(edge: RunEdge) -> _Known:
    return _Known(Thing(edge.kind, edge.name, edge.version), edge.securable_id)


def _is_of(direction: str, known: _Known) -> sa.ColumnElement[bool]:
    """The edges of a thing at any version."""
    chosen = (
        (run_edge.c.direction == direction)
        & (run_edge.c.kind == known.thing.kind)
        & (run_edge.c.name == known.thing.name)
    )
    if known.securable_id is None:
        return chosen
    return chosen & (run_edge.c.securable_id.is_(None) | (run_edge.c.securable_id == known.securable_id))


class _Origin(NamedTuple):
    """What made a thing."""

    made_at: int | None
    """Of a table the newest version, up to the one asked about, that a recorded run wrote."""
    runs: tuple[str, ...]
    """Oldest first."""
    read: tuple[tuple[RunEdge, tuple[int, ...]], ...]
    """What these runs read, the newest run's first, each thing once; of a table with the older versions that were read
    and whose rows it may still have."""


class _Writes:
    """The runs that made things, as far back as their rows may still be there. What was asked once is known."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._replaced: dict[_Known, list[int]] = {}
        self._walked: dict[tuple[_Known, int], int] = {}

    def life(self, known: _Known) -> int:
        """The version with which the rows of this version of a table began: the last one that replaced all, or 0."""
        assert known.thing.version is not None
        table = _at(known, None)
        if table not in self._replaced:
            self._replaced[table] = _replaced(self._connection, table, 0)
        replaced = self._replaced[table]
        place = bisect_right(replaced, known.thing.version)
        return replaced[place - 1] if place else 0

    def runs(self, things: Iterable[_Known]) -> set[str]:
        """The runs that made these, less those that were told before by way of the same version of a table."""
        versions: dict[_Known, set[int | None]] = defaultdict(set)
        for known in things:
            versions[_at(known, None)].add(known.thing.version)
        found = set[str]()
        for known, asked in versions.items():
            for chosen in self._made_at(known, asked):
                query = sa.select(run_edge.c.run_id).distinct().where(_is_of("output", known), chosen)
                found.update(self._connection.execute(query).scalars())
        return found

    def _made_at(self, known: _Known, asked: set[int | None]) -> Iterator[sa.ColumnElement[bool]]:
        """Conditions that together hold for the writes of these versions."""
        if None in asked:
            yield sa.true()
            return
        numbers = sorted(version for version in asked if version is not None)
        if known.thing.kind == "table":
            spans = [run_edge.c.version.between(*span) for span in self._new_spans(known, numbers)]
        else:
            spans = [run_edge.c.version.in_(numbers[i : i + _CHUNK]) for i in range(0, len(numbers), _CHUNK)]
        for start in range(0, len(spans), _CONDITIONS):
            yield sa.or_(*spans[start : start + _CONDITIONS])

    def _new_spans(self, table: _Known, versions: list[int]) -> Iterator[tuple[int, int]]:
        """For each life of the table the versions in it that were not walked yet, up to the newest that is asked."""
        newest = {self.life(_at(table, version)): version for version in versions}
        for first, last in newest.items():
            walked = self._walked.get((table, first), first - 1)
            if last > walked:
                self._walked[table, first] = last
                yield walked + 1, last


class _Trace:
    """One walk upward. Things are looked up once, nodes made once for each depth at which they stand."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._writes = _Writes(connection)
        self._origins: dict[_Known, _Origin] = {}
        self._nodes: dict[tuple[_Known, int], LineageNode] = {}

    def node(self, asked: _Known, edge: RunEdge | None, depth: int, path: tuple[_Known, ...]) -> LineageNode:
        return self._node(asked, depth, path).model_copy(update={"detail": edge and edge.detail})

    def _node(self, asked: _Known, depth: int, path: tuple[_Known, ...]) -> LineageNode:
        if (asked, depth) in self._nodes:
            return self._nodes[asked, depth]
        if asked not in self._origins:
            self._origins[asked] = self._origin(asked)
        origin = self._origins[asked]
        ends_here = any(self._has_origins_of(asked, below) for below in path)
        read = () if ends_here else origin.read
        parents = []
        if depth > 0:
            for edge, earlier in read:
                parent = self.node(_of_edge(edge), edge, depth - 1, (*path, asked))
                parents.append(parent.model_copy(update={"earlier_versions": earlier}) if earlier else parent)
        node = LineageNode(
            **asked.thing._asdict(),
            securable_id=asked.securable_id,
            run_id=origin.runs[-1] if origin.runs else None,
            earlier_runs=max(len(origin.runs) - 1, 0),
            made_at_version=origin.made_at,
            cut_off=depth == 0 and bool(read),
            parents=parents,
        )
        if not ends_here:
            self._nodes[asked, depth] = node
        return node

    def _has_origins_of(self, asked: _Known, below: _Known) -> bool:
        """Whether all that a thing came from stands above another already, on whose way it is."""
        if asked == below:
            return True
        first, last = asked.thing.version, below.thing.version
        if asked.thing.kind != "table" or first is None or last is None or _at(asked, None) != _at(below, None):
            return False
        return first <= last and self._writes.life(asked) == self._writes.life(below)

    def _origin(self, known: _Known) -> _Origin:
        asked, chosen = known.thing, _is_of("output", known)
        if asked.version is not None and asked.kind == "table":
            chosen &= run_edge.c.version.between(self._writes.life(known), asked.version)
        elif asked.version is not None:
            chosen &= run_edge.c.version == asked.version
        query = sa.select(run_edge.c.run_id, run_edge.c.version).where(chosen)
        made = {(run_id, version) for run_id, version in self._connection.execute(query)}
        if asked.version is None:
            made_at = None
        else:
            made_at = max((version for _, version in made), default=None if asked.kind == "table" else asked.version)
        # By version, since a run that began early may have written last.
        runs = list(dict.fromkeys(run_id for run_id, _ in sorted(made, key=_newest_first)))
        inputs = _edges_by_run(self._connection, runs, "input")
        read = self._merged(edge for run_id in runs for edge in _edges(inputs[run_id]))
        return _Origin(made_at, tuple(runs[::-1]), tuple(read))

    def _merged(self, edges: Iterable[RunEdge]) -> list[tuple[RunEdge, tuple[int, ...]]]:
        """Each thing once; of a table the newest version of each of its lives."""
        groups: dict[Hashable, dict[int | None, RunEdge]] = defaultdict(dict)
        for edge in edges:
            known = _of_edge(edge)
            if edge.kind == "table" and edge.version is not None:
                key: Hashable = (_at(known, None), self._writes.life(known))
            else:
                key = (known, json.dumps(edge.detail, sort_keys=True))
            groups[key].setdefault(edge.version, edge)
        merged = []
        for versions in groups.values():
            newest = max(versions, key=lambda version: version or 0)
            earlier = tuple(sorted(version for version in versions if version is not None and version != newest))
            merged.append((versions[newest], earlier))
        return merged


def _newest_first(made: tuple[str, int | None]) -> tuple[int, list[int]]:
    run_id, version = made
    return -(version or 0), [-ord(letter) for letter in run_id]


def _at(known: _Known, version: int | None) -> _Known:
    return known._replace(thing=known.thing._replace(version=version))


def _replaced(connection: sa.Connection, table: _Known, first: int) -> list[int]:
    """The versions of a table, `first` or later, that are known to have replaced all rows; sorted."""
    query = sa.select(run_edge.c.version).where(
        _is_of("output", table),
        run_edge.c.version >= first,
        run_edge.c.detail["mode"].as_string() == "overwrite",
    )
    return sorted(set(connection.execute(query).scalars()))


def _uses(connection: sa.Connection, things: Iterable[_Known], depth: int, *, of_any_version: bool) -> Iterator[Use]:
    """The runs that read one of the things, with what they made; `of_any_version`: of things without a version too."""
    versions: dict[_Known, list[int | None]] = defaultdict(list)
    for known in things:
        versions[_at(known, None)].append(known.thing.version)
    read: list[Row] = []
    for known, asked in versions.items():
        for chosen in _versions_read(connection, known, asked, of_any_version):
            query = sa.select(run_edge).where(_is_of("input", known), chosen).order_by(run_edge.c.sequence)
            read.extend(connection.execute(query))
    ids = sorted({edge.run_id for edge in read})
    runs = {row.id: row for row in _in_chunks(connection, sa.select(run), run.c.id, ids)}
    outputs = _edges_by_run(connection, ids, "output")
    made = {run_id: tuple(_edges(outputs[run_id])) for run_id in ids}
    for edge in read:
        row = runs[edge.run_id]
        yield Use(
            run_id=row.id,
            run_kind=row.kind,
            run_name=row.name,
            started_at=row.started_at,
            runs_between=depth,
            read=_edges([edge])[0],
            made=made[row.id],
        )


def _versions_read(
    connection: sa.Connection, known: _Known, asked: list[int | None], of_any_version: bool
) -> Iterator[sa.ColumnElement[bool]]:
    """Conditions that together hold for the reads which see one of these versions of a thing."""
    if None in asked and of_any_version:
        yield sa.true()
        return
    yield run_edge.c.version.is_(None)  # read without saying at which version
    numbers = sorted(version for version in asked if version is not None)
    if known.thing.kind != "table":
        for start in range(0, len(numbers), _CHUNK):
            yield run_edge.c.version.in_(numbers[start : start + _CHUNK])
    elif numbers:
        for first, end in _lives(connection, known, numbers):
            yield run_edge.c.version >= first if end is None else run_edge.c.version.between(first, end - 1)


def _lives(connection: sa.Connection, table: _Known, versions: list[int]) -> Iterator[tuple[int, int | None]]:
    """From which version to before which one (None: to the newest) one of these versions of a table lives on.

    Sorted, and none of them overlap.
    """
    ends = _replaced(connection, table, versions[0] + 1)
    covered = -1
    for version in versions:
        if version >= covered:
            place = bisect_right(ends, version)
            yield version, ends[place] if place < len(ends) else None
            if place == len(ends):
                return
            covered = ends[place]


def _in_chunks(
    connection: sa.Connection, query: sa.Select[*tuple[Any, ...]], column: sa.ColumnElement[Any], values: list[str]
) -> Iterator[Row]:
    for start in range(0, len(values), _CHUNK):
        yield from connection.execute(query.where(column.in_(values[start : start + _CHUNK])))


def _check_detail(direction: str, detail: Mapping[str, Any]) -> None:
    """What has a meaning here has to have its form; what else a detail says is its writer's."""
    if direction == "output":
        mode = detail.get("mode")
        if mode is not None and mode not in WRITE_MODES:
            raise BadRequest(f"detail.mode = {mode!r} must be one of {list(WRITE_MODES)}", param="detail")
        return
    columns, predicate = detail.get("columns"), detail.get("predicate")
    if columns is not None and not (isinstance(columns, list) and all(isinstance(name, str) for name in columns)):
        raise BadRequest(f"detail.columns = {columns!r} must be a list of names", param="detail")
    if predicate is not None and not (isinstance(predicate, str) and predicate.strip()):
        raise BadRequest(
            f"detail.predicate = {predicate!r} must be a SQL condition on the table's rows", param="detail"
        )


def _get_row(connection: sa.Connection, run_id: str, *, lock: bool = False) -> Row:
    query = sa.select(run).where(run.c.id == run_id)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        newest = connection.execute(sa.select(run.c.id).order_by(run.c.id.desc()).limit(20)).scalars()
        raise not_found("run", run_id, newest, param="run_id")
    return row


def _as_runs(connection: sa.Connection, rows: Sequence[Row]) -> list[Run]:
    edges = _edges_by_run(connection, [row.id for row in rows])
    return [_as_run(row, edges[row.id]) for row in rows]


def _edges_by_run(
    connection: sa.Connection, run_ids: list[str], direction: str | None = None
) -> Mapping[str, list[Row]]:
    """Of each run its edges, of one direction or of all, as they were noted."""
    found: dict[str, list[Row]] = defaultdict(list)
    query = sa.select(run_edge).order_by(run_edge.c.sequence)
    if direction is not None:
        query = query.where(run_edge.c.direction == direction)
    for edge in _in_chunks(connection, query, run_edge.c.run_id, run_ids):
        found[edge.run_id].append(edge)
    return found


def _as_run(row: Row, edges: list[Row]) -> Run:
    return Run(
        run_id=row.id,
        **{name: getattr(row, name) for name in _RUN_FIELDS},
        metrics={name: float(value) for name, value in row.metrics.items()},
        inputs=_edges(edge for edge in edges if edge.direction == "input"),
        outputs=_edges(edge for edge in edges if edge.direction == "output"),
        code=next(iter(_edges(edge for edge in edges if edge.direction == "code")), None),
    )


@cache
def _program() -> tuple[str, dict[str, Any]]:
    """What this process runs, as the code of its runs: a script with its checksum, otherwise mosaic at its version."""
    detail: dict[str, Any] = {"mosaic": metadata.version("mosaic")}
    path = Path(getattr(sys.modules.get("__main__"), "__file__", None) or ".").resolve()
    if not path.is_file() or path.is_relative_to(sys.prefix):
        return "mosaic", detail  # no script of the user's: a worker of Ray's, a command, a prompt
    detail["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name, detail


_RUN_FIELDS = ("kind", "name", "principal", "params", "status", "mlflow_run_id", "started_at", "finished_at")


def _edges(rows: Iterable[Row]) -> list[RunEdge]:
    return [RunEdge(**{name: getattr(row, name) for name in RunEdge.model_fields}) for row in rows]
