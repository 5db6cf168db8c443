"""Runs, and what each read and made at which exact version; from these edges anything can be followed to its origin."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from mosaic.catalog import names
from mosaic.catalog.records import LineageNode, Run, RunEdge
from mosaic.catalog.schema import run, run_edge
from mosaic.catalog.securables import Row
from mosaic.errors import BadRequest, Conflict, not_found
from mosaic.ids import new_id

END_STATES = ("finished", "failed", "cancelled")


class Thing(NamedTuple):
    """Something at a version, as edges name it."""

    kind: str
    name: str
    version: int | None


def start(connection: sa.Connection, *, now: datetime, **columns: Any) -> str:
    """Write down a run that starts; its id."""
    run_id = new_id("run")
    values = {"status": "running", "metrics": {}, "started_at": now, **columns}
    connection.execute(run.insert().values(id=run_id, **values))
    return run_id


def add_edge(
    connection: sa.Connection, run_id: str, direction: str, thing: Thing, detail: dict[str, Any] | None
) -> None:
    """Write down that a running run read or made something; the same edge again replaces the detail."""
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
    )


_RUN_FIELDS = ("kind", "name", "principal", "params", "status", "mlflow_run_id", "started_at", "finished_at")


def _edges(rows: Iterable[Row]) -> list[RunEdge]:
    return [RunEdge(kind=row.kind, name=row.name, version=row.version, detail=row.detail) for row in rows]
