"""The thread behind an answer: from a request's id to the model version, its run, the tables' versions, the retrieved
rows and the raw sources. `impact.py` follows it the other way.

Start at `why`. A thread is drawn for somebody: what that principal may not BROWSE is withheld, its kind alone is said,
and so is what hangs on it without being a securable itself (its run, its sources).
"""

from datetime import datetime
from typing import Any

from pydantic import Field

from mosaic.catalog import Catalog, LineageNode, Run
from mosaic.catalog.lineage import Thing
from mosaic.catalog.privileges import PRIVILEGES
from mosaic.data import Tables
from mosaic.errors import MosaicError, NotFound, PermissionDenied
from mosaic.monitoring.documents import document_of, find_documents, read_rows
from mosaic.monitoring.record import INFERENCE_TABLE
from mosaic.monitoring.viewer import Viewer
from mosaic.protocol import Principal, Wire


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
        branches.append(drawing.retrieval(row["retrieved_index"], row["retrieved_version"], row["retrieved_ids"]))
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
    if endpoint is not None and viewer.manages(endpoint):
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
        self._drawn: set[Thing] = set()

    def model(self, row: dict[str, Any]) -> Thread:
        """The model that answered, with the aliases that its version had at that moment."""
        name, version, alias = row["model"], row["model_version"], row["model_alias"]
        if version is None:
            return Thread(label=f"model {name}", facts={"alias": alias} if alias else {})
        facts = {"asked_as": alias, "aliases_at_that_moment": self._aliases(name, version, row["request_time"])}
        return self._thing(self._catalog.trace("model", name, version), facts, seen_below=True)

    def retrieval(self, index: str, version: int, ids: list[str]) -> Thread:
        """The rows that were looked up, each with its document, and what the index was made from."""
        node = self._catalog.trace("index", index, version)
        source = next((parent for parent in node.parents if parent.kind == "table"), None)
        key = None
        try:
            record = self._catalog.get_index(index)
            key = record.spec.get("primary_key")
            table = record.table if source is None else source.name
        except NotFound:
            if source is None:
                return Thread(label=f"index {index}, version {version}", facts={"rows": ids, "deleted": True})
            table = source.name
        if source is None:  # answered before its sync was written down
            source = self._catalog.trace("table", table, version)
            node = node.model_copy(update={"parents": [source]})
        entries = self._entries(source, key, ids)
        drawn = self._thing(node, {}, seen_below=True)
        if drawn.withheld:
            return drawn.model_copy(update={"came_from": [*entries, *drawn.came_from]})
        return drawn.model_copy(
            update={"label": f"retrieved from {drawn.label}", "came_from": [*entries, *drawn.came_from]}
        )

    def _entries(self, table: LineageNode, key: str | None, ids: list[str]) -> list[Thread]:
        """The ids are the request's own; what the table says of them is for who may SELECT from it."""
        if not self._viewer.may("SELECT", "table", table.name):
            return [Thread(label=f"entry {entry_id}") for entry_id in ids]
        try:
            column = key or self._catalog.get_table(table.name).primary_key or ""
            rows = read_rows(self._tables, table.name, table.version, column, ids)
        except MosaicError as error:
            gone = {"row": f"cannot be read any more: {error.message}"}
            return [Thread(label=f"entry {entry_id}", facts=gone) for entry_id in ids]
        documents = find_documents(self._tables, self._viewer, table, rows.values())
        entries = []
        for entry_id in ids:
            facts = rows.get(entry_id, {"row": "not in that version of the table"})
            uri = document_of(facts)
            came_from = [Thread(label=f"document {uri}", facts=documents[uri])] if uri in documents else []
            entries.append(Thread(label=f"entry {entry_id}", facts=facts, came_from=came_from))
        return entries

    def _thing(self, node: LineageNode, facts: dict[str, Any], *, seen_below: bool) -> Thread:
        """A thing with the run that made it; `seen_below` says whether what it went into may be seen."""
        thing = Thing(node.kind, node.name, node.version)
        visible = self._viewer.may_browse(node.kind, node.name) if node.kind in PRIVILEGES else seen_below
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
        if node.cut_off:
            known["cut_off"] = "there is more above that is not shown"
        return Thread(label=label, facts=known, came_from=came_from)

    def _origin(self, node: LineageNode, visible: bool) -> list[Thread]:
        parents = [self._thing(parent, {}, seen_below=visible) for parent in node.parents]
        if node.run_id is None:
            return parents
        if not visible:
            return [Thread(label="run", withheld=True, came_from=parents)]
        run = self._catalog.get_run(node.run_id)
        return [Thread(label=f"run {run.run_id}", facts=self._facts(run), came_from=parents)]

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
        if all(self._viewer.may_browse(edge.kind, edge.name) for edge in (*run.inputs, *run.outputs)):
            facts["params"] = run.params
        return {name: value for name, value in facts.items() if value not in (None, {})}

    def _aliases(self, model: str, version: int, moment: datetime) -> list[str]:
        """The aliases that pointed at a version then; moved ones are found by their history."""
        pointed: dict[str, int | None] = {}
        try:
            for event in self._catalog.alias_history(model):
                if event.at <= moment:
                    pointed[event.alias] = event.version
        except NotFound:
            return []
        return sorted(alias for alias, at in pointed.items() if at == version)
