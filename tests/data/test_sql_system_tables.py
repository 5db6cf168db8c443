"""System tables: what is in them, and how much less there is for whoever has fewer grants."""

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mosaic.catalog import lineage
from mosaic.catalog.store import Store
from mosaic.data.audit_table import AuditShipper
from mosaic.data.system_tables import SYSTEM_TABLES
from mosaic.errors import BadRequest, NotFound, PermissionDenied
from mosaic.protocol import Principal
from tests.data.sql_lake import ADMIN, BOB, EVE, Lake, lake_in


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    with lake_in(tmp_path_factory.mktemp("lake")) as made:
        catalog = made.catalog
        catalog.create_model("main.docs.bot", owner="admin", comment="answers")
        catalog.create_model_version("main.docs.bot", source="/models/bot", kind="full")
        catalog.set_alias("main.docs.bot", "champion", 1)
        catalog.create_model("main.vault.oracle", owner="admin")
        catalog.create_model_version("main.vault.oracle", source="/models/oracle", kind="full")
        catalog.volumes.create("main.docs.files", spec={"volume_type": "EXTERNAL", "location": "/files"}, owner="admin")
        catalog.functions.create(
            "main.docs.twice",
            spec={
                "input_params": [{"name": "x", "type_text": "bigint"}],
                "data_type": "LONG",
                "full_data_type": "bigint",
                "routine_body": "EXTERNAL",
                "external_language": "PYTHON",
                "routine_definition": "return 2 * x",
            },
            owner="admin",
        )
        catalog.tags.set("table", "main.docs.people", {"pii": "yes"})
        catalog.tags.set("table", "main.vault.secrets", {"pii": "very"})
        made.grant("bob", "EXECUTE", "model", "main.docs.bot")
        made.grant("bob", "EXECUTE", "function", "main.docs.twice")
        made.grant("bob", "READ VOLUME", "volume", "main.docs.files")
        made.query(
            "CREATE TABLE main.docs.totals AS SELECT person, sum(amount) AS a FROM main.docs.orders GROUP BY 1",
            writable=True,
        )
        made.query("CREATE TABLE main.vault.copy AS SELECT * FROM main.vault.secrets", writable=True)
        yield made


def named(lake: Lake, table: str, column: str, principal: Principal = ADMIN) -> list[str]:
    rows = lake.rows(f"SELECT DISTINCT {column} AS c FROM system.{table} ORDER BY 1", principal)
    return [row["c"] for row in rows]


@pytest.mark.parametrize(
    ("table", "column", "all_names", "bobs"),
    [
        ("catalogs", "catalog_name", ["main"], ["main"]),
        ("schemata", "schema_name", ["docs", "vault"], ["docs", "vault"]),
        ("tables", "table_name", ["copy", "orders", "people", "secrets", "totals"], ["orders", "people"]),
        ("columns", "table_name", ["copy", "orders", "people", "secrets", "totals"], ["orders", "people"]),
        ("volumes", "volume_name", ["files"], ["files"]),
        ("routines", "routine_name", ["twice"], ["twice"]),
        ("registered_models", "model_name", ["bot", "oracle"], ["bot"]),
        ("model_versions", "model_name", ["bot", "oracle"], ["bot"]),
        ("table_privileges", "grantee", ["bob"], ["bob"]),
        ("schema_privileges", "schema_name", ["docs", "vault"], ["docs", "vault"]),
        ("catalog_privileges", "catalog_name", ["main"], ["main"]),
        ("table_tags", "tag_value", ["very", "yes"], ["yes"]),
    ],
)
def test_each_shows_what_the_caller_may_browse(
    lake: Lake, table: str, column: str, all_names: list[str], bobs: list[str]
) -> None:
    assert named(lake, f"information_schema.{table}", column) == all_names
    assert named(lake, f"information_schema.{table}", column, BOB) == bobs
    assert named(lake, f"information_schema.{table}", column, EVE) == []
    assert named(lake, f"information_schema.{table}", column, Principal(name="nobody")) == []


def test_columns_are_those_of_databricks(lake: Lake) -> None:
    (people,) = lake.rows("SELECT * FROM system.information_schema.tables WHERE table_name = 'people'")
    assert list(people)[:6] == [
        "table_catalog",
        "table_schema",
        "table_name",
        "table_type",
        "is_insertable_into",
        "table_owner",
    ]
    assert (people["table_type"], people["data_source_format"], people["table_owner"]) == ("MANAGED", "DELTA", "admin")
    columns = lake.rows(
        "SELECT column_name, ordinal_position, full_data_type, data_type, is_nullable "
        "FROM system.information_schema.columns WHERE table_name = 'orders' ORDER BY ordinal_position"
    )
    assert [list(row.values()) for row in columns] == [
        ["order_id", 0, "bigint", "LONG", "YES"],
        ["person", 1, "bigint", "LONG", "YES"],
        ["amount", 2, "double", "DOUBLE", "YES"],
    ]
    (version,) = lake.rows("SELECT * FROM system.information_schema.model_versions WHERE model_name = 'bot'")
    assert (version["version"], version["aliases"], version["status"]) == (1, ["champion"], "READY")
    (granted,) = lake.rows("SELECT * FROM system.information_schema.table_privileges WHERE table_name = 'people'")
    assert (granted["grantor"], granted["privilege_type"], granted["inherited_from"]) == ("admin", "SELECT", "NONE")


def test_what_is_outside_of_the_root_is_external(lake: Lake) -> None:
    lake.catalog.create_table("main.docs.elsewhere", "/elsewhere", columns=[], primary_key=None, owner="admin")
    asked = "SELECT table_type FROM system.information_schema.tables WHERE table_name = 'elsewhere'"
    assert lake.value(asked) == "EXTERNAL"
    lake.catalog.delete_table("main.docs.elsewhere")


def test_places_and_definitions_are_for_owners(lake: Lake) -> None:
    for asked in (
        "SELECT storage_path FROM system.information_schema.tables WHERE table_name = 'people'",
        "SELECT storage_location FROM system.information_schema.volumes",
        "SELECT routine_definition FROM system.information_schema.routines",
        "SELECT source FROM system.information_schema.model_versions WHERE model_name = 'bot'",
    ):
        assert lake.value(asked) is not None and lake.value(asked, BOB) is None


def test_grants_of_others_are_for_whoever_manages(lake: Lake) -> None:
    lake.catalog.create_token("cleo")
    lake.grant("cleo", "SELECT", "table", "main.docs.people")
    asked = "SELECT grantee FROM system.information_schema.table_privileges WHERE table_name = 'people' ORDER BY 1"
    assert [row["grantee"] for row in lake.rows(asked)] == ["bob", "cleo"]
    assert [row["grantee"] for row in lake.rows(asked, BOB)] == ["bob"]
    lake.grant("bob", "MANAGE", "table", "main.docs.people")
    assert [row["grantee"] for row in lake.rows(asked, BOB)] == ["bob", "bob", "cleo"]
    lake.catalog.grants.revoke("table", "main.docs.people", "bob", ["MANAGE"], by="admin")
    lake.catalog.grants.revoke("table", "main.docs.people", "cleo", ["SELECT"], by="admin")


def test_what_comes_through_a_group_is_seen(lake: Lake) -> None:
    lake.catalog.principals.create_group("readers", by=ADMIN)
    lake.catalog.create_token("dan")
    dan = Principal(name="dan")
    lake.catalog.principals.add_member("readers", "dan", by=ADMIN)
    assert named(lake, "information_schema.tables", "table_name", dan) == []
    lake.grant("readers", "SELECT", "table", "main.docs.orders")
    assert named(lake, "information_schema.tables", "table_name", dan) == ["orders"]
    assert named(lake, "information_schema.table_privileges", "grantee", dan) == ["readers"]
    lake.catalog.grants.revoke("table", "main.docs.orders", "readers", ["SELECT"], by="admin")


def test_lineage_has_exact_versions_and_only_tables_that_are_seen(lake: Lake) -> None:
    asked = (
        "SELECT source_table_full_name AS s, source_version AS sv, target_table_full_name AS t, target_version AS tv, "
        "entity_type AS e, created_by AS by FROM system.access.table_lineage WHERE tv IS NOT NULL ORDER BY s"
    )
    assert [tuple(row.values()) for row in lake.rows(asked)] == [
        ("main.docs.orders", 1, "main.docs.totals", 1, "DBSQL_QUERY", "admin"),
        ("main.vault.secrets", 1, "main.vault.copy", 1, "DBSQL_QUERY", "admin"),
    ]
    assert lake.rows(asked, BOB) == []  # he does not see the table that was made
    lake.grant("bob", "BROWSE", "table", "main.docs.totals")
    assert [row["t"] for row in lake.rows(asked, BOB)] == ["main.docs.totals"]
    run_id = lake.catalog.start_run("ingest", "nightly", principal="admin")
    lake.catalog.add_output(run_id, "table", "main.docs.people", 1)
    lake.catalog.finish_run(run_id, "finished")
    (job,) = lake.rows(
        "SELECT entity_type, entity_id, source_type, target_type, entity_metadata.job_info.job_run_id AS job_run, "
        f"event_date = event_time::DATE AS same FROM system.access.table_lineage WHERE entity_run_id = '{run_id}'",
        BOB,
    )
    assert job == {
        "entity_type": "JOB",
        "entity_id": "nightly",
        "source_type": None,
        "target_type": "TABLE",
        "job_run": run_id,
        "same": True,
    }


def test_lineage_shows_every_run_and_none_of_a_table_that_had_the_name_before(lake: Lake) -> None:
    asked = "SELECT count(*) AS n FROM system.access.table_lineage WHERE target_table_full_name = 'main.docs.totals'"
    (before,) = lake.rows(asked)
    store = Store(lake.catalog.url)
    with store.write() as connection:
        for _ in range(1_001):
            made_by: dict[str, Any] = {"kind": "ingest", "name": "nightly", "principal": "admin", "params": {}}
            run_id = lineage.start(connection, now=datetime.now(UTC), **made_by)
            lineage.add_edge(connection, run_id, "output", lineage.Thing("table", "main.docs.totals", 1), None)
    store.close()
    assert lake.rows(asked) == [{"n": before["n"] + 1_001}]
    lake.catalog.delete_table("main.docs.totals")
    lake.query("CREATE TABLE main.docs.totals AS SELECT 1 AS n", writable=True)
    assert lake.rows(asked) == [{"n": 1}]


def test_no_secret_of_a_token_is_in_any_of_them(lake: Lake) -> None:
    """Nor its hash, nor its id."""
    secret = lake.catalog.create_token("carol")[1]
    hidden = [secret, lake.admin_token, lake.bob_token, *(token.id for token in lake.catalog.list_tokens())]
    hidden += [_sha256(text) for text in hidden]
    for name in SYSTEM_TABLES:
        told = json.dumps(lake.rows(f"SELECT * FROM {name}", row_limit=100_000), default=str)
        assert not [text for text in hidden if text in told], name
    with pytest.raises(NotFound):
        lake.query("SELECT * FROM system.information_schema.token")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_they_join_with_tables_and_with_each_other(lake: Lake) -> None:
    counted = (
        "SELECT t.table_name, count(*) AS n FROM system.information_schema.tables t "
        "JOIN system.information_schema.columns USING (table_catalog, table_schema, table_name) "
        "WHERE t.table_schema = 'docs' AND t.table_name IN (SELECT 'people' FROM main.docs.people) GROUP BY ALL"
    )
    answer = lake.query(counted, BOB)
    assert answer.rows.to_pylist() == [{"table_name": "people", "n": 3}]
    assert [table.name for table in answer.read] == ["main.docs.people"]
    assert lake.query("SELECT 1 FROM system.information_schema.tables", BOB).run_id is None


def test_they_have_no_versions_and_no_other_names(lake: Lake) -> None:
    with pytest.raises(BadRequest, match="has no versions"):
        lake.query("SELECT * FROM system.information_schema.tables@1")
    with pytest.raises(NotFound):
        lake.query("SELECT * FROM system.information_schema.passwords")


def test_the_audit_is_a_table_like_any_other(tmp_path: Path) -> None:
    with lake_in(tmp_path) as lake:
        with pytest.raises(PermissionDenied):
            lake.query("SELECT * FROM main.vault.secrets", BOB)
        AuditShipper(lake.tables, lake.catalog).ship_once()
        asked = (
            "SELECT user_identity.email AS who, response.status_code AS status FROM system.access.audit "
            "WHERE response.status_code = 403"
        )
        assert lake.rows(asked) == [{"who": "bob", "status": 403}]
        with pytest.raises(PermissionDenied, match=r"system\.access\.audit"):
            lake.query(asked, BOB)
