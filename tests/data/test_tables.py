"""Tables: one commit per write, reads pinned to a version, rows that do not fit refused."""

import threading
from pathlib import Path

import pyarrow as pa
import pytest
import ray
import ray.data
from deltalake import DeltaTable
from ray.data.expressions import col

from mosaic.data import Tables
from mosaic.data.pydoc import entry_schema
from mosaic.errors import BadRequest, Conflict, NotFound

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")

NAME = "main.test.words"
SCHEMA = pa.schema([pa.field("word", pa.string(), nullable=False), ("length", pa.int64())])


def rows(*words: str) -> pa.Table:
    return pa.table({"word": list(words), "length": [len(word) for word in words]}, schema=SCHEMA)


@pytest.fixture
def words(tables: Tables) -> Tables:
    tables.create(NAME, SCHEMA, primary_key="word", owner="ann")
    return tables


def test_create_registers_and_is_repeatable(tables: Tables) -> None:
    made = tables.create("Main.Test.Words", SCHEMA, primary_key="word", owner="ann", comment="Words.")
    assert (made.name, made.primary_key, made.comment) == (NAME, "word", "Words.")
    assert made.location.endswith("/tables/main/test/words")
    assert tables.create(NAME, SCHEMA, primary_key="word", owner="ann") == made
    assert tables.version(NAME) == 0
    assert tables.delta(NAME).metadata().configuration["delta.enableChangeDataFeed"] == "true"
    with pytest.raises(Conflict, match="other columns: word string, length int64, not word"):
        tables.create(NAME, SCHEMA.append(pa.field("x", pa.int64())), primary_key="word", owner="ann")
    with pytest.raises(Conflict, match="primary key 'word', not None"):
        tables.create(NAME, SCHEMA, primary_key=None, owner="ann")


def test_create_survives_a_kill_between_table_and_name(tables: Tables, tmp_path: Path) -> None:
    DeltaTable.create(str(tmp_path / "root/tables/main/test/words"), schema=SCHEMA)
    assert tables.create(NAME, SCHEMA, primary_key="word", owner="ann").name == NAME
    DeltaTable.create(str(tmp_path / "root/tables/main/test/other"), schema=SCHEMA)
    with pytest.raises(Conflict, match="another schema"):
        tables.create("main.test.other", entry_schema(), primary_key=None, owner="ann")


def test_create_wants_the_key_among_the_columns(tables: Tables) -> None:
    with pytest.raises(BadRequest, match="no column 'id'; there are"):
        tables.create(NAME, SCHEMA, primary_key="id", owner="ann")


def test_arrow_round_trip_with_versions_and_run(words: Tables) -> None:
    assert words.append(NAME, rows("a", "bb"), run_id="run_1") == 1
    assert words.append(NAME, rows("ccc")) == 2
    assert words.overwrite(NAME, rows("z"), run_id="run_2") == 3
    assert words.to_arrow(NAME, 1).to_pylist() == rows("a", "bb").to_pylist()
    assert words.to_arrow(NAME, 2, ["word"])["word"].to_pylist() == ["a", "bb", "ccc"]
    assert words.to_arrow(NAME)["word"].to_pylist() == ["z"]
    assert words.to_arrow(NAME, 0).num_rows == 0
    runs = {commit["version"]: commit.get("mosaic.run_id") for commit in words.delta(NAME).history()}
    assert runs == {0: None, 1: "run_1", 2: None, 3: "run_2"}


def test_merge_and_delete(words: Tables) -> None:
    words.append(NAME, rows("a", "b"))
    longer = pa.table({"word": ["b", "c"], "length": [20, 30]})
    assert words.merge(NAME, longer, run_id="run_3") == 2
    assert sorted(row["length"] for row in words.to_arrow(NAME).to_pylist()) == [1, 20, 30]
    assert words.delete_where(NAME, "length > 15") == 3
    assert words.to_arrow(NAME)["word"].to_pylist() == ["a"]
    assert words.delta(NAME).history(2)[1]["mosaic.run_id"] == "run_3"
    assert words.merge(NAME, rows()) == 3


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (pa.table({"word": ["a"], "size": [1]}), "no column 'size'; there are \\['word', 'length'\\]"),
        (pa.table({"length": [1]}), "column 'word' .* is required"),
        (pa.table({"word": ["a", None]}), "'word' .* may not be null; 1 of 2 are"),
        (pa.table({"word": ["a"], "length": ["long"]}), "'length' .* is int64, not string"),
        (pa.table({"word": ["a"], "length": [1.5]}), "'length' .* is int64, not double"),
    ],
)
def test_rows_that_do_not_fit_are_refused_whole(words: Tables, ray_cluster: None, bad: pa.Table, message: str) -> None:
    for write in (words.append, words.overwrite, words.merge):
        with pytest.raises(BadRequest, match=message):
            write(NAME, bad)
    for mode in (words.append, words.overwrite):
        with pytest.raises(BadRequest, match=message):
            mode(NAME, ray.data.from_blocks([rows("fine"), bad]))
    assert words.version(NAME) == 0


def test_a_missing_column_that_may_be_null_is_null(words: Tables) -> None:
    words.append(NAME, pa.table({"word": ["a"]}))
    assert words.to_arrow(NAME).to_pylist() == [{"word": "a", "length": None}]


def test_merge_wants_a_unique_key(words: Tables, tables: Tables) -> None:
    with pytest.raises(BadRequest, match="comes twice: \\['a'\\]"):
        words.merge(NAME, rows("a", "b", "a"))
    tables.create("main.test.heap", SCHEMA, primary_key=None, owner="ann")
    with pytest.raises(BadRequest, match="no primary key"):
        tables.merge("main.test.heap", rows("a"))


def test_unknown_names_versions_columns_predicates(words: Tables) -> None:
    with pytest.raises(NotFound, match="words"):
        words.version("main.test.wrods")
    with pytest.raises(NotFound, match="no readable version 7; the newest is 0"):
        words.to_arrow(NAME, 7)
    with pytest.raises(NotFound, match="versions start at 0"):
        words.to_arrow(NAME, -1)
    with pytest.raises(BadRequest, match="no column 'x'; there are"):
        words.to_arrow(NAME, columns=["x"])
    for predicate in ("", "nonsense >", "x = 1"):
        with pytest.raises(BadRequest, match="predicate"):
            words.delete_where(NAME, predicate)


def test_unsupported_tables_are_refused(tables: Tables, tmp_path: Path) -> None:
    address = str(tmp_path / "root/tables/main/test/parted")
    DeltaTable.create(address, schema=SCHEMA, partition_by=["length"])
    with pytest.raises(BadRequest, match="is partitioned, which is not supported"):
        tables.create("main.test.parted", SCHEMA, primary_key=None, owner="ann")


def test_datasets_are_written_in_one_commit_and_read_in_order(words: Tables, ray_cluster: None) -> None:
    def name_them(batch: pa.Table) -> pa.Table:
        texts = [f"w{number:04d}" for number in batch["id"].to_pylist()]
        return pa.table({"word": texts, "length": [5] * len(texts)})

    numbers = ray.data.from_items([{"id": number} for number in range(1000)], override_num_blocks=8)
    data = numbers.map_batches(name_them, batch_format="pyarrow", num_cpus=0.25)
    assert words.append(NAME, data, run_id="run_9") == 1
    words.append(NAME, rows("later"))
    runs = {commit["version"]: commit.get("mosaic.run_id") for commit in words.delta(NAME).history()}
    assert runs == {0: None, 1: "run_9", 2: None}
    listed = words.to_arrow(NAME, 1)["word"].to_pylist()
    assert sorted(listed) == [f"w{number:04d}" for number in range(1000)]
    for _ in range(2):
        dataset = words.read(NAME, 1, ["word"])
        dataset.context.execution_options.preserve_order = True
        assert [row["word"] for row in dataset.take_all()] == listed
    assert words.read(NAME).count() == 1001
    assert words.read(NAME, 0).count() == 0
    assert words.overwrite(NAME, words.read(NAME).filter(expr=col("word") == "later", num_cpus=0.25)) == 3
    assert words.to_arrow(NAME)["word"].to_pylist() == ["later"]
    feed = pa.table(words.delta(NAME).load_cdf(3, 3))
    assert sorted(set(feed["_change_type"].to_pylist())) == ["delete", "insert"]
    assert feed.num_rows == 1002
    nothing = words.read(NAME).filter(expr=col("length") > 100, num_cpus=0.25)
    assert words.append(NAME, nothing) == 3
    assert words.overwrite(NAME, nothing) == 4
    assert words.to_arrow(NAME).num_rows == 0


@ray.remote
class Occupant:
    def ready(self) -> bool:
        return True


def test_half_a_cpu_is_enough(words: Tables, ray_cluster: None) -> None:
    spare = round(ray.available_resources().get("CPU", 0.0) - 0.5, 2)
    occupants = [Occupant.options(num_cpus=spare).remote()] if spare > 0 else []
    ray.get([occupant.ready.remote() for occupant in occupants], timeout=60)
    try:
        words.append(NAME, ray.data.from_blocks([rows("a", "b")]))
        words.overwrite(NAME, words.read(NAME).map_batches(lambda batch: batch, num_cpus=0.25))
        assert len(words.read(NAME).take_all()) == 2
    finally:
        for occupant in occupants:
            ray.kill(occupant)


def test_appends_at_the_same_time_all_arrive(words: Tables) -> None:
    found: dict[int, str] = {}

    def work(name: int) -> None:
        for number in range(5):
            found[words.append(NAME, rows(f"{name}-{number}"))] = f"{name}-{number}"

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert words.to_arrow(NAME).num_rows == 20
    assert words.version(NAME) == 20
    assert sorted(found) == list(range(1, 21))
    for version, word in found.items():
        before = set(words.to_arrow(NAME, version - 1)["word"].to_pylist())
        assert set(words.to_arrow(NAME, version)["word"].to_pylist()) - before == {word}
