"""What depends on a table, or on some of its rows: the thread of `thread.py`, followed the other way.

From the table over the runs that read it, to the tables, indexes and model versions that these made, and so on; then
to the answers that a found model version gave, or that were given rows by a found index.

With a predicate, rows are known where they are recorded: which rows an index held and an answer was given. A run that
read a table is only known to have read a version with such rows in it, so what it made may or may not depend on them;
`known` says which it is.

How cost grows: with the recorded uses that are found (two queries for each name), with the rows of the inference table
since the first found version (one pass, files without a hit skipped), and with a predicate by one search of the table
for each of at most 32 versions that runs or answers read.
"""

import functools
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from pydantic import Field

from mosaic.catalog import Catalog, RunEdge, Table, parse_table_version
from mosaic.catalog.lineage import Descendants, Use, check_version
from mosaic.catalog.privileges import MANAGE
from mosaic.data import Tables
from mosaic.errors import BadRequest
from mosaic.monitoring.answers import Found, Named, Sought, find_answers
from mosaic.monitoring.bearers import Bearers
from mosaic.monitoring.selection import VERSIONS_LOOKED_AT, Selection
from mosaic.monitoring.viewer import Viewer
from mosaic.protocol import Principal, Wire

ANSWERS_NAMED = 20
MOST_ANSWERS_NAMED = 10_000
_RUNS_NAMED = 10
_ORDER = {"model": 0, "index": 1, "table": 2}
_NEVER = datetime.max.replace(tzinfo=UTC)

Known = Literal["table", "rows"]
"""`rows`: it holds, or was given, rows that were asked about. `table`: it was made from a version of the table."""


class Dependent(Wire):
    """Something that was made from the table, directly or by way of others."""

    kind: str
    """`model`, `index`, `table`, ...; of what the caller may not know of, the kind is all that is said."""
    withheld: bool = False
    name: str | None = None
    versions: tuple[int, ...] = ()
    """Oldest first; empty for what has none."""
    aliases: dict[str, int] = Field(default_factory=dict)
    """Of a model: those that point at one of the versions now."""
    deleted: bool = False
    """Whether the catalog no longer has it; another may have its name by now."""
    runs: tuple[str, ...] = ()
    """Runs that made these versions, oldest first; of many the last ones."""
    made_from: tuple[str, ...] = ()
    """What those runs read on the way from the table, such as `table main.docs.entries@3`."""
    runs_between: int = 1
    """1 if it was made from the table itself."""
    known: Known = "table"
    matching_rows: int | None = None
    """How many of the rows asked about its newest version was made from; None if no rows were asked about, if it was
    not made from the table itself, or if they cannot be counted any more."""
    answers: int = 0
    """How many answers came by way of it."""


class Answer(Wire):
    request_id: str
    time: datetime
    principal: str | None
    endpoint: str | None
    through: tuple[str, ...]
    """`model main.ml.bot/3`, `index main.docs.entries_index, version 7`."""
    known: Known


class Answers(Wire):
    total: int
    given_rows: int
    """Those that are known to have been given rows that were asked about; 0 if no rows were."""
    by_endpoint: dict[str, int]
    """Those of endpoints that the caller may not know of are in `total` alone."""
    newest: tuple[Answer, ...]
    """Newest first; only of endpoints that the caller manages."""
    limit: int


class Impact(Wire):
    """All that is downstream of a table."""

    table: str
    version: int | None
    """None: of any version."""
    where: str | None
    dependents: tuple[Dependent, ...]
    """Models first, then indexes, then tables and the rest."""
    answers: Answers
    cut_off: bool
    """Whether there is more downstream that was not followed, since the path is too long."""
    notes: tuple[str, ...]
    """What this answer does not know."""


def impact(
    tables: Tables,
    catalog: Catalog,
    table: str,
    *,
    where: str | None = None,
    version: int | None = None,
    limit: int = ANSWERS_NAMED,
    principal: Principal | None = None,
) -> Impact:
    """Every model version, index and answer downstream of a table (`name` or `name@version`).

    `where` is a SQL condition on its rows. For a principal, who needs SELECT on the table or MANAGE, things that it may
    not BROWSE are withheld, and only the answers of endpoints that it manages are named. Raises NotFound, BadRequest,
    PermissionDenied.
    """
    name, version = _table_and_version(table, version)
    if not 0 <= limit <= MOST_ANSWERS_NAMED:
        raise BadRequest(f"limit = {limit} must be from 0 to {MOST_ANSWERS_NAMED}", param="limit")
    viewer = Viewer(catalog, principal)
    if principal is not None and not viewer.may(MANAGE, "table", name):
        catalog.grants.check(principal, "SELECT", "table", name, action="getTableImpact")
    tables.delta(name, version)  # a table and a version that exist
    record = catalog.get_table(name)
    selection = None if where is None else Selection(tables, name, where)
    found = _downstream(catalog, name, version, selection)
    sought = _sought(catalog, viewer.bearers, record, version, found, selection)
    answers = find_answers(tables, sought, limit, viewer.managed)
    return Impact(
        table=name,
        version=version,
        where=where,
        dependents=tuple(_dependents(catalog, viewer, record, found, selection, answers)),
        answers=_answers(viewer, answers, limit),
        cut_off=found.cut_off,
        notes=tuple(_notes(selection, answers)),
    )


def _table_and_version(table: str, version: int | None) -> tuple[str, int | None]:
    name, written = parse_table_version(table)
    check_version("table", name, version)
    if written is not None and version is not None and written != version:
        raise BadRequest(f"table {name!r} is given at two versions, {written} and {version}", param="version")
    return name, written if version is None else version


def _downstream(catalog: Catalog, name: str, version: int | None, selection: Selection | None) -> Descendants:
    """Without the uses of versions that are known to hold no row that was asked about."""
    if selection is None:
        return catalog.descendants("table", name, version)
    direct = catalog.descendants("table", name, version, max_depth=1).uses
    newest_first = sorted(direct, key=lambda use: use.read.version or 0, reverse=True)
    without = [(use.run_id, use.read.version) for use in newest_first if _rows_read(use, selection) == 0]
    return catalog.descendants("table", name, version, without=without)


def _rows_read(use: Use, selection: Selection) -> int | None:
    """How many of the rows asked about were in what a run read."""
    if use.read.version is None:
        return None
    return selection.count(use.read.version, (use.read.detail or {}).get("predicate"))


def _sought(
    catalog: Catalog,
    bearers: Bearers,
    table: Table,
    version: int | None,
    found: Descendants,
    selection: Selection | None,
) -> Sought:
    sought = Sought(since=min((use.started_at for use in found.uses), default=_NEVER))
    directly = set[Named]()
    for use in found.uses:
        for made in use.made:
            if made.version is None or made.kind not in ("model", "index"):
                continue
            named = Named(made.name, bearers.of(made.kind, made.name, made.securable_id))
            of_kind = sought.models if made.kind == "model" else sought.indexes
            of_kind.setdefault(named, set()).add(made.version)
            if made.kind == "index" and _is_of(use, table):
                directly.add(named)
    key_columns: dict[Named, str | None] = dict.fromkeys(directly, table.primary_key)
    for index in catalog.list_indexes():
        if index.table == table.name:
            named = Named(index.name, index.id)
            key_columns[named] = index.spec.get("primary_key", table.primary_key)
            if version is None:
                # Whatever it was asked came from the table, whether or not every sync of it was written down.
                sought.indexes[named] = set()
                sought.since = min(sought.since, index.created_at)
    if selection is not None:
        for named, column in key_columns.items():
            if column is not None:
                sought.keys[named] = functools.partial(selection.keys, column=column)
    for kind, of_kind in (("model", sought.models), ("index", sought.indexes)):
        for named in of_kind:
            if len(bearers.all(kind, named.name)) > 1:
                sought.spans[named] = bearers.spans(kind, *named)
    return sought


def _is_of(use: Use, table: Table) -> bool:
    return (use.read.kind, use.read.name) == ("table", table.name) and use.read.securable_id in (None, table.id)


def _dependents(
    catalog: Catalog, viewer: Viewer, table: Table, found: Descendants, selection: Selection | None, answers: Found
) -> list[Dependent]:
    groups: dict[_Borne, _Group] = defaultdict(lambda: _Group([], set()))
    for use in found.uses:
        for made in use.made:
            bearer = viewer.bearers.of(made.kind, made.name, made.securable_id)
            group = groups[_Borne(made.kind, made.name, made.version if made.kind == "model" else None, bearer)]
            group.uses.append(use)
            if made.version is not None:
                group.versions.add(made.version)
    for index in answers.by_index:
        groups[_Borne("index", index.name, None, index.securable_id)]
    drawn = [_Drawn(catalog, viewer, table, selection, answers)(thing, group) for thing, group in groups.items()]
    return sorted(drawn, key=lambda one: (_ORDER.get(one.kind, len(_ORDER)), one.runs_between, one.name or ""))


class _Borne(NamedTuple):
    """A thing, and which bearer of its name; `version` of a model alone."""

    kind: str
    name: str
    version: int | None
    securable_id: str | None


class _Group(NamedTuple):
    """The uses that made a thing, and its versions that they made."""

    uses: list[Use]
    versions: set[int]


@dataclass(frozen=True)
class _Drawn:
    """From a thing and the uses that made it to what is shown of it."""

    catalog: Catalog
    viewer: Viewer
    table: Table
    selection: Selection | None
    answers: Found

    def __call__(self, thing: _Borne, group: _Group) -> Dependent:
        if not self.viewer.may_browse(thing.kind, thing.name, thing.securable_id):
            return Dependent(kind=thing.kind, withheld=True)
        uses, rows = group.uses, None
        if self.selection is not None and any(_is_of(use, self.table) for use in uses):
            rows = _rows_read([use for use in uses if _is_of(use, self.table)][-1], self.selection)
        named = Named(thing.name, thing.securable_id)
        given = {
            "model": self.answers.by_model[named, thing.version or 0],
            "index": self.answers.by_index[named],
        }
        aliases, deleted = self._standing(thing)
        return Dependent(
            kind=thing.kind,
            name=thing.name,
            versions=tuple(sorted(group.versions)),
            aliases=aliases,
            deleted=deleted,
            runs=tuple(dict.fromkeys(use.run_id for use in uses))[-_RUNS_NAMED:],
            made_from=tuple(dict.fromkeys(self._origin(use.read) for use in uses))[-_RUNS_NAMED:],
            runs_between=min((use.runs_between for use in uses), default=1),
            known="rows" if thing.kind == "index" and rows is not None else "table",
            matching_rows=rows,
            answers=given.get(thing.kind, 0),
        )

    def _standing(self, thing: _Borne) -> tuple[dict[str, int], bool]:
        """The aliases of a model that point at the version now, and whether the thing is gone from the catalog."""
        if thing.kind not in ("model", "table", "index"):
            return {}, False
        living = self.viewer.bearers.living(thing.kind, thing.name)
        if living is None or thing.securable_id not in (None, living):
            return {}, True
        model = self.catalog.find_model(thing.name) if thing.kind == "model" else None
        if model is None:
            return {}, thing.kind == "model"
        aliases = {alias: version for alias, version in model.aliases.items() if version == thing.version}
        return aliases, thing.version not in model.versions

    def _origin(self, read: RunEdge) -> str:
        if not self.viewer.may_browse(read.kind, read.name, read.securable_id):
            return f"{read.kind}, withheld"
        return f"{read.kind} {read.name}" + ("" if read.version is None else f"@{read.version}")


def _answers(viewer: Viewer, found: Found, limit: int) -> Answers:
    named = {endpoint: n for endpoint, n in found.by_endpoint.items() if endpoint is not None}
    newest = []
    for row in found.newest:
        through = []
        if row["through_model"]:
            through.append(("model", row["model"], f"{row['model']}/{row['model_version']}"))
        if row["through_index"]:
            index = row["retrieved_index"]
            through.append(("index", index, f"{index}, version {row['retrieved_version']}"))
        newest.append(
            Answer(
                request_id=row["request_id"],
                time=row["request_time"],
                principal=row["principal"],
                endpoint=row["endpoint"],
                through=tuple(
                    f"{kind} {shown}" if viewer.may_browse_at(kind, name, row["request_time"]) else f"{kind}, withheld"
                    for kind, name, shown in through
                ),
                known="rows" if row["given_rows"] else "table",
            )
        )
    return Answers(
        total=sum(found.by_endpoint.values()),
        given_rows=found.given_rows,
        by_endpoint={name: n for name, n in sorted(named.items()) if viewer.may_browse("endpoint", name)},
        newest=tuple(newest),
        limit=limit,
    )


def _notes(selection: Selection | None, found: Found) -> list[str]:
    if selection is None:
        return []
    notes = [
        "which rows of a version a run used is not recorded: models and tables are named if their runs read a version "
        "with such rows in it"
    ]
    if selection.not_searched:
        notes.append(
            f"{len(selection.not_searched)} versions of the table were not searched (at most {VERSIONS_LOOKED_AT} are, "
            "and the files of some may be gone): what was made from them is named as if they held such rows, with "
            f"{found.undecided} answers"
        )
    return notes
