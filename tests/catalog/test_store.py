"""The database under the catalog: one state for a reader, one writer at a time, waits that end, a server that goes."""

import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from mosaic.catalog import Catalog, StoreSettings
from mosaic.catalog.postgres import PostgresServer
from mosaic.catalog.schema import principal, securable
from mosaic.catalog.store import Store
from mosaic.errors import BadRequest, Conflict, Unavailable
from tests.catalog.conftest import Unity

IMPATIENT = StoreSettings(pool_size=2, pool_timeout_seconds=0.2, lock_timeout_seconds=0.3)

CREATE = """
import sys
from mosaic.catalog import Catalog
catalog = Catalog.open(sys.argv[1])
sys.stdin.readline()
for number in range(25):
    catalog.create_table(f"main.docs.{sys.argv[2]}{number}", "/r", columns=[], primary_key=None, owner="ann")
"""


@pytest.fixture
def impatient(catalog: Catalog) -> Iterator[Store]:
    """The test's database, by a process that does not wait long."""
    store = Store(catalog.url, IMPATIENT)
    yield store
    store.close()


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    postgres.sql("CREATE DATABASE only_here")
    yield postgres.url("only_here")
    postgres.sql("DROP DATABASE only_here WITH (FORCE)")


def test_names_are_in_the_order_of_their_code_points(unity: Unity, catalog: Catalog) -> None:
    """PostgreSQL would sort as in English here, and a page would begin at the wrong name."""
    names = ["a", "a1", "a_b", "ab", "b-c", "bc", "z"]
    for name in reversed(names):
        catalog.create_table(f"main.docs.{name}", "/r", columns=[], primary_key=None, owner="ann")
    assert [table.name for table in catalog.list_tables("main.docs")] == [f"main.docs.{name}" for name in names]
    seen, page = [], ""
    while page is not None:
        query = {"catalog_name": "main", "schema_name": "docs", "max_results": "2", "page_token": page}
        answer = unity("GET", "/tables", params=query).json()
        seen += [table["name"] for table in answer["tables"]]
        page = answer["next_page_token"]
    assert seen == names


def test_a_reader_sees_one_state_in_all_its_queries(catalog: Catalog) -> None:
    catalog.create_model("main.ml.bot", owner="ann")
    other, enough = Catalog.open(catalog.url), threading.Event()

    def register() -> None:
        while not enough.is_set():
            version = other.create_model_version("main.ml.bot", source="/m", kind="full").version
            other.set_alias("main.ml.bot", "newest", version)

    writer = threading.Thread(target=register)
    writer.start()
    try:
        until, seen = time.monotonic() + 60, set()  # a disk that is busy commits little for a while
        while len(seen) < 50 and time.monotonic() < until:
            model = catalog.get_model("main.ml.bot")
            newest = model.aliases.get("newest", 0)
            assert newest in (len(model.versions), len(model.versions) - 1), model
            seen.add(newest)
    finally:
        enough.set()
        writer.join()
        other.close()
    assert len(seen) > 3


def test_a_reader_does_not_wait_for_a_writer_and_sees_what_is_committed(catalog: Catalog, impatient: Store) -> None:
    before = catalog.list_schemas()
    with impatient.write() as connection:
        connection.execute(securable.update().values(comment="half-way"))
        assert catalog.list_schemas() == before
    assert {schema.comment for schema in catalog.list_schemas()} == {"half-way"}


def test_a_write_that_waits_too_long_for_its_turn_is_unavailable_and_the_next_is_done(
    catalog: Catalog, impatient: Store
) -> None:
    patient = Store(catalog.url)
    with patient.write():
        started = time.monotonic()
        with pytest.raises(Unavailable, match=r"catalog's database .* failed: .*(locked|lock timeout)"):
            impatient.write().__enter__()
        assert 0.2 < time.monotonic() - started < 5
    with impatient.write() as connection:
        connection.execute(securable.update().values(comment="done"))
    patient.close()


def test_two_processes_write_at_once(catalog: Catalog) -> None:
    command = [sys.executable, "-c", CREATE, catalog.url]
    processes = [subprocess.Popen([*command, name], stdin=subprocess.PIPE, text=True) for name in ("a", "b")]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0, 0]
    made = sorted(f"main.docs.{name}{number}" for name in "ab" for number in range(25))
    assert [table.name for table in catalog.list_tables("main.docs")] == made
    audited = [event for event in catalog.audit.list(limit=10_000) if event.action_name == "createTable"]
    assert sorted(event.request_params["securable_full_name"] for event in audited) == made


def test_sqlite_keeps_what_it_answered_through_a_power_cut(catalog: Catalog) -> None:
    if catalog.url.startswith("sqlite"):
        with Store(catalog.url).write() as connection:
            asked = [connection.execute(sa.text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous")]
        assert asked == ["wal", 2]  # 2 is FULL
    else:
        with Store(catalog.url).write() as connection:
            assert connection.execute(sa.text("SHOW synchronous_commit")).scalar() == "on"


def test_all_connections_in_use(postgres_url: str) -> None:
    store = Store(postgres_url, IMPATIENT)
    with store.read(), store.read(), pytest.raises(Unavailable, match="all connections to the catalog's database"):
        store.read().__enter__()
    store.close()


def test_a_writer_that_hangs_loses_its_turn(postgres_url: str) -> None:
    other = Store(postgres_url)
    hangs = Store(postgres_url, StoreSettings(idle_transaction_timeout_seconds=0.5))
    with pytest.raises(Unavailable, match="idle-in-transaction"), hangs.write() as connection:
        connection.execute(securable.update().values(comment="half"))
        with other.write() as others:
            assert others.execute(sa.select(securable.c.comment)).scalars().all() == [""]
        connection.execute(securable.update().values(comment="other half"))
    with other.read() as connection:
        assert connection.execute(sa.select(securable.c.comment)).scalars().all() == [""]
    for store in (hangs, other):
        store.close()


def test_who_gives_way_in_a_deadlock_is_told_to_try_again(postgres_url: str) -> None:
    store, both = Store(postgres_url), threading.Barrier(2)
    names, refused = ("ann", "bob"), []
    with store.write() as connection:
        common = {"kind": "user", "active": True, "created_at": sa.func.now(), "created_by": "admin"}
        for name in names:
            connection.execute(principal.insert().values(name=name, **common))

    def change(order: tuple[str, ...]) -> None:
        try:
            with store.write(counted=False) as connection:
                for name in order:
                    connection.execute(principal.update().where(principal.c.name == name).values(created_by=order[0]))
                    if name == order[0]:
                        both.wait(30)
        except Conflict as error:
            refused.append(error.message)

    threads = [threading.Thread(target=change, args=(order,)) for order in (names, names[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 1 and "try again: deadlock detected" in refused[0]
    with store.read() as connection:
        changed = connection.execute(sa.select(principal.c.created_by).where(principal.c.name.in_(names))).scalars()
        assert len(set(changed)) == 1
    store.close()


def test_what_the_database_cannot_keep_is_a_bad_request(postgres_url: str) -> None:
    catalog, store = Catalog.open(postgres_url), Store(postgres_url)
    with pytest.raises(BadRequest, match=r"the catalog cannot keep a value: .*NUL"):
        catalog.create_token("ann", comment="a\0b")
    row = {"name": "ann", "kind": "x" * 100, "active": True, "created_at": sa.func.now(), "created_by": "admin"}
    with (
        pytest.raises(BadRequest, match="the catalog cannot keep a value: value too long"),
        store.write() as connection,
    ):
        connection.execute(principal.insert().values(row))
    assert catalog.list_tokens() == [] and "ann" not in [one.name for one in catalog.principals.list()]
    for one in (catalog, store):
        one.close()


def test_a_server_that_stops_and_one_that_crashes_under_a_live_catalog(postgres: PostgresServer) -> None:
    postgres.sql("CREATE DATABASE comes_and_goes")
    url = postgres.url("comes_and_goes")
    catalog = Catalog.open(url)
    catalog.ensure_schema("main.docs")
    for end in (postgres.stop, postgres.crash):
        catalog.create_table(f"main.docs.{end.__name__}", "/r", columns=[], primary_key=None, owner="ann")
        end()
        try:
            for ask in (catalog.list_tables, lambda: catalog.ensure_schema("main.new")):
                with pytest.raises(Unavailable, match=r"the catalog's database postgresql\+psycopg://.* failed"):
                    ask()
            with pytest.raises(Unavailable):
                Catalog.open(url)
        finally:
            postgres.start()
        assert f"main.docs.{end.__name__}" in [table.name for table in catalog.list_tables()]
        catalog.ensure_schema("main.after")
    catalog.close()
    postgres.sql("DROP DATABASE comes_and_goes")


@pytest.mark.parametrize(
    ("url", "error", "told"),
    [
        ("postgresql+psycopg2://h/x", BadRequest, r"the driver 'psycopg2'; write postgresql\+psycopg://"),
        ("sqlite+aiosqlite:////tmp/x.db", BadRequest, r"the driver 'aiosqlite'; write sqlite\+pysqlite://"),
        ("postgres://h/x", BadRequest, r"the database 'postgres'; supported are \['postgresql', 'sqlite'\]"),
        ("postgresql://me:hidden@127.0.0.1:1/x", Unavailable, r"me:\*\*\*@127\.0\.0\.1:1/x failed: .*refused"),
    ],
)
def test_other_addresses(url: str, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told) as caught:
        Catalog.open(url)
    assert "hidden" not in str(caught.value)


def test_the_settings_travel_with_the_catalog(catalog_url: str) -> None:
    settings = StoreSettings(pool_size=3, lock_timeout_seconds=1)
    catalog = Catalog.open(catalog_url, store=settings)
    copy = pickle.loads(pickle.dumps(catalog))
    assert copy._store.settings == settings
    for one in (catalog, copy):
        one.close()
    with pytest.raises(BadRequest, match="field 'pool_size' = 0: input should be greater than or equal to 1"):
        StoreSettings.parse({"pool_size": 0})
