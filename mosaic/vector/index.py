"""One vector index: an HNSW graph for speed and the plain vectors beside it for certainty; no Ray.

What hnswlib cannot be trusted with stays outside of it: a label is never used twice (an update marks the old label
deleted and adds a new one: replaced or updated labels serve old vectors, hnswlib pull request 541), a search that the
graph cannot answer in full (issue 321) is answered from the vectors, files carry checksums (a flipped bit loads
silently), and no search runs beside a change (issue 562). A change becomes visible all at once.
"""

import hashlib
import json
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from mosaic.errors import BadRequest, MosaicError
from mosaic.protocol import Wire

Vectors = npt.NDArray[np.float32]

_FORMAT = 1
_MANIFEST, _GRAPH, _VECTORS, _ROWS = "manifest.json", "graph.bin", "vectors.npy", "rows.parquet"
_CHUNK = 64  # rows added at a time; searches wait for one chunk, some tens of milliseconds
_EXACT_BELOW = 1000  # as fast as the graph at this size, and exact


class CorruptSnapshot(MosaicError):
    """A saved index whose files are not what its manifest says; another snapshot, or the table, has to serve."""

    code = "corrupt_snapshot"


class Hit(Wire):
    """One neighbour."""

    id: str
    score: float
    """Cosine similarity, -1 to 1; a zero vector has 0 to everything."""
    payload: dict[str, Any]


class VectorIndex:
    """Ids with a vector, a content hash and a payload each, searched by cosine similarity; safe for threads.

    `version` is that of the table the content equals (-1: none yet), `state` plain JSON that travels with it. Memory is
    about 8 bytes per dimension and row (graph and vectors), plus 140 bytes of links.
    """

    def __init__(
        self,
        dimension: int | None = None,
        *,
        capacity: int = 1024,
        links: int = 16,
        ef_construction: int = 200,
        ef_search: int = 128,
        num_threads: int = 1,
    ) -> None:
        """Without `dimension` the first vectors decide it; `links`, the `ef`s: HNSW's M, efConstruction, ef."""
        for field, value in {"capacity": capacity, "links": links, "num_threads": num_threads}.items():
            if value < 1:
                raise BadRequest(f"{field} = {value}: must be at least 1", param=field)
        self._links, self._ef_construction, self._ef_search = links, ef_construction, ef_search
        self._num_threads, self._first_capacity = num_threads, capacity
        self._writing, self._reading = threading.Lock(), threading.Lock()
        self.version = -1
        self.state: dict[str, Any] = {}
        self._dimension: int | None = None
        self._num_slots = self._num_hidden = self._capacity = 0
        self._graph: Any = None
        self._vectors: Vectors = np.zeros((0, 0), np.float32)
        self._alive: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._ids: list[str] = []
        self._hashes: list[str] = []
        self._payloads: list[dict[str, Any]] = []
        self._slot_of_id: dict[str, int] = {}
        self._slot_of_hash: dict[str, int] = {}
        if dimension is not None:
            self._decide_dimension(dimension)

    @property
    def dimension(self) -> int | None:
        """Numbers per vector; None before the first."""
        return self._dimension

    @property
    def num_dead(self) -> int:
        """Slots of deleted or replaced rows that compaction has not freed yet."""
        return self._num_slots - len(self._slot_of_id)

    def __len__(self) -> int:
        return len(self._slot_of_id)

    def contents(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Content hash and payload of every id."""
        with self._reading:
            return {id_: (self._hashes[slot], self._payloads[slot]) for id_, slot in self._slot_of_id.items()}

    def vectors_of(self, hashes: Iterable[str]) -> dict[str, Vectors]:
        """The vectors that are still known for these content hashes, also of rows deleted since the last compaction."""
        with self._reading:
            return {h: self._vectors[self._slot_of_hash[h]].copy() for h in hashes if h in self._slot_of_hash}

    def apply(
        self,
        ids: Sequence[str],
        vectors: Vectors,
        hashes: Sequence[str],
        payloads: Sequence[dict[str, Any]],
        deletes: Iterable[str] = (),
        *,
        version: int,
        state: dict[str, Any] | None = None,
    ) -> None:
        """Upsert and delete; searches see all of it or nothing. Deletes of unknown ids are fine; an id must come once.

        Raises BadRequest, with nothing changed, for shapes that do not fit, numbers not finite, or ids that come twice.
        """
        with self._writing:
            normalised = self._check(ids, vectors, hashes, payloads)
            gone = [id_ for id_ in deletes if id_ in self._slot_of_id]
            both = set(gone) & set(ids)
            if both:
                raise BadRequest(f"ids to upsert and to delete at once: {sorted(both)[:5]}")
            changed = [n for n, id_ in enumerate(ids) if self._hash_of(id_) != hashes[n]]
            first = self._add_hidden(normalised[changed], [hashes[n] for n in changed]) if changed else 0
            with self._reading:
                for id_ in gone:
                    self._bury(self._slot_of_id.pop(id_))
                for slot, n in enumerate(changed, start=first):
                    if ids[n] in self._slot_of_id:
                        self._bury(self._slot_of_id[ids[n]])
                    self._alive[slot] = True
                    self._ids[slot] = ids[n]
                    self._slot_of_id[ids[n]] = slot
                self._num_hidden -= len(changed)
                for n, id_ in enumerate(ids):
                    self._payloads[self._slot_of_id[id_]] = payloads[n]
                self.version = version
                if state is not None:
                    self.state = state
            if self.num_dead > max(len(self), _CHUNK):
                self._compact()

    def search(self, vector: npt.ArrayLike, k: int, *, exact: bool = False) -> list[Hit]:
        """The `k` nearest, best first, ties by id: always min(k, rows) of them. `exact` compares with every row."""
        return self.search_at_version(vector, k, exact=exact)[1]

    def search_at_version(self, vector: npt.ArrayLike, k: int, *, exact: bool = False) -> tuple[int, list[Hit]]:
        """The same, and the version at which it holds."""
        if k < 1:
            raise BadRequest(f"k = {k}: must be at least 1", param="k")
        query = np.asarray(vector, dtype=np.float32)
        if query.ndim != 1 or (self._dimension is not None and query.shape[0] != self._dimension):
            raise BadRequest(
                f"the query has shape {query.shape}; the index has {self._dimension} dimensions", param="vector"
            )
        if not np.isfinite(query).all():
            raise BadRequest("the query holds numbers that are not finite", param="vector")
        query = _normalise(query[None, :])[0]
        with self._reading:
            k = min(k, len(self))
            if k == 0:
                return self.version, []
            slots = None if exact or len(self) < _EXACT_BELOW or k * 4 > len(self) else self._approximate(query, k)
            if slots is None:
                slots = np.flatnonzero(self._alive[: self._num_slots])
            scores = self._vectors[slots] @ query
            if len(slots) > k:
                # Everything as good as the k-th, so that ties are decided by id and not by place.
                kth = np.partition(scores, len(scores) - k)[len(scores) - k]
                slots, scores = slots[scores >= kth], scores[scores >= kth]
            found = sorted(
                (-float(score), self._ids[slot], int(slot)) for slot, score in zip(slots, scores, strict=True)
            )
            return self.version, [
                Hit(id=id_, score=max(-1.0, min(1.0, -negative)), payload=self._payloads[slot])
                for negative, id_, slot in found[:k]
            ]

    def save(self, folder: Path) -> None:
        """Write to an empty folder; the manifest comes last and holds the SHA-256 of the other files."""
        if self._dimension is None:
            raise BadRequest("an index that never had a row has nothing to save")
        folder.mkdir(parents=True, exist_ok=True)
        with self._writing:  # not `_reading`: searches go on, only changes wait
            count = self._num_slots
            self._graph.save_index(str(folder / _GRAPH))
            np.save(folder / _VECTORS, self._vectors[:count])
            rows = {
                "id": pa.array(self._ids[:count], pa.string()),
                "hash": pa.array(self._hashes[:count], pa.string()),
                "payload": pa.array([json.dumps(payload) for payload in self._payloads[:count]], pa.string()),
                "alive": pa.array(self._alive[:count]),
            }
            pq.write_table(pa.table(rows), folder / _ROWS)
            manifest = {
                "format": _FORMAT,
                "version": self.version,
                "dimension": self._dimension,
                "links": self._links,
                "ef_construction": self._ef_construction,
                "num_slots": count,
                "num_rows": len(self),
                "state": self.state,
                "sha256": {name: _sha256(folder / name) for name in (_GRAPH, _VECTORS, _ROWS)},
            }
        (folder / _MANIFEST).write_text(json.dumps(manifest))

    @classmethod
    def load(cls, folder: Path, *, ef_search: int = 128, num_threads: int = 1) -> "VectorIndex":
        """Read what `save` wrote; raises CorruptSnapshot if anything in it is not as it was written."""
        manifest = _read_manifest(folder)
        index = cls(
            manifest["dimension"],
            capacity=max(1024, manifest["num_slots"]),
            links=manifest["links"],
            ef_construction=manifest["ef_construction"],
            ef_search=ef_search,
            num_threads=num_threads,
        )
        index._restore(folder, manifest)
        return index

    def _restore(self, folder: Path, manifest: dict[str, Any]) -> None:
        count = manifest["num_slots"]
        self._graph = hnswlib.Index(space="cosine", dim=manifest["dimension"])
        self._graph.load_index(str(folder / _GRAPH), max_elements=self._capacity)
        self._set_up_graph(self._graph)
        self._vectors[:count] = np.load(folder / _VECTORS)
        rows = pq.read_table(folder / _ROWS)
        self._ids, self._hashes = rows["id"].to_pylist(), rows["hash"].to_pylist()
        self._payloads = TypeAdapter(list[dict[str, Any]]).validate_python(
            [json.loads(payload) for payload in rows["payload"].to_pylist()]
        )
        self._alive[:count] = rows["alive"].to_numpy()
        self._num_slots = count
        self._slot_of_id = {self._ids[slot]: slot for slot in np.flatnonzero(self._alive[:count]).tolist()}
        self._slot_of_hash = {hash_: slot for slot, hash_ in enumerate(self._hashes)}
        self.version, self.state = manifest["version"], manifest["state"]

    def _check(
        self, ids: Sequence[str], vectors: Vectors, hashes: Sequence[str], payloads: Sequence[dict[str, Any]]
    ) -> Vectors:
        if len(set(ids)) != len(ids):
            raise BadRequest("ids: the same id comes twice")
        if not len(ids) == len(vectors) == len(hashes) == len(payloads):
            counts = f"{len(ids)} ids, {len(vectors)} vectors, {len(hashes)} hashes, {len(payloads)} payloads"
            raise BadRequest(f"apply needs as many of each: {counts}")
        if not len(ids):
            return np.zeros((0, self._dimension or 0), np.float32)
        matrix = np.asarray(vectors, dtype=np.float32)
        if matrix.ndim != 2 or (self._dimension is not None and matrix.shape[1] != self._dimension):
            raise BadRequest(f"vectors have shape {matrix.shape}; the index has {self._dimension} dimensions")
        if not np.isfinite(matrix).all():
            raise BadRequest("vectors hold numbers that are not finite")
        if self._dimension is None:
            self._decide_dimension(matrix.shape[1])
        return _normalise(matrix)

    def _decide_dimension(self, dimension: int) -> None:
        if dimension < 1:
            raise BadRequest(f"dimension = {dimension}: must be at least 1", param="dimension")
        with self._reading:
            self._dimension = dimension
            self._allocate(self._first_capacity)

    def _allocate(self, capacity: int) -> None:
        assert self._dimension is not None
        self._capacity = capacity
        self._graph = self._new_graph(capacity)
        self._vectors = np.zeros((capacity, self._dimension), np.float32)
        self._alive = np.zeros(capacity, np.bool_)

    def _new_graph(self, capacity: int) -> Any:
        graph = hnswlib.Index(space="cosine", dim=self._dimension)
        graph.init_index(max_elements=capacity, M=self._links, ef_construction=self._ef_construction, random_seed=100)
        self._set_up_graph(graph)
        return graph

    def _set_up_graph(self, graph: Any) -> None:
        graph.set_num_threads(self._num_threads)  # otherwise every core, whatever Ray gave us
        graph.set_ef(self._ef_search)  # is not saved with the graph

    def _hash_of(self, id_: str) -> str | None:
        slot = self._slot_of_id.get(id_)
        return None if slot is None else self._hashes[slot]

    def _add_hidden(self, vectors: Vectors, hashes: list[str]) -> int:
        """Append rows that no search answers with yet; returns the first slot.

        They are not marked deleted meanwhile: hnswlib gives a new point no links to points so marked.
        """
        first = self._num_slots
        with self._reading:
            self._grow(first + len(vectors))
        for start in range(0, len(vectors), _CHUNK):
            chunk = vectors[start : start + _CHUNK]
            slots = np.arange(first + start, first + start + len(chunk))
            with self._reading:
                self._graph.add_items(chunk, slots, num_threads=self._num_threads)
                self._vectors[slots] = chunk
                for slot, hash_ in zip(slots.tolist(), hashes[start : start + _CHUNK], strict=True):
                    self._ids.append("")
                    self._hashes.append(hash_)
                    self._payloads.append({})
                    self._slot_of_hash[hash_] = slot
                self._num_slots += len(chunk)
                self._num_hidden += len(chunk)
        return first

    def _grow(self, needed: int) -> None:
        if needed <= self._capacity:
            return
        assert self._dimension is not None
        capacity = max(needed, 2 * self._capacity)
        self._graph.resize_index(capacity)
        vectors, alive = np.zeros((capacity, self._dimension), np.float32), np.zeros(capacity, np.bool_)
        vectors[: self._capacity], alive[: self._capacity] = self._vectors, self._alive
        self._vectors, self._alive, self._capacity = vectors, alive, capacity

    def _bury(self, slot: int) -> None:
        self._graph.mark_deleted(slot)
        self._alive[slot] = False
        self._payloads[slot] = {}

    def _compact(self) -> None:
        """Build a graph of the living rows beside the old one, which answers meanwhile, and swap."""
        slots = np.flatnonzero(self._alive[: self._num_slots])
        capacity = max(self._first_capacity, 2 * len(slots))
        graph, vectors = self._new_graph(capacity), self._vectors[slots]
        if len(slots):
            graph.add_items(vectors, np.arange(len(slots)), num_threads=self._num_threads)
        with self._reading:
            ids, hashes = [self._ids[slot] for slot in slots], [self._hashes[slot] for slot in slots]
            payloads = [self._payloads[slot] for slot in slots]
            self._allocate(capacity)
            self._graph, self._num_slots, self._num_hidden = graph, len(slots), 0
            self._vectors[: len(slots)], self._alive[: len(slots)] = vectors, True
            self._ids, self._hashes, self._payloads = ids, hashes, payloads
            self._slot_of_id = {id_: slot for slot, id_ in enumerate(ids)}
            self._slot_of_hash = {hash_: slot for slot, hash_ in enumerate(hashes)}

    def _approximate(self, query: Vectors, k: int) -> npt.NDArray[np.int64] | None:
        """Slots of the graph's answer; None when it cannot give k living rows."""
        # Beside a change that is under way, the graph also finds what is not visible yet.
        wanted = min(2 * k + 16, len(self) + self._num_hidden) if self._num_hidden else k
        self._graph.set_ef(max(self._ef_search, 2 * wanted))
        try:
            labels, _ = self._graph.knn_query(query[None, :], k=wanted, num_threads=1)
        except RuntimeError:  # fewer than that are reachable
            return None
        slots: npt.NDArray[np.int64] = labels[0].astype(np.int64)
        slots = slots[self._alive[slots]][:k]
        return slots if len(slots) == k else None


def _normalise(vectors: Vectors) -> Vectors:
    wide = vectors.astype(np.float64)  # squares of float32 can overflow
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    normalised: Vectors = (wide / np.where(norms == 0, 1.0, norms)).astype(np.float32)
    return normalised


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, after all files are found to be as it says: hnswlib trusts what it loads."""
    try:
        manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_bytes())
        if manifest["format"] != _FORMAT:
            raise CorruptSnapshot(f"{folder}: format {manifest['format']}, this version reads {_FORMAT}")
        for name, expected in manifest["sha256"].items():
            if _sha256(folder / name) != expected:
                raise CorruptSnapshot(f"{folder / name}: its SHA-256 is not the one in the manifest")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptSnapshot(f"{folder}: {type(error).__name__}: {error}") from error
    return manifest
