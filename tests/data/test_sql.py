"""SELECT over the catalog's tables: names, versions, grants, lineage, and agreement with pyarrow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mosaic.data.sql import TableVersion
from mosaic.errors import BadRequest, NotFound, PermissionDenied
from tests.data.sql_lake import BOB, EVE, ORDERS, PEOPLE, Lake, lake_in


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    with lake_in(tmp_path_factory.mktemp("lake")) as made:
        yield made


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Lake]:
    with lake_in(tmp_path) as made:
        yield made


@pytest.mark.parametrize(
    "source",
    [
        "main.docs.people",
        "Main.Docs.PEOPLE",
        '"main"."docs"."people"',
        "`main`.`docs`.`people`",
        "main . docs . people",
        "/* a */ main.docs.people -- b\n",
        "main.docs.people@1",
        'main.docs."people"@1',
        'main.docs."people@1"',
        "main.docs.people VERSION AS OF 1",
        "main.docs.people FOR VERSION AS OF 1",
        "main.docs.people for /* which */ version as of 1 AS p",
        "main.docs.people version as /* which */ of 1 AS p",
        "main.docs.people AT (VERSION => 1)",
        "(SELECT * FROM main.docs.people)",
        "(WITH w AS (SELECT * FROM main.docs.people) SELECT * FROM w)",
    ],
)
def test_a_table_is_found_by_every_spelling(lake: Lake, source: str) -> None:
    answer = lake.query(f"SELECT count(*) AS n FROM {source}")
    assert answer.rows.to_pylist() == [{"n": 4}]
    assert answer.read == (TableVersion("main.docs.people", 1),)


def test_a_catalog_and_a_schema_complete_names(lake: Lake) -> None:
    there = {"catalog": "main", "schema": "docs"}
    assert lake.value("SELECT count(*) FROM people", **there) == 4
    assert lake.value("SELECT count(*) FROM docs.people", catalog="main") == 4
    assert lake.value("SELECT count(*) FROM people@0", **there) == 0
    assert lake.value("SELECT docs.people.name FROM people WHERE main.docs.people.id = 1", **there) == "ann"
    with pytest.raises(BadRequest, match=r"'docs\.people' has 2 part\(s\)"):
        lake.query("SELECT * FROM docs.people")
    with pytest.raises(BadRequest, match=r"'people' has 1 part\(s\)"):
        lake.query("SELECT * FROM people", catalog="main")
    with pytest.raises(BadRequest, match="needs a catalog too"):
        lake.query("SELECT 1", schema="docs")


def test_columns_may_be_qualified_by_the_whole_name(lake: Lake) -> None:
    joined = (
        "SELECT main.docs.people.name AS n, sum(docs.orders.amount) AS total FROM main.docs.people "
        "JOIN main.docs.orders ON docs.orders.person = people.id GROUP BY ALL ORDER BY 1"
    )
    assert lake.rows(joined) == [{"n": "ann", "total": 12.5}, {"n": "bob", "total": 1.0}, {"n": "cy", "total": None}]


def test_the_newest_version_is_pinned_and_said(fresh: Lake) -> None:
    both = "SELECT (SELECT count(*) FROM main.docs.people) AS now, (SELECT count(*) FROM main.docs.people@1) AS before"
    fresh.tables.append("main.docs.people", PEOPLE.slice(0, 1))
    answer = fresh.query(both)
    assert answer.rows.to_pylist() == [{"now": 5, "before": 4}]
    assert set(answer.read) == {TableVersion("main.docs.people", 2), TableVersion("main.docs.people", 1)}
    with pytest.raises(NotFound, match="no readable version 9; the newest is 2"):
        fresh.query("SELECT * FROM main.docs.people@9")
    with pytest.raises(BadRequest, match="two versions, 1 and 2"):
        fresh.query('SELECT * FROM main.docs."people@1" AT (VERSION => 2)')


def test_what_was_read_is_a_run_with_exact_versions_and_columns(fresh: Lake) -> None:
    answer = fresh.query("SELECT p.name FROM main.docs.people p JOIN main.docs.orders ON person = p.id", BOB)
    assert answer.run_id is not None
    run = fresh.catalog.get_run(answer.run_id)
    assert (run.kind, run.principal, run.status, run.metrics) == ("sql", "bob", "finished", {"rows": 4.0})
    assert {(edge.kind, edge.name, edge.version) for edge in run.inputs} == {
        ("table", "main.docs.orders", 1),
        ("table", "main.docs.people", 1),
    }
    columns = {edge.name: (edge.detail or {})["columns"] for edge in run.inputs}
    assert columns == {"main.docs.orders": ["person"], "main.docs.people": ["id", "name"]}
    starred = fresh.query("SELECT * FROM main.docs.people WHERE id = 1").run_id
    assert starred is not None
    assert (fresh.catalog.get_run(starred).inputs[0].detail or {})["columns"] == ["id", "name", "team"]
    before = len(fresh.catalog.list_runs("sql"))
    assert fresh.query("SELECT 1").run_id is None
    with pytest.raises(PermissionDenied):
        fresh.query("SELECT * FROM main.vault.secrets", BOB)
    assert len(fresh.catalog.list_runs("sql")) == before
    with pytest.raises(BadRequest):
        fresh.query("SELECT name::INT FROM main.docs.people")
    assert fresh.catalog.list_runs("sql", "failed")[0].inputs[0].name == "main.docs.people"


@pytest.mark.parametrize(
    ("statement", "columns"),
    [
        ("SELECT a FROM main.docs.people AS x(a, b, c)", ["id", "name", "team"]),
        ("SELECT people FROM main.docs.people", ["id", "name", "team"]),
        ("SELECT count(P) FROM main.docs.people AS p", ["id", "name", "team"]),
        ("SELECT #2 FROM main.docs.people", ["id", "name", "team"]),
        ("SELECT people.id, p.name FROM main.docs.people, (SELECT 'x' AS name) p", ["id", "name"]),
    ],
)
def test_columns_that_are_read_by_another_name_are_in_the_lineage(
    fresh: Lake, statement: str, columns: list[str]
) -> None:
    run_id = fresh.query(statement).run_id
    assert run_id is not None
    assert (fresh.catalog.get_run(run_id).inputs[0].detail or {})["columns"] == columns


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("SELECT " + "(" * 250_000, "250,001 words and signs; there may be 50,000"),
        ("SELECT " + "(" * 40_000, "nested too deep: a depth of 40,000 brackets, not 200"),
        ("SELECT * FROM " + "(SELECT * FROM " * 150 + "(SELECT 1)" + ")" * 150, "nested too deep"),
        ("SELECT x" + ".a" * 20_000, "20,001 parts in a name; there may be 32"),
        ("SELECT 1" + " UNION ALL SELECT 1" * 12_000, "12,000 UNION, INTERSECT and EXCEPT; there may be 1,000"),
        ("SELECT " + "1," * 60_000 + "1", "120,002 words and signs; there may be 50,000"),
        ("SELECT * FROM main.docs.people AT (VERSION => 99999999999999999999)", "is more than 9223372036854775807"),
        ("SELECT * FROM main.docs.people@" + "9" * 5_000, "must be a whole number"),
    ],
)
def test_a_statement_has_a_bounded_size(fresh: Lake, statement: str, told: str) -> None:
    with pytest.raises(BadRequest) as error:
        fresh.query(statement)
    assert told in error.value.message


# Every place in which a statement can name a table; BOB may read people and orders, but not secrets.
PLACES = [
    "SELECT * FROM main.vault.secrets",
    "FROM main.vault.secrets",
    "TABLE main.vault.secrets",
    "DESCRIBE main.vault.secrets",
    "DESCRIBE SELECT * FROM main.vault.secrets",
    "SUMMARIZE main.vault.secrets",
    "EXPLAIN SELECT * FROM main.vault.secrets",
    "EXPLAIN ANALYZE SELECT * FROM main.vault.secrets",
    "SELECT * FROM (DESCRIBE main.vault.secrets)",
    "SELECT * FROM main.docs.people JOIN main.vault.secrets USING (id)",
    "SELECT * FROM main.docs.people, main.vault.secrets",
    "SELECT * FROM main.docs.people NATURAL JOIN main.vault.secrets",
    "SELECT * FROM main.docs.people POSITIONAL JOIN main.vault.secrets",
    "SELECT * FROM main.docs.people ASOF JOIN main.vault.secrets s ON people.id >= s.id",
    "SELECT * FROM main.docs.people SEMI JOIN main.vault.secrets USING (id)",
    "SELECT id FROM main.docs.people UNION ALL SELECT id FROM main.vault.secrets",
    "SELECT id FROM main.docs.people EXCEPT SELECT id FROM main.vault.secrets",
    "SELECT id FROM main.docs.people INTERSECT (SELECT id FROM main.vault.secrets)",
    "SELECT (SELECT max(secret) FROM main.vault.secrets)",
    "SELECT * FROM main.docs.people WHERE id IN (SELECT id FROM main.vault.secrets)",
    "SELECT * FROM main.docs.people p WHERE EXISTS (FROM main.vault.secrets s WHERE s.id = p.id)",
    "SELECT * FROM main.docs.people p WHERE id > ALL (SELECT id FROM main.vault.secrets)",
    "SELECT * FROM main.docs.people GROUP BY ALL HAVING count(*) > (SELECT count(*) FROM main.vault.secrets)",
    "SELECT id FROM main.docs.people ORDER BY (SELECT max(id) FROM main.vault.secrets)",
    "SELECT id FROM main.docs.people LIMIT (SELECT count(*) FROM main.vault.secrets)",
    "SELECT * FROM main.docs.people p, LATERAL (SELECT s.secret FROM main.vault.secrets s WHERE s.id = p.id)",
    "WITH s AS (SELECT * FROM main.vault.secrets) SELECT * FROM s",
    "WITH s AS MATERIALIZED (SELECT * FROM main.vault.secrets) SELECT 1",
    "WITH secrets AS (SELECT 1) SELECT * FROM secrets, main.vault.secrets",
    "WITH secrets AS (SELECT * FROM main.vault.secrets) SELECT * FROM main.docs.people",
    "WITH RECURSIVE r AS (SELECT id FROM main.vault.secrets UNION SELECT id + 1 FROM r WHERE id < 3) SELECT * FROM r",
    "SELECT [(SELECT max(secret) FROM main.vault.secrets)]",
    "SELECT {'a': (SELECT max(secret) FROM main.vault.secrets)}",
    "SELECT CASE WHEN (SELECT true FROM main.vault.secrets LIMIT 1) THEN 1 END",
    "SELECT array(SELECT secret FROM main.vault.secrets)",
    "SELECT list_transform([1], lambda x: x + (SELECT max(id) FROM main.vault.secrets))",
    "SELECT count(*) FILTER (WHERE id IN (SELECT id FROM main.vault.secrets)) FROM main.docs.people",
    "SELECT sum(id) OVER (ORDER BY (SELECT max(id) FROM main.vault.secrets)) FROM main.docs.people",
    "SELECT * FROM main.docs.people QUALIFY row_number() OVER () > (SELECT max(id) FROM main.vault.secrets)",
    "FROM main.vault.secrets PIVOT (count(*) FOR id IN (1, 2))",
    "FROM main.vault.secrets UNPIVOT (v FOR n IN (secret))",
    "SELECT * FROM range((SELECT max(id) FROM main.vault.secrets))",
    "SELECT * FROM unnest((SELECT list(secret) FROM main.vault.secrets))",
    "VALUES ((SELECT max(secret) FROM main.vault.secrets))",
    "SELECT * FROM (VALUES ((SELECT max(secret) FROM main.vault.secrets))) t(x)",
    "SELECT * FROM main.vault.secrets@1",
    "SELECT * FROM main.vault.secrets VERSION AS OF 0",
    "SELECT * FROM main.vault.secrets TABLESAMPLE 100%",
    "SELECT * REPLACE ((SELECT max(secret) FROM main.vault.secrets) AS name) FROM main.docs.people",
]


@pytest.mark.parametrize("statement", PLACES)
def test_every_table_needs_a_grant_wherever_it_stands(lake: Lake, statement: str) -> None:
    audited = lake.catalog.audit.list(limit=10_000)
    with pytest.raises(PermissionDenied, match=r"'bob' may not SELECT on table 'main\.vault\.secrets'"):
        lake.query(statement, BOB)
    denial = lake.catalog.audit.list(limit=10_000)[len(audited)]
    assert denial.user_identity.email == "bob" and denial.response.status_code == 403
    assert "main.vault.secrets" in denial.request_params.values()


@pytest.mark.parametrize("statement", [one for one in PLACES if "lambda" not in one])
def test_the_same_statements_read_with_the_grant(lake: Lake, statement: str) -> None:
    """Else the test above would prove nothing about statements that nobody can run."""
    answer = lake.query(statement)
    assert TableVersion("main.vault.secrets", 0 if "OF 0" in statement else 1) in answer.read


@pytest.mark.parametrize(
    "statement",
    [
        # Names of WITH queries and aliases are no tables, even where a table of that name cannot be read.
        "WITH secrets AS (SELECT id FROM docs.people) SELECT count(*) FROM secrets",
        "WITH secrets AS (SELECT id FROM docs.people), t AS (SELECT * FROM secrets) SELECT count(*) FROM t",
        "SELECT count(*) FROM docs.people AS secrets WHERE secrets.id > 0",
        "WITH t AS (WITH secrets AS (SELECT id FROM docs.people) SELECT * FROM secrets) SELECT count(*) FROM t",
        "WITH RECURSIVE secrets AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM secrets WHERE i < 4) "
        "SELECT count(*) FROM secrets",
        "SELECT count(*) FROM (VALUES (1), (2), (3), (4)) AS secrets(id)",
    ],
)
def test_with_queries_and_aliases_hide_tables(lake: Lake, statement: str) -> None:
    assert lake.value(statement, BOB, catalog="main", schema="vault") == 4


@pytest.mark.parametrize(
    "statement",
    [
        # Outside of where it is visible, the name is the table's again.
        "SELECT * FROM (WITH secrets AS (SELECT 1) SELECT * FROM secrets), secrets",
        "WITH a AS (SELECT * FROM secrets), secrets AS (SELECT 1) SELECT * FROM a",
        "WITH secrets AS (SELECT * FROM secrets) SELECT * FROM secrets",
        "SELECT (WITH secrets AS (SELECT 1) SELECT 1), (SELECT max(id) FROM secrets)",
        "(WITH secrets AS (SELECT 1 AS id) SELECT id FROM secrets) UNION SELECT id FROM secrets",
    ],
)
def test_a_with_query_hides_a_table_only_where_it_is_visible(lake: Lake, statement: str) -> None:
    with pytest.raises(PermissionDenied, match=r"main\.vault\.secrets"):
        lake.query(statement, BOB, catalog="main", schema="vault")


def test_without_grants_nothing_is_told_but_the_name(lake: Lake) -> None:
    with pytest.raises(PermissionDenied, match="'eve' may not SELECT"):
        lake.query("SELECT * FROM main.docs.people", EVE)
    with pytest.raises(NotFound) as missing:
        lake.query("SELECT * FROM main.docs.nothing", EVE)
    assert "people" not in str(missing.value)
    with pytest.raises(NotFound, match=r"there are \['main\.docs\.orders', 'main\.docs\.people'\]"):
        lake.query("SELECT * FROM main.docs.nothing", BOB)


def test_a_revoked_grant_is_gone_for_the_next_statement(fresh: Lake) -> None:
    assert fresh.value("SELECT count(*) FROM main.docs.people", BOB) == 4
    fresh.catalog.grants.revoke("table", "main.docs.people", "bob", ["SELECT"], by="admin")
    with pytest.raises(PermissionDenied):
        fresh.query("SELECT count(*) FROM main.docs.people", BOB)


def test_parameters_are_values_and_never_sql(lake: Lake) -> None:
    named = "SELECT name FROM main.docs.people WHERE name = :who OR id = $id ORDER BY 1"
    assert [row["name"] for row in lake.rows(named, parameters={"who": "bob", "id": 1})] == ["ann", "bob"]
    assert lake.rows(named, parameters={"who": "x' OR '1' = '1", "id": -1}) == []
    assert lake.value("SELECT [10, 20, 30][1:2] = [10, 20] AND :x = 1", parameters={"x": 1}) is True
    assert lake.value("SELECT {'x': 2}.x + :x", parameters={"x": 1}) == 3
    assert lake.value("SELECT '1'::INT + :INT", parameters={"INT": 1}) == 2
    with pytest.raises(BadRequest, match="has a parameter no value"):
        lake.query("SELECT :who", parameters={})
    with pytest.raises(BadRequest, match="parameters: 1"):
        lake.query("SELECT ?")


def test_who_asks_is_the_caller_not_the_engine(lake: Lake) -> None:
    asked = "SELECT current_user, current_user() AS b, session_user AS c"
    assert lake.rows(asked, BOB) == [{"current_user": "bob", "b": "bob", "c": "bob"}]
    assert lake.value("SELECT count(*) FROM main.docs.people WHERE name = current_user", BOB) == 1


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("", "empty"),
        (" ; ;", "empty"),
        ("-- nothing", "empty"),
        ("SELEC 1", 'syntax error at or near "SELEC"'),
        ("SELECT nope FROM main.docs.people", '"nope" not found'),
        ("SELECT 'a'::INT", "Could not convert string 'a'"),
        ("SELECT error('no such luck')", "no such luck"),
        ("SELECT 1 FROM main.docs", r"part\(s\)"),
        ("SELECT 1 FROM a.b.c.d", r"has 4 part\(s\)"),
        ("SELECT 1 FROM main.docs.people AT (TIMESTAMP => '2026-01-01')", "AT takes"),
        ("SELECT 1 FROM main.docs.people@-1", "syntax error"),
        ("SELECT 1 FROM main.docs.people@99999999999999999999", "whole number"),
        ('SELECT 1 FROM main.docs."pe\'ople"', "must be 1 to 255 letters"),
        ("SELECT '" + "x" * 300_000 + "'", "longer than"),
        ("SELECT '\0'", "NUL"),
        ("SELECT '\ud800'", "lone surrogate"),
        ("SELECT " + "(" * 5_000 + "1" + ")" * 5_000, "depth"),
        ("SELECT " + "+".join(["1"] * 600), "nested too deep"),
        ("SELECT " + "(SELECT " * 300 + "1" + ")" * 300, "nested too deep"),
        ('WITH "main.docs.people" AS (SELECT 1) SELECT * FROM main.docs.people', "may not have"),
        ("SELECT * FROM people", "needs three"),
        ("SHOW EVERYTHING", "SHOW takes"),
        ("SHOW TABLES", "needs catalog.schema"),
        ("SHOW TABLES IN main.docs.people", "SHOW TABLES needs"),
    ],
)
def test_wrong_statements_are_told_what_is_wrong(lake: Lake, statement: str, told: str) -> None:
    with pytest.raises(BadRequest, match=told) as error:
        lake.query(statement)
    assert str(lake.folder) not in str(error.value) and "Traceback" not in str(error.value)


def test_show_tells_what_the_caller_may_know(lake: Lake) -> None:
    assert lake.rows("SHOW CATALOGS", BOB) == [{"catalog": "main"}]
    assert lake.rows("SHOW CATALOGS", EVE) == []
    assert lake.rows("SHOW SCHEMAS IN main", BOB) == [{"databaseName": "docs"}, {"databaseName": "vault"}]
    assert lake.rows("SHOW SCHEMAS IN main", EVE) == []
    docs = [row["tableName"] for row in lake.rows("show tables from main.docs", BOB)]
    assert docs == ["orders", "people"] == [row["tableName"] for row in lake.rows("SHOW TABLES IN `main`.`docs`")]
    assert lake.rows("SHOW TABLES IN main.vault", BOB) == []
    assert [row["tableName"] for row in lake.rows("SHOW TABLES", catalog="main", schema="vault")] == ["secrets"]


# An oracle: what a filter and an aggregation say, counted in plain Python over the same rows.

values = st.one_of(st.none(), st.integers(-3, 3))
rows_of = st.lists(st.tuples(values, st.one_of(st.none(), st.sampled_from(["a", "b", "c'd", ""]))), max_size=12)
conditions = st.sampled_from(
    [
        ("k > {0}", lambda k, g, n: None if k is None else k > n),
        ("k = {0} OR g = 'a'", lambda k, g, n: _or(None if k is None else k == n, None if g is None else g == "a")),
        ("k IS NULL", lambda k, g, n: k is None),
        ("NOT k < {0}", lambda k, g, n: None if k is None else not k < n),
        (
            "k BETWEEN -1 AND {0} AND g <> 'b'",
            lambda k, g, n: _and(None if k is None else -1 <= k <= n, None if g is None else g != "b"),
        ),
        ("g LIKE 'c''%'", lambda k, g, n: None if g is None else g.startswith("c'")),
        ("k IN (1, {0}) IS NOT TRUE", lambda k, g, n: not (k is not None and k in (1, n))),
    ]
)


def _or(a: bool | None, b: bool | None) -> bool | None:
    return True if a or b else None if a is None or b is None else False


def _and(a: bool | None, b: bool | None) -> bool | None:
    return False if a is False or b is False else None if a is None or b is None else True


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=rows_of, condition=conditions, number=st.integers(-3, 3))
def test_filters_and_aggregations_agree_with_plain_python(
    lake: Lake, rows: list[tuple[int | None, str | None]], condition: tuple[str, Any], number: int
) -> None:
    text, holds = condition
    schema = pa.schema([("k", pa.int64()), ("g", pa.string())])
    name = "main.docs.tried"
    lake.tables.create(name, schema, primary_key=None, owner="admin")
    table = pa.table({"k": [k for k, _ in rows], "g": [g for _, g in rows]}, schema=schema)
    lake.tables.overwrite(name, table)
    kept = [(k, g) for k, g in rows if holds(k, g, number) is True]
    found = lake.rows(f"SELECT k, g FROM {name} WHERE {text.format(number)}")
    assert sorted(((row["k"], row["g"]) for row in found), key=repr) == sorted(kept, key=repr)
    groups: dict[str | None, list[int]] = {}
    for k, g in kept:
        groups.setdefault(g, []).extend([] if k is None else [k])
    told = lake.rows(
        f"SELECT g, count(*) AS n, sum(k) AS s, min(k) AS m FROM {name} WHERE {text.format(number)} GROUP BY g"
    )
    assert {row["g"]: (row["s"], row["m"]) for row in told} == {
        g: (sum(ks) if ks else None, min(ks, default=None)) for g, ks in groups.items()
    }
    assert sum(row["n"] for row in told) == len(kept)


def test_joins_agree_with_pyarrow(lake: Lake) -> None:
    wanted = PEOPLE.join(ORDERS, "id", "person", join_type="left outer").sort_by(
        [("id", "ascending"), ("order_id", "ascending")]
    )
    found = lake.query(
        "SELECT id, name, team, order_id, amount FROM main.docs.people LEFT JOIN main.docs.orders ON id = person "
        "ORDER BY id, order_id"
    )
    assert found.rows.to_pylist() == wanted.select(found.rows.column_names).to_pylist()
