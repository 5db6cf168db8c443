"""Batch jobs on the platform: a model's adapter, endpoints of each task, bad rows, grants, the command, a resume."""

import json
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pyarrow as pa
import pytest
import torch
import yaml
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from openai import OpenAI
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from mosaic.errors import BadRequest, Conflict, MosaicError, NotFound, PermissionDenied, Unavailable
from mosaic.platform import Platform
from mosaic.protocol import Principal
from mosaic.serving.batch import BatchProgress, BatchSettings
from mosaic.serving.endpoint import EndpointSettings, ServedEntity
from mosaic.serving.settings import EngineSettings
from tests.local import mosaic
from tests.serving.test_vllm_serving import complete

ROWS, MODEL = "main.batch.rows", "main.batch.bot"
SCHEMA = pa.schema([pa.field("id", pa.int64(), nullable=False), ("text", pa.string())])
COUNT = 23


@pytest.fixture(scope="module")
def rows(platform: Platform) -> Platform:
    """Two files, one null, one text that is too long for the tiny Llama."""
    platform.catalog.ensure_schema("main.batch")
    platform.tables.create(ROWS, SCHEMA, primary_key="id", owner="admin")
    texts = [None if n == 3 else "x" * 5000 if n == 7 else f"hello {n}" for n in range(COUNT)]
    for start, stop in ((0, 12), (12, COUNT)):
        data = pa.table({"id": range(start, stop), "text": texts[start:stop]})
        platform.tables.append(ROWS, data.cast(SCHEMA))
    return platform


def asked(output: str, **more: Any) -> BatchSettings:
    values = {"table": ROWS, "endpoint": "echo", "prompt": "Say {text}", "piece_rows": 5, **more}
    values = {key: value for key, value in values.items() if value is not None}
    return BatchSettings.parse({**values, "output_table": f"main.batch.{output}"})


def answers(platform: Platform, output: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = platform.tables.to_arrow(f"main.batch.{output}").to_pylist()
    return sorted(found, key=lambda row: row["input_row"])


def test_an_endpoint_answers_each_row_once_and_again_gives_the_same(rows: Platform) -> None:
    seen: list[BatchProgress] = []
    result = rows.batch.infer(asked("echoed"), seen.append)
    assert (result.rows, result.errors, result.pieces, result.pieces_before) == (COUNT, 1, 5, 0)
    assert [one.pieces_done for one in seen] == list(range(6)) and seen[-1].rows == COUNT
    found = answers(rows, "echoed")
    assert [row["id"] for row in found] == [row["input_row"] for row in found] == list(range(COUNT))
    assert found[0] == {
        "id": 0,
        "text": "hello 0",
        "input_row": 0,
        "response": "Say hello 0",
        "error": None,
        "prompt_tokens": 3,
        "completion_tokens": 3,
        "model": "echo",
        "input_version": 2,
    }
    assert found[3]["error"] == "column 'text' is null" and found[3]["response"] is None
    run = rows.catalog.get_run(result.run_id)
    assert run.status == "finished" and run.metrics["rows"] == COUNT
    inputs = [(edge.kind, edge.name, edge.version) for edge in run.inputs]
    config = rows.catalog.endpoints.get("main.serving.echo").config_version
    assert sorted(inputs) == [("endpoint", "main.serving.echo", config), ("table", ROWS, 2)]
    assert {(edge.kind, edge.name) for edge in run.outputs} == {("table", "main.batch.echoed")}
    assert max(edge.version for edge in run.outputs if edge.version) == result.output_version
    rows.tables.append(ROWS, pa.table({"id": [COUNT], "text": ["later"]}).cast(SCHEMA))
    try:
        again = rows.batch.infer(asked("echoed"))
        assert again.run_id is None and (again.rows, again.output_version) == (COUNT, result.output_version)
        with pytest.raises(Conflict, match=r"prompt is .Tell \{text\}., and was .Say \{text\}."):
            rows.batch.infer(asked("echoed", prompt="Tell {text}"))
        picked = rows.batch.infer(asked("picked", where=f"id >= {COUNT}", keep=["id"]))
        assert picked.rows == 1 and answers(rows, "picked")[0]["response"] == "Say later"
    finally:
        rows.tables.delete_where(ROWS, f"id = {COUNT}")
    tokens = [one for one in rows.catalog.list_tokens() if one.comment.startswith("batch job")]
    assert len(tokens) == 2 and all(one.revoked_at for one in tokens)


def test_a_job_that_breaks_off_goes_on_where_it_was(rows: Platform) -> None:
    job, committed = rows.batch, []

    def at(point: str) -> None:
        if point == "after-commit":
            committed.append(point)
            if len(committed) == 2:
                raise KeyboardInterrupt

    job.at = at
    with pytest.raises(KeyboardInterrupt):
        job.infer(asked("broken"))
    assert len(answers(rows, "broken")) == 10
    result = rows.batch.infer(asked("broken"))
    assert (result.rows, result.pieces_before) == (COUNT, 2)
    assert [row["id"] for row in answers(rows, "broken")] == list(range(COUNT))
    runs = [one for one in rows.catalog.list_runs(kind="batch_inference") if one.name == "main.batch.broken"]
    assert [one.status for one in runs] == ["finished", "cancelled"]


def test_of_two_drivers_the_last_gives_back_what_is_there(rows: Platform) -> None:
    job, others = rows.batch, []

    def at(point: str) -> None:
        if point == "before-commit" and not others:
            others.append(rows.batch.infer(asked("raced", stall_seconds=30)))

    job.at = at
    result = job.infer(asked("raced", stall_seconds=30))
    assert (result.rows, others[0].rows, result.job_id) == (COUNT, COUNT, others[0].job_id)
    assert [row["id"] for row in answers(rows, "raced")] == list(range(COUNT))
    runs = [one for one in rows.catalog.list_runs(kind="batch_inference") if one.name == "main.batch.raced"]
    assert [one.status for one in runs] == ["finished", "failed"]  # the second ended the first


def test_a_job_that_is_done_ends_its_own_users_runs_alone(rows: Platform) -> None:
    told = asked("ended", where="id = 1")
    params = {"job_id": rows.batch.infer(told).job_id}
    name, admin = "main.batch.ended", rows.principal.name
    left = [
        rows.catalog.start_run("batch_inference", name, principal=one, params=params) for one in (admin, "somebody")
    ]
    try:
        assert rows.batch.infer(told).run_id is None
        assert [rows.catalog.get_run(one).status for one in left] == ["failed", "running"]
    finally:
        rows.catalog.finish_run(left[1], "failed")


def test_a_row_that_the_endpoint_fails_on_is_an_error_of_that_row(rows: Platform) -> None:
    told = asked("failed", prompt="fail: {text}", where="id < 2", stall_seconds=8)
    result = rows.batch.infer(told)
    assert (result.rows, result.errors) == (2, 2)
    assert "endpoint 'echo': " in answers(rows, "failed")[0]["error"]
    assert "the echo was asked to fail" in answers(rows, "failed")[0]["error"]


class Shouter(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[str]:
        return [text.upper() for text in model_input["text"]]


def test_predictions_and_embeddings_row_by_row(rows: Platform, tmp_path: Path) -> None:
    folder = tmp_path / "shouter"
    signature = ModelSignature(Schema([ColSpec("string", "text")]), Schema([ColSpec("string")]))
    mlflow.pyfunc.save_model(folder, python_model=Shouter(), signature=signature, pip_requirements=[])
    entity = ServedEntity(name="shouter", model=str(folder))
    rows.serving.put(EndpointSettings(name="shouter", task="predict", served_entities=[entity]))
    minilm = ServedEntity(name="minilm", model="all-minilm-l6-v2")
    rows.serving.put(EndpointSettings(name="batch-minilm", task="embed", served_entities=[minilm]))
    try:
        rows.serving.wait("shouter")
        with pytest.raises(BadRequest, match="predicts from columns, not from a prompt"):
            rows.batch.infer(asked("x", endpoint="shouter"))
        columns = {"prompt": None, "columns": ["text"], "keep": ["id"], "piece_rows": 100, "stall_seconds": 16}
        result = rows.batch.infer(asked("shouted", endpoint="shouter", **columns))
        found = answers(rows, "shouted")
        assert (result.rows, result.errors) == (COUNT, 1) and json.loads(found[0]["response"]) == "HELLO 0"
        assert "endpoint 'shouter': " in found[3]["error"] and "has no attribute 'upper'" in found[3]["error"]
        rows.serving.wait("batch-minilm")
        result = rows.batch.infer(asked("embedded", endpoint="batch-minilm", **columns))
        found = answers(rows, "embedded")
        assert (result.rows, result.errors) == (COUNT, 1) and len(found[0]["response"]) == 384
        wanted = rows.embedder("batch-minilm")(["hello 0"])[0]
        assert found[0]["response"] == pytest.approx(wanted.tolist(), abs=0.01)
    finally:
        rows.serving.delete("shouter")
        rows.serving.delete("batch-minilm")


@pytest.fixture(scope="module")
def adapted(rows: Platform, tiny_chat: Path, tmp_path_factory: pytest.TempPathFactory) -> Platform:
    """An adapter with random weights for the tiny Llama, registered, with an endpoint."""
    torch.manual_seed(2)
    base = AutoModelForCausalLM.from_pretrained(tiny_chat)
    config = LoraConfig(r=8, lora_alpha=64, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False)
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(base, config).save_pretrained(folder)
    rows.catalog.create_model(MODEL, owner="admin")
    rows.catalog.create_model_version(MODEL, source=str(folder), kind="adapter", base_model=str(tiny_chat))
    rows.catalog.set_alias(MODEL, "champion", 1)
    entity = ServedEntity(name="tuned", model=f"{MODEL}@champion")
    rows.serving.put(EndpointSettings(name="batch-tuned", served_entities=[entity]))
    return rows


@pytest.mark.slow
def test_an_adapter_runs_in_the_job_and_answers_as_it_does_when_served(adapted: Platform, client: OpenAI) -> None:
    rows = adapted
    told = asked(
        "adapted",
        endpoint=None,
        model=f"{MODEL}@champion",
        prompt="{text}",
        max_tokens=12,
        sampling={"temperature": 0},
    )
    with pytest.raises(Unavailable, match="50 logical CPUs are wanted"):
        rows.batch.infer(told.model_copy(update={"engine": EngineSettings(num_cpus=50)}))
    assert rows.catalog.find_table("main.batch.adapted") is None
    result = rows.batch.infer(told)
    found = answers(rows, "adapted")
    assert (result.rows, result.errors, len(found)) == (COUNT, 2, COUNT)
    assert found[3]["error"] == "column 'text' is null"
    assert "together more than the 1024 of the model" in found[7]["error"]
    rows.serving.wait("batch-tuned")
    for n in (0, 12, 22):
        messages = [{"role": "user", "content": f"hello {n}"}]
        assert found[n]["response"] == complete(client, "batch-tuned", messages=messages)
    assert found[0]["completion_tokens"] == 12 and found[0]["model"] == f"{MODEL}/1"
    run = rows.catalog.get_run(result.run_id)
    assert ("model", MODEL, 1) in [(edge.kind, edge.name, edge.version) for edge in run.inputs]


@pytest.mark.parametrize(
    ("more", "error", "told"),
    [
        ({"table": "main.batch.none"}, NotFound, "no table"),
        ({"table": f"{ROWS}@99"}, NotFound, "no readable version 99"),
        ({"prompt": "{txt}"}, BadRequest, r"prompt: table .* has no column 'txt'; there are \['id', 'text'\]"),
        ({"keep": ["idd"]}, BadRequest, "keep: table .* has no column 'idd'"),
        ({"where": "length(text) > 2"}, BadRequest, "where = .*but not length"),
        ({"endpoint": "none"}, NotFound, "no endpoint"),
        ({"endpoint": None, "model": "none"}, NotFound, "no model 'none'"),
        ({"endpoint": None, "model": "all-minilm-l6-v2"}, BadRequest, "a job itself runs causal language models"),
        ({"endpoint": None, "model": "main.batch.none/77"}, NotFound, "main.batch.none"),
        ({"output": ROWS.rpartition(".")[2]}, Conflict, "is there and no batch job's"),
        ({"output": "x", "prompt": None, "columns": ["text"]}, BadRequest, "chats, which takes a prompt"),
    ],
)
def test_bad_input_is_refused_before_work_starts(
    rows: Platform, more: dict[str, Any], error: type[MosaicError], told: str
) -> None:
    output = more.pop("output", f"refused_{abs(hash(told)) % 10**6}")
    with pytest.raises(error, match=told):
        rows.batch.infer(asked(output, **more))


def test_the_callers_grants_are_checked_each(rows: Platform) -> None:
    catalog, grants = rows.catalog, rows.catalog.grants
    catalog.create_token("bea")
    bea, admin = Principal(name="bea"), rows.principal
    infer = lambda **more: rows.acting(bea).batch.infer(asked("beas", **more))  # noqa: E731
    with pytest.raises(PermissionDenied, match="SELECT"):
        infer()
    grants.grant("schema", "main.batch", "bea", ["USE SCHEMA", "SELECT"], by=admin)
    with pytest.raises(PermissionDenied, match="CREATE TABLE"):
        infer()
    grants.grant("schema", "main.batch", "bea", ["CREATE TABLE"], by=admin)
    with pytest.raises(PermissionDenied, match="only administrators may run from"):
        infer(endpoint=None, model="/tmp")
    catalog.create_model("main.batch.closed", owner="admin")
    with pytest.raises(PermissionDenied, match="EXECUTE"):
        infer(endpoint=None, model="main.batch.closed/1")
    assert infer(where="id = 1").rows == 1  # users may ask what is in main.serving
    rows.flush_ledger()
    ledger = rows.tables.to_arrow("system.serving.inference", columns=["principal", "request"]).to_pylist()
    assert [row["principal"] for row in ledger if row["request"] and "Say hello 1" in row["request"]].count("bea") == 1
    grants.revoke("schema", "main.batch", "bea", ["SELECT"], by=admin)
    with pytest.raises(PermissionDenied, match="SELECT"):
        infer(where="id = 1")


def test_the_command_and_the_job_run_a_file(rows: Platform, settings_file: Path, tmp_path: Path) -> None:
    spec = tmp_path / "batch.yaml"
    values = {"table": ROWS, "endpoint": "echo", "prompt": "Say {text}", "output_table": "main.batch.commanded"}
    spec.write_text(yaml.safe_dump(values))
    done = mosaic("batch", "infer", "-f", str(spec), "--settings", str(settings_file))
    assert done.returncode == 0, done.stderr
    assert f"{COUNT} rows of {ROWS}@" in done.stdout and "1 with an error" in done.stdout
    told = mosaic("batch", "infer", "-f", str(spec), "--settings", str(settings_file), "--json")
    assert json.loads(told.stdout)["rows"] == COUNT
    spec.write_text(yaml.safe_dump({**values, "promt": "x"}))
    refused = mosaic("batch", "infer", "-f", str(spec), "--settings", str(settings_file))
    assert refused.returncode == 1 and "unknown field 'promt'" in refused.stderr
