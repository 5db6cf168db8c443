"""Many at once, and a kill in the middle: threads, processes, SIGKILL, on one database."""

import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine

from mosaic.catalog import Catalog
from mosaic.catalog.schema import metadata
from tests.catalog.conftest import Databases

OPEN = """
import sys
from mosaic.catalog import Catalog
sys.stdin.readline()
catalog = Catalog.open(sys.argv[1])
print(catalog.ensure_schema("main.ml").id, flush=True)
"""

REGISTER = """
import sys
from mosaic.catalog import Catalog
catalog = Catalog.open(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    print(catalog.create_model_version("main.ml.bot", source=f"/m/{number}", kind="full").version)
"""

WRITE = """
import sys
from mosaic.catalog import Catalog
catalog = Catalog.open(sys.argv[1])
while True:
    run_id = catalog.start_run("train", "bot", principal="ann")
    version = catalog.create_model_version("main.ml.bot", source="/m", kind="full", run_id=run_id)
    catalog.set_alias("main.ml.bot", "latest", version.version)
    print(version.version, flush=True)
"""


def start(program: str, url: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_processes_open_a_fresh_database_at_once(databases: Databases) -> None:
    url = databases.new()
    processes = [start(OPEN, url) for _ in range(3)]
    told = [process.communicate("go\n", timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(set(told)) == 1 and told[0].startswith("sec_")


def test_threads_open_a_fresh_database_at_once(databases: Databases) -> None:
    for _ in range(10):  # SQLite refused the write-ahead log to one of six in every thirtieth round
        url, barrier = databases.new(), threading.Barrier(6)

        def open_it(url: str = url, barrier: threading.Barrier = barrier) -> str:
            barrier.wait()
            catalog = Catalog.open(url)
            try:
                return catalog.ensure_schema("main.ml").id
            finally:
                catalog.close()

        with ThreadPoolExecutor(6) as threads:
            opened = [each.result() for each in [threads.submit(open_it) for _ in range(6)]]
        assert len(set(opened)) == 1


def test_model_versions_have_no_gaps_and_no_duplicates(catalog: Catalog) -> None:
    catalog.create_model("main.ml.bot", owner="ann")
    processes = [start(REGISTER, catalog.url) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    versions: list[int] = []

    def register() -> None:
        for number in range(10):
            versions.append(catalog.create_model_version("main.ml.bot", source=f"/t/{number}", kind="full").version)

    threads = [threading.Thread(target=register) for _ in range(8)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        versions += map(int, process.communicate(timeout=60)[0].split())
        assert process.returncode == 0
    assert sorted(versions) == list(range(1, 121))
    assert catalog.get_model("main.ml.bot").versions == list(range(1, 121))


def test_kill_9_during_writes_leaves_every_answered_write_and_no_half(catalog: Catalog) -> None:
    catalog.create_model("main.ml.bot", owner="ann")
    for _ in range(3):
        process = start(WRITE, catalog.url)
        assert process.stdout is not None
        answered = [int(process.stdout.readline()) for _ in range(5)]
        process.send_signal(signal.SIGKILL)
        answered += map(int, process.stdout.read().split())  # communicate() would pass over what readline has buffered
        process.wait()
        again = Catalog.open(catalog.url)
        versions = again.list_model_versions("main.ml.bot")
        assert [version.version for version in versions] == list(range(1, len(versions) + 1))
        assert answered[-1] <= len(versions) <= answered[-1] + 1
        runs = {run.run_id for run in again.list_runs(limit=10_000)}
        assert {version.run_id for version in versions} <= runs and len(runs) - len(versions) <= 3
        latest = again.get_model_version("main.ml.bot@latest").version
        assert again.alias_history("main.ml.bot")[-1].version == latest >= answered[-1]
        again.close()
    assert damage(catalog.url) == []


def damage(url: str) -> list[str]:
    """What the database itself finds wrong; PostgreSQL checks nothing of the kind when asked, and refuses to start."""
    if not url.startswith("sqlite"):
        return []
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    told = (
        connection.execute("PRAGMA integrity_check").fetchall()
        + connection.execute("PRAGMA foreign_key_check").fetchall()
    )
    connection.close()
    return [str(row) for row in told if row != ("ok",)]


def test_the_migrations_lead_to_the_tables_that_the_code_knows(catalog_url: str) -> None:
    engine = create_engine(catalog_url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()
