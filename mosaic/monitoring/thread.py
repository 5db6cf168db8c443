"""The thread behind an answer: from a request's id to the model version, its run, the tables' versions, the retrieved
rows and the raw sources. `impact.py` follows it the other way.

Start at `why`. A thread is drawn for somebody: what that principal may not BROWSE is withheld, its kind alone is said,
and so is what hangs on it without being a securable itself (its run, its sources).
"""

from contextlib import suppress
from datetime import datetime
from typing import Any

from pydantic import Field

from mosaic.catalog import Catalog, LineageNode, Run
from mosaic.catalog.bearers import is_within
from mosaic.catalog.names import parse_object
from mosaic.catalog.privileges import PRIVILEGES
from mosaic.data import Tables
from mosaic.errors import BadRequest, MosaicError, NotFound, PermissionDenied
from mosaic.monitoring.documents import document_of, find_documents, read_rows
from mosaic.monitoring.record import INFERENCE_TABLE
from mosaic.monitoring.viewer import Viewer
from mosaic.protocol import Principal, Wire

MOST_DRAWN = 50
"""Of what the runs that made one thing read: the newest."""

Drawn = tuple[str, str, int | None, str | None]
"""A thing at a version, and which bearer of its name."""


class Thread(Wire):
    """One node of the tree: what it is, which exactly, and what it came from."""

    label: str
    facts: dict[str, Any] = Field(default_factory=dict)
    came_from: list["Thread"] = Field(default_factory=list)
    withheld: bool = False
    """Whether the caller may not know of it; the label is then its kind."""


def why(tables: Tables, catalog: Catalog, request_id: str, *, principal: Principal | None = None) -> Thread:
    """The tree of one answer, for a principal: who asked, who may MANAGE the endpoint, or an administrator.

    Raises NotFound for a request that has no row (yet: rows are shipped within seconds), PermissionDenied.
    """
    row = _row(tables, request_id)
    viewer = Viewer(catalog, principal)
    _check_may_see(catalog, viewer, row)
    drawing = _Drawing(tables, catalog, viewer)
    branches = [drawing.model(row)]
    if row["retrieved_index"] is not None:
        branches.append(drawing.retrieval(row))
    return Thread(
        label=f"request {request_id}",
        facts={
            "time": row["request_time"].isoformat(),
            "principal": row["principal"],
            "status": row["status_code"],
            "endpoint": row["endpoint"],
            "endpoint_config_version": row["endpoint_config_version"],
            "served_entity": row["served_entity"],
        },
        came_from=branches,
    )


def _row(tables: Tables, request_id: str) -> dict[str, Any]:
    found = tables.delta(INFERENCE_TABLE).to_pyarrow_table(filters=[("request_id", "=", request_id)]).to_pylist()
    if not found:
        raise NotFound(
            f"no row of request {request_id!r} in {INFERENCE_TABLE}; rows arrive a few seconds after the answer",
            code="request_not_found",
        )
    row: dict[str, Any] = found[0]
    return row


def _check_may_see(catalog: Catalog, viewer: Viewer, row: dict[str, Any]) -> None:
    principal, endpoint = viewer.principal, row["endpoint"]
    if principal is None or row["principal"] == principal.name or viewer.sees_everything:
        return
    if endpoint is not None and is_within(viewer.managed(endpoint), row["request_time"]):
        return
    error = PermissionDenied(
        f"{principal.name!r} may not see request {row['request_id']!r}: it is for who asked, for who may MANAGE "
        f"the endpoint that answered, and for administrators",
        param="request_id",
    )
    catalog.audit.deny("getRequestThread", {"request_id": row["request_id"]}, error, by=principal)
    raise error


class _Drawing:
    """One tree on its way. What was drawn once is only named when it comes again."""

    def __init__(self, tables: Tables, catalog: Catalog, viewer: Viewer) -> None:
        self._tables, self._catalog, self._viewer = tables, catalog, viewer
        self._drawn: set[Drawn] = set()

    def model(self, row: dict[str, Any]) -> Thread:
        """The model that answered, with the aliases that its version had at that moment."""
        name, version, alias, moment = row["model"], row["model_version"], row["model_alias"], row["request_time"]
        if version is None or not _is_name(name, "model"):
            at = "" if version is None else f", version {version}"
            return Thread(label=f"model {name}{at}", facts={"alias": alias} if alias else {})
        facts = {"asked_as": alias, "aliases_at_that_moment": self._aliases(name, version, moment)}
        return self._thing(self._catalog.trace("model", name, version, at=moment), facts, seen_below=True)

    def retrieval(self, row: dict[str, Any]) -> Thread:
        """The rows that were looked up, each with its document, and what the index was made from."""
        index, version, ids = row["retrieved_index"], row["retrieved_version"], row["retrieved_ids"] or []
        moment = row["request_time"]
        if version is None or not _is_name(index, "index"):
            return Thread(label=f"index {index}" + ("" if version is None else f", version {version}"))
        node = self._catalog.trace("index", index, version, at=moment)
        source = next((parent for parent in node.parents if parent.kind == "table"), None)
        record = None
        if self._viewer.is_there("index", index, node.securable_id):
            with suppress(NotFound):
                record = self._catalog.get_index(index)
        if source is None:
            if record is None:
                return Thread(label=f"index {index}, version {version}", facts={"rows": ids, "deleted": True})
            # Answered before its sync was written down.
            source = self._catalog.trace("table", record.table, version, at=moment)
            node = node.model_copy(update={"parents": [source]})
        entries = self._entries(source, None if record is None else record.spec.get("primary_key"), ids)
        drawn = self._thing(node, {}, seen_below=True)
        if drawn.withheld:
            return drawn.model_copy(update={"came_from": [*entries, *drawn.came_from]})
        return drawn.model_copy(
            update={"label": f"retrieved from {drawn.label}", "came_from": [*entries, *drawn.came_from]}
        )

    def _entries(self, table: LineageNode, key: str | None, ids: list[str]) -> list[Thread]:
        """The ids are the request's own; what the table says of them is for who may SELECT from it."""
        there = self._viewer.is_there("table", table.name, table.securable_id)
        if not (self._viewer.may("SELECT", "table", table.name) and (there or self._viewer.sees_everything)):
            return [Thread(label=f"entry {entry_id}") for entry_id in ids]
        try:
            if not there:
                raise NotFound(f"table {table.name!r} was dropped")
            column = key or self._catalog.get_table(table.name).primary_key or ""
            rows = read_rows(self._tables, table.name, table.version, column, ids)
        except MosaicError as error:
            gone = {"row": f"cannot be read any more: {error.message}"}
            return [Thread(label=f"entry {entry_id}", facts=gone) for entry_id in ids]
        documents = find_documents(self._tables, self._catalog, self._viewer, table, rows.values())
        entries = []
        for entry_id in ids:
            facts = rows.get(entry_id, {"row": "not in that version of the table"})
            uri = document_of(facts)
            came_from = [Thread(label=f"document {uri}", facts=documents[uri])] if uri in documents else []
            entries.append(Thread(label=f"entry {entry_id}", facts=facts, came_from=came_from))
        return entries

    def _thing(self, node: LineageNode, facts: dict[str, Any], *, seen_below: bool) -> Thread:
        """A thing with the run that made it; `seen_below` says whether what it went into may be seen."""
        thing = (node.kind, node.name, node.version, node.securable_id)
        visible = seen_below
        if node.kind in PRIVILEGES:
            visible = self._viewer.may_browse(node.kind, node.name, node.securable_id)
        label = f"{node.kind} {node.name}" + ("" if node.version is None else f", version {node.version}")
        if thing in self._drawn:
            again = Thread(label=label, facts={"drawn": "above"})
            return again if visible else Thread(label=node.kind, withheld=True)
        self._drawn.add(thing)
        if node.made_at_version not in (None, node.version):
            facts = {**facts, "rows_of_version": node.made_at_version}
        came_from = self._origin(node, visible)
        if not visible:
            return Thread(label=node.kind, withheld=True, came_from=came_from)
        known = {name: value for name, value in {**facts, **(node.detail or {})}.items() if value is not None}
        if node.earlier_versions:
            known["earlier_versions"] = len(node.earlier_versions)
        if node.cut_off:
            known["cut_off"] = "there is more above that is not shown"
        return Thread(label=label, facts=known, came_from=came_from)

    def _origin(self, node: LineageNode, visible: bool) -> list[Thread]:
        """The newest run that made it, above which is what all of them read."""
        # A source that every run noted anew, each with a manifest of its own, is drawn as the newest run noted it.
        newest: dict[Drawn, LineageNode] = {}
        for parent in node.parents:
            newest.setdefault((parent.kind, parent.name, parent.version, parent.securable_id), parent)
        ordered = list(newest.values())
        parents = [self._thing(parent, {}, seen_below=visible) for parent in ordered[:MOST_DRAWN]]
        if len(ordered) > MOST_DRAWN:
            parents.append(Thread(label=f"and {len(ordered) - MOST_DRAWN:,} more, of earlier runs"))
        if node.run_id is None:
            return parents
        if not visible:
            return [Thread(label="run", withheld=True, came_from=parents)]
        run = self._catalog.get_run(node.run_id)
        facts = self._facts(run) | ({"earlier_runs": node.earlier_runs} if node.earlier_runs else {})
        return [Thread(label=f"run {run.run_id}", facts=facts, came_from=parents)]

    def _facts(self, run: Run) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "kind": run.kind,
            "principal": run.principal,
            "started": run.started_at.isoformat(),
            "status": run.status,
            "mlflow_run_id": run.mlflow_run_id,
        }
        if run.code is not None:
            detail = run.code.detail or {}
            facts |= {"code": run.code.name, "code_sha256": detail.get("sha256"), "mosaic": detail.get("mosaic")}
        # Parameters name what a run read: they are for who may know of all of it.
        if all(
            self._viewer.may_browse(edge.kind, edge.name, edge.securable_id) for edge in (*run.inputs, *run.outputs)
        ):
            facts["params"] = run.params
        return {name: value for name, value in facts.items() if value not in (None, {})}

    def _aliases(self, model: str, version: int, moment: datetime) -> list[str]:
        """The aliases that pointed at a version then; moved ones are found by their history."""
        pointed: dict[str, int | None] = {}
        with suppress(NotFound):
            for event in self._catalog.alias_history(model, at=moment):
                if event.at <= moment:
                    pointed[event.alias] = event.version
        return sorted(alias for alias, at in pointed.items() if at == version)


def _is_name(text: str, kind: str) -> bool:
    """Whether it can be in the catalog: an engine's model may also be a path, or a hub's."""
    try:
        parse_object(text, kind)
    except BadRequest:
        return False
    return True
