"""Runs, and what each read and made at which exact version; from these edges anything can be followed to its origin
(`trace`), and to all that was made from it (`descendants`).

What an edge's detail may say about a table: of an input the `columns` and the `predicate` that were read (without them:
the whole table), of an output the `mode` of the write (`overwrite`: nothing of the versions before is left in it).
"""

import hashlib
import sys
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa

from mosaic.catalog import names
from mosaic.catalog.records import LineageNode, Run, RunEdge
from mosaic.catalog.schema import run, run_edge
from mosaic.catalog.securables import Row
from mosaic.errors import BadRequest, Conflict, not_found
from mosaic.ids import new_id
from mosaic.protocol import Wire

END_STATES = ("finished", "failed", "cancelled")
WRITE_MODES = ("append", "delete", "merge", "overwrite")

_CHUNK = 500
"""Values in one statement: SQLite has a limit."""


class Thing(NamedTuple):
    """Something at a version, as edges name it."""

    kind: str
    name: str
    version: int | None


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
    chosen = (
        (run_edge.c.run_id == run_id)
        & (run_edge.c.direction == direction)
        & (run_edge.c.kind == thing.kind)
        & (run_edge.c.name == thing.name)
        & (run_edge.c.version.is_(None) if thing.version is None else run_edge.c.version == thing.version)
    )
    if connection.execute(run_edge.update().where(chosen).values(detail=detail)).rowcount == 0:
        values = {"run_id": run_id, "direction": direction, **thing._asdict(), "detail": detail}
        connection.execute(run_edge.insert().values(values))


def finish(connection: sa.Connection, run_id: str, *, now: datetime, **columns: Any) -> None:
    """End a run; raises Conflict if it has ended before."""
    row = _get_row(connection, run_id, lock=True)
    if row.status != "running":
        raise Conflict(f"run {run_id} is already {row.status}", param="run_id")
    connection.execute(run.update().where(run.c.id == run_id).values(finished_at=now, **columns))


def get(connection: sa.Connection, run_id: str) -> Run:
    """A run with its edges; raises NotFound with the newest runs."""
    return _as_run(connection, _get_row(connection, run_id))


def list_runs(connection: sa.Connection, kind: str | None, status: str | None, limit: int) -> list[Run]:
    """Runs, newest first."""
    query = sa.select(run).order_by(run.c.id.desc()).limit(limit)
    if kind is not None:
        query = query.where(run.c.kind == kind)
    if status is not None:
        query = query.where(run.c.status == status)
    return [_as_run(connection, row) for row in connection.execute(query).all()]


def runs_with(connection: sa.Connection, direction: str, thing: Thing) -> list[Run]:
    """The runs with that edge at exactly that version (None: at any version), oldest first."""
    chosen = (run_edge.c.direction == direction) & (run_edge.c.kind == thing.kind) & (run_edge.c.name == thing.name)
    if thing.version is not None:
        chosen &= run_edge.c.version == thing.version
    ids = sa.select(run_edge.c.run_id).where(chosen)
    rows = connection.execute(sa.select(run).where(run.c.id.in_(ids)).order_by(run.c.id)).all()
    return [_as_run(connection, row) for row in rows]


def trace(connection: sa.Connection, asked: Thing, max_depth: int) -> LineageNode:
    """What a thing was made from, and that from what, up to what no recorded run made.

    Nodes that several runs share are one value in the tree. A thing that was made from itself ends there, and a path of
    more than `max_depth` runs is cut off, which its last node says.
    """
    return _Trace(connection).node(asked, None, max_depth, ())


def descendants(
    connection: sa.Connection, asked: Thing, max_depth: int, without: Collection[tuple[str, int | None]] = ()
) -> Descendants:
    """All that was made from a thing, directly or by way of other things; every thing is looked up once.

    Level by level, in a few queries for each name that a level holds: the cost grows with the edges that are found.
    With version None every use of the thing counts. `without` are uses of it to leave out: run and the version it read.

    A version of a table lives on in later ones until a write that is known to replace all rows (mode `overwrite`): a
    later version may hold rows of it, and so may what was made from that.
    """
    found: dict[tuple[str, Thing], Use] = {}
    left_out, seen, level = set(without), {asked}, {asked}
    for depth in range(1, max_depth + 1):
        uses = list(_uses(connection, level, depth, of_any_version=depth == 1))
        if depth == 1:
            uses = [use for use in uses if (use.run_id, use.read.version) not in left_out]
        for use in uses:
            found.setdefault((use.run_id, Thing(use.read.kind, use.read.name, use.read.version)), use)
        level = {Thing(made.kind, made.name, made.version) for use in uses for made in use.made} - seen
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
    if version is not None and (isinstance(version, bool) or not isinstance(version, int) or version < 0):
        raise BadRequest(
            f"version {version!r} of {kind} {name!r} must be a whole number from 0, or None", param="version"
        )
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


class _Trace:
    """One walk upward. Things are looked up once, nodes made once for each depth at which they stand."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._origins: dict[Thing, tuple[int | None, list[Run]]] = {}
        self._nodes: dict[tuple[Thing, int], LineageNode] = {}

    def node(self, asked: Thing, detail: dict[str, Any] | None, depth: int, path: tuple[Thing, ...]) -> LineageNode:
        if (asked, depth) in self._nodes:
            return self._nodes[asked, depth].model_copy(update={"detail": detail})
        if asked not in self._origins:
            self._origins[asked] = _origin(self._connection, asked)
        made_at, runs = self._origins[asked]
        read = [] if asked in path else [edge for made_by in runs for edge in made_by.inputs]
        parents = []
        if depth > 0:
            for edge in read:
                thing = Thing(edge.kind, edge.name, edge.version)
                parents.append(self.node(thing, edge.detail, depth - 1, (*path, asked)))
        node = LineageNode(
            **asked._asdict(),
            detail=detail,
            run_id=runs[-1].run_id if runs else None,
            made_at_version=made_at,
            cut_off=depth == 0 and bool(read),
            parents=parents,
        )
        if asked not in path:
            self._nodes[asked, depth] = node
        return node


def _origin(connection: sa.Connection, asked: Thing) -> tuple[int | None, list[Run]]:
    """The version at which a thing was made, and the runs that made it.

    A table's rows at a version that no run is known to have written come from the newest recorded write before it.
    """
    if asked.kind != "table" or asked.version is None:
        return asked.version, runs_with(connection, "output", asked)
    newest = sa.select(sa.func.max(run_edge.c.version)).where(
        run_edge.c.direction == "output",
        run_edge.c.kind == asked.kind,
        run_edge.c.name == asked.name,
        run_edge.c.version <= asked.version,
    )
    made_at = connection.execute(newest).scalar()
    return made_at, [] if made_at is None else runs_with(connection, "output", asked._replace(version=made_at))


def _uses(connection: sa.Connection, things: Iterable[Thing], depth: int, *, of_any_version: bool) -> Iterator[Use]:
    """The runs that read one of the things, with what they made; `of_any_version`: of things without a version too."""
    versions: dict[tuple[str, str], list[int | None]] = defaultdict(list)
    for thing in things:
        versions[thing.kind, thing.name].append(thing.version)
    read: list[Row] = []
    for (kind, name), asked in versions.items():
        of_name = (run_edge.c.direction == "input") & (run_edge.c.kind == kind) & (run_edge.c.name == name)
        for chosen in _versions_read(connection, kind, name, asked, of_any_version):
            query = sa.select(run_edge).where(of_name, chosen).order_by(run_edge.c.sequence)
            read.extend(connection.execute(query))
    ids = sorted({edge.run_id for edge in read})
    runs = {row.id: row for row in _in_chunks(connection, sa.select(run), run.c.id, ids)}
    outputs_of: dict[str, list[Row]] = defaultdict(list)
    outputs = sa.select(run_edge).where(run_edge.c.direction == "output").order_by(run_edge.c.sequence)
    for edge in _in_chunks(connection, outputs, run_edge.c.run_id, ids):
        outputs_of[edge.run_id].append(edge)
    made = {run_id: tuple(_edges(outputs_of[run_id])) for run_id in ids}
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
    connection: sa.Connection, kind: str, name: str, asked: list[int | None], of_any_version: bool
) -> Iterator[sa.ColumnElement[bool]]:
    """Conditions that together hold for the reads which see one of these versions of a thing."""
    if None in asked and of_any_version:
        yield sa.true()
        return
    yield run_edge.c.version.is_(None)  # read without saying at which version
    numbers = sorted(version for version in asked if version is not None)
    if kind != "table":
        for start in range(0, len(numbers), _CHUNK):
            yield run_edge.c.version.in_(numbers[start : start + _CHUNK])
    elif numbers:
        for first, end in _lives(connection, name, numbers):
            yield run_edge.c.version >= first if end is None else run_edge.c.version.between(first, end - 1)


def _lives(connection: sa.Connection, table: str, versions: list[int]) -> Iterator[tuple[int, int | None]]:
    """From which version to before which one (None: to the newest) one of these versions of a table lives on.

    Sorted, and none of them overlap.
    """
    of_table = (run_edge.c.direction == "output") & (run_edge.c.kind == "table") & (run_edge.c.name == table)
    replaced = sa.select(run_edge.c.version).where(
        of_table, run_edge.c.version > versions[0], run_edge.c.detail["mode"].as_string() == "overwrite"
    )
    ends = sorted(set(connection.execute(replaced).scalars()))
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


def _as_run(connection: sa.Connection, row: Row) -> Run:
    query = sa.select(run_edge).where(run_edge.c.run_id == row.id).order_by(run_edge.c.sequence)
    edges = connection.execute(query).all()
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
    return [RunEdge(kind=row.kind, name=row.name, version=row.version, detail=row.detail) for row in rows]
