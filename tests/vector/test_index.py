"""The index against an exact answer made by numpy alone."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.errors import BadRequest
from mosaic.vector import CorruptSnapshot, VectorIndex

DIMENSION = 6


def vector_of(seed: int) -> Any:
    return np.random.default_rng(seed).normal(size=DIMENSION).astype(np.float32)


def put(index: VectorIndex, content: dict[str, int], deletes: Any = (), version: int = 0) -> None:
    """Rows whose vector, hash and payload follow from one number."""
    vectors = np.stack([vector_of(seed) for seed in content.values()]) if content else np.zeros((0, DIMENSION))
    hashes = [f"h{seed}" for seed in content.values()]
    index.apply(list(content), vectors, hashes, [{"seed": s} for s in content.values()], deletes, version=version)


def best(content: dict[str, int], query: Any, k: int) -> list[tuple[str, float]]:
    def cosine(seed: int) -> float:
        vector = vector_of(seed)
        return float(vector @ query / (np.linalg.norm(vector) * np.linalg.norm(query)))

    scored = [(id_, cosine(seed)) for id_, seed in content.items()]
    return sorted(scored, key=lambda pair: (-round(pair[1], 5), pair[0]))[:k]


def check(index: VectorIndex, content: dict[str, int], query_seed: int, k: int) -> None:
    query = vector_of(1000 + query_seed)
    expected = best(content, query, k)
    for exact in (True, False):
        hits = index.search(query, k, exact=exact)
        assert len(hits) == min(k, len(content))
        assert np.allclose([hit.score for hit in hits], [score for _, score in expected], atol=1e-5)
        assert all(hit.payload == {"seed": content[hit.id]} for hit in hits)
        assert len({hit.id for hit in hits}) == len(hits)
    assert len(index) == len(content)


ids = st.sampled_from([f"id{n}" for n in range(12)])
changes = st.tuples(st.dictionaries(ids, st.integers(0, 40), max_size=6), st.sets(ids, max_size=5))


@settings(max_examples=60, deadline=None)
@given(st.lists(changes, max_size=12), st.integers(0, 99), st.integers(1, 15))
def test_any_changes_leave_exactly_the_content(history: list[Any], query: int, k: int) -> None:
    index, content = VectorIndex(DIMENSION, capacity=2), dict[str, int]()
    for version, (upserts, deletes) in enumerate(history):
        deletes -= upserts.keys()
        put(index, upserts, deletes, version)
        content = {id_: seed for id_, seed in content.items() if id_ not in deletes} | upserts
        assert index.version == version
        check(index, content, query, k)
    assert {id_: payload["seed"] for id_, (_, payload) in index.contents().items()} == content


def clustered(count: int, seed: int, dimension: int = 32) -> Any:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(20, dimension))
    return (centres[random.integers(0, 20, count)] + 0.4 * random.normal(size=(count, dimension))).astype(np.float32)


def test_recall_on_clustered_data_also_after_churn() -> None:
    index, vectors = VectorIndex(), clustered(3000, 1)
    names = [f"r{n}" for n in range(3000)]
    index.apply(names, vectors, names, [{}] * 3000, version=1)
    index.apply([], np.zeros((0, 32)), [], [], names[:500], version=2)
    again = clustered(1000, 2)
    index.apply(names[500:1500], again, [f"new{n}" for n in range(1000)], [{}] * 1000, version=3)
    assert index.num_dead == 1500 and len(index) == 2500
    found = wanted = 0
    for query in clustered(200, 3):
        exact = {hit.id for hit in index.search(query, 5, exact=True)}
        found += len(exact & {hit.id for hit in index.search(query, 5)})
        wanted += len(exact)
    assert wanted == 1000
    assert found / wanted >= 0.95


def test_compaction_forgets_the_dead_and_changes_no_answer() -> None:
    index, vectors = VectorIndex(capacity=16), clustered(600, 1)
    names = [f"r{n}" for n in range(600)]
    index.apply(names, vectors, names, [{"n": n} for n in range(600)], version=1)
    index.apply([], np.zeros((0, 32)), [], [], names[:301], version=2)
    assert index.num_dead == 0 and len(index) == 299
    assert "r5" not in index.vectors_of(["r5", "r500"])
    assert [hit.id for hit in index.search(vectors[400], 1)] == ["r400"]
    assert len(index.search(vectors[0], 1000)) == 299


def test_the_same_content_keeps_its_place_and_takes_the_new_payload() -> None:
    index = VectorIndex(DIMENSION)
    put(index, {"a": 1, "b": 2})
    index.apply(["a"], vector_of(1)[None], ["h1"], [{"seed": "renamed"}], version=1)
    assert index.num_dead == 0
    assert index.search(vector_of(1), 1)[0].payload == {"seed": "renamed"}


def test_deleted_vectors_are_known_until_compaction() -> None:
    index = VectorIndex(DIMENSION)
    put(index, {"a": 1, "b": 2})
    put(index, {}, ["a"])
    found = index.vectors_of(["h1", "h2", "h3"])
    assert set(found) == {"h1", "h2"}
    assert np.allclose(found["h1"], vector_of(1) / np.linalg.norm(vector_of(1)), atol=1e-6)


def test_ties_zero_vectors_and_large_numbers() -> None:
    index = VectorIndex(2)
    rows = np.array([[1, 0], [2, 0], [3e30, 0], [0, 0], [0, 1]], np.float32)
    index.apply(list("dcbae"), rows, list("dcbae"), [{}] * 5, version=0)
    for exact in (True, False):
        assert [hit.id for hit in index.search([1, 0], 3, exact=exact)] == ["b", "c", "d"]
    assert {hit.score for hit in index.search([0, 0], 5)} == {0.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], np.zeros((1, 5)), ["h"], [{}]), "shape \\(1, 5\\); the index has 6"),
        ((["a"], np.full((1, 6), np.nan), ["h"], [{}]), "not finite"),
        ((["a", "a"], np.zeros((2, 6)), ["h", "h"], [{}, {}]), "twice"),
        ((["a"], np.zeros((2, 6)), ["h"], [{}]), "1 ids, 2 vectors"),
        ((["old"], np.ones((1, 6)), ["h"], [{}], ["old"]), "to delete at once: \\['old'\\]"),
    ],
)
def test_what_does_not_fit_changes_nothing(arguments: Any, message: str) -> None:
    index = VectorIndex(DIMENSION)
    put(index, {"old": 1})
    with pytest.raises(BadRequest, match=message):
        index.apply(*arguments, version=9)
    assert (index.version, len(index)) == (0, 1)


def test_queries_are_checked() -> None:
    index = VectorIndex(DIMENSION)
    assert index.search(vector_of(1), 3) == []
    put(index, {"a": 1})
    for query, k, message in [(vector_of(1), 0, "k = 0"), ([1.0], 1, "shape"), ([np.inf] * 6, 1, "not finite")]:
        with pytest.raises(BadRequest, match=message):
            index.search(query, k)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[VectorIndex, Path]:
    index = VectorIndex()
    vectors = clustered(1200, 1)
    names = [f"r{n}" for n in range(1200)]
    index.apply(names, vectors, names, [{"n": n} for n in range(1200)], version=6)
    index.apply([], np.zeros((0, 32)), [], [], names[:100], version=7, state={"note": [1]})
    index.save(tmp_path / "saved")
    return index, tmp_path / "saved"


def test_a_loaded_index_answers_and_changes_as_the_saved_one(saved: tuple[VectorIndex, Path]) -> None:
    index, folder = saved
    loaded = VectorIndex.load(folder)
    assert (loaded.version, loaded.state, loaded.dimension) == (7, {"note": [1]}, 32)
    assert loaded.contents() == index.contents()
    for query in clustered(20, 5):
        assert loaded.search(query, 7) == index.search(query, 7)
    vectors = clustered(900, 9)
    for one in (index, loaded):
        one.apply(
            [f"n{n}" for n in range(900)], vectors, [f"n{n}" for n in range(900)], [{}] * 900, ["r200"], version=8
        )
    for query in clustered(20, 6):
        assert loaded.search(query, 7, exact=True) == index.search(query, 7, exact=True)


@pytest.mark.parametrize("name", ["graph.bin", "vectors.npy", "rows.parquet", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damage_is_found_before_anything_is_loaded(saved: tuple[VectorIndex, Path], name: str, damage: str) -> None:
    path = saved[1] / name
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        data[len(data) // 2] ^= 0x40
        path.write_bytes(data if damage == "flip" and name != "manifest.json" else data[: len(data) // 2])
    with pytest.raises(CorruptSnapshot):
        VectorIndex.load(saved[1])


def test_searches_beside_changes_see_whole_versions() -> None:
    index = VectorIndex(DIMENSION)
    put(index, {f"id{n}": n for n in range(40)}, version=0)
    failures: list[Any] = []
    stop = threading.Event()

    def search() -> None:
        while not stop.is_set():
            version, hits = index.search_at_version(vector_of(5), 60)
            seeds = {hit.payload["seed"] // 100 for hit in hits}
            if len(hits) != 40 or seeds != {version}:
                failures.append((version, len(hits), seeds))

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in range(1, 40):
        put(index, {f"id{n}": 100 * version + n for n in range(40)}, version=version)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
