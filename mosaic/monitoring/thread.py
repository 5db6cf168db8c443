"""The thread behind an answer: from a request's id to the model version, its run, the table's version and the
sources."""

from typing import Any

import pyarrow.compute as pc
from pydantic import Field

from mosaic.catalog import Catalog, LineageNode
from mosaic.data import Tables
from mosaic.errors import NotFound
from mosaic.monitoring.record import INFERENCE_TABLE
from mosaic.protocol import Wire


class Thread(Wire):
    """One node of the tree: what it is, which exactly, and what it came from."""

    label: str
    facts: dict[str, Any] = Field(default_factory=dict)
    came_from: list["Thread"] = Field(default_factory=list)


def why(tables: Tables, catalog: Catalog, request_id: str) -> Thread:
    """The tree of one answer; raises NotFound for a request that has no row (yet: rows are shipped within seconds)."""
    row = _row(tables, request_id)
    branches = [_model(catalog, row)]
    if row["retrieved_index"] is not None:
        branches.append(_retrieval(tables, catalog, row))
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
            f"no row of request {request_id!r} in {INFERENCE_TABLE}; rows arrive a few seconds after the answer"
        )
    row: dict[str, Any] = found[0]
    return row


def _model(catalog: Catalog, row: dict[str, Any]) -> Thread:
    if row["model_version"] is None:
        return Thread(label=f"model {row['model']}", facts={"alias": row["model_alias"]})
    node = catalog.trace("model", row["model"], row["model_version"])
    return _lineage(node, {"alias": row["model_alias"]} if row["model_alias"] else {})


def _retrieval(tables: Tables, catalog: Catalog, row: dict[str, Any]) -> Thread:
    name, version, ids = row["retrieved_index"], row["retrieved_version"], row["retrieved_ids"]
    table = catalog.get_index(name).table
    key = catalog.get_table(table).primary_key or ""
    rows = tables.to_arrow(table, version=version)
    rows = rows.filter(pc.field(key).isin(ids))
    by_id = {entry[key]: entry for entry in rows.to_pylist()}
    entries = [
        Thread(
            label=f"entry {entry_id}",
            facts={name: by_id[entry_id][name] for name in ("source", "sha256") if name in by_id.get(entry_id, {})},
        )
        for entry_id in ids
    ]
    node = catalog.trace("table", table, version)
    return Thread(
        label=f"retrieved from index {name}, version {version}", came_from=[_lineage(node, {}, tuple(entries))]
    )


def _lineage(node: LineageNode, facts: dict[str, Any], entries: tuple[Thread, ...] = ()) -> Thread:
    version = "" if node.version is None else f", version {node.version}"
    known = {**facts, **(node.detail or {})}
    if node.run_id is not None:
        known["run"] = node.run_id
    return Thread(
        label=f"{node.kind} {node.name}{version}",
        facts=known,
        came_from=[*entries, *(_lineage(parent, {}) for parent in node.parents)],
    )
