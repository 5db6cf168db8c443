"""The actor that holds an index: answers, follows its table, and comes back from its snapshots when it is killed.

`Shard` is plain Python; `start_shard` wraps it into a detached Ray actor. Two copies at once (a lost node that was not
dead) do no harm: all they write is the snapshot of a table's version, and that is the same for both.
"""

import functools
import logging
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy.typing as npt
import ray

from mosaic.data import open_delta, read_arrow
from mosaic.errors import MosaicError, Unavailable
from mosaic.protocol import Wire
from mosaic.storage import Storage
from mosaic.vector.index import CorruptSnapshot, Hit, VectorIndex
from mosaic.vector.settings import IndexSettings
from mosaic.vector.sync import Embed, Synchroniser, SyncResult

NAMESPACE = "mosaic"
NUM_CPUS = 0.1
NOT_READY = "index_not_ready"
"""Code of the Unavailable that an index answers with before its first sync is through."""
_KEPT_SNAPSHOTS = 2
_log = logging.getLogger(__name__)


class QueryResult(Wire):
    """What an index answered, and the table's version at which that is exact."""

    index: str
    version: int
    hits: list[Hit]


class IndexStatus(Wire):
    """How an index stands."""

    name: str
    ready: bool
    """Whether it answers (from its first sync on)."""
    version: int
    """The table's version that it equals; -1 before the first sync."""
    table_version: int | None
    """The table's newest version when the index last looked; None if it could not look yet."""
    num_rows: int
    dimension: int | None
    embedding_endpoint: str
    quarantined: dict[str, int]
    """Rows of the table that are not in the index, counted by reason."""
    progress: tuple[int, int] | None
    """(texts embedded, texts to embed) of a sync under way."""
    last_sync: SyncResult | None
    """The last sync that changed something."""
    error: str | None
    """Why the last sync failed; None if it did not. The index goes on answering at its version and tries again."""
    snapshot_version: int | None
    process_id: int


class Shard:
    """One index in memory, following its table in a thread of its own."""

    def __init__(
        self,
        settings: IndexSettings,
        storage: Storage,
        table_address: str,
        embed: Embed,
        record: Callable[[SyncResult], None],
    ) -> None:
        """`record` is told every sync that moved the version (for lineage); a sync whose record fails is told again."""
        self._settings, self._storage, self._record = settings, storage, record
        self._address = snapshots_address(storage, settings.name)
        self._fingerprint = settings.model_dump_json(exclude={"poll_seconds", "batch_size"})
        self._snapshot_version: int | None = None
        self._index = self._newest_snapshot() or VectorIndex()
        self._synchroniser = Synchroniser(
            functools.partial(open_delta, storage, table_address),
            functools.partial(read_arrow, storage, table_address),
            self._index,
            embed,
            settings,
        )
        self._syncing = threading.Lock()
        self._changed_since_snapshot = 0
        self._unrecorded: list[SyncResult] = []
        self._progress: tuple[int, int] | None = None
        self._last_sync: SyncResult | None = None
        self._error: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"follow-{settings.name}", daemon=True)
        self._thread.start()

    @ray.method(concurrency_group="query")
    def query(self, vector: npt.ArrayLike, k: int, exact: bool = False) -> QueryResult:
        """The nearest rows; raises Unavailable before the first sync is through."""
        if self._index.version < 0:
            why = self._error or "its first sync goes on"
            raise Unavailable(f"index {self._settings.name!r} is not ready: {why}", code=NOT_READY)
        version, hits = self._index.search_at_version(vector, k, exact=exact)
        return QueryResult(index=self._settings.name, version=version, hits=hits)

    @ray.method(concurrency_group="sync")
    def sync(self, to_version: int | None = None) -> SyncResult:
        """Bring the index to a version (None: the newest) now; returns when it answers at that version."""
        with self._syncing:
            try:
                result = self._sync(to_version)
            except MosaicError as error:
                self._error = f"{type(error).__name__}: {error.message}"
                raise
            finally:
                self._progress = None
            self._error = None
            return result

    @ray.method(concurrency_group="status")
    def status(self) -> IndexStatus:
        """How it stands; answers also while a sync goes on."""
        return IndexStatus(
            name=self._settings.name,
            ready=self._index.version >= 0,
            version=self._index.version,
            table_version=self._synchroniser.table_version,
            num_rows=len(self._index),
            dimension=self._index.dimension,
            embedding_endpoint=self._settings.embedding_endpoint,
            quarantined=self._synchroniser.quarantine(),
            progress=self._progress,
            last_sync=self._last_sync,
            error=self._error,
            snapshot_version=self._snapshot_version,
            process_id=os.getpid(),
        )

    @ray.method(concurrency_group="status")
    def stop(self) -> None:
        """Stop following; a sync under way finishes first."""
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._stop.is_set():
            failed = False
            try:
                self.sync()
            except MosaicError as error:
                failed = True
                _log.warning("index %s did not sync: %s", self._settings.name, error)
            except Exception as error:  # a thread's end would be silent: what we did not foresee is shown, then retried
                failed = True
                self._error = f"{type(error).__name__}: {error}"
                _log.exception("index %s did not sync", self._settings.name)
            self._stop.wait(self._settings.poll_seconds * (5 if failed else 1))

    def _sync(self, to_version: int | None) -> SyncResult:
        before = self._index.version
        result = self._synchroniser.sync(to_version, progress=self._note_progress)
        if result.version != before or result.full:
            self._last_sync = result
            self._index.state["settings"] = self._fingerprint
            self._unrecorded.append(result)
            self._changed_since_snapshot += result.upserted + result.deleted
        while self._unrecorded:
            self._record(self._unrecorded[0])
            self._unrecorded.pop(0)
        # Losing a snapshot costs embedding again what changed since: so after the first rows, and then for every tenth.
        if self._changed_since_snapshot >= (1 if self._snapshot_version is None else max(64, len(self._index) // 10)):
            self._snapshot()
        return result

    def _note_progress(self, done: int, total: int) -> None:
        self._progress = (done, total)

    def _snapshot(self) -> None:
        if self._index.dimension is None:
            return
        version = self._index.version
        address = f"{self._address}/v{version:012d}"
        with tempfile.TemporaryDirectory(prefix="mosaic-index-") as folder:
            self._index.save(Path(folder))
            # The manifest last: a folder without one is no snapshot yet.
            manifest = Path(folder, "manifest.json").read_bytes()
            Path(folder, "manifest.json").unlink()
            self._storage.upload(Path(folder), address)
            self._storage.write_bytes(f"{address}/manifest.json", manifest)
        self._snapshot_version, self._changed_since_snapshot = version, 0
        for old in self._storage.list(self._address)[:-_KEPT_SNAPSHOTS]:
            self._storage.delete(old)

    def _newest_snapshot(self) -> VectorIndex | None:
        for address in reversed(self._storage.list(self._address)):
            if not self._storage.exists(f"{address}/manifest.json"):
                continue
            with tempfile.TemporaryDirectory(prefix="mosaic-index-") as folder:
                try:
                    self._storage.download(address, Path(folder, "snapshot"))
                    index = VectorIndex.load(Path(folder, "snapshot"))
                except CorruptSnapshot as error:
                    _log.warning("snapshot %s is not used: %s", address, error)
                    continue
            if index.state.get("settings") == self._fingerprint:
                self._snapshot_version = index.version
                return index
        return None


def snapshots_address(storage: Storage, name: str) -> str:
    """Where the snapshots of an index lie."""
    return storage.address("indexes", name)


def actor_name(name: str) -> str:
    """The Ray name of an index's actor, in NAMESPACE."""
    return f"index:{name}"


def start_shard(
    settings: IndexSettings,
    storage: Storage,
    table_address: str,
    embed: Embed,
    record: Callable[[SyncResult], None],
) -> Any:
    """The index's actor, started if it is not running; outlives the caller and is restarted whenever it dies."""
    actor_class = ray.remote(concurrency_groups={"query": 8, "sync": 4, "status": 2})(Shard)
    return actor_class.options(
        name=actor_name(settings.name),
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=NUM_CPUS,
        max_restarts=-1,
    ).remote(settings, storage, table_address, embed, record)
