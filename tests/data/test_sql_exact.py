"""SELECT, DELETE and merge mean by a value what DuckDB means, whatever the statistics of the files say about it."""

import datetime as dt
import json
import os
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mosaic.data.changes import ChangesUnavailable, fold_changes
from mosaic.errors import BadRequest, NotFound
from mosaic.monitoring.selection import Selection
from tests.data.sql_lake import Lake, lake_in

EXAMPLES = int(os.environ.get("MOSAIC_SQL_EXAMPLES", "12"))
"""More of them take longer and find more."""
NAME = "main.docs.tried"
NAN, INFINITY = float("nan"), float("inf")


def moment(*parts: int, zone: dt.tzinfo | None = None) -> dt.datetime:
    return dt.datetime(*parts, tzinfo=zone)  # type: ignore[misc,arg-type]


# column -> type, values, constants of exactly the type, and constants that only SELECT takes
KINDS: dict[str, tuple[pa.DataType, list[Any], list[str], list[str]]] = {
    "f": (
        pa.float64(),
        [NAN, INFINITY, -INFINITY, 0.0, -0.0, 1.5, -1.5, 1e300, 5e-324, 0.1],
        ["0", "-0.0", "1.5", "-1.5", "1e299", "0.1"],
        ["'nan'::DOUBLE", "'inf'::DOUBLE", "'-inf'::DOUBLE", "1e300"],
    ),
    "g": (pa.float32(), [NAN, INFINITY, 0.0, -0.0, 1.5], [], ["0", "1.5", "'nan'::FLOAT"]),
    "d": (
        pa.decimal128(20, 2),
        [Decimal(v) for v in ("1.10", "-0.01", "99999999999999999.99", "99999999999999999.98", "12345678901234568.90")],
        ["1.1", "1.10", "-0.01", "99999999999999999.98", "99999999999999999.99", "12345678901234568.9", "0"],
        ["1.105", "1e18"],
    ),
    "e": (
        pa.decimal128(38, 20),
        [Decimal(v) for v in ("0.12345678901234567890", "0.12345678901234567891", "1", "-999999999999999999.5")],
        ["0.12345678901234567890", "0.12345678901234567891", "1", "-999999999999999999.5"],
        [],
    ),
    "w": (
        pa.decimal128(38, 0),
        [Decimal(v) for v in ("9" * 38, "9" * 37 + "8", "-" + "9" * 38, "0")],
        ["9" * 38, "9" * 37 + "8", "0", "-" + "9" * 38],
        [],
    ),
    "i": (
        pa.int64(),
        [0, 1, -1, 2**63 - 1, 2**63 - 2, -(2**63), 2**53 + 1],
        ["0", "-1", "9223372036854775807", "9223372036854775806", "-9223372036854775808", "9007199254740993"],
        ["0.5", "1e18", "9223372036854775808"],
    ),
    "x": (
        pa.date32(),
        [dt.date(2026, 1, 1), dt.date(1969, 12, 31), dt.date(1, 1, 1), dt.date(9999, 12, 31)],
        ["DATE '2026-01-01'", "DATE '0001-01-01'", "DATE '9999-12-31'", "'1969-12-31'"],
        ["TIMESTAMP '2026-01-01 00:00:00.5'"],
    ),
    "t": (
        pa.timestamp("us"),
        [moment(2026, 1, 1, 10), moment(2026, 1, 1, 10, 0, 0, 999999), moment(1969, 12, 31, 23, 59, 59, 999999)],
        ["TIMESTAMP '2026-01-01 10:00:00'", "'2026-01-01 10:00:00.999999'", "TIMESTAMP '1969-12-31 23:59:59.999999'"],
        ["DATE '2026-01-01'"],
    ),
    "z": (
        pa.timestamp("us", "UTC"),
        [moment(2026, 1, 1, 10, 0, 0, 999999, zone=dt.UTC), moment(1969, 12, 31, 23, 59, 59, 999999, zone=dt.UTC)],
        ["'2026-01-01 12:00:00.999999+02:00'", "'2026-01-01 10:00:00'", "'1969-12-31 23:59:59.999999+00:00'"],
        ["TIMESTAMPTZ '2026-01-01 12:00:00+02'"],
    ),
    "s": (
        pa.string(),
        ["", "a", "A", "\u00e4", "a\nb", "\U0001f600", "%", "it's", "a" * 100, "a" * 99 + "b", "\U0010ffff" * 70],
        ["''", "'a'", "'\u00e4'", "'it''s'", "'A'", f"'{'a' * 100}'", f"'{chr(0x10FFFF) * 70}'"],
        ["repeat('a', 99)"],
    ),
    "b": (pa.bool_(), [True, False], ["true", "false"], []),
}
PARTNERS = {"f": "f2", "i": "i2", "d": "d2", "s": "s2"}
"""Columns of the same type, to compare with."""
KINDS |= {partner: KINDS[name] for name, partner in PARTNERS.items()}
SCHEMA = pa.schema([("k", pa.int64()), *((name, kind[0]) for name, kind in KINDS.items())])


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    with lake_in(tmp_path_factory.mktemp("lake")) as made:
        made.tables.create(NAME, SCHEMA, primary_key=None, owner="admin")
        yield made


def row() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({name: st.none() | st.sampled_from(kind[1]) for name, kind in KINDS.items()})


FILES = st.lists(st.lists(row(), min_size=1, max_size=4), min_size=1, max_size=3)


@st.composite
def atoms(draw: st.DrawFn, for_delete: bool) -> str:
    column = draw(st.sampled_from([name for name in KINDS if KINDS[name][2] or not for_delete]))
    exact, only_select = KINDS[column][2:]
    other = [PARTNERS[column]] if column in PARTNERS else []
    values = st.sampled_from([*exact, *other] if for_delete else [*exact, *only_select, *other, column])
    kind = draw(st.sampled_from(["compare", "compare", "in", "between", "null"]))
    negated = draw(st.sampled_from(["", "NOT "]))
    if kind == "compare":
        comparison = draw(st.sampled_from(["=", "<>", "<", "<=", ">", ">="]))
        return f"{negated}({column} {comparison} {draw(values)})"
    if kind == "in":
        return f"({column} {negated}IN ({draw(values)}, {draw(values)}))"
    if kind == "between":
        return f"({column} {negated}BETWEEN {draw(values)} AND {draw(values)})"
    return f"({column} IS {negated}NULL)"


def conditions(*, for_delete: bool) -> st.SearchStrategy[str]:
    joined = st.sampled_from(["AND", "OR"])
    return st.recursive(
        atoms(for_delete),
        lambda inner: st.builds("({} {} {})".format, inner, joined, inner) | st.builds("(NOT {})".format, inner),
        max_leaves=4,
    )


def put(lake: Lake, files: list[list[dict[str, Any]]]) -> pa.Table:
    """The rows as the table has them now, each list in a file of its own."""
    parts = []
    for number, rows in enumerate(files):
        numbered = [{"k": number * 100 + at, **values} for at, values in enumerate(rows)]
        parts.append(pa.Table.from_pylist(numbered, schema=SCHEMA))
        (lake.tables.append if number else lake.tables.overwrite)(NAME, parts[-1])
    return pa.concat_tables(parts)


def in_memory(rows: pa.Table, statement: str) -> list[int]:
    """What DuckDB alone says over its own copy."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("rows_of", rows)
        connection.execute("CREATE TABLE tried AS SELECT * FROM rows_of")
        return [found[0] for found in connection.execute(statement.format("tried")).fetchall()]


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=FILES, asked=st.lists(conditions(for_delete=False), min_size=3, max_size=3))
def test_select_finds_what_duckdb_finds(lake: Lake, files: list[list[dict[str, Any]]], asked: list[str]) -> None:
    rows = put(lake, files)
    for condition in asked:
        statement = f"SELECT k FROM {{}} WHERE {condition} ORDER BY k"
        found = [one["k"] for one in lake.rows(statement.format(NAME))]
        assert found == in_memory(rows, statement), condition


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=FILES, condition=conditions(for_delete=True))
def test_delete_takes_what_duckdb_finds(lake: Lake, files: list[list[dict[str, Any]]], condition: str) -> None:
    rows = put(lake, files)
    kept = in_memory(rows, f"SELECT k FROM {{}} WHERE ({condition}) IS NOT TRUE ORDER BY k")
    matching = Selection(lake.tables, NAME, condition).count(lake.tables.version(NAME))
    lake.tables.delete_where(NAME, condition)
    assert sorted(lake.tables.to_arrow(NAME)["k"].to_pylist()) == kept, condition
    assert matching == rows.num_rows - len(kept), condition  # impact counts them the same way


# The same with few rows, value by value


def one_file_each(lake: Lake, name: str, values: pa.Array) -> None:
    rows = pa.table({"k": range(len(values)), "c": values})
    lake.tables.create(name, rows.schema, primary_key=None, owner="admin")
    for at in range(len(values)):
        lake.tables.append(name, rows.slice(at, 1))


@pytest.mark.parametrize(
    ("values", "condition", "found"),
    [
        (pa.array([INFINITY, 1.5, -1.0]), "c = 1.5", [1]),
        (pa.array([INFINITY, 1.5, -1.0]), "c < 2", [1, 2]),
        (pa.array([NAN, 1.5, -1.0]), "c < 2", [1, 2]),
        (pa.array([NAN, 1.5, -1.0]), "c > 1.5", [0]),
        (pa.array([0.0, -0.0, -1.0]), "c >= 0", [0, 1]),
        (pa.array([Decimal("99999999999999999.99"), Decimal("1.10")], pa.decimal128(20, 2)), "c = 1.10", [1]),
        (
            pa.array([Decimal("99999999999999999.98"), Decimal("99999999999999999.99")], pa.decimal128(20, 2)),
            "c > 99999999999999999.98",
            [1],
        ),
        (pa.array([Decimal("0.12345678901234567890")], pa.decimal128(38, 20)), "c = 0.12345678901234567890", [0]),
    ],
)
@pytest.mark.parametrize("in_one_file", [True, False])
def test_a_value_that_statistics_cannot_say(
    tmp_path: Path, values: pa.Array, condition: str, found: list[int], in_one_file: bool
) -> None:
    with lake_in(tmp_path) as lake:
        if in_one_file:
            lake.make("main.docs.t", pa.table({"k": range(len(values)), "c": values}))
        else:
            one_file_each(lake, "main.docs.t", values)
        selected = lake.rows(f"SELECT k FROM main.docs.t WHERE {condition} ORDER BY k")
        assert [row["k"] for row in selected] == found
        lake.query(f"DELETE FROM main.docs.t WHERE {condition}", writable=True)
        left = [row["k"] for row in lake.rows("SELECT k FROM main.docs.t ORDER BY k")]
        assert left == [k for k in range(len(values)) if k not in found]


@pytest.mark.parametrize("condition", ["NOT (n = N)", "n IN (1, n)", "n BETWEEN 0 AND n"])
def test_a_delete_compares_no_column_with_itself(tmp_path: Path, condition: str) -> None:
    with lake_in(tmp_path) as lake:
        lake.make("main.docs.t", pa.table({"n": pa.array([None, 1], pa.int64())}))
        with pytest.raises(BadRequest, match='compares no column with itself, as here "n"; write IS NULL'):
            lake.tables.delete_where("main.docs.t", condition)
        assert lake.tables.to_arrow("main.docs.t").num_rows == 2


@pytest.mark.parametrize("kind", [pa.struct([("p", pa.int64())]), pa.list_(pa.int64())])
def test_a_delete_compares_no_nested_values(tmp_path: Path, kind: pa.DataType) -> None:
    with lake_in(tmp_path) as lake:
        lake.make("main.docs.t", pa.table({"c": pa.array([None], kind)}))
        with pytest.raises(BadRequest, match="compares columns of one type with constants of it"):
            lake.tables.delete_where("main.docs.t", "c = c")


@pytest.mark.parametrize(
    ("kind", "first", "again"),
    [
        (pa.float64(), [NAN, 0.0, 1.5], [NAN, -0.0, 1.5]),
        (pa.decimal128(38, 20), [Decimal("0.12345678901234567890"), Decimal("0.12345678901234567891")], None),
        (pa.decimal128(20, 2), [Decimal("99999999999999999.98"), Decimal("99999999999999999.99")], None),
        (pa.timestamp("us"), [moment(1969, 12, 31, 23, 59, 59, 999999)], None),
        (pa.string(), ["a" * 100, chr(0x10FFFF) * 70, ""], None),
    ],
)
def test_merge_finds_the_row_of_a_key(tmp_path: Path, kind: pa.DataType, first: list[Any], again: list[Any]) -> None:
    with lake_in(tmp_path) as lake:
        schema = pa.schema([("key", kind), ("at", pa.int64())])
        lake.tables.create("main.docs.t", schema, primary_key="key", owner="admin")
        for key in first:
            lake.tables.merge("main.docs.t", pa.table({"key": pa.array([key], kind), "at": [1]}))
        for key in again or first:
            lake.tables.merge("main.docs.t", pa.table({"key": pa.array([key], kind), "at": [2]}))
        assert lake.tables.to_arrow("main.docs.t")["at"].to_pylist() == [2] * len(first)


def test_merge_takes_zero_for_one_key_whatever_its_sign(tmp_path: Path) -> None:
    with lake_in(tmp_path) as lake:
        lake.tables.create("main.docs.t", pa.schema([("key", pa.float64())]), primary_key="key", owner="admin")
        with pytest.raises(BadRequest, match=r"comes twice: \[0\.0\]"):
            lake.tables.merge("main.docs.t", pa.table({"key": [0.0, -0.0]}))


def test_merge_by_a_column_with_a_quote_in_its_name(tmp_path: Path) -> None:
    with lake_in(tmp_path) as lake:
        for number, name in enumerate(['a"b', "it's", "a b", "a.b"]):
            table = f"main.docs.quoted{number}"
            lake.make(table, pa.table({name: ["x", "y"], "at": [1, 1]}), name)
            lake.tables.merge(table, pa.table({name: ["x", "z"], "at": [2, 2]}))
            assert sorted(lake.tables.to_arrow(table)["at"].to_pylist()) == [1, 2, 2]
        lake.make("main.docs.ticked", pa.table({"a`b": ["x"]}), "a`b")
        with pytest.raises(BadRequest, match="backtick in its name"):
            lake.tables.merge("main.docs.ticked", pa.table({"a`b": ["x"]}))


# Where files are


def edit_adds(lake: Lake, table: str, version: int, path: str) -> None:
    """Let the commit of a version name another file."""
    log = Path(lake.catalog.get_table(table).location) / f"_delta_log/{version:020d}.json"
    actions = [json.loads(line) for line in log.read_text().splitlines()]
    for action in actions:
        if "add" in action:
            action["add"].update(path=path)
            action["add"].pop("stats", None)
    log.write_text("\n".join(json.dumps(action) for action in actions))


@pytest.mark.parametrize("name", ["a b.parquet", "c%d.parquet", "e:f.parquet", "p%20q.parquet", "\u00e4/h..parquet"])
def test_a_file_with_a_strange_name_is_read(tmp_path: Path, name: str) -> None:
    with lake_in(tmp_path) as lake:
        lake.make("main.docs.t", pa.table({"id": [1]}))
        place = Path(lake.catalog.get_table("main.docs.t").location)
        (file,) = place.glob("*.parquet")
        (place / name).parent.mkdir(exist_ok=True)
        file.rename(place / name)
        edit_adds(lake, "main.docs.t", 1, quote(name))
        assert lake.rows("SELECT * FROM main.docs.t") == [{"id": 1}]
        assert lake.tables.to_arrow("main.docs.t").to_pylist() == [{"id": 1}]


@pytest.mark.parametrize("spelling", ["{0}", "./{0}", "{1}", "{2}", "file://{3}", "{3}", "sub/../{0}"])
def test_no_reader_follows_a_log_out_of_its_folder(tmp_path: Path, spelling: str) -> None:
    with lake_in(tmp_path) as lake:
        lake.make("main.docs.mine", pa.table({"id": [7], "secret": ["mine"]}), "id")
        place = Path(lake.catalog.get_table("main.docs.mine").location)
        (file,) = Path(lake.catalog.get_table("main.vault.secrets").location).glob("*.parquet")
        relative = os.path.relpath(file, place)
        once, twice = relative.replace("..", "%2e%2E"), relative.replace("..", "%252e%252e")
        edit_adds(lake, "main.docs.mine", 1, spelling.format(relative, once, twice, file))
        tables = lake.tables
        for read in (
            lambda: lake.rows("SELECT * FROM main.docs.mine"),
            lambda: tables.to_arrow("main.docs.mine"),
            lambda: pa.table(tables.delta("main.docs.mine").scan()),
            lambda: tables.optimize("main.docs.mine"),
            lambda: tables.delete_where("main.docs.mine", "id = 2"),
            lambda: tables.merge("main.docs.mine", pa.table({"id": [1], "secret": ["z"]})),
            lambda: Selection(tables, "main.docs.mine", "secret LIKE 'the%'").count(1),
        ):
            with pytest.raises(BadRequest, match=r"'main\.docs\.mine' refers to files outside of its folder"):
                read()


def test_a_change_feed_is_not_followed_out_of_its_folder(tmp_path: Path) -> None:
    with lake_in(tmp_path) as lake:
        lake.make("main.docs.mine", pa.table({"id": [7], "secret": ["mine"]}), "id")
        place = Path(lake.catalog.get_table("main.docs.mine").location)
        (file,) = Path(lake.catalog.get_table("main.vault.secrets").location).glob("*.parquet")
        edit_adds(lake, "main.docs.mine", 1, os.path.relpath(file, place))
        log = place / "_delta_log" / f"{2:020d}.json"  # by now the table has no such file
        remove = {"path": os.path.relpath(file, place), "dataChange": False, "deletionTimestamp": 1}
        log.write_text(json.dumps({"remove": remove}))
        assert lake.rows("SELECT * FROM main.docs.mine") == []
        with pytest.raises(ChangesUnavailable, match="outside"):
            fold_changes(lake.tables.delta("main.docs.mine"), 0, 2, "id")


def test_a_version_is_no_larger_than_delta_counts(tmp_path: Path) -> None:
    with lake_in(tmp_path) as lake:
        for version in (-1, 2, 2**63 - 1, 2**63, 10**20):
            with pytest.raises(NotFound, match=f"no.* version {version}"):
                lake.tables.to_arrow("main.docs.people", version)
