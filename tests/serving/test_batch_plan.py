"""What a batch job asks of which rows, without an engine: settings, templates, pieces of a version, the plan."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from deltalake import write_deltalake

from mosaic.catalog import Catalog
from mosaic.data import Tables
from mosaic.errors import BadRequest, Conflict
from mosaic.serving.batch.pieces import PieceReader, check_where
from mosaic.serving.batch.pin import output_schema
from mosaic.serving.batch.plan import Piece, Plan
from mosaic.serving.batch.prompts import Unaskable, messages, plain, record, text
from mosaic.serving.batch.settings import BatchSettings
from mosaic.storage import Storage

TABLE = "main.test.rows"
ASKED: dict[str, Any] = {"table": TABLE, "model": "m", "prompt": "Say {text}", "output_table": "main.test.out"}


def settings(**more: Any) -> BatchSettings:
    return BatchSettings.parse({key: value for key, value in {**ASKED, **more}.items() if value is not None})


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"model": None}, "give either model"),
        ({"endpoint": "e"}, "give either model"),
        ({"prompt": None}, "give either prompt"),
        ({"columns": ["text"]}, "give either prompt"),
        ({"prompt": None, "columns": ["text"]}, "a model chats, which takes a prompt"),
        ({"prompt": "{text.__class__}"}, r"field 'prompt' = .*must be the name of a column"),
        ({"prompt": "{}"}, "must be the name of a column"),
        ({"prompt": "{text"}, "is no template: expected '}'"),
        ({"prompt": "{text:>100000000}"}, "must be the name of a column"),
        ({"table": "rows"}, "catalog.schema.name"),
        ({"table": f"{TABLE}@x"}, "must be a whole number"),
        ({"output_table": "out"}, "catalog.schema.name"),
        ({"piece_rows": 0}, "field 'piece_rows' = 0"),
        ({"sampling": {"top_k": 4}}, "unknown field 'sampling.top_k'"),
        ({"model": None, "endpoint": "e", "engine": {}}, "an endpoint has its own"),
        ({"prompt": "{0}"}, r"\{0\} is a number, which names no column here"),
        ({"engine": {"scaling": {"max_replicas": 3}}}, r"engine\.scaling is for endpoints, and a job would ignore it"),
        ({"engine": {"routing": "prefix"}}, r"engine\.routing is for endpoints"),
        ({"engine": {"max_batch_size": 4}}, r"engine\.max_batch_size is for endpoints"),
        ({"engine": {"max_replicas_per_node": 4}}, r"engine\.max_replicas_per_node is for endpoints"),
        ({"engine": {"health_timeout_seconds": 9}}, r"engine\.health_timeout_seconds is for endpoints"),
        ({"engine": {"engine_kwargs": {"response_role": "x"}}}, r"engine\.engine_kwargs\.response_role is for endpoi"),
        ({"engine": {"runner": "pooling"}}, r"engine\.runner is 'pooling'"),
    ],
)
def test_settings_that_do_not_agree_are_refused(more: dict[str, Any], told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        settings(**more)


def test_the_pages_files_are_jobs() -> None:
    page = (Path(__file__).parents[2] / "docs/batch.md").read_text()
    first, second = (
        BatchSettings.parse(yaml.safe_load(part.partition("```")[0])) for part in page.split("```yaml")[1:]
    )
    assert (first.model, first.reads) == ("smollm2-135m-instruct", ["text"])
    assert (second.endpoint, second.columns) == ("sentiment", ("text",))


def test_a_template_takes_columns_of_any_type_and_no_null() -> None:
    asked = settings(prompt="{n} {{x}} {parts} {day}", system_prompt="About {text}")
    assert asked.reads == ["text", "n", "parts", "day"]
    row = {"n": 3, "parts": [{"a": None}], "day": "today", "text": "{n}"}
    assert messages(asked, row) == [
        {"role": "system", "content": "About {n}"},  # values are no templates
        {"role": "user", "content": '3 {x} [{"a": null}] today'},
    ]
    with pytest.raises(Unaskable, match="column 'day' is null"):
        messages(asked, {**row, "day": None})
    with pytest.raises(Unaskable, match="column 'n' is binary"):
        messages(asked, {**row, "n": b"x"})
    with pytest.raises(Unaskable, match="1,000,003 characters"):
        messages(settings(prompt="{a}{text}"), {"a": "abc", "text": "x" * 1_000_000})


def test_what_is_embedded_and_predicted_from() -> None:
    embed = settings(model=None, endpoint="e", prompt=None, columns=["text"])
    assert text(embed, {"text": "hello"}) == "hello"
    predict = settings(model=None, endpoint="e", prompt=None, columns=["n", "text"])
    assert record(predict, {"n": 1.5, "text": None}) == {"n": 1.5, "text": None}
    with pytest.raises(Unaskable, match="nan cannot be asked in JSON"):
        record(predict, {"n": float("nan"), "text": ""})
    assert plain({"a": [1, True]}) == {"a": [1, True]}


@pytest.fixture
def lake(tmp_path: Path) -> tuple[Tables, Storage]:
    catalog = Catalog.open(f"sqlite:///{tmp_path / 'catalog.db'}")
    catalog.ensure_schema("main.test")
    storage = Storage(str(tmp_path / "root"))
    return Tables(storage, catalog), storage


def reader(lake: tuple[Tables, Storage], columns: list[str], where: str | None = None) -> PieceReader:
    opened = lake[0].open(TABLE)
    return PieceReader(lake[1], opened.record.location, opened.delta, columns, where)


@pytest.fixture
def rows(lake: tuple[Tables, Storage]) -> tuple[Tables, Storage]:
    """Three files of 20 rows, the last with row groups of 7, and an older version beneath."""
    schema = pa.schema([("n", pa.int64()), ("text", pa.string())])
    tables = lake[0]
    tables.create(TABLE, schema, primary_key=None, owner="admin")
    for start in (0, 20, 40):
        data = pa.table({"n": range(start, start + 20), "text": [f"t{n}" for n in range(start, start + 20)]})
        tables.append(TABLE, data.cast(schema))
    (path,) = [one for one in tables.delta(TABLE).file_uris() if pq.read_table(one)["n"][0].as_py() == 40]
    pq.write_table(pq.read_table(path), path, row_group_size=7)
    return lake


@pytest.mark.parametrize("size", [1, 7, 13, 20, 59, 60, 100])
def test_pieces_cover_every_row_once_whatever_the_files(rows: tuple[Tables, Storage], size: int) -> None:
    read = reader(rows, ["n", "text"])
    plan = Plan(
        job_id="batch_1",
        table=TABLE,
        version=3,
        rows=read.rows,
        answered_by="m",
        settings=settings(piece_rows=size).model_dump(mode="json"),
    )
    pieces = list(plan.left(0))
    assert [piece.number for piece in pieces] == list(range(1, plan.pieces + 1))
    found = pa.concat_tables([read.read(piece) for piece in pieces])
    assert found["n"].to_pylist() == found["input_row"].to_pylist() == list(range(60))
    assert found["text"].to_pylist() == [f"t{n}" for n in range(60)]
    assert [piece.start for piece in plan.left(2)] == [piece.start for piece in pieces][2:]


def test_where_leaves_rows_out_and_keeps_their_numbers(rows: tuple[Tables, Storage]) -> None:
    read = reader(rows, ["n", "text"], "n % 2 = 1")
    with pytest.raises(BadRequest, match=r"where = .*takes columns, constants"):
        check_where("n % 2 = 1", pa.schema([("n", pa.int64())]), TABLE)
    read = reader(rows, ["n", "text"], "n > 17 AND text <> 't20' -- and no more")
    assert read.read(Piece(1, 10, 25))["input_row"].to_pylist() == [18, 19, 21, 22, 23, 24]
    assert read.read(Piece(1, 0, 10)).num_rows == 0


def test_a_column_that_files_do_not_have_yet_is_null(rows: tuple[Tables, Storage]) -> None:
    tables, _ = rows
    more = pa.table({"n": [60], "text": ["t60"], "later": [1.5]})
    write_deltalake(tables.delta(TABLE), more, mode="append", schema_mode="merge")
    found = reader(rows, ["later"]).read(Piece(1, 58, 61))
    assert found["later"].to_pylist() == [None, None, 1.5]


def test_the_output_has_the_columns_asked_for_and_none_twice() -> None:
    given = pa.schema([("id", pa.int64()), ("error", pa.string())])
    with pytest.raises(BadRequest, match="column 'error' of the input has the name of one of the output's own"):
        output_schema(settings(), given, "chat")
    schema, keep = output_schema(settings(keep=["id"]), given, "embed")
    own = ["input_row", "response", "error", "prompt_tokens", "completion_tokens", "model", "input_version"]
    assert keep == ["id"] and schema.names == ["id", *own]
    assert schema.field("response").type == pa.list_(pa.float32())


def test_a_resume_names_what_is_asked_otherwise() -> None:
    asked = settings(max_tokens=8)
    plan = Plan(
        job_id="batch_1", table=TABLE, version=3, rows=9, answered_by="m", settings=asked.model_dump(mode="json")
    )
    assert Plan.load(plan.dump()) == plan
    plan.require_same(asked, TABLE, None)
    plan.require_same(settings(max_tokens=8, table=f"{TABLE}@3", concurrency=2, stall_seconds=5.0), TABLE, 3)
    with pytest.raises(Conflict, match=r"batch_1: prompt is .*Other.*; max_tokens is 9, and was 8") as told:
        plan.require_same(settings(max_tokens=9, prompt="Other {text}"), TABLE, None)
    assert told.value.code == "batch_differs"
    with pytest.raises(Conflict, match=r"table is .main\.test\.rows@4., and was .main\.test\.rows@3."):
        plan.require_same(settings(max_tokens=8, table=f"{TABLE}@4"), TABLE, 4)
