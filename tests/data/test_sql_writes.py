"""INSERT, DELETE and CREATE TABLE AS, where asked for: grants, lineage, exactness, concurrency."""

import datetime as dt
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mosaic.data.sql import TableVersion
from mosaic.errors import AlreadyExists, BadRequest, MosaicError, NotFound, PermissionDenied
from tests.data.sql_lake import BOB, Lake, lake_in


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    with lake_in(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    """For tests that leave the tables of the lake as they are."""
    with lake_in(tmp_path_factory.mktemp("lake")) as made:
        yield made


def write(lake: Lake, statement: str, **how: Any) -> Any:
    return lake.query(statement, writable=True, **how)


def test_insert_appends_rows_by_place_or_by_name(lake: Lake) -> None:
    done = write(lake, "INSERT INTO main.docs.people VALUES (5, 'dee', 'x'), (6, NULL, NULL)")
    assert done.rows.to_pylist() == [{"num_affected_rows": 2, "num_inserted_rows": 2}]
    assert done.written == TableVersion("main.docs.people", 2)
    write(lake, "INSERT INTO main.docs.people (TEAM, id) SELECT :team, max(id) + 1 FROM main.docs.people", parameters={
        "team": "z'"
    })  # fmt: skip
    write(lake, "INSERT INTO main.docs.people (SELECT 8, 'fay', 'x')")
    write(lake, "INSERT INTO main.docs.people WITH w AS (SELECT 9 AS i) SELECT i, 'gus', 'x' FROM w;")
    assert [list(row.values()) for row in lake.rows("SELECT * FROM main.docs.people WHERE id > 4 ORDER BY id")] == [
        [5, "dee", "x"],
        [6, None, None],
        [7, None, "z'"],
        [8, "fay", "x"],
        [9, "gus", "x"],
    ]


def test_what_is_written_is_lineage_in_the_catalog_and_in_the_commit(lake: Lake) -> None:
    done = write(lake, "INSERT INTO main.docs.people (id) SELECT person FROM main.docs.orders WHERE amount > 6")
    assert done.read == (TableVersion("main.docs.orders", 1),)
    run = lake.catalog.get_run(done.run_id)
    assert [(edge.name, edge.version, edge.detail) for edge in run.inputs] == [
        ("main.docs.orders", 1, {"columns": ["person", "amount"], "predicate": None})
    ]
    assert [(edge.name, edge.version) for edge in run.outputs] == [("main.docs.people", 2)]
    commit = lake.tables.commit_lineage("main.docs.people", 2)
    assert (commit.run_id, commit.principal, commit.inputs) == (done.run_id, "admin", ["table:main.docs.orders@1"])


def test_create_makes_a_table_of_the_callers(lake: Lake) -> None:
    lake.grant("bob", "CREATE TABLE", "schema", "main.docs")
    made = write(
        lake,
        "CREATE TABLE main.docs.copy AS SELECT id, name, now() AS at, 1.25 AS price, [1] AS l, {'k': TRUE} AS s "
        "FROM main.docs.people@1",
        principal=BOB,
    )
    assert made.written == TableVersion("main.docs.copy", 1)
    assert lake.catalog.get_table("main.docs.copy").owner == "bob"
    assert lake.value("SELECT count(*) FROM main.docs.copy", BOB) == 4
    assert [edge.name for edge in lake.catalog.get_run(made.run_id).inputs] == ["main.docs.people"]
    with pytest.raises(AlreadyExists, match=r"'main\.docs\.copy' already exists"):
        write(lake, "CREATE TABLE main.docs.copy AS SELECT 1 AS id", principal=BOB)
    assert (
        write(lake, "CREATE TABLE main.docs.none AS SELECT 1 AS id WHERE false").rows["num_affected_rows"][0].as_py()
        == 0
    )
    assert lake.rows("SELECT * FROM main.docs.none") == []


def test_delete_takes_the_rows_that_match(lake: Lake) -> None:
    done = write(lake, "DELETE FROM main.docs.people WHERE Team = 'x' AND id >= :low", parameters={"low": 2})
    assert done.rows.to_pylist() == [{"num_affected_rows": 1}] and done.written == TableVersion("main.docs.people", 2)
    assert lake.catalog.get_run(done.run_id).outputs[0].version == 2
    nothing = write(lake, "DELETE FROM main.docs.people WHERE name IS NULL AND team IS NOT NULL")
    assert nothing.rows.to_pylist() == [{"num_affected_rows": 0}] and lake.tables.version("main.docs.people") == 2
    assert write(lake, "DELETE FROM main.docs.people").rows.to_pylist() == [{"num_affected_rows": 3}]
    assert lake.rows("SELECT * FROM main.docs.people") == []


def test_reading_is_the_default(shared: Lake) -> None:
    for statement in (
        "INSERT INTO main.docs.people VALUES (1, 'x', 'y')",
        "DELETE FROM main.docs.people",
        "CREATE TABLE main.docs.made AS SELECT 1 AS a",
    ):
        with pytest.raises(BadRequest, match="only reading was asked for"):
            shared.query(statement)
    assert shared.tables.version("main.docs.people") == 1 and shared.catalog.find_table("main.docs.made") is None


@pytest.mark.parametrize(
    ("statement", "missing"),
    [
        ("INSERT INTO main.docs.people VALUES (9, 'x', 'y')", r"MODIFY on table 'main\.docs\.people'"),
        ("DELETE FROM main.docs.people WHERE id = 1", r"MODIFY on table 'main\.docs\.people'"),
        ("CREATE TABLE main.docs.mine AS SELECT 1 AS a", r"CREATE TABLE on schema 'main\.docs'"),
    ],
)
def test_writing_needs_a_grant(shared: Lake, statement: str, missing: str) -> None:
    with pytest.raises(PermissionDenied, match=f"'bob' may not {missing}"):
        write(shared, statement, principal=BOB)
    assert shared.catalog.audit.newest(1)[0].response.status_code == 403
    assert shared.tables.version("main.docs.people") == 1


def test_writing_from_a_table_needs_select_on_it(lake: Lake) -> None:
    lake.grant("bob", "MODIFY", "table", "main.docs.people")
    lake.grant("bob", "CREATE TABLE", "schema", "main.docs")
    for statement in (
        "INSERT INTO main.docs.people (id, name) SELECT id, secret FROM main.vault.secrets",
        "CREATE TABLE main.docs.mine AS SELECT * FROM main.vault.secrets",
    ):
        with pytest.raises(PermissionDenied, match=r"may not SELECT on table 'main\.vault\.secrets'"):
            write(lake, statement, principal=BOB)
    assert lake.catalog.find_table("main.docs.mine") is None
    lake.catalog.grants.revoke("table", "main.docs.people", "bob", ["SELECT"], by="admin")
    write(lake, "INSERT INTO main.docs.people VALUES (9, 'x', 'y')", principal=BOB)
    with pytest.raises(PermissionDenied, match="may not SELECT"):  # how many match would tell what is in it
        write(lake, "DELETE FROM main.docs.people WHERE name = 'ann'", principal=BOB)


def test_the_platforms_tables_are_not_written(shared: Lake) -> None:
    shared.catalog.ensure_schema("system.access", owner="system")
    shared.tables.create("system.access.log", pa.schema([("a", pa.int64())]), primary_key=None, owner="system")
    for statement in ("INSERT INTO system.access.log VALUES (1)", "DELETE FROM system.access.log"):
        with pytest.raises(PermissionDenied, match="the platform's own"):
            write(shared, statement)
    with pytest.raises(PermissionDenied):
        write(shared, "CREATE TABLE system.access.mine AS SELECT 1 AS a")
    with pytest.raises(NotFound):
        write(shared, "INSERT INTO system.information_schema.tables VALUES (1)")


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("INSERT INTO main.docs.people VALUES (1)", "1 columns for the 3"),
        ("INSERT INTO main.docs.people (nope) VALUES (1)", "no column 'nope'"),
        ("INSERT INTO main.docs.people (id, ID) VALUES (1, 2)", "twice"),
        ("INSERT INTO main.docs.people (id) VALUES ('x')", "'id' .* is int64, not string"),
        ("INSERT INTO main.docs.people (id) VALUES (1.5)", "is int64"),
        ("INSERT INTO main.docs.people (id", "where"),
        ("INSERT INTO main.docs.people", "needs rows"),
        ("CREATE TABLE main.docs.t AS", "needs a query"),
        ("CREATE TABLE main.docs.t (a INT)", "where AS must stand"),
        ("CREATE TABLE main.docs.t AS SELECT NULL AS a", "no Delta table has"),
        ("CREATE TABLE main.docs.t AS SELECT TIME '10:00' AS a", "no Delta table has"),
        ("CREATE TABLE main.docs.t AS SELECT 1::UBIGINT AS a", "no Delta table has"),
        ("CREATE TABLE main.docs.t AS SELECT {'a': NULL} AS a", "no Delta table has"),
        ("CREATE TABLE main.docs.t AS SELECT 1 AS a, 2 AS A", "'a' twice"),
        ("DELETE FROM main.docs.people WHERE", "needs a condition"),
        ("DELETE FROM main.docs.people WHERE nope = 1", "no column 'nope'"),
        ("DELETE FROM main.docs.people WHERE upper(name) = 'X'", "but not upper"),
        ("DELETE FROM main.docs.people WHERE id::VARCHAR = '1'", "CAST"),
        ("DELETE FROM main.docs.people WHERE name LIKE 'a\\%'", "backslash"),
        ("DELETE FROM main.docs.people WHERE id = NULL", "constant NULL"),
        ("DELETE FROM main.docs.people WHERE NOT (id = NULL)", "constant NULL"),
        ("DELETE FROM main.docs.people WHERE 1 = NULL", "constant NULL"),
        ("DELETE FROM main.docs.people WHERE NULL", "constant NULL"),
        ("DELETE FROM main.docs.people WHERE id IN (1, NULL)", "constant NULL"),
        ("DELETE FROM main.docs.people WHERE id = '1'", "constants of it"),
        ("DELETE FROM main.docs.people WHERE name = 1", "constants of it"),
        ("DELETE FROM main.docs.people WHERE id = 1.5", "constants of it"),
        ("DELETE FROM main.docs.people WHERE id = 1e3", "constants of it"),
        ("DELETE FROM main.docs.people WHERE id = 9223372036854775808", "constants of it"),
        ("DELETE FROM main.docs.people WHERE 1 = 1", "constants of it"),
        ("DELETE FROM main.docs.people WHERE name = id", "constants of it"),
        ("DELETE FROM main.docs.people WHERE name = DATE '2026-01-01'", "constants of it"),
        ("DELETE FROM main.docs.people WHERE name = DATE 'today'", "no DATE in ISO form"),
        ("DELETE FROM main.docs.people WHERE id", "true or false"),
        ("DELETE FROM main.docs.people WHERE id AND true", "true or false"),
        ("DELETE FROM main.docs.people WHERE id = :x", "has a parameter no value"),
    ],
)
def test_wrong_writes_are_told_what_is_wrong_and_change_nothing(shared: Lake, statement: str, told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        write(shared, statement)
    assert shared.tables.version("main.docs.people") == 1 and shared.catalog.find_table("main.docs.t") is None


def test_of_two_that_make_one_table_one_is_told_so(lake: Lake) -> None:
    ended: list[str] = []

    def make(number: int) -> None:
        try:
            write(lake, f"CREATE TABLE main.docs.race AS SELECT {number} AS n FROM range(10)")
            ended.append("made")
        except MosaicError as error:
            ended.append(error.code)

    threads = [threading.Thread(target=make, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ended) == ["already_exists"] * 3 + ["made"]
    assert lake.rows("SELECT count(*) AS c, count(DISTINCT n) AS d FROM main.docs.race") == [{"c": 10, "d": 1}]


def test_inserts_at_once_are_all_there(lake: Lake) -> None:
    def insert(number: int) -> None:
        write(lake, f"INSERT INTO main.docs.orders (order_id) VALUES ({number})")

    threads = [threading.Thread(target=insert, args=(100 + number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lake.value("SELECT count(*) FROM main.docs.orders WHERE order_id >= 100") == 5


# The engine that counts and the one that deletes must mean the same by a condition.

columns = st.sampled_from(["a", "B", '"B"', "d", "f", "p", "m", "z"])
comparisons = st.sampled_from(["=", "<>", "<", "<=", ">", ">="])


LITERALS = {
    "a": ["-1", "0", "2", "9223372036854775807"],
    "d": ["DATE '2026-01-02'", "DATE '1970-01-01'", "'2026-01-02'"],
    "f": ["-1", "0.1", "1e3", "0", "0.30000000000000004"],
    "p": ["0.1", "1.10", "-3", "0.30", "99999999.99"],
    "m": ["TIMESTAMP '2026-01-02 03:04:05.678901'", "'2026-01-02T04:04:05.678901+01:00'", "'2026-01-03 00:00:00'"],
    "z": ["TIMESTAMP '2026-01-02 03:04:05.678901'", "'2026-01-02T03:04:05'"],
}


def literal(column: str) -> st.SearchStrategy[str]:
    return st.sampled_from(LITERALS.get(column, ["'x'", "''", "'it''s'", "'X'", "'%'"]))


@st.composite
def atoms(draw: st.DrawFn) -> str:
    column = draw(columns)
    values = literal(column)
    kind = draw(st.sampled_from(["compare", "in", "between", "null", "like"]))
    negated = draw(st.sampled_from(["", "NOT "]))
    if kind == "compare":
        return f"{negated}{column} {draw(comparisons)} {draw(values)}"
    if kind == "in":
        return f"{column} {negated}IN ({draw(values)}, {draw(values)})"
    if kind == "between":
        return f"{column} {negated}BETWEEN {draw(values)} AND {draw(values)}"
    if kind == "like" and column not in LITERALS:
        pattern = draw(st.sampled_from(["'x%'", "'_'", "'%''%'", "''"]))
        return f"{column} {negated}LIKE {pattern}"
    return f"{column} IS {negated}NULL"


conditions = st.recursive(
    atoms(), lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from(["AND", "OR"]), inner), max_leaves=4
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(condition=conditions)
def test_delete_and_select_mean_the_same_by_a_condition(shared: Lake, condition: str) -> None:
    day, moment = dt.date(2026, 1, 2), dt.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=dt.UTC)
    rows = pa.table(
        {
            "a": pa.array([-1, 0, 1, 2, None, 2], pa.int64()),
            "B": ["x", "", "it's", None, "X", "xy"],
            "d": pa.array([day, None, dt.date(1970, 1, 1), day, day, dt.date(2027, 1, 1)]),
            "f": [0.1, None, 1000.0, 0.1 + 0.2, -0.0, -1.0],
            "p": pa.array([None, *map(Decimal, ("0.10", "1.10", "-3.00", "0.30", "5.55"))], pa.decimal128(10, 2)),
            "m": pa.array([moment, None, moment + dt.timedelta(1), moment, None, moment], pa.timestamp("us", "UTC")),
            "z": pa.array([None, *[moment.replace(tzinfo=None)] * 5], pa.timestamp("us")),
        }
    )
    shared.tables.create("main.docs.tried", rows.schema, primary_key=None, owner="admin")
    shared.tables.overwrite("main.docs.tried", rows)
    kept = shared.rows(f"SELECT * FROM main.docs.tried WHERE ({condition}) IS NOT TRUE ORDER BY ALL")
    done = write(shared, f"DELETE FROM main.docs.tried WHERE {condition}")
    assert shared.rows("SELECT * FROM main.docs.tried ORDER BY ALL") == kept
    assert done.rows["num_affected_rows"][0].as_py() == rows.num_rows - len(kept)


def test_a_parameter_that_is_null_deletes_nothing(shared: Lake) -> None:
    with pytest.raises(BadRequest, match="constant NULL"):
        write(shared, "DELETE FROM main.docs.people WHERE id = :x", parameters={"x": None})
    assert shared.value("SELECT count(*) FROM main.docs.people") == 4


@pytest.mark.parametrize(
    ("column", "value", "left"),
    [
        ("n", 2, 2),
        ("f", 1.5, 2),
        ("p", Decimal("1.10"), 2),
        ("t", "it's", 2),
        ("b", True, 1),
        ("d", dt.date(2026, 1, 2), 2),
        ("m", dt.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=dt.UTC), 2),
        ("m", "2026-01-02T03:04:05.678901Z", 2),
        ("d", "2026-01-02", 2),
        ("z", dt.datetime(2026, 1, 2, 3, 4, 5, 678901), 2),
    ],
)
def test_parameters_of_a_delete_are_values(shared: Lake, column: str, value: Any, left: int) -> None:
    moment = dt.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=dt.UTC)
    rows = pa.table(
        {
            "n": [1, 2, 3],
            "f": [0.5, 1.5, 2.5],
            "p": pa.array([Decimal("1.00"), Decimal("1.10"), Decimal("2.00")], pa.decimal128(10, 2)),
            "t": ["x", "it's", "' OR true"],
            "b": [True, True, False],
            "d": [dt.date(2026, 1, 1), dt.date(2026, 1, 2), dt.date(2026, 1, 3)],
            "z": pa.array([moment.replace(tzinfo=None), None, None], pa.timestamp("us")),
            "m": pa.array([moment - dt.timedelta(1), moment, moment + dt.timedelta(1)], pa.timestamp("us", "UTC")),
        }
    )
    table = f"main.docs.typed_{column}_{type(value).__name__}".lower()
    shared.make(table, rows)
    write(shared, f"DELETE FROM {table} WHERE {column} = :value", parameters={"value": value})
    assert shared.value(f"SELECT count(*) FROM {table}") == left
