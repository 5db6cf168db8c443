"""Tables made by command: managed, external where nothing is yet, external where a Delta table is."""

from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from mosaic.data import Tables
from mosaic.storage import Storage
from tests.cli.conftest import Mosaic

ROWS = pa.table({"id": [1, 2], "text": ["one", None]})


def test_a_table_with_columns(mosaic: Mosaic) -> None:
    columns = ["id BIGINT NOT NULL", "text string", "price DECIMAL(10, 2)", "`a b` ARRAY<STRING>", "at timestamp"]
    given = [part for column in columns for part in ("--column", column)]
    told = mosaic.ok(
        "table", "create", "main.docs.made", *given, "--primary-key", "id", "--comment", "Made", "--owner", "bob"
    )
    assert told == "table main.docs.made is made\n"
    record = mosaic.catalog.get_table("main.docs.made")
    assert (record.owner, record.comment, record.primary_key) == ("bob", "Made", "id")
    assert DeltaTable(record.location).schema().to_json().count('"nullable":false') == 1
    tables = Tables(Storage(str(mosaic.home)), mosaic.catalog)
    schema = pa.schema(tables.open("main.docs.made").delta.schema().to_arrow())
    assert [str(field.type) for field in schema][:3] == ["int64", "string", "decimal128(10, 2)"]
    written = mosaic.run("sql", "--write", "INSERT INTO main.docs.made (id, text) VALUES (7, 'seven')")
    assert written.code == 0, written
    assert "seven" in mosaic.ok("table", "preview", "main.docs.made")
    *_, event = mosaic.json("audit", "list", "--action", "createTable")
    assert (event["user_identity"]["email"], event["user_agent"]) == ("admin", "mosaic command")


def test_an_external_table(mosaic: Mosaic, tmp_path: Path) -> None:
    there, empty = tmp_path / "there", tmp_path / "empty"
    write_deltalake(str(there), ROWS)
    empty.mkdir()
    mosaic.ok("table", "create", "main.docs.there", "--location", str(there))
    assert mosaic.ok("table", "preview", "main.docs.there") == "id  text\n1   one\n2\n"
    made = mosaic.json("table", "create", "main.docs.empty", "--location", empty.as_uri(), "--column", "n INT")
    assert made["location"] == str(empty) and DeltaTable(str(empty)).version() == 0
    again = mosaic.run("table", "create", "main.docs.other", "--location", str(there))
    assert again.code == 1 and "is in the place of another table or volume" in again.err
    other = tmp_path / "other"
    write_deltalake(str(other), ROWS)
    refused = mosaic.run("table", "create", "main.docs.other", "--location", str(other), "--column", "n INT")
    assert refused.code == 1 and "has other columns: id int64, text string" in refused.err
    assert mosaic.catalog.find_table("main.docs.other") is None


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["main.docs.t"], "a table needs columns"),
        (["main.docs.t", "--column", "id"], "column 'id' must be a name and a type, such as 'id BIGINT NOT NULL'"),
        (["main.docs.t", "--column", "id TEXTT"], "column 'id': type 'TEXTT' is none of Delta's; there are ["),
        (["main.docs.t", "--column", "id void"], "column 'id' is void, which cannot be written here"),
        (["main.docs.t", "--column", "id INT", "--column", "ID INT"], "column 'id' is given twice"),
        (["main.docs.t", "--column", "id INT", "--primary-key", "key"], "key"),
        (["main.docs.entries", "--column", "id INT"], "table 'main.docs.entries' already exists"),
        (["main.gone.t", "--column", "id INT"], "no schema 'main.gone'"),
        (
            ["main.docs.t", "--location", "/nope/x", "--column", "n INT"],
            "location '/nope/x' is no folder of this machine",
        ),
    ],
)
def test_a_table_that_cannot_be_made(shared: Mosaic, arguments: list[str], told: str) -> None:
    ended = shared.run("table", "create", *arguments)
    assert (ended.code, ended.out) == (1, "") and told in ended.err, ended
    assert shared.catalog.find_table("main.docs.t") is None


def test_a_volume_needs_a_folder_that_is_there(mosaic: Mosaic, tmp_path: Path) -> None:
    ended = mosaic.run("volume", "create", "main.docs.v", "--location", "/nope/x")
    assert ended.code == 1 and "location '/nope/x' is no folder of this machine" in ended.err
    ended = mosaic.run("volume", "create", "main.docs.v", "--location", "./here")
    assert ended.code == 1 and "must be an absolute /path or file:///path, s3://, gs:// or abfss://" in ended.err
    (tmp_path / "here").mkdir()
    mosaic.ok("volume", "create", "main.docs.v", "--location", str(tmp_path / "here"))
    assert mosaic.catalog.volumes.get("main.docs.v").spec["location"] == str(tmp_path / "here")
