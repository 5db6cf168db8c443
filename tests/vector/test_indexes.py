"""Indexes as actors: made, asked, killed, restarted, deleted."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray

from mosaic.catalog import Catalog
from mosaic.data import Tables
from mosaic.errors import BadRequest, Conflict, NotFound, Unavailable
from mosaic.storage import Storage
from mosaic.vector import HashEmbedder, Indexes, IndexSettings, Shard

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")

TABLE, INDEX = "main.test.docs", "main.test.docs_index"
WORDS = ["fox", "whale", "tea", "wine", "stone", "river", "cloud", "piano", "salt", "lamp"]


def rows(*numbers: int) -> pa.Table:
    titles = [f"{WORDS[n % 10]} {WORDS[n // 10 % 10]} number{n}" for n in numbers]
    return pa.table({"id": [f"id{n}" for n in numbers], "title": titles, "body": ["text"] * len(numbers)})


def embedder(endpoint: str) -> HashEmbedder:
    assert endpoint == "hash"
    return HashEmbedder(1024)


@pytest.fixture
def indexes(ray_cluster: None, storage: Storage, tables: Tables, catalog: Catalog) -> Iterator[Indexes]:
    made = Indexes(storage, tables, catalog, embedder)
    yield made
    for name in made.list():
        made.delete(name)


def kill(indexes: Indexes) -> int:
    pid = indexes.status(INDEX).process_id
    os.kill(pid, signal.SIGKILL)
    return pid


def test_made_asked_followed_and_deleted(
    indexes: Indexes, tables: Tables, catalog: Catalog, storage: Storage, index_settings: IndexSettings
) -> None:
    tables.append(TABLE, rows(*range(30)))
    indexes.create(index_settings, owner="ann")
    found = indexes.query(INDEX, "number17", 3)
    assert (found.index, found.version) == (INDEX, 1)
    assert [len(found.hits), found.hits[0].id, found.hits[0].payload] == [3, "id17", {"title": "piano whale number17"}]
    assert indexes.query(INDEX, HashEmbedder(1024)(["number17"])[0], 3, exact=True).hits == found.hits
    assert asyncio.run(indexes.query_async(INDEX, "number17", 3, request_id="req_1")) == found

    tables.append(TABLE, rows(100))
    deadline = time.monotonic() + 20
    while indexes.query(INDEX, "number100", 1).hits[0].id != "id100":
        assert time.monotonic() < deadline, "the index does not follow its table"
        time.sleep(0.05)
    tables.delete_where(TABLE, "id = 'id100'")
    assert indexes.sync(INDEX).version == 3
    assert indexes.query(INDEX, "number100", 50).hits[0].id != "id100"
    status = indexes.status(INDEX)
    assert (status.ready, status.version, status.table_version, status.num_rows) == (True, 3, 3, 30)
    assert status.error is None and status.dimension == 1024

    (run,) = catalog.runs_that_made("index", INDEX, 3)
    assert [(edge.kind, edge.name, edge.version) for edge in run.inputs] == [("table", TABLE, 3)]
    assert run.kind == "index" and run.status == "finished"

    assert indexes.create(index_settings, owner="ann").process_id == status.process_id
    with pytest.raises(Conflict, match="exists with another payload_columns; delete it first"):
        indexes.create(index_settings.model_copy(update={"payload_columns": ()}), owner="ann")
    for question, k, message in [("", 1, "is empty"), ("x", 0, "k = 0"), ([1.0], 1, "shape")]:
        with pytest.raises(BadRequest, match=message):
            indexes.query(INDEX, question, k)

    assert indexes.list() == [INDEX]
    assert storage.list(storage.address("indexes", INDEX))
    indexes.delete(INDEX)
    assert storage.list(storage.address("indexes", INDEX)) == []
    for call in (indexes.query, indexes.sync, indexes.status, indexes.delete, indexes.start):
        with pytest.raises(NotFound, match=f"no index '{INDEX}'; there is none that you may see"):
            call(*([INDEX, "x"] if call == indexes.query else [INDEX]))  # type: ignore[operator]


def test_wrong_settings_make_nothing(indexes: Indexes, index_settings: IndexSettings) -> None:
    with pytest.raises(NotFound, match="wrong"):
        indexes.create(index_settings.model_copy(update={"table": "main.test.wrong"}), owner="ann")
    with pytest.raises(BadRequest, match="no column 'colour'; there are"):
        indexes.create(index_settings.model_copy(update={"payload_columns": ("colour",)}), owner="ann")
    assert indexes.list() == []


def test_kill_9_during_queries(
    indexes: Indexes, tables: Tables, storage: Storage, index_settings: IndexSettings
) -> None:
    tables.append(TABLE, rows(*range(100)))
    indexes.create(index_settings, owner="ann")
    indexes.sync(INDEX)
    failures: list[Any] = []
    answered = [0, 0]
    stop = threading.Event()

    def ask(which: int) -> None:
        while not stop.is_set():
            try:
                hits = indexes.query(INDEX, "number42", 5, timeout_seconds=60).hits
                assert [len(hits), hits[0].id] == [5, "id42"]
                answered[which] += 1
            except BaseException as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=ask, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    pid = kill(indexes)
    tables.append(TABLE, rows(200))
    before = list(answered)
    deadline = time.monotonic() + 60
    while (
        not failures and time.monotonic() < deadline and not all(a > b for a, b in zip(answered, before, strict=True))
    ):
        time.sleep(0.1)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert indexes.sync(INDEX).version == tables.version(TABLE) == 2
    status = indexes.status(INDEX)
    assert status.process_id != pid and status.num_rows == 101
    assert indexes.query(INDEX, "fox fox number200 text", 1).hits[0].id == "id200"


def test_a_stopped_platform_starts_its_indexes_again(
    indexes: Indexes, storage: Storage, tables: Tables, catalog: Catalog, index_settings: IndexSettings
) -> None:
    tables.append(TABLE, rows(*range(10)))
    indexes.create(index_settings, owner="ann")
    indexes.sync(INDEX)
    ray.kill(ray.get_actor(f"index:{INDEX}", namespace="mosaic"), no_restart=True)
    later = Indexes(storage, tables, catalog, embedder)
    assert later.start(INDEX).snapshot_version == 1
    assert later.query(INDEX, "number3", 1).hits[0].id == "id3"
    ray.kill(ray.get_actor(f"index:{INDEX}", namespace="mosaic"), no_restart=True)
    assert later.query(INDEX, "number3", 1).hits[0].id == "id3", "a query alone brings it up too"
    assert indexes.query(INDEX, "number4", 1).hits[0].id == "id4", "and old handles find the new actor"


# The shard without Ray


class Recorder:
    def __init__(self) -> None:
        self.results: list[Any] = []
        self.failing = False

    def __call__(self, result: Any) -> None:
        if self.failing:
            raise Unavailable("the catalog is away")
        self.results.append(result)


def shard(storage: Storage, tables: Tables, settings: IndexSettings, embed: Any, record: Any) -> Shard:
    slow = settings.model_copy(update={"poll_seconds": 3600.0})
    made = Shard(slow, storage, tables.place(TABLE)[0], embed, record)
    made.sync()
    return made


def test_a_restart_embeds_only_what_changed_since_the_snapshot(
    storage: Storage, tables: Tables, index_settings: IndexSettings
) -> None:
    tables.append(TABLE, rows(*range(40)))
    first = shard(storage, tables, index_settings, HashEmbedder(64), Recorder())
    assert first.status().snapshot_version == 1
    first.stop()
    tables.append(TABLE, rows(50))
    tables.overwrite(TABLE, rows(*range(35), 60))
    embed, recorder = HashEmbedder(64), Recorder()
    second = shard(storage, tables, index_settings, embed, recorder)
    assert embed.num_texts == 1
    assert (second.status().version, second.status().num_rows) == (3, 36)
    assert [result.full for result in recorder.results] == [False]
    second.stop()


def test_damaged_and_foreign_snapshots_are_passed_over(
    storage: Storage, tables: Tables, index_settings: IndexSettings, tmp_path: Path
) -> None:
    tables.append(TABLE, rows(*range(200)))
    one = shard(storage, tables, index_settings, HashEmbedder(64), Recorder())
    tables.append(TABLE, rows(*range(200, 400)))
    one.sync()
    tables.append(TABLE, rows(*range(400, 600)))
    one.sync()
    one.stop()
    snapshots = storage.list(storage.address("indexes", INDEX))
    assert [address.rsplit("/", 1)[1] for address in snapshots] == ["v000000000002", "v000000000003"]
    graph = storage.local_path(f"{snapshots[1]}/graph.bin")
    graph.write_bytes(graph.read_bytes()[:-1] + b"!")
    embed = HashEmbedder(64)
    two = shard(storage, tables, index_settings, embed, Recorder())
    assert embed.num_texts == 200 and two.status().num_rows == 600
    two.stop()
    changed = index_settings.model_copy(update={"text_columns": ("title",)})
    embed = HashEmbedder(64)
    shard(storage, tables, changed, embed, Recorder()).stop()
    assert embed.num_texts == 600


def test_trouble_is_shown_and_made_good(storage: Storage, tables: Tables, index_settings: IndexSettings) -> None:
    recorder = Recorder()
    one = shard(storage, tables, index_settings, HashEmbedder(64), recorder)
    assert one.query([0.0] * 64, 3).hits == [], "an empty table makes an empty index"
    tables.append(TABLE, rows(1, 2))
    recorder.failing = True
    with pytest.raises(Unavailable, match="away"):
        one.sync()
    assert one.status().error == "Unavailable: the catalog is away"
    assert one.status().version == 1
    recorder.failing = False
    one.sync()
    assert one.status().error is None
    assert [result.version for result in recorder.results] == [0, 1]
    one.stop()
