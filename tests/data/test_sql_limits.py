"""Limits of a statement: rows, bytes, time, memory, how many run at once; each says what it was."""

import threading
import time
from collections.abc import Iterator

import pyarrow as pa
import pytest

from mosaic.data.sql import Sql, SqlSettings
from mosaic.errors import BadRequest, RateLimited, TooLarge
from tests.data.sql_lake import ADMIN, Lake, lake_in

ENDLESS = "SELECT count(*) FROM range(1000000000000) a WHERE a.range % 7 = 3"


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    with lake_in(tmp_path_factory.mktemp("lake")) as made:
        yield made


def with_settings(lake: Lake, **settings: object) -> Sql:
    return Sql(lake.storage, lake.tables, lake.catalog, SqlSettings.parse(settings))


def test_rows_are_cut_at_the_limit_and_it_says_so(lake: Lake) -> None:
    cut = lake.query("SELECT * FROM main.docs.orders ORDER BY order_id", row_limit=3)
    assert (cut.rows.num_rows, cut.truncated, cut.cut_by) == (3, True, "rows")
    assert cut.rows["order_id"].to_pylist() == [10, 11, 12]
    whole = lake.query("SELECT * FROM main.docs.orders", row_limit=5)
    assert (whole.rows.num_rows, whole.truncated, whole.cut_by) == (5, False, None)
    assert lake.query("SELECT * FROM range(20000)").rows.num_rows == 10_000
    assert not lake.query("SELECT * FROM range(20000)", row_limit=20_000).truncated
    assert lake.query("SELECT * FROM main.docs.orders LIMIT 0").rows.schema.names == ["order_id", "person", "amount"]


def test_what_is_beyond_the_limit_is_not_computed(lake: Lake) -> None:
    started = time.monotonic()
    cut = lake.query("SELECT * FROM range(1000000000000)", row_limit=10)
    assert cut.truncated and time.monotonic() - started < 5


def test_bytes_are_cut_at_the_limit(lake: Lake) -> None:
    cut = lake.query("SELECT repeat('x', 1000) AS x FROM range(5000)", byte_limit=100_000)
    assert cut.cut_by == "bytes" and 0 < cut.rows.num_rows < 105
    one = lake.query("SELECT repeat('x', 1000000) AS x", byte_limit=1000)
    assert one.cut_by == "bytes" and one.rows.num_rows == 0


def test_time_is_limited_wherever_the_engine_is(lake: Lake) -> None:
    for statement in (
        ENDLESS,
        "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r) SELECT count(*) FROM r",
        "SELECT count(*) FROM main.docs.people a, range(1000000) b, range(1000000) c "
        "WHERE (a.id + b.range) % 7 = c.range % 5",
    ):
        started = time.monotonic()
        with pytest.raises(BadRequest, match=r"time limit of 0\.3 s \(timeout_seconds\)") as error:
            lake.query(statement, timeout_seconds=0.3)
        assert error.value.code == "timeout" and time.monotonic() - started < 5
    assert lake.catalog.list_runs("sql", "failed")


def test_a_statement_can_be_cancelled(lake: Lake) -> None:
    cancelled = threading.Event()
    threading.Timer(0.2, cancelled.set).start()
    with pytest.raises(BadRequest, match="was cancelled"):
        lake.query(f"SELECT (SELECT count(*) FROM main.docs.people), ({ENDLESS})", cancelled=cancelled)
    assert lake.catalog.list_runs("sql", limit=1)[0].status == "cancelled"


def test_memory_is_limited_and_nothing_goes_to_disk(lake: Lake) -> None:
    small = with_settings(lake, memory_limit_bytes=64 * 2**20)
    with pytest.raises(BadRequest, match="64 MiB of memory") as error:
        small.query("SELECT list(range) FROM range(100000000)", principal=ADMIN)
    assert error.value.code == "out_of_memory"
    with pytest.raises(BadRequest, match="64 MiB of memory"):
        small.query("SELECT * FROM range(50000000) ORDER BY hash(range)", principal=ADMIN)


def test_statements_at_once_are_limited(lake: Lake) -> None:
    single = with_settings(lake, max_running=1)
    cancelled = threading.Event()
    failed: list[BaseException] = []

    def endless() -> None:
        try:
            single.query(ENDLESS, principal=ADMIN, cancelled=cancelled)
        except BadRequest as error:
            failed.append(error)

    running = threading.Thread(target=endless)
    running.start()
    time.sleep(0.3)
    with pytest.raises(RateLimited, match=r"1 statements are running; none ended in 0\.2 s"):
        single.query("SELECT 1", principal=ADMIN, timeout_seconds=0.2)
    cancelled.set()
    running.join()
    assert len(failed) == 1 and single.query("SELECT 1", principal=ADMIN).rows.num_rows == 1


def test_many_threads_ask_at_once(lake: Lake) -> None:
    """Each statement sees its own tables, parameters and result."""
    wrong: list[object] = []

    def ask(number: int) -> None:
        for _ in range(3):
            found = lake.rows(
                f"SELECT :n AS n, count(*) AS c FROM main.docs.{'people' if number % 2 else 'orders'}",
                parameters={"n": number},
            )
            if found != [{"n": number, "c": 4 if number % 2 else 5}]:
                wrong.append(found)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("field", ["row_limit", "byte_limit", "timeout_seconds"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_limits_are_more_than_nothing(lake: Lake, field: str, value: float) -> None:
    with pytest.raises(BadRequest, match=f"{field} = .* must be more than 0"):
        lake.query("SELECT 1", **{field: value})


def test_a_statement_that_writes_too_much_writes_nothing(lake: Lake) -> None:
    small = with_settings(lake, write_limit_bytes=10_000)
    with pytest.raises(TooLarge, match="more than 10,000 bytes"):
        small.query("INSERT INTO main.docs.people (id) SELECT range FROM range(100000)", principal=ADMIN, writable=True)
    with pytest.raises(TooLarge):
        small.query("CREATE TABLE main.docs.big AS FROM range(100000)", principal=ADMIN, writable=True)
    assert lake.tables.version("main.docs.people") == 1 and lake.catalog.find_table("main.docs.big") is None
    # The limit of rows is one of results: what is written is never cut by it.
    assert lake.query("CREATE TABLE main.docs.long AS FROM range(10001)", writable=True, row_limit=1).written
    assert lake.value("SELECT count(*) FROM main.docs.long") == 10_001


def test_a_large_table_streams(lake: Lake) -> None:
    """The first rows of a table that is larger than the statement's memory."""
    rows = pa.table({"id": range(400_000), "text": [f"{number:0200d}" for number in range(400_000)]})
    lake.make("main.docs.large", rows)
    assert rows.nbytes > 64 * 2**20
    small = with_settings(lake, memory_limit_bytes=64 * 2**20)
    found = small.query("SELECT * FROM main.docs.large", principal=ADMIN, row_limit=100)
    assert found.rows.num_rows == 100 and found.cut_by == "rows"
    counted = small.query("SELECT count(*) AS n, max(text) AS m FROM main.docs.large", principal=ADMIN)
    assert counted.rows.to_pylist() == [{"n": 400_000, "m": f"{399_999:0200d}"}]
