"""Tables over the Unity Catalog protocol: columns in Spark's words, places, credentials."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from mosaic.catalog import Catalog
from mosaic.catalog.unity import Credentials
from mosaic.catalog.unity.spark import parse_json, parse_type
from mosaic.errors import BadRequest
from tests.catalog.conftest import Unity
from tests.catalog.test_unity_namespaces import NOW

TABLE = {"name": "Rows", "catalog_name": "main", "schema_name": "docs", "data_source_format": "DELTA"}
COLUMNS = [
    {"name": "id", "type_text": "bigint", "type_name": "LONG", "position": 0, "nullable": False, "comment": "key"},
    {"name": "vector", "type_text": "array<float>", "position": 1},
]


def test_tables(unity: Unity) -> None:
    place = "s3://bucket/a folder/rows/"
    made = unity.make("/tables", **TABLE, table_type="EXTERNAL", storage_location=place, columns=COLUMNS, comment="c")
    assert made == {
        "name": "rows",
        "catalog_name": "main",
        "schema_name": "docs",
        "full_name": "main.docs.rows",
        "table_type": "EXTERNAL",
        "data_source_format": "DELTA",
        "columns": [
            {
                "name": "id",
                "type_text": "bigint",
                "type_json": '{"name":"id","type":"long","nullable":false,"metadata":{"comment":"key"}}',
                "type_name": "LONG",
                "type_precision": 0,
                "type_scale": 0,
                "type_interval_type": None,
                "position": 0,
                "comment": "key",
                "nullable": False,
                "partition_index": None,
            },
            {
                "name": "vector",
                "type_text": "array<float>",
                "type_json": '{"name":"vector","type":{"type":"array","elementType":"float","containsNull":true},'
                '"nullable":true,"metadata":{}}',
                "type_name": "ARRAY",
                "type_precision": 0,
                "type_scale": 0,
                "type_interval_type": None,
                "position": 1,
                "comment": None,
                "nullable": True,
                "partition_index": None,
            },
        ],
        "storage_location": "s3://bucket/a folder/rows",
        "comment": "c",
        "properties": {},
        "owner": "ann",
        "created_at": NOW,
        "created_by": "ann",
        "updated_at": NOW,
        "updated_by": None,
        "table_id": made["table_id"],
        "view_definition": None,
        "view_dependencies": None,
    }
    assert unity("GET", "/tables/main.DOCS.rows?full_name=main.docs.rows", token=unity.reader).json() == made
    listed = unity("GET", "/tables?catalog_name=main&schema_name=docs").json()
    assert listed == {"tables": [made], "next_page_token": None}
    again = unity("POST", "/tables", json={**TABLE, "table_type": "MANAGED"})
    assert (again.status_code, again.json()["error_code"]) == (409, "ALREADY_EXISTS")
    assert unity("GET", "/tables/main.docs.rows/exists").json() == {"table_exists": True}
    assert unity("DELETE", "/tables/main.docs.rows").json() == {}
    assert unity("GET", "/tables/main.docs.rows/exists").json() == {"table_exists": False}
    assert unity("GET", "/tables/main.docs.rows").json()["error_code"] == "TABLE_NOT_FOUND"


def test_a_managed_table_is_written_by_its_first_client(unity: Unity) -> None:
    made = unity.make("/tables", **TABLE, table_type="MANAGED", columns=COLUMNS)
    assert made["table_type"] == "MANAGED" and made["storage_location"].startswith(
        f"file://{unity.storage.root}/managed/"
    )
    asked = {"table_id": made["table_id"], "operation": "READ_WRITE"}
    given = unity("POST", "/temporary-table-credentials", json=asked).json()
    assert given.pop("expiration_time") > NOW and given.pop("url") == made["storage_location"]
    assert set(given) == {"aws_temp_credentials", "azure_user_delegation_sas", "gcp_oauth_token", "endpoint_url"} | {
        "r2_temp_credentials"
    }
    assert set(given.values()) == {None}
    write_deltalake(made["storage_location"], pa.table({"id": [1, 2]}))
    assert DeltaTable(made["storage_location"]).version() == 0
    unity("DELETE", "/tables/main.docs.rows")
    again = unity.make("/tables", **TABLE, table_type="MANAGED", columns=COLUMNS)
    assert again["storage_location"] != made["storage_location"]


def test_credentials(unity: Unity) -> None:
    local = unity.make("/tables", **TABLE, table_type="EXTERNAL", storage_location="file:///a%20b/rows")
    assert local["storage_location"] == "file:///a%20b/rows" and local["columns"] == []
    path = "/api/2.0/unity-catalog/temporary-table-credentials"  # where databricks-sdk asks
    asked = {"table_id": local["table_id"], "operation": "READ"}
    assert unity("POST", path, json=asked, token=unity.reader).json()["url"] == "file:///a%20b/rows"
    old_polars = unity("POST", "/temporary-table-credentials", params=asked, token=unity.reader)
    assert old_polars.json()["url"] == "file:///a%20b/rows"
    refused = unity("POST", path, json=asked | {"operation": "READ_WRITE"}, token=unity.reader)
    assert (refused.status_code, refused.json()["error_code"]) == (403, "PERMISSION_DENIED")
    missing = unity("POST", path, json=asked | {"table_id": "sec_1"})
    assert missing.json()["error_code"] == "TABLE_NOT_FOUND" and "'sec_1'" in missing.json()["message"]
    assert "operation" in unity("POST", path, json=asked | {"operation": "STEAL"}).json()["message"]
    remote = unity.make("/tables", **TABLE | {"name": "far"}, table_type="EXTERNAL", storage_location="s3://b/far")
    refused = unity("POST", path, json=asked | {"table_id": remote["table_id"]})
    assert (refused.status_code, refused.json()["error_code"]) == (501, "UNIMPLEMENTED")


def test_credentials_for_an_object_store_are_made_by_who_is_handed_in(unity: Unity, catalog: Catalog) -> None:
    asked = []

    def vend(address: str, write: bool) -> Credentials:
        asked.append((address, write))
        aws = {"access_key_id": "a", "secret_access_key": "b", "session_token": "c"}
        return Credentials.model_validate(
            {"expires_at": datetime(2026, 11, 1, 10, tzinfo=UTC), "aws": aws, "endpoint_url": "http://minio:9000"}
        )

    table = catalog.create_table("main.docs.t", "s3://b/t", columns=[], primary_key=None, owner="ann")
    vending = Unity(catalog, unity.storage, vend=vend)
    answer = vending("POST", "/temporary-table-credentials", json={"table_id": table.id, "operation": "READ_WRITE"})
    assert answer.json() == {
        "aws_temp_credentials": {"access_key_id": "a", "secret_access_key": "b", "session_token": "c"},
        "azure_user_delegation_sas": None,
        "gcp_oauth_token": None,
        "r2_temp_credentials": None,
        "expiration_time": NOW,
        "url": "s3://b/t",
        "endpoint_url": "http://minio:9000",
    }
    assert asked == [("s3://b/t", True)]


def test_tables_of_the_data_room_have_spark_columns(unity: Unity, catalog: Catalog) -> None:
    schema = pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("n", pa.int64()),
            pa.field("at", pa.timestamp("us", "UTC")),
            pa.field("local", pa.timestamp("us")),
            pa.field("day", pa.date32()),
            pa.field("price", pa.decimal128(12, 3)),
            pa.field("vector", pa.list_(pa.float32(), 4)),
            pa.field("tags", pa.map_(pa.string(), pa.int32())),
            pa.field(
                "deep", pa.list_(pa.struct([pa.field("a b", pa.large_string(), nullable=False), ("c", pa.bool_())]))
            ),
            pa.field("strange", pa.duration("s")),
        ]
    )
    kept = [{"name": field.name, "type": str(field.type), "nullable": field.nullable} for field in schema]
    catalog.create_table("main.docs.t", f"{unity.storage.root}/t", columns=kept, primary_key="id", owner="ann")
    columns = unity("GET", "/tables/main.docs.t").json()["columns"]
    assert [(one["type_text"], one["type_name"]) for one in columns] == [
        ("string", "STRING"),
        ("bigint", "LONG"),
        ("timestamp", "TIMESTAMP"),
        ("timestamp_ntz", "TIMESTAMP_NTZ"),
        ("date", "DATE"),
        ("decimal(12,3)", "DECIMAL"),
        ("array<float>", "ARRAY"),
        ("map<string,int>", "MAP"),
        ("array<struct<a b:string,c:boolean>>", "ARRAY"),
        ("duration[s]", "USER_DEFINED_TYPE"),
    ]
    assert [(one["position"], one["nullable"]) for one in columns] == [(0, False)] + [(n, True) for n in range(1, 10)]
    assert (columns[5]["type_precision"], columns[5]["type_scale"]) == (12, 3)
    struct = json.loads(columns[8]["type_json"])["type"]["elementType"]
    assert struct["fields"][0] == {"name": "a b", "type": "string", "nullable": False, "metadata": {}}


@pytest.mark.parametrize("arrow", [pa.list_(pa.int8()), pa.map_(pa.string(), pa.list_(pa.float64())), pa.binary(4)])
def test_types_agree_with_deltalake(tmp_path: Path, arrow: pa.DataType) -> None:
    schema = pa.schema([pa.field("x", arrow)])
    table = DeltaTable.create(str(tmp_path / "t"), schema=schema)
    theirs = json.loads(table.schema().to_json())["fields"][0]["type"]
    assert parse_type(str(arrow)).json == theirs == parse_json(json.dumps(theirs))[0].json


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "array<",
        "array<int",
        "map<int>",
        "struct<a>",
        "decimal(39,2)",
        "int int",
        "array<" * 200,
        "list<>>",
    ],
)
def test_wrong_types(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_type(text)


def test_wrong_tables(unity: Unity) -> None:
    def told(**body: object) -> str:
        refused = unity(
            "POST", "/tables", json={**TABLE, "table_type": "EXTERNAL", "storage_location": "s3://b/t"} | body
        )
        assert refused.status_code == 400 and refused.json()["error_code"] == "INVALID_ARGUMENT", refused.text
        return str(refused.json()["message"])

    assert "field 'table_type' = 'VIEW'" in told(table_type="VIEW")
    assert "field 'data_source_format' = 'CSV'" in told(data_source_format="CSV")
    assert "needs a storage_location" in told(storage_location=None)
    assert "gets its place from the platform" in told(table_type="MANAGED")
    for place in (f"file://{unity.storage.root}/t", f"{unity.storage.root}", str(Path(unity.storage.root).parent)):
        assert "in the platform's own root, or has it within" in told(storage_location=place)
    for place in (
        "relative",
        "http://x/y",
        "file://host/x",
        "file://[",
        "file:x",
        "s3://",
        "s3://b/a?x=1",
        "/",
        "S3://b/a",
    ):
        assert "must be an absolute" in told(storage_location=place)
    for place in (
        *("file:///a/../b", "file:///a/%2e%2e/b", "/a//b", "s3://b//a", "s3://b/./a", "//a", "s3://../a"),
        *("s3://b/r%6Fot/t", "file:///a/r%256Fot", "/a%20b", "s3://b/a\\b"),
    ):
        assert "may not have '..', '.', '//', '%' or a backslash" in told(storage_location=place)
    assert "column 'x' has no type" in told(columns=[{"name": "x"}])
    assert "says two types" in told(columns=[{"name": "x", "type_text": "int", "type_json": '"long"'}])
    assert "not 'STRING'" in told(columns=[{"name": "x", "type_text": "int", "type_name": "STRING"}])
    assert "have a name twice" in told(columns=[{"name": "x", "type_text": "int"}, {"name": "X", "type_text": "int"}])
    assert "is none of Delta's" in told(columns=[{"name": "x", "type_text": "string collate UTF8_LCASE_"[7:]}])


def test_the_root_cannot_be_reached_under_another_name(unity: Unity, tmp_path: Path) -> None:
    """Neither as it stands nor by way of a link, however long; whoever could would hold another's managed tables."""
    secret = unity.make("/tables", **TABLE, table_type="MANAGED")["storage_location"].removeprefix("file://")
    Path(secret).mkdir(parents=True)
    (tmp_path / "to_root").symlink_to(unity.storage.root)
    (tmp_path / "to_table").symlink_to(secret)
    (tmp_path / "around").mkdir()
    (tmp_path / "around" / "to").symlink_to("../to_table")

    def told(place: str, path: str = "/tables", **more: str) -> str:
        body = {**TABLE, "name": "other", "table_type": "EXTERNAL", "storage_location": place, **more}
        refused = unity("POST", path, json=body)
        assert refused.status_code == 400, refused.text
        return str(refused.json()["message"])

    for place in (f"{tmp_path}/to_table", f"{tmp_path}/to_root/managed", f"{tmp_path}/around/to/part"):
        assert "in the platform's own root" in told(place)
        asked = {"url": place, "operation": "PATH_READ"}
        assert unity("POST", "/temporary-path-credentials", json=asked).status_code == 403
    for place in (f"/proc/self/root{secret}", "/proc/1/root", "/dev/fd/3", f"file:///proc/self/cwd{secret}"):
        assert "is in /proc, /sys, /dev, not on a disk" in told(place)
    kept = unity.make("/tables", **TABLE | {"name": "o"}, table_type="EXTERNAL", storage_location=f"{tmp_path}/around/")
    assert kept["storage_location"] == f"file://{tmp_path}/around"


def test_whoever_chooses_a_place_needs_a_privilege_for_it(unity: Unity, catalog: Catalog, tmp_path: Path) -> None:
    """CREATE TABLE is not enough: the platform's own user reads more than a caller may."""
    admin = catalog.check_token(unity.admin)
    catalog.grants.grant("schema", "main.docs", "bob", ["CREATE TABLE", "CREATE VOLUME"], by=admin)
    place = {"storage_location": f"{tmp_path}/place"}
    table = {**TABLE, **place, "table_type": "EXTERNAL"}
    volume = {"catalog_name": "main", "schema_name": "docs", "name": "v", "volume_type": "EXTERNAL", **place}
    for path, body, missing in (
        ("/tables", table, "CREATE EXTERNAL TABLE"),
        ("/volumes", volume, "CREATE EXTERNAL VOLUME"),
    ):
        refused = unity("POST", path, json=body, token=unity.reader)
        assert refused.status_code == 403 and f"missing {missing}" in refused.json()["message"]
        catalog.grants.grant("metastore", "metastore", "bob", [missing], by=admin)
        assert unity("POST", path, json=body, token=unity.reader).status_code == 200
        assert unity("DELETE", f"{path}/main.docs.{body['name']}").status_code == 200


def test_tables_are_described_anew(unity: Unity, catalog: Catalog) -> None:
    made = unity.make("/tables", **TABLE, table_type="MANAGED", columns=COLUMNS)
    catalog.principals.create("carl", by=catalog.check_token(unity.admin))
    body = {"comment": "c", "properties": {"a": "b"}, "owner": "carl"}
    changed = unity("PATCH", "/tables/main.docs.rows", json=body).json()
    assert changed == made | body | {"updated_by": "ann"} == unity("GET", "/tables/main.docs.rows").json()
    assert unity("PATCH", "/tables/main.docs.rows", json=body, token=unity.reader).status_code == 403
    assert "unknown field 'columns'" in unity("PATCH", "/tables/main.docs.rows", json={"columns": []}).text
    assert unity("PATCH", "/tables/main.docs.none", json={"comment": "x"}).status_code == 404
    asked = "/tables?catalog_name=main&schema_name=docs"
    (lean,) = unity("GET", f"{asked}&omit_columns=true&omit_properties=true").json()["tables"]
    assert lean == changed | {"columns": None, "properties": None}
    assert unity("GET", f"{asked}&omit_columns=maybe").status_code == 400


def test_summaries(unity: Unity, catalog: Catalog) -> None:
    catalog.ensure_schema("main.d_cs")
    for schema, name in (("docs", "a1"), ("docs", "b1"), ("ml", "a2"), ("d_cs", "a3")):
        unity.make("/tables", **TABLE | {"schema_name": schema, "name": name}, table_type="MANAGED")

    def names(query: str, token: str | None = None) -> list[str]:
        told = unity("GET", f"/table-summaries?catalog_name=main{query}", token=token).json()
        assert {one["table_type"] for one in told["tables"]} <= {"MANAGED"} and told["next_page_token"] is None
        return [one["full_name"] for one in told["tables"]]

    every = ["main.d_cs.a3", "main.docs.a1", "main.docs.b1", "main.ml.a2"]
    assert names("") == every == names("&schema_name_pattern=%25&table_name_pattern=")
    assert names("&schema_name_pattern=D_cs") == every[:3] and names("&schema_name_pattern=d%25") == every[:3]
    assert names("&table_name_pattern=a_") == [every[0], every[1], every[3]]
    assert names("&table_name_pattern=.*") == [] == names("&schema_name_pattern=doc")
    for pattern in ("[a]1", "%5Ba%5D1", "a*", "a?", "!a1", "%5E"):
        assert names("&table_name_pattern=" + pattern) == []
    first = unity("GET", "/table-summaries?catalog_name=main&max_results=3").json()
    after = f"&max_results=3&page_token={first['next_page_token']}"
    assert [one["full_name"] for one in first["tables"]] + names(after) == every
    assert unity("GET", f"/table-summaries?catalog_name=main{after}&table_name_pattern=a%25").status_code == 400
    catalog.grants.revoke("catalog", "main", "users", ["SELECT", "EXECUTE"], by=catalog.check_token(unity.admin))
    catalog.grants.revoke("catalog", "main", "users", ["USE SCHEMA"], by=catalog.check_token(unity.admin))
    catalog.grants.grant("table", "main.ml.a2", "bob", ["SELECT"], by=catalog.check_token(unity.admin))
    assert names("", unity.reader) == ["main.ml.a2"]
    unity.make("/tables", **TABLE | {"schema_name": "ml", "name": "a" * 250}, table_type="MANAGED")
    assert names("&table_name_pattern=" + "%25a" * 40 + "b") == []  # at once
    assert unity("GET", "/table-summaries").status_code == 400


def test_the_platforms_own_properties_are_not_for_clients(unity: Unity) -> None:
    refused = unity(
        "POST", "/tables", json=TABLE | {"table_type": "MANAGED", "properties": {"mosaic.batch_plan": "{}"}}
    )
    assert refused.status_code == 400 and "'mosaic.batch_plan'" in refused.json()["message"]
    own = {"mosaic.batch_plan": "p"}
    unity.catalog.create_table("main.docs.out", "s3://b/out", columns=[], primary_key=None, owner="ann", properties=own)
    told = unity("PATCH", "/tables/main.docs.out", json={"properties": {"mosaic.batch_plan": "q"}})
    assert told.status_code == 400
    changed = unity("PATCH", "/tables/main.docs.out", json={"properties": {"team": "ml"}})
    assert changed.json()["properties"] == {"team": "ml", **own}
