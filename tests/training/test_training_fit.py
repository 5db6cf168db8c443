"""A run through Ray on a tiny model: from a Delta table at a version to an adapter that PEFT loads."""

import functools
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import deltalake
import psutil
import pyarrow as pa
import pytest
import ray
import torch
from mlflow.tracking import MlflowClient
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mosaic.errors import BadRequest
from mosaic.platform import Platform
from mosaic.platform.parts import internal_token
from mosaic.runtime.cluster import marked_processes
from mosaic.runtime.home import read_record
from mosaic.training import MlflowServer, Tracking, TrainResult, TrainSettings, fit
from mosaic.training.examples import chat_of, encode
from mosaic.training.feed import Row
from mosaic.training.loop import SupervisedModel, collate

ROWS = 37
"""No multiple of the batch, so that dummies take part."""


def chats(count: int, start: int = 0) -> pa.Table:
    rows = []
    for number in range(start, start + count):
        question, answer = f"Spell {number}", "ab" * (number % 5 + 1)
        rows.append([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
    return pa.table({"key": list(range(start, start + count)), "messages": rows})


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    deltalake.write_deltalake(str(folder / "train"), chats(ROWS))
    deltalake.write_deltalake(str(folder / "train"), chats(5, start=900), mode="append")
    deltalake.write_deltalake(str(folder / "eval"), chats(7, start=100))
    bad = [*chats(3)["messages"].to_pylist(), [{"role": "user", "content": "and?"}], []]
    deltalake.write_deltalake(str(folder / "bad"), pa.table({"messages": pa.array(bad, chats(1)["messages"].type)}))
    return folder


@pytest.fixture
def read_rows(tables: Path) -> Callable[[str], ray.data.Dataset]:
    def read(name: str) -> ray.data.Dataset:
        table, version = name.split("@")
        delta = deltalake.DeltaTable(str(tables / table.split(".")[-1]), version=int(version))
        rows = delta.to_pyarrow_table()
        return ray.data.from_blocks([rows.sort_by("key") if "key" in rows.column_names else rows])

    return read


@pytest.fixture
def busy(ray_cluster: None) -> Iterator[None]:
    """What is free is what a laptop has left while it serves: 0.75 for two workers and their data, and a little."""

    class Hog:
        def ready(self) -> bool:
            return True

    hog = ray.remote(num_cpus=round(ray.available_resources()["CPU"] - 0.8, 2))(Hog).remote()
    assert ray.get(hog.ready.remote())
    yield
    ray.kill(hog)


def settings(**changes: Any) -> TrainSettings:
    values = {
        "model": "tiny",
        "train_table": "main.docs.train@0",
        "eval_table": "main.docs.eval@0",
        "global_batch_size": 8,
        "micro_batch_size": 2,
        "epochs": 2,
        "learning_rate": 0.02,
        "lora": {"rank": 4},
        "dtype": "float32",
        "max_failures": 0,
    }
    return TrainSettings.parse(values | changes)


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with (
        tempfile.TemporaryDirectory() as folder,
        MlflowServer(tmp_path_factory.mktemp("mlflow"), Path(folder) / "socket") as server,
    ):
        yield server


@pytest.mark.faults
def test_an_mlflow_server_that_dies_comes_back(mlflow_server: MlflowServer) -> None:
    first = mlflow_server.process_id
    assert mlflow_server.is_healthy() and first is not None
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + 90
    while mlflow_server.process_id in (first, None) or not mlflow_server.is_healthy():
        assert time.monotonic() < deadline, "the server did not come back"
        time.sleep(0.2)


def test_fit(
    busy: None,
    platform: Platform,
    tiny_model: Path,
    read_rows: Callable[[str], ray.data.Dataset],
    tmp_path: Path,
    tables: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[int, int, float]] = []
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", platform.catalog.create_token("trainer")[1])
    result = fit(
        settings(),
        model_folder=tiny_model,
        read_rows=read_rows,
        storage_folder=tmp_path / "storage",
        output=tmp_path / "adapter",
        tracking=Tracking(platform.mlflow_uri, functools.partial(internal_token, platform.settings), owner="trainer"),
        on_progress=lambda *report: seen.append(report),
    )
    assert (result.steps, result.rows, len(result.eval_rows)) == (10, ROWS, 7)
    assert [step for step, _, _ in seen] == list(range(1, 11)) and {steps for _, steps, _ in seen} == {10}
    assert result.eval_loss_base is not None and result.eval_loss_tuned is not None
    assert result.eval_loss_tuned < 0.95 * result.eval_loss_base
    assert set(result.checksums) == {"adapter_config.json", "adapter_model.safetensors"}
    assert "tiny-llama" not in (tmp_path / "adapter" / "adapter_config.json").read_text()
    assert_adapter_gives_the_same_loss(tiny_model, tmp_path / "adapter", tables, result)
    assert_recorded(platform.mlflow_uri, result)
    with pytest.raises(BadRequest, match="exists and is not an empty folder"):
        fit(
            settings(),
            model_folder=tiny_model,
            read_rows=read_rows,
            storage_folder=tmp_path / "storage",
            output=tmp_path / "adapter",
        )


def assert_adapter_gives_the_same_loss(tiny_model: Path, adapter: Path, tables: Path, result: TrainResult) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(adapter)).eval()
    held_out = deltalake.DeltaTable(str(tables / "eval")).to_pyarrow_table().sort_by("key").to_pylist()
    for number, (row, told) in enumerate(zip(held_out, result.eval_rows, strict=True)):
        example = encode(tokenizer, chat_of(row, ("messages",)), max_length=512, too_long="error")
        with torch.no_grad():
            batch = collate([Row(number, example.ids, example.supervised)], torch.device("cpu"))
            nll = float(SupervisedModel(model)(*batch)[0])
        assert told.row == number and told.tokens == example.num_supervised
        assert nll == pytest.approx(told.nll_tuned, rel=1e-4)


def assert_recorded(uri: str, result: TrainResult) -> None:
    assert result.mlflow_run_id is not None
    client = MlflowClient(tracking_uri=uri)
    run = client.get_run(result.mlflow_run_id)
    assert run.info.status == "FINISHED" and run.data.tags["mosaic.principal"] == "trainer"
    assert run.data.params["lora.rank"] == "4"
    assert {(each.dataset.name, each.dataset.digest) for each in run.inputs.dataset_inputs} == {
        ("main.docs.train", "v0"),
        ("main.docs.eval", "v0"),
    }
    losses = sorted(client.get_metric_history(result.mlflow_run_id, "train/loss"), key=lambda metric: metric.step)
    assert [metric.step for metric in losses] == list(range(1, 11))
    assert losses[-1].value == pytest.approx(result.train_loss_last)


@pytest.mark.faults
def test_a_killed_worker_costs_no_run(
    platform: Platform, tiny_model: Path, read_rows: Callable[[str], ray.data.Dataset], tmp_path: Path
) -> None:
    record = read_record(platform.settings.home_folder)
    assert record is not None
    killed: list[int] = []
    again: list[int] = []

    def kill_one(step: int, _steps: int, _loss: float) -> None:
        if killed:
            again.append(step)
        elif step >= 12:
            workers = [each for each in marked_processes(record["platform_id"]) if is_train_worker(each)]
            killed.append(workers[-1].pid)
            os.kill(workers[-1].pid, signal.SIGKILL)

    def train(name: str, **options: Any) -> TrainResult:
        return fit(
            settings(epochs=6, eval_table=None, checkpoint_every_steps=4, max_failures=2),
            model_folder=tiny_model,
            read_rows=read_rows,
            storage_folder=tmp_path / "storage",
            output=tmp_path / name,
            **options,
        )

    broken, unbroken = train("broken", on_progress=kill_one), train("unbroken")
    assert len(killed) == 1, "the worker was not killed while it trained"
    assert again.count(30) == 1 and 1 not in again, "the run did not resume from a checkpoint"
    assert broken.steps == unbroken.steps == 30
    assert broken.tokens == unbroken.tokens
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("broken", "unbroken"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def is_train_worker(process: psutil.Process) -> bool:
    try:
        return "RayTrainWorker" in process.cmdline()[0]
    except (psutil.Error, IndexError):
        return False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_table": "main.docs.bad@0"}, "2 of 5 rows cannot be trained on: row 3: the last message.*; row 4: "),
        ({"max_length": 32}, "row [0-9]+: [0-9]+ tokens are over max_length = 32"),
        ({"max_length": 8, "too_long": "drop"}, "no row to train on .37 rows, 37 of them dropped"),
        ({"messages_column": "chat"}, r"no column \['chat'\]; there are \['key', 'messages'\]"),
    ],
)
def test_bad_rows_stop_a_run_before_it_starts(
    ray_cluster: None,
    tiny_model: Path,
    read_rows: Callable[[str], ray.data.Dataset],
    tmp_path: Path,
    change: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(BadRequest, match=message):
        fit(
            settings(**change),
            model_folder=tiny_model,
            read_rows=read_rows,
            storage_folder=tmp_path,
            output=tmp_path / "adapter",
        )
