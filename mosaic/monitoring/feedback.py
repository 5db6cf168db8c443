"""What people say of answers, a rating or a correction, by the request's id: the table `system.serving.feedback`.

It is said to a gateway, is in that gateway's log before the client is told so, and is shipped from there as the
inference rows are. That the request exists is looked up before: in the logs of this node, then in the inference table.
"""

import mmap
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from mosaic.catalog import Catalog
from mosaic.catalog.bearers import is_within
from mosaic.data import Tables
from mosaic.data.wal import SUFFIX, read_segment
from mosaic.ids import is_id
from mosaic.monitoring.record import INFERENCE_TABLE
from mosaic.monitoring.viewer import Viewer
from mosaic.protocol import Principal

FEEDBACK_TABLE = "system.serving.feedback"
FEEDBACK = "_feedback"
"""The key in a row of the log that is no request's but somebody's feedback."""

FEEDBACK_SCHEMA = pa.schema(
    [
        pa.field("feedback_id", pa.string(), nullable=False),
        pa.field("request_id", pa.string(), nullable=False),
        ("request_time", pa.timestamp("us", tz="UTC")),
        pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
        ("principal", pa.string()),
        ("endpoint", pa.string()),
        ("endpoint_config_version", pa.int64()),
        ("served_entity", pa.string()),
        ("rating", pa.float64()),
        ("correction", pa.string()),
        ("comment", pa.string()),
        ("metadata", pa.map_(pa.string(), pa.string())),
    ]
)

_ABOUT = ("request_id", "endpoint", "endpoint_config_version", "served_entity")


class AskedBefore(NamedTuple):
    """The request that feedback is about, as its row has it."""

    request_id: str
    request_time: datetime
    principal: str | None
    endpoint: str | None
    endpoint_config_version: int | None
    served_entity: str | None

    @classmethod
    def of(cls, row: dict[str, Any]) -> "AskedBefore":
        time = row["request_time"]
        if isinstance(time, int):
            time = datetime.fromtimestamp(time / 1e6, UTC)
        return cls(**{**{name: row.get(name) for name in cls._fields}, "request_time": time})


def requests_finder(spool: Path, tables: Tables) -> Callable[[str], AskedBefore | None]:
    """Finds the row of a request by its id: what is not shipped yet in the logs of `spool`, all else in the table."""

    def find(request_id: str) -> AskedBefore | None:
        if not is_id(request_id, "req"):
            return None
        # In this order: what leaves the logs in between is in the table by then.
        return _in_logs(spool, request_id) or _in_table(tables, request_id)

    return find


def may_tell(catalog: Catalog, principal: Principal, asked: AskedBefore) -> bool:
    """Whether somebody may give feedback on a request: who asked it, and who may MANAGE the endpoint that it was of."""
    if asked.principal == principal.name:
        return True
    return is_within(Viewer(catalog, principal).managed(asked.endpoint or ""), asked.request_time)


def to_arrow(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows of the log as the table has them."""
    return pa.Table.from_pylist([_feedback(row[FEEDBACK]) for row in rows], schema=FEEDBACK_SCHEMA)


def as_row(
    asked: AskedBefore, principal: Principal, feedback_id: str, time: datetime, told: dict[str, Any]
) -> dict[str, Any]:
    """A row for the log; `told` is the rating, correction, comment and metadata."""
    about = {name: getattr(asked, name) for name in _ABOUT}
    times = {"request_time": _microseconds(asked.request_time), "time": _microseconds(time)}
    return {FEEDBACK: {"feedback_id": feedback_id, **about, **times, "principal": principal.name, **told}}


def _feedback(told: dict[str, Any]) -> dict[str, Any]:
    times = {name: datetime.fromtimestamp(told[name] / 1e6, UTC) for name in ("request_time", "time")}
    return {**told, **times, "metadata": list((told.get("metadata") or {}).items())}


def _microseconds(time: datetime) -> int:
    return round(time.timestamp() * 1e6)


def _in_logs(spool: Path, request_id: str) -> AskedBefore | None:
    sought = f'"kind":"close","key":"{request_id}"'.encode()
    for path in spool.glob(f"*{SUFFIX}"):
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                place = data.find(sought)
                start = -1 if place < 0 else data.rfind(b"\n", 0, place) + 1
        except (FileNotFoundError, ValueError):  # shipped and removed by now; empty
            continue
        if start < 0:
            continue
        for _, record in read_segment(path, start).records:
            if record["kind"] == "close" and record["key"] == request_id:
                return AskedBefore.of(record["row"])
    return None


def _in_table(tables: Tables, request_id: str) -> AskedBefore | None:
    # Ids are made in the order of time, so that the log's statistics leave nearly all files unread.
    delta = tables.delta(INFERENCE_TABLE)
    found = pa.table(
        delta.scan(columns=list(AskedBefore._fields), predicate=f"request_id = '{request_id}'")
    ).to_pylist()
    return AskedBefore.of(found[0]) if found else None
