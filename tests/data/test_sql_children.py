"""What a statement does to its process: crashes, memory and time that DuckDB does not watch, the end of the parent."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pyarrow as pa
import pytest
from moto.server import ThreadedMotoServer

from mosaic.catalog import Catalog
from mosaic.data import Tables
from mosaic.data.sql import Sql, SqlSettings
from mosaic.errors import BadRequest, RateLimited, Unavailable
from mosaic.protocol import Principal
from mosaic.storage import Storage
from tests.data.sql_lake import ADMIN, BOB, EVE, Lake, lake_in

ENDLESS = "SELECT count(*) FROM range(1000000000000) a WHERE a.range % 7 = 3"
CRASHES = "SELECT json_contains(repeat('[',300000)||repeat(']',300000),'1')"
BINDS_ENDLESSLY = (
    "WITH a0 AS NOT MATERIALIZED (SELECT 1 x), "
    + ", ".join(f"a{n} AS NOT MATERIALIZED (SELECT a.x FROM a{n - 1} a, a{n - 1} b)" for n in range(1, 30))
    + " SELECT count(*) FROM a29"
)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    with lake_in(tmp_path_factory.mktemp("lake")) as made:
        yield made


def with_settings(lake: Lake, **settings: object) -> Sql:
    return Sql(lake.storage, lake.tables, lake.catalog, SqlSettings.parse(settings))


@pytest.fixture(scope="module")
def small(lake: Lake) -> Sql:
    return with_settings(lake, memory_limit_bytes=64 * 2**20)


def workers() -> set[int]:
    """The ids of this process's children that run statements, zombies included."""
    found = set()
    for child in psutil.Process().children():
        with psutil.Process(child.pid).oneshot():
            if child.status() == psutil.STATUS_ZOMBIE or "mosaic.data.sql_worker" in child.cmdline():
                found.add(child.pid)
    return found


def until(holds: Callable[[], bool], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds()


def test_a_statement_that_crashes_the_engine_ends_alone(lake: Lake) -> None:
    with pytest.raises(Unavailable, match="the engine failed on this statement"):
        lake.query(CRASHES)
    assert lake.value("SELECT count(*) FROM main.docs.people") == 4


@pytest.mark.parametrize(
    "statement", [BINDS_ENDLESSLY, "SELECT length(strftime(DATE '2026-01-01', repeat('%c',9000000)))"]
)
def test_time_is_limited_where_no_interrupt_is_heard(lake: Lake, statement: str) -> None:
    with pytest.raises(BadRequest) as error:
        lake.query(statement, timeout_seconds=0.5)
    assert error.value.code in ("timeout", "out_of_memory")
    assert lake.value("SELECT 1") == 1


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT length(repeat(repeat('x', 400000000), 5))",
        "SELECT length(format('{:2000000000}', 1))",
        "SELECT damerau_levenshtein(repeat('a',20000), repeat('b',20000))",
    ],
)
def test_memory_is_limited_where_the_engine_does_not_count(small: Sql, statement: str) -> None:
    with pytest.raises(BadRequest, match="64 MiB of memory") as error:
        small.query(statement, principal=ADMIN)
    assert error.value.code == "out_of_memory"
    assert small.query("SELECT 1", principal=ADMIN).rows.num_rows == 1


def test_cancelling_reaches_what_hears_no_interrupt(lake: Lake) -> None:
    cancelled = threading.Event()
    threading.Timer(0.3, cancelled.set).start()
    large = with_settings(lake, memory_limit_bytes=8 * 2**30)
    with pytest.raises(BadRequest, match="was cancelled"):
        large.query(BINDS_ENDLESSLY, principal=ADMIN, cancelled=cancelled)


def test_children_are_used_again_and_are_no_more_than_may_run(lake: Lake) -> None:
    before = workers()
    sql = with_settings(lake, max_running=2)
    for _ in range(4):
        sql.query("SELECT 1", principal=ADMIN)
    made = workers() - before
    assert 1 <= len(made) <= 2
    with pytest.raises(Unavailable):
        sql.query(CRASHES, principal=ADMIN)
    for _ in range(4):
        sql.query("SELECT 1", principal=ADMIN)
    assert len(workers() - before) <= 2
    (killed, *_) = workers() - before
    os.kill(killed, signal.SIGKILL)
    os.waitid(os.P_PID, killed, os.WEXITED | os.WNOWAIT)
    for _ in range(3):
        assert sql.query("SELECT 1 AS one", principal=ADMIN).rows.to_pylist() == [{"one": 1}]
    del sql
    assert until(lambda: workers() <= before), "children outlive the engine"


def test_a_child_reads_from_an_object_store(tmp_path: Path) -> None:
    """What reads the files, and the store's options with it, travels to the child."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    try:
        host, port = moto.get_host_and_port()
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
        options = {**keys, "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ALLOW_HTTP": "true"}
        storage = Storage("s3://lake/root", options)
        httpx.put(f"http://{host}:{port}/lake").raise_for_status()
        catalog = Catalog.open(f"sqlite:///{tmp_path / 'catalog.db'}")
        tables = Tables(storage, catalog)
        catalog.ensure_schema("main.docs")
        rows = pa.table({"id": [1, 2, 3], "part": ["a", "a", "b"]})
        tables.create("main.docs.t", rows.schema, primary_key="id", owner="admin")
        tables.append("main.docs.t", rows)
        found = Sql(storage, tables, catalog).query(
            "SELECT sum(id) AS s FROM main.docs.t WHERE id > 1", principal=ADMIN
        )
        assert found.rows.to_pylist() == [{"s": 5}]
        catalog.close()
    finally:
        moto.stop()


def test_a_large_file_is_read_within_the_memory_of_a_statement(lake: Lake) -> None:
    """Arrow reads far ahead by itself: four files, and sixteen batches of each."""
    text = [f"{number * 7919 % 1_000_003:0500d}" for number in range(150_000)]
    lake.make("main.docs.wide", pa.table({"id": range(150_000), "text": text}))
    for _ in range(7):
        lake.tables.append("main.docs.wide", pa.table({"id": range(150_000), "text": text}))
    assert lake.value("SELECT max(text) FROM main.docs.wide") == max(text)


_PARENT = """
import sys, threading, time
from mosaic.data.sql_engine import Engine, Limits, SqlSettings
engine = Engine(SqlSettings())
def run(sql):
    return engine.run(sql, {}, {}, Limits(10, 1000, 60), threading.Event()).rows
run("SELECT 1")
threading.Thread(target=run, args=(sys.argv[1],), daemon=True).start()
time.sleep(0.5)
print("running", flush=True)
if sys.argv[2] == "stay":
    time.sleep(60)
"""


@pytest.mark.parametrize("end", ["exit", "kill"])
@pytest.mark.parametrize("statement", [ENDLESS, BINDS_ENDLESSLY])
def test_children_end_with_their_parent(end: str, statement: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, statement, "stay" if end == "kill" else "go"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert parent.stdout is not None
    with parent.stdout:
        children: list[psutil.Process] = []
        if end == "kill":
            assert parent.stdout.readline() == b"running\n"
            children = psutil.Process(parent.pid).children()
            assert children
            parent.kill()
        else:
            assert until(lambda: bool(children.extend(psutil.Process(parent.pid).children()) or children))
        parent.wait()
    assert until(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children))


def endless(sql: Sql, principal: Principal, cancelled: threading.Event) -> threading.Thread:
    def run() -> None:
        with pytest.raises(BadRequest, match="was cancelled"):
            sql.query(ENDLESS, principal=principal, cancelled=cancelled)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_one_principal_leaves_a_turn_to_others(lake: Lake) -> None:
    sql = with_settings(lake, max_running=2)
    cancelled = threading.Event()
    threads = [endless(sql, EVE, cancelled) for _ in range(4)]
    try:
        assert sql.query("SELECT 1 AS one", principal=BOB, timeout_seconds=30).rows.to_pylist() == [{"one": 1}]
        with pytest.raises(RateLimited, match="1 statements of 'eve' are running, as many as one may have; none ended"):
            sql.query("SELECT 1", principal=EVE, timeout_seconds=0.2)
    finally:
        cancelled.set()
        for thread in threads:
            thread.join()


def test_a_statement_that_waits_for_its_turn_can_be_cancelled(lake: Lake) -> None:
    sql = with_settings(lake, max_running=1)
    running, waiting = threading.Event(), threading.Event()
    first = endless(sql, EVE, running)
    time.sleep(0.3)
    second = endless(sql, BOB, waiting)
    waiting.set()
    second.join(20)
    assert not second.is_alive() and first.is_alive()
    running.set()
    first.join()
    assert sql.query("SELECT 1", principal=BOB).rows.num_rows == 1


def test_turns_go_in_the_order_of_asking(lake: Lake) -> None:
    sql = with_settings(lake, max_running=1)
    running = threading.Event()
    first = endless(sql, EVE, running)
    time.sleep(0.3)
    ended: list[int] = []

    def ask(number: int) -> None:
        sql.query("SELECT 1", principal=BOB)
        ended.append(number)

    others = []
    for number in range(4):
        others.append(threading.Thread(target=ask, args=(number,)))
        others[-1].start()
        time.sleep(0.3)
    running.set()
    for thread in (first, *others):
        thread.join()
    assert ended == [0, 1, 2, 3]
