"""Tables: one commit per write, reads pinned to a version, rows that do not fit refused."""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest
import ray
import ray.data
from deltalake import DeltaTable, Schema, write_deltalake
from ray.data.expressions import col

from mosaic.catalog import Catalog
from mosaic.data import Tables
from mosaic.data.access import KILL_POINTS
from mosaic.errors import BadRequest, Conflict, NotFound
from mosaic.storage import Storage

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
    assert re.fullmatch(r".*/root/managed/tbl_[0-9a-z]+", made.location)
    assert tables.create(NAME, SCHEMA, primary_key="word", owner="ann") == made
    assert tables.version(NAME) == 0
    assert tables.delta(NAME).metadata().configuration["delta.enableChangeDataFeed"] == "true"
    with pytest.raises(Conflict, match="other columns: word string, length int64, not word"):
        tables.create(NAME, SCHEMA.append(pa.field("x", pa.int64())), primary_key="word", owner="ann")
    with pytest.raises(Conflict, match="primary key 'word', not None"):
        tables.create(NAME, SCHEMA, primary_key=None, owner="ann")


def test_a_table_grows_by_the_columns_that_it_lacks(words: Tables, catalog: Catalog) -> None:
    words.append(NAME, rows("sea"))
    wider = SCHEMA.append(pa.field("from", pa.string()))
    assert words.grow(NAME, wider) == 1 and words.grow(NAME, wider) == 0
    assert words.to_arrow(NAME).to_pylist() == [{"word": "sea", "length": 3, "from": None}]
    assert [column["name"] for column in catalog.get_table(NAME).columns] == ["word", "length", "from"]
    assert words.create(NAME, wider, primary_key="word", owner="ann").name == NAME
    with pytest.raises(Conflict, match="nothing in \\['must'\\]"):
        words.grow(NAME, wider.append(pa.field("must", pa.string(), nullable=False)))


KILLED = """
import os, signal, sys
from mosaic.catalog import Catalog
from mosaic.data import Tables
from mosaic.storage import Storage
from tests.data.test_tables import NAME, SCHEMA, rows

def at(point):
    if point == {point!r}:
        os.kill(os.getpid(), signal.SIGKILL)

tables = Tables(Storage({root!r}), Catalog.open({url!r}), at=at)
tables.create(NAME, SCHEMA, primary_key="word", owner="ann")
tables.append(NAME, rows("a"), run_id={run_id!r})
"""


def kill(catalog: Catalog, root: Path, point: str) -> str:
    """A process that makes the table and appends to it dies at the point; its run."""
    run_id = catalog.start_run("ingest", NAME, principal="ann")
    script = KILLED.format(point=point, root=str(root), url=catalog.url, run_id=run_id)
    killed = subprocess.run([sys.executable, "-c", script], timeout=60, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    return run_id


def test_the_kill_points_are_those_of_the_tests_below_and_of_test_compact() -> None:
    assert KILL_POINTS == ("after-name", "compacted", "after-commit")


def test_kill_9_between_a_commit_and_its_lineage(tables: Tables, catalog: Catalog, tmp_path: Path) -> None:
    """What is made from those rows later leads to the run that wrote them all the same."""
    killed = kill(catalog, tmp_path / "root", "after-commit")
    assert tables.to_arrow(NAME).num_rows == 1 and tables.commit_lineage(NAME, 1).run_id == killed
    assert catalog.get_run(killed).outputs == []
    later = catalog.start_run("copy", "main.test.copy", principal="ann")
    tables.create("main.test.copy", SCHEMA, primary_key=None, owner="ann")
    acting = tables.acting(None, later)
    acting.append("main.test.copy", acting.to_arrow(NAME))
    (output,) = catalog.get_run(killed).outputs
    assert (output.name, output.version, output.detail) == (NAME, 1, {"recovered": True})
    (parent,) = catalog.trace("table", "main.test.copy", 1).parents
    assert (parent.version, parent.run_id) == (1, killed)


def test_kill_9_between_a_name_and_its_log(tables: Tables, catalog: Catalog, tmp_path: Path) -> None:
    kill(catalog, tmp_path / "root", "after-name")
    reserved = catalog.get_table(NAME)
    for read in (tables.version, tables.to_arrow, tables.read, tables.delta):
        with pytest.raises(NotFound, match="a place, but no Delta log yet") as raised:
            read(NAME)
        assert raised.value.code == "table_not_written"
    with pytest.raises(Conflict, match="other columns"):
        tables.create(NAME, SCHEMA.append(pa.field("x", pa.int64())), primary_key="word", owner="ann")
    assert tables.create(NAME, SCHEMA, primary_key="word", owner="ann") == reserved
    assert tables.delta(NAME).schema().to_json() == Schema.from_arrow(SCHEMA).to_json()
    assert tables.version(NAME) == 0


def test_a_reserved_name_gets_its_log_by_the_first_write(tables: Tables, catalog: Catalog, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def at(point: str) -> None:
        if point == "after-name":
            raise Killed(point)

    dying = Tables(Storage(str(tmp_path / "root")), catalog, at=at)
    nested = pa.schema([("id", pa.string()), ("said", pa.list_(pa.struct([("role", pa.string())])))])
    with pytest.raises(Killed):
        dying.create("main.test.nested", nested, primary_key="id", owner="ann")
    row = {"id": "a", "said": [{"role": "user"}]}
    assert tables.append("main.test.nested", pa.Table.from_pylist([row], schema=nested)) == 1
    assert tables.delta("main.test.nested").schema().to_json() == Schema.from_arrow(nested).to_json()
    assert tables.delta("main.test.nested").metadata().configuration["delta.enableChangeDataFeed"] == "true"
    with pytest.raises(Killed):
        dying.create(NAME, SCHEMA, primary_key="word", owner="ann")
    assert tables.merge(NAME, rows("a")) == 1


def test_a_table_made_at_the_same_time_is_one_table(tables: Tables) -> None:
    made: list[str] = []

    def work() -> None:
        made.append(tables.create(NAME, SCHEMA, primary_key="word", owner="ann").id)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8 and len(set(made)) == 1
    assert tables.version(NAME) == 0


def test_a_table_made_again_does_not_find_the_old_files(words: Tables, catalog: Catalog) -> None:
    words.append(NAME, rows("old"))
    before = catalog.get_table(NAME).location
    catalog.delete_table(NAME)
    made = words.create(NAME, SCHEMA, primary_key="word", owner="ann")
    assert made.location != before
    assert words.to_arrow(NAME).num_rows == 0
    assert DeltaTable(before).to_pyarrow_table()["word"].to_pylist() == ["old"]


def test_tables_at_their_old_addresses_keep_working(tables: Tables, catalog: Catalog, tmp_path: Path) -> None:
    address = str(tmp_path / "root/tables/main/test/words")
    DeltaTable.create(address, schema=SCHEMA)
    catalog.create_table(NAME, address, columns=[{"name": "word"}], primary_key="word", owner="ann")
    assert tables.create(NAME, SCHEMA, primary_key="word", owner="ann").location == address
    assert tables.append(NAME, rows("a")) == 1
    assert tables.to_arrow(NAME).to_pylist() == rows("a").to_pylist()


def test_a_name_from_unity_catalogs_protocol_gets_its_log_by_the_first_write(
    tables: Tables, catalog: Catalog, tmp_path: Path
) -> None:
    def registered(name: str, *columns: dict[str, object]) -> str:
        catalog.create_table(name, str(tmp_path / "root/managed" / name), columns=columns, primary_key=None, owner="a")
        return name

    described = {"type": "bigint", "spark": "long", "nullable": False, "comment": "Its number.", "metadata": {}}
    name = registered("main.test.named", {"name": "id", **described}, {"name": "score", "type": "decimal(10,2)"})
    assert tables.append(name, pa.table({"id": [1]})) == 1
    schema = pa.schema(tables.delta(name).schema().to_arrow())
    assert schema.field("id").equals(pa.field("id", pa.int64(), nullable=False))
    assert schema.field("id").metadata == {b"comment": b"Its number."}
    assert schema.field("score").type == pa.decimal128(10, 2)
    assert tables.create(name, schema, primary_key=None, owner="a").name == name
    bare = registered("main.test.bare")
    with pytest.raises(BadRequest, match="registered without columns"):
        tables.append(bare, rows("a"))
    assert len(tables.create(bare, SCHEMA, primary_key=None, owner="a").columns) == 2
    assert tables.append(bare, rows("a")) == 1
    for column, message in (
        ({"name": "v", "spark": "variant"}, "'v' .* is variant"),
        ({"name": "v", "type": "int", "partition_index": 0}, "partitioned by 'v'"),
        ({"name": "v", "type": "json"}, "none of Delta's"),
    ):
        with pytest.raises(BadRequest, match=message):
            tables.append(registered(f"main.test.bad{message[1:2]}", column), rows("a"))


def test_create_wants_the_key_among_the_columns(tables: Tables) -> None:
    with pytest.raises(BadRequest, match="no column 'id'; there are"):
        tables.create(NAME, SCHEMA, primary_key="id", owner="ann")


def test_arrow_round_trip_with_versions_and_run(words: Tables, catalog: Catalog) -> None:
    first, second = (catalog.start_run("ingest", NAME, principal="ann") for _ in range(2))
    assert words.append(NAME, rows("a", "bb"), run_id=first) == 1
    assert words.append(NAME, rows("ccc")) == 2
    assert words.overwrite(NAME, rows("z"), run_id=second) == 3
    assert words.to_arrow(NAME, 1).to_pylist() == rows("a", "bb").to_pylist()
    assert words.to_arrow(NAME, 2, ["word"])["word"].to_pylist() == ["a", "bb", "ccc"]
    assert words.to_arrow(NAME)["word"].to_pylist() == ["z"]
    assert words.to_arrow(NAME, 0).num_rows == 0
    runs = {commit["version"]: commit.get("mosaic.run_id") for commit in words.delta(NAME).history()}
    assert runs == {0: None, 1: first, 2: None, 3: second}


def test_merge_and_delete(words: Tables, catalog: Catalog) -> None:
    run_id = catalog.start_run("ingest", NAME, principal="ann")
    words.append(NAME, rows("a", "b"))
    longer = pa.table({"word": ["b", "c"], "length": [20, 30]})
    assert words.merge(NAME, longer, run_id=run_id) == 2
    assert sorted(row["length"] for row in words.to_arrow(NAME).to_pylist()) == [1, 20, 30]
    assert words.delete_where(NAME, "length > 15") == 3
    assert words.to_arrow(NAME)["word"].to_pylist() == ["a"]
    assert words.delta(NAME).history(2)[1]["mosaic.run_id"] == run_id
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
    with pytest.raises(NotFound, match=r"^no table 'main\.test\.wrods'$"):
        words.version("main.test.wrods")
    with pytest.raises(NotFound, match="no readable version 7; the newest is 0"):
        words.to_arrow(NAME, 7)
    with pytest.raises(NotFound, match="versions start at 0"):
        words.to_arrow(NAME, -1)
    with pytest.raises(BadRequest, match="no column 'x'; there are"):
        words.to_arrow(NAME, columns=["x"])
    for predicate in ("", "nonsense >", "x = 1", "length = NULL", "NOT (length = NULL)", "length = 1.5", "1 = 1"):
        with pytest.raises(BadRequest, match="predicate"):
            words.delete_where(NAME, predicate)


def test_unsupported_tables_are_refused(tables: Tables, catalog: Catalog, tmp_path: Path) -> None:
    address = str(tmp_path / "elsewhere")
    DeltaTable.create(address, schema=SCHEMA, partition_by=["length"])
    catalog.create_table("main.test.parted", address, columns=[], primary_key=None, owner="ann")
    with pytest.raises(BadRequest, match="is partitioned, which is not supported"):
        tables.create("main.test.parted", SCHEMA, primary_key=None, owner="ann")


def test_datasets_are_written_in_one_commit_and_read_in_order(
    words: Tables, catalog: Catalog, ray_cluster: None
) -> None:
    run_id = catalog.start_run("ingest", NAME, principal="ann")

    def name_them(batch: pa.Table) -> pa.Table:
        texts = [f"w{number:04d}" for number in batch["id"].to_pylist()]
        return pa.table({"word": texts, "length": [5] * len(texts)})

    numbers = ray.data.from_items([{"id": number} for number in range(1000)], override_num_blocks=8)
    data = numbers.map_batches(name_them, batch_format="pyarrow", num_cpus=0.25)
    assert words.append(NAME, data, run_id=run_id) == 1
    words.append(NAME, rows("later"))
    runs = {commit["version"]: commit.get("mosaic.run_id") for commit in words.delta(NAME).history()}
    assert runs == {0: None, 1: run_id, 2: None}
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


def test_an_overwrite_that_was_overtaken_while_ray_wrote_is_a_conflict(
    words: Tables, tmp_path: Path, ray_cluster: None
) -> None:
    words.append(NAME, rows("old"))
    catalog, root, schema = f"sqlite:///{tmp_path / 'catalog.db'}", str(tmp_path / "root"), SCHEMA

    def overtake(batch: pa.Table) -> pa.Table:
        with closing(Catalog.open(catalog)) as opened:
            Tables(Storage(root), opened).append(NAME, pa.table({"word": ["new"], "length": [3]}, schema=schema))
        return batch

    data = ray.data.from_arrow(rows("mine")).map_batches(overtake, batch_format="pyarrow", num_cpus=0.25)
    with pytest.raises(Conflict, match=r"somebody wrote to table 'main\.test\.words' at the same time.*try again"):
        words.overwrite(NAME, data)
    assert words.to_arrow(NAME)["word"].to_pylist() == ["old", "new"]


def test_a_dataset_is_not_written_past_a_tables_constraints(
    tables: Tables, catalog: Catalog, tmp_path: Path, ray_cluster: None
) -> None:
    place = str(tmp_path / "outside")
    write_deltalake(place, pa.table({"id": [1]}))
    DeltaTable(place).alter.add_constraint({"positive": "id > 0"})
    catalog.create_table("main.test.checked", place, columns=[], primary_key=None, owner="ann")
    for write in (tables.append, tables.overwrite):
        with pytest.raises(BadRequest, match=r"CHECK constraint 'delta\.constraints\.positive'.*write a pa\.Table"):
            write("main.test.checked", ray.data.from_items([{"id": -2}]))
        with pytest.raises(BadRequest, match=r"rows break a constraint of table 'main\.test\.checked'"):
            write("main.test.checked", pa.table({"id": [-2]}))
    tables.append("main.test.checked", pa.table({"id": [2]}))
    assert tables.to_arrow("main.test.checked")["id"].to_pylist() == [1, 2]


def test_a_table_that_only_grows_is_not_said_to_be_written_by_somebody(
    tables: Tables, catalog: Catalog, tmp_path: Path
) -> None:
    place = str(tmp_path / "outside")
    write_deltalake(place, pa.table({"id": [1]}), configuration={"delta.appendOnly": "true"})
    catalog.create_table("main.test.grows", place, columns=[], primary_key=None, owner="ann")
    with pytest.raises(BadRequest, match=r"delta\.appendOnly"):
        tables.overwrite("main.test.grows", pa.table({"id": [2]}))
    with pytest.raises(BadRequest, match=r"delta\.appendOnly"):
        tables.delete_where("main.test.grows", "id = 1")
    tables.append("main.test.grows", pa.table({"id": [2]}))


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


def at_the_same_time(*works: Callable[[], object]) -> list[object]:
    """What each answered, or how it failed."""
    barrier = threading.Barrier(len(works))

    def one(work: Callable[[], object]) -> object:
        barrier.wait()
        try:
            return work()
        except Conflict as error:
            return error

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(one, works))


def test_an_overwrite_leaves_exactly_its_rows_or_none(words: Tables) -> None:
    for number in range(8):
        done = at_the_same_time(
            lambda: words.append(NAME, rows("added")),
            lambda number=number: words.overwrite(NAME, rows(f"all {number}")),
            lambda: words.append(NAME, rows("too")),
        )
        if isinstance(done[1], int):
            assert words.to_arrow(NAME, done[1])["word"].to_pylist() == [f"all {number}"]


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


def test_a_place_outside_that_became_a_link_into_the_root_is_not_opened(
    words: Tables, catalog: Catalog, tmp_path: Path
) -> None:
    words.append(NAME, rows("a", "b"))
    outside = tmp_path / "outside"
    catalog.create_table("main.test.own", str(outside), columns=[], primary_key=None, owner="bob")
    outside.symlink_to(catalog.get_table(NAME).location)
    with pytest.raises(Conflict, match="leads into the platform's own root by now"):
        words.to_arrow("main.test.own")
    with pytest.raises(Conflict, match="leads into the platform's own root by now"):
        words.delete_where("main.test.own", "true")
    assert words.to_arrow(NAME).num_rows == 2
