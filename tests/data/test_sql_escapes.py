"""Attempts to get out of the granted tables: to files, the network, other tables, settings, the host, Python."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from mosaic.data.sql_engine import Engine, SqlSettings
from mosaic.errors import BadRequest, MosaicError, NotFound, PermissionDenied
from tests.data.sql_lake import ADMIN, BOB, SECRET, Lake, lake_in


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    folder = tmp_path_factory.mktemp("lake")
    (folder / "secret.csv").write_text(f"secret\n{SECRET}\n")
    (folder / "secret.json").write_text(f'{{"secret": "{SECRET}"}}')
    pq.write_table(pa.table({"secret": [SECRET]}), folder / "secret.parquet")
    duckdb.connect(str(folder / "secret.duckdb")).execute(f"CREATE TABLE t AS SELECT '{SECRET}' AS secret").close()
    with lake_in(folder) as made:
        yield made


FILES = [
    "SELECT * FROM read_csv('{0}/secret.csv')",
    "SELECT * FROM READ_CSV_AUTO('{0}/secret.csv')",
    "SELECT * FROM main.read_csv('{0}/secret.csv')",
    "SELECT * FROM system.main.read_csv('{0}/secret.csv')",
    "SELECT * FROM \"read_csv\"('{0}/secret.csv')",
    "SELECT * FROM read_csv(['{0}/secret.csv'])",
    "FROM read_parquet('{0}/secret.parquet')",
    "FROM parquet_scan('{0}/secret.parquet')",
    "FROM parquet_metadata('{0}/secret.parquet')",
    "FROM parquet_schema('{0}/secret.parquet')",
    "FROM parquet_kv_metadata('{0}/secret.parquet')",
    "FROM parquet_file_metadata('{0}/secret.parquet')",
    "FROM parquet_bloom_probe('{0}/secret.parquet', 'secret', 'x')",
    "FROM read_json('{0}/secret.json')",
    "FROM read_json_objects('{0}/secret.json')",
    "FROM read_ndjson('{0}/secret.json')",
    "FROM read_text('{0}/secret.csv')",
    "FROM read_blob('{0}/secret.csv')",
    "FROM read_duckdb('{0}/secret.duckdb', table_name = 't')",
    "FROM sniff_csv('{0}/secret.csv')",
    "FROM glob('{0}/*')",
    "SELECT * FROM '{0}/secret.csv'",
    "SELECT * FROM '{0}/secret.parquet'",
    'SELECT * FROM "{0}/secret.json"',
    "SELECT * FROM 'file://{0}/secret.parquet'",
    "SELECT * FROM 'https://127.0.0.1:9/secret.parquet'",
    "SELECT * FROM 's3://bucket/secret.parquet'",
    "SELECT * FROM '/etc/passwd'",
    'SELECT * FROM main.docs."../../vault/secrets"',
    'SELECT * FROM main.docs."people@../../x"',
    "SELECT (SELECT content FROM read_text('{0}/secret.csv'))",
    "SELECT * FROM main.docs.people WHERE name IN (SELECT content FROM read_text('/etc/passwd'))",
    "SELECT * FROM main.docs.people, LATERAL read_csv('{0}/secret.csv')",
    "SELECT * FROM main.docs.people UNION ALL BY NAME FROM read_csv('{0}/secret.csv')",
    "WITH s AS (FROM read_csv('{0}/secret.csv')) FROM s",
    "DESCRIBE FROM read_csv('{0}/secret.csv')",
    "DESCRIBE '{0}/secret.csv'",
    "SUMMARIZE '{0}/secret.parquet'",
    "EXPLAIN ANALYZE FROM read_csv('{0}/secret.csv')",
    "PIVOT read_csv('{0}/secret.csv') ON secret",
    "FROM read_csv('{0}/secret.csv') PIVOT (count(*) FOR secret IN ('x'))",
    "FROM query('FROM read_csv(''{0}/secret.csv'')')",
    "FROM query_table('{0}/secret.csv')",
    "FROM query_table(['main.vault.secrets'])",
    "FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "SELECT * FROM histogram('read_csv', 'x')",
    "FROM pandas_scan(0)",
    "FROM arrow_scan(0, 0, 0)",
    "FROM python_arrow_scan(0)",
    "FROM seq_scan('main.vault.secrets')",
]

STATEMENTS = [
    "COPY (SELECT 1) TO '{0}/out.csv'",
    "COPY main.docs.people TO '{0}/out.parquet'",
    "COPY main.docs.people FROM '{0}/secret.csv'",
    "ATTACH '{0}/secret.duckdb' AS s",
    "ATTACH ':memory:' AS s",
    "DETACH memory",
    "USE memory",
    "INSTALL httpfs",
    "LOAD json",
    "LOAD '{0}/evil.duckdb_extension'",
    "FORCE INSTALL spatial FROM 'http://127.0.0.1:9'",
    "UPDATE EXTENSIONS",
    "SET enable_external_access = true",
    "SET GLOBAL threads = 64",
    "RESET memory_limit",
    "PRAGMA database_list",
    "PRAGMA enable_profiling",
    "PRAGMA memory_limit='100GB'",
    "CALL pragma_version()",
    "CALL duckdb_settings()",
    "EXPORT DATABASE '{0}/out'",
    "IMPORT DATABASE '{0}/out'",
    "CREATE TABLE memory.main.t (i INT)",
    "CREATE TEMP TABLE t AS SELECT 1",
    "CREATE OR REPLACE TABLE main.docs.people AS SELECT 1",
    "CREATE TABLE IF NOT EXISTS main.docs.people AS SELECT 1",
    "CREATE VIEW v AS SELECT 1",
    "CREATE MACRO m() AS TABLE FROM read_csv('/etc/passwd')",
    "CREATE SECRET s (TYPE s3)",
    "CREATE SCHEMA main.other",
    "CREATE TYPE mood AS ENUM ('a')",
    "CREATE SEQUENCE s",
    "DROP TABLE main.docs.people",
    'DROP VIEW "main.docs.people"',
    "ALTER TABLE main.docs.people ADD COLUMN x INT",
    "TRUNCATE main.docs.people",
    "UPDATE main.docs.people SET id = 1",
    "MERGE INTO main.docs.people USING (SELECT 1 AS id) s ON false WHEN NOT MATCHED THEN INSERT VALUES (1)",
    "BEGIN TRANSACTION",
    "COMMIT",
    "CHECKPOINT",
    "VACUUM",
    "ANALYZE",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "DEALLOCATE p",
    "GRANT SELECT ON TABLE main.docs.people TO eve",
    "SHOW ALL TABLES",
    "SHOW DATABASES",
    "SHOW VARIABLES",
    "SELECT * FROM (SHOW ALL TABLES)",
    "SELECT * FROM (SHOW TABLES)",
    "DESCRIBE",
    "SELECT 1; DROP TABLE main.docs.people",
    "SELECT 1; SELECT 2",
    "; SELECT 1",
    "EXPLAIN COPY main.docs.people TO '{0}/out.csv'",
    "EXPLAIN EXPLAIN SELECT 1",
    "EXPLAIN INSERT INTO main.docs.people VALUES (1, 'x', 'y')",
    "WITH gone AS (DELETE FROM main.docs.people RETURNING *) SELECT * FROM gone",
    "WITH new AS (INSERT INTO main.docs.people VALUES (9, 'x', 'y') RETURNING *) SELECT * FROM new",
    "WITH new AS (UPDATE main.docs.people SET id = 1 RETURNING *) SELECT * FROM new",
    "INSERT INTO main.docs.people SELECT * FROM read_csv('{0}/secret.csv')",
    "INSERT INTO main.docs.people BY NAME SELECT 9 AS id",
    "INSERT INTO main.docs.people VALUES (9, 'x', 'y') ON CONFLICT DO NOTHING",
    "INSERT INTO main.docs.people VALUES (9, 'x', 'y') RETURNING *",
    "INSERT OR REPLACE INTO main.docs.people VALUES (9, 'x', 'y')",
    "INSERT INTO main.docs.people@1 VALUES (9, 'x', 'y')",
    "INSERT INTO main.docs.people DEFAULT VALUES",
    "DELETE FROM main.docs.people USING main.vault.secrets WHERE true",
    "DELETE FROM main.docs.people WHERE id IN (SELECT id FROM main.vault.secrets)",
    "DELETE FROM main.docs.people WHERE name = (SELECT content FROM read_text('/etc/passwd'))",
    "DELETE FROM main.docs.people WHERE getenv('HOME') = name",
    "DELETE FROM main.docs.people WHERE id = 1 RETURNING *",
    "DELETE FROM main.docs.people WHERE id = 1 LIMIT 1",
    "DELETE FROM main.docs.people WHERE 1 AS x",
    "DELETE FROM main.docs.people WHERE true) OR (true",
    "DELETE FROM main.docs.people WHERE id = 1 FROM main.vault.secrets",
]

TOLD = [
    "SELECT * FROM duckdb_settings()",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM duckdb_databases()",
    "SELECT * FROM duckdb_tables()",
    "SELECT * FROM duckdb_views()",
    "SELECT * FROM duckdb_extensions()",
    "SELECT * FROM duckdb_logs()",
    "SELECT * FROM duckdb_temporary_files()",
    "SELECT * FROM duckdb_external_file_cache()",
    "SELECT * FROM which_secret('s3://x', 's3')",
    "SELECT * FROM pragma_database_list",
    "SELECT * FROM pragma_table_info('main.docs.people')",
    "SELECT * FROM pragma_user_agent()",
    "SELECT * FROM pg_timezone_names()",
    "SELECT * FROM enable_logging()",
    "SELECT * FROM test_all_types()",
    "SELECT getenv('HOME')",
    "SELECT current_setting('memory_limit')",
    "SELECT 'memory_limit'.current_setting()",
    "SELECT main.current_setting('temp_directory')",
    "SELECT system.main.current_setting('temp_directory')",
    "SELECT CURRENT_SETTING('extension_directory')",
    "SELECT \"current_setting\"('home_directory')",
    "SELECT getvariable('x')",
    "SELECT version()",
    "SELECT current_query()",
    "SELECT current_database()",
    "SELECT current_schemas(true)",
    "SELECT pg_get_viewdef(1)",
    "SELECT pg_sleep(1)",
    "SELECT sleep_ms(1)",
    "SELECT has_table_privilege('x', 'select')",
    "SELECT inet_server_addr()",
    "SELECT nextval('s')",
    "SELECT stats(id) FROM main.docs.people",
    "SELECT write_log('x')",
    "SELECT json_serialize_plan('SELECT * FROM read_csv(''/etc/passwd'')')",
    "SELECT list_transform(['memory_limit'], lambda x: current_setting(x))",
    "SELECT max(current_setting('memory_limit')) OVER ()",
    "SELECT count(*) FILTER (WHERE current_setting('threads')::INT > 0)",
]

OTHERS_TABLES = [
    "SELECT * FROM system.information_schema.nothing",
    "SELECT * FROM information_schema.tables",
    "SELECT * FROM pg_catalog.pg_class",
    "SELECT * FROM pg_class",
    "SELECT * FROM sqlite_master",
    "SELECT * FROM duckdb_columns",
    "SELECT * FROM temp.main.people",
    "SELECT * FROM memory.main.people",
    'SELECT * FROM memory.main."main.docs.people"',
    'SELECT * FROM "main.docs.people"',
    'SELECT *, (SELECT 1 FROM "main.docs.orders") FROM main.docs.people',
    "SELECT * FROM lake",
    "SELECT * FROM made",
    "SELECT * FROM rows",
    "SELECT * FROM given",
    "SELECT * FROM recurring.people",
]


@pytest.mark.parametrize("statement", [*FILES, *TOLD, *OTHERS_TABLES])
@pytest.mark.parametrize("principal", [ADMIN, BOB], ids=lambda one: one.name)
def test_no_query_gets_out(lake: Lake, statement: str, principal: object) -> None:
    _refused(lake, statement, principal)


@pytest.mark.parametrize("statement", STATEMENTS)
def test_no_statement_gets_out(lake: Lake, statement: str) -> None:
    _refused(lake, statement, ADMIN)
    assert lake.tables.version("main.docs.people") == 1 and not list(lake.folder.glob("out*"))


def _refused(lake: Lake, statement: str, principal: object) -> None:
    """Even where writing is allowed: a clear refusal, before anything ran, that tells no path but the given one."""
    runs = len(lake.catalog.list_runs())
    with pytest.raises((BadRequest, PermissionDenied, NotFound)) as error:
        lake.query(statement.format(lake.folder), principal, writable=True)
    told = str(error.value)
    assert SECRET not in told and "Traceback" not in told and "site-packages" not in told
    assert "statement was not" not in told and len(lake.catalog.list_runs()) == runs


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "COPY (SELECT 1) TO '/tmp/mosaic-escape.csv'",
        "ATTACH '/tmp/mosaic-escape.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "SET python_enable_replacements = true",
        "SELECT * FROM marked",
    ],
)
def test_the_engine_alone_holds_what_the_reader_would_miss(sql: str) -> None:
    """The second wall: statements that never pass the first one, asked of the engine itself."""
    marked = pa.table({"a": [1]})
    connection = Engine(SqlSettings()).connect()
    assert marked.num_rows == 1
    with pytest.raises(duckdb.Error):
        connection.execute(sql).fetchall()
    connection.close()


def test_functions_were_reviewed_for_this_release() -> None:
    """A new release of DuckDB may have new functions; this fails until somebody has looked at them."""
    connection = Engine(SqlSettings()).connect()
    counted = "SELECT function_type, count(DISTINCT function_name) FROM duckdb_functions() GROUP BY 1"
    assert duckdb.__version__ == "2.0.1"
    assert dict(connection.execute(counted).fetchall()) == {
        "aggregate": 79,
        "macro": 121,
        "pragma": 38,
        "scalar": 815,
        "table": 109,
        "table_macro": 4,
        "window": 13,
    }
    connection.close()


def test_a_table_that_points_outside_of_its_folder_is_not_read(lake: Lake, tmp_path: Path) -> None:
    """Whoever may register a table at a place of their own could write a Delta log that names others' files."""
    secrets = lake.tables.delta("main.vault.secrets")
    (file,) = secrets.file_uris()
    for number, outside in enumerate(
        (file, f"file://{file}", "../../other.parquet", "%2e%2e/other.parquet", "a/../../b")
    ):
        place = tmp_path / f"evil{number}"
        write_deltalake(place, pa.table({"id": [1], "secret": ["x"]}))
        (log,) = (place / "_delta_log").glob("*.json")
        (inside,) = (one.name for one in place.glob("*.parquet"))
        log.write_text(log.read_text().replace(inside, outside))
        name = f"main.docs.evil{number}"
        lake.catalog.create_table(name, str(place), columns=[], primary_key=None, owner="admin")
        with pytest.raises(MosaicError) as error:
            lake.query(f"SELECT * FROM {name}")
        assert error.value.status == 400 and "files outside" in str(error.value)


def test_a_file_that_is_gone_is_no_path_in_a_message(lake: Lake) -> None:
    lake.make("main.docs.gone", pa.table({"id": [1]}))
    (file,) = lake.tables.delta("main.docs.gone").file_uris()
    Path(file.removeprefix("file://")).unlink()
    with pytest.raises(MosaicError) as error:
        lake.query("SELECT * FROM main.docs.gone")
    assert error.value.status == 503 and str(lake.folder) not in str(error.value) and ".parquet" not in str(error.value)
