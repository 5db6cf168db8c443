"""Bringing an index to a version of its table: what changed, embed what is new, apply it at once.

Start reading here. The effect is exactly-once because a sync always starts from the version that the index states,
folds the changes to one state per key, and makes them visible together with the new version. Text that was embedded
before, under whatever key, is not embedded again, so that overwriting a table with the same rows costs nothing.
"""

import base64
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable
from datetime import date, datetime
from datetime import time as time_of_day
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from deltalake import DeltaTable

from mosaic.data import ChangesUnavailable, fold_changes
from mosaic.errors import BadRequest, Conflict, EngineFailed
from mosaic.protocol import Wire
from mosaic.vector.index import VectorIndex, Vectors
from mosaic.vector.settings import IndexSettings

Embed = Callable[[list[str]], npt.NDArray[np.floating[Any]]]
"""Texts to a matrix with one row each. Raises BadRequest for a text that the model cannot take."""


class Embedder(Protocol):
    """An Embed that an event loop can use too; pickles, since it travels to the index's actor."""

    def __call__(self, texts: list[str], /) -> npt.NDArray[np.floating[Any]]: ...

    async def embed_async(
        self, texts: list[str], /, parent_request_id: str | None = None
    ) -> npt.NDArray[np.floating[Any]]:
        """The same; `parent_request_id` is the request on whose behalf it is done, for the records."""
        ...


Progress = Callable[[int, int], None]
"""Told (texts embedded, texts to embed) after every batch."""


class SyncResult(Wire):
    """What one sync did."""

    version: int
    """The table's version that the index now equals."""
    upserted: int
    """Rows put into the index, new or changed."""
    deleted: int
    """Rows taken out of it."""
    embedded: int
    """Texts that had to be embedded."""
    full: bool
    """Whether whole versions were compared, for want of a change feed."""
    seconds: float


class _Plan:
    """What a sync is going to do, by id."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[str, dict[str, Any]]] = {}
        """Text and payload."""
        self.deletes: set[str] = set()
        self.quarantine: dict[str, str] = {}
        """Reason by id; also of rows that were there before."""

    def reject(self, id_: str, reason: str) -> None:
        """Keep a row out of the index, including an older state of it, and say why."""
        self.rows.pop(id_, None)
        self.deletes.add(id_)
        self.quarantine[id_] = reason


class Synchroniser:
    """Keeps one index equal to its table; one sync at a time."""

    def __init__(
        self,
        open_table: Callable[[int | None], DeltaTable],
        read_table: Callable[[DeltaTable, list[str]], pa.Table],
        index: VectorIndex,
        embed: Embed,
        settings: IndexSettings,
    ) -> None:
        """`open_table` opens a version (None: the newest), `read_table` reads columns of an opened one."""
        self._open_table, self._read_table = open_table, read_table
        self._index, self._embed, self._settings = index, embed, settings
        self.table_version: int | None = None
        """The newest version of the table that was seen."""

    def quarantine(self) -> dict[str, int]:
        """How many rows of the table are not in the index, by reason."""
        return dict(Counter(self._index.state.get("quarantine", {}).values()))

    def sync(self, to_version: int | None = None, *, progress: Progress | None = None) -> SyncResult:
        """Bring the index to a version of the table (None: the newest now).

        Raises what `embed` raises, and Conflict for a version older than the index; the index then stays as it was.
        """
        started = time.perf_counter()
        table = self._open_table(to_version)
        target, table_id = table.version(), str(table.metadata().id)
        if to_version is None or self.table_version is None or target > self.table_version:
            self.table_version = target
        follows = self._index.version >= 0 and self._index.state.get("table_id") == table_id
        if follows and target < self._index.version:
            raise Conflict(f"index {self._settings.name!r} is at version {self._index.version}, past {target}")
        if follows and target == self._index.version:
            return SyncResult(version=target, upserted=0, deleted=0, embedded=0, full=False, seconds=0.0)
        plan, full = _Plan(), not follows
        if follows:
            try:
                self._plan_changes(plan, table)
            except ChangesUnavailable:
                full = True
        if full:
            plan = _Plan()
            self._plan_difference(plan, table)
        before = self._index.contents()
        embedded, vectors = self._embed_missing(plan, before, progress)
        upserts = [(id_, *row) for id_, row in plan.rows.items() if before.get(id_) != (_hash(row[0]), row[1])]
        deletes = sorted(plan.deletes & before.keys())
        hashes = [_hash(text) for _, text, _ in upserts]
        self._index.apply(
            [id_ for id_, _, _ in upserts],
            np.stack([vectors[hash_] for hash_ in hashes]) if hashes else np.zeros((0, 0), np.float32),
            hashes,
            [payload for _, _, payload in upserts],
            deletes,
            version=target,
            state={"table_id": table_id, "quarantine": plan.quarantine},
        )
        return SyncResult(
            version=target,
            upserted=len(upserts),
            deleted=len(deletes),
            embedded=embedded,
            full=full,
            seconds=time.perf_counter() - started,
        )

    def _plan_changes(self, plan: _Plan, table: DeltaTable) -> None:
        changes = fold_changes(table, self._index.version, table.version(), self._settings.primary_key)
        self._check_columns(changes.upserts)
        plan.quarantine = dict(self._index.state.get("quarantine", {}))
        plan.deletes = set(changes.deletes)
        self._add_rows(plan, changes.upserts)
        for id_ in changes.deletes:
            plan.quarantine.pop(id_, None)

    def _plan_difference(self, plan: _Plan, table: DeltaTable) -> None:
        self._check_columns(pa.schema(table.schema().to_arrow()).empty_table())
        self._add_rows(plan, self._read_table(table, self._settings.columns))
        plan.deletes |= self._index.contents().keys() - plan.rows.keys()

    def _check_columns(self, table: pa.Table) -> None:
        missing = [column for column in self._settings.columns if column not in table.column_names]
        if missing:
            raise BadRequest(
                f"table {self._settings.table!r} has no column {missing[0]!r}; there are {table.column_names}"
            )

    def _add_rows(self, plan: _Plan, rows: pa.Table) -> None:
        seen: set[str] = set()
        for row in rows.select(self._settings.columns).to_pylist():
            if row[self._settings.primary_key] is None:
                plan.quarantine["(null)"] = f"primary key {self._settings.primary_key!r} is null"
                continue
            id_ = str(row[self._settings.primary_key])
            plan.quarantine.pop(id_, None)
            text = self._settings.text_of(row)
            if id_ in seen:
                plan.reject(id_, "primary key comes more than once")
            elif not text.strip():
                plan.reject(id_, "text is null or empty")
            else:
                payload = {column: _plain(row[column]) for column in self._settings.payload_columns}
                plan.rows[id_] = (text, payload)
            seen.add(id_)

    def _embed_missing(
        self, plan: _Plan, before: dict[str, tuple[str, dict[str, Any]]], progress: Progress | None
    ) -> tuple[int, dict[str, Vectors]]:
        """Vectors by content hash for all planned rows; rows whose text cannot be embedded move to quarantine."""
        texts = {_hash(text): text for text, _ in plan.rows.values()}
        vectors = self._index.vectors_of(texts)
        missing = [hash_ for hash_ in texts if hash_ not in vectors]
        reasons: dict[str, str] = {}
        for start in range(0, len(missing), self._settings.batch_size):
            batch = missing[start : start + self._settings.batch_size]
            dimension = self._index.dimension or next((len(vector) for vector in vectors.values()), None)
            vectors |= self._embed_batch({hash_: texts[hash_] for hash_ in batch}, dimension, reasons)
            if progress is not None:
                progress(start + len(batch), len(missing))
        for id_, (text, _) in list(plan.rows.items()):
            if _hash(text) in reasons:
                plan.reject(id_, reasons[_hash(text)])
        return len(missing), vectors

    def _embed_batch(self, texts: dict[str, str], dimension: int | None, reasons: dict[str, str]) -> dict[str, Vectors]:
        """Vectors of the texts (by hash) that could be embedded; why not, for the others, in `reasons`."""
        try:
            matrix = np.asarray(self._embed(list(texts.values())), dtype=np.float32)
        except BadRequest as error:
            if len(texts) > 1:  # one of them is at fault: find it
                singly = [self._embed_batch({hash_: text}, dimension, reasons) for hash_, text in texts.items()]
                return {hash_: vector for found in singly for hash_, vector in found.items()}
            reasons[next(iter(texts))] = f"cannot be embedded: {error.message}"[:300]
            return {}
        if matrix.ndim != 2 or len(matrix) != len(texts):
            endpoint = self._settings.embedding_endpoint
            raise EngineFailed(f"{endpoint!r} gave an array of shape {matrix.shape} for {len(texts)} texts")
        found = {}
        for hash_, vector in zip(texts, matrix, strict=True):
            if dimension is not None and len(vector) != dimension:
                reasons[hash_] = f"vector has {len(vector)} dimensions, not {dimension}"
            elif not np.isfinite(vector).all():
                reasons[hash_] = "vector holds numbers that are not finite"
            else:
                found[hash_] = vector
        return found


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _plain(value: Any) -> Any:
    """A column's value as JSON holds it, so that payloads are equal before and after a snapshot."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, datetime | date | time_of_day):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if value is None or isinstance(value, str | int):
        return value
    return json.loads(json.dumps(value)) if isinstance(value, float) and np.isfinite(value) else str(value)
