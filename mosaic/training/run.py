"""A fine-tuning run from table to adapter: start reading here, at `fit`.

Rows of a table at a pinned version -> tokens -> the plan -> Ray Data streams it to Ray Train's workers, which run the
DeepSpeed loop -> the adapter, exported and checked by a worker -> copied out, with the record in MLflow.
"""

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.data import Dataset
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from mosaic.errors import BadRequest, MosaicError
from mosaic.ids import new_id
from mosaic.training.board import BoardActor
from mosaic.training.feed import PlannedOrder, Tokenized, steps_dataset, tokenize
from mosaic.training.job import ADAPTER_FOLDER, OUTCOME_FILE, Job, StepReport, checksums
from mosaic.training.plan import Plan
from mosaic.training.result import EvalRow, TrainResult
from mosaic.training.settings import TrainSettings
from mosaic.training.tracking import RunRecord, Tracking

OnProgress = Callable[[int, int, float], None]
"""Called with the step just finished (from 1), the number of steps, and its loss."""


def fit(
    settings: TrainSettings,
    *,
    model_folder: Path,
    read_rows: Callable[[str], Dataset],
    storage_folder: Path | str,
    output: Path,
    tracking: Tracking | None = None,
    on_progress: OnProgress | None = None,
) -> TrainResult:
    """Fine-tune and leave the adapter in `output`.

    `read_rows("catalog.schema.table@version")` gives the rows in an order that is always the same. `storage_folder` is
    where checkpoints go; every worker must reach it and `model_folder`. `on_progress` is called from another thread.
    Raises BadRequest for settings or rows that cannot be trained with, before any worker starts, and MosaicError if
    training itself fails. Ctrl-C in the main thread stops the workers and raises KeyboardInterrupt.
    """
    started = time.monotonic()
    _check_folders(model_folder, output)
    train = tokenize(read_rows(settings.train_table), settings, str(model_folder), table=settings.train_table)
    held_out = None
    if settings.eval_table is not None:
        held_out = tokenize(read_rows(settings.eval_table), settings, str(model_folder), table=settings.eval_table)
    plan = train_plan(settings, len(train.kept))

    tables = {"training": settings.train_table} | ({"evaluation": settings.eval_table} if settings.eval_table else {})
    params = _flat(settings.model_dump()) | {"steps": plan.steps, "rows": plan.rows, "tokens_per_epoch": train.tokens}
    record = RunRecord(tracking, experiment=settings.experiment, name=settings.run_name, params=params, tables=tables)

    def follow(reports: list[StepReport]) -> None:
        record.log_all((report.step, _step_metrics(report)) for report in reports)
        if on_progress is not None:
            for report in reports:
                on_progress(report.step, report.steps, report.loss)

    status = "FAILED"
    try:
        streams = {"train": (train, plan)} | (
            {"eval": (held_out, _held_out_plan(settings, len(held_out.kept)))} if held_out else {}
        )
        told = _run_workers(settings, model_folder, str(storage_folder), streams, follow, output)
        result = _result(settings, told, train, output, record.run_id, time.monotonic() - started)
        record.log_all([(result.steps, _final_metrics(result))])
        status = "FINISHED"
        return result
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        record.finish(status)


def train_plan(settings: TrainSettings, rows: int) -> Plan:
    """The plan of a run over so many rows: steps and order, without any machine."""
    return Plan(
        rows=rows,
        batch=settings.global_batch_size,
        workers=settings.num_workers,
        micro_batch=settings.micro_batch_size,
        epochs=settings.epochs,
        max_steps=settings.max_steps,
        seed=settings.seed,
        window_rows=settings.window_rows,
    )


def _held_out_plan(settings: TrainSettings, rows: int) -> Plan:
    """The plan of an evaluation: every row once, in the table's order."""
    return Plan(
        rows=rows,
        batch=settings.eval_batch_size,
        workers=settings.num_workers,
        micro_batch=settings.micro_batch_size,
        shuffled=False,
    )


def _run_workers(
    settings: TrainSettings,
    model_folder: Path,
    storage: str,
    streams: dict[str, tuple[Tokenized, Plan]],
    follow: Callable[[list[StepReport]], None],
    output: Path,
) -> dict[str, Any]:
    """Train on Ray's workers, copy the adapter to `output`, give what rank 0 told."""
    board = BoardActor.remote()
    job = Job(
        settings=settings,
        model_folder=str(model_folder),
        plan=streams["train"][1],
        eval_plan=streams["eval"][1] if "eval" in streams else None,
    )
    trainer = TorchTrainer(
        _enter,
        train_loop_config={"job": job, "board": board},
        torch_config=TorchConfig(backend="nccl" if settings.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=settings.num_workers,
            use_gpu=settings.use_gpu,
            resources_per_worker={"CPU": settings.cpus_per_worker} | ({"GPU": 1} if settings.use_gpu else {}),
        ),
        run_config=RunConfig(
            name=new_id("train"),
            storage_path=storage,
            failure_config=FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            worker_runtime_env={"env_vars": {} if settings.use_gpu else {"DS_ACCELERATOR": "cpu"}},
        ),
        datasets={name: steps_dataset(plan) for name, (_, plan) in streams.items()},
        dataset_config=PlannedOrder(streams, board),
    )
    with _following(board, follow), _interrupt_restored():
        try:
            finished = trainer.fit()
        except TrainingFailedError as error:
            raise MosaicError(f"training failed: {error}", code="training_failed") from error
        except SystemExit as stopped:
            if stopped.code == 0:  # what Ray Train makes of Ctrl-C, once the workers are gone
                raise KeyboardInterrupt from stopped
            raise
    if finished.checkpoint is None:
        raise MosaicError("training ended without a checkpoint", code="training_failed")
    with finished.checkpoint.as_directory() as folder:
        told = json.loads((Path(folder) / OUTCOME_FILE).read_text())
        shutil.copytree(Path(folder) / ADAPTER_FOLDER, output, dirs_exist_ok=True)
    return dict(told)


def _enter(config: dict[str, Any]) -> None:
    from mosaic.training.worker import work  # DeepSpeed and PEFT: only the workers load them

    work(config)


@contextmanager
def _following(board: Any, follow: Callable[[list[StepReport]], None]) -> Iterator[None]:
    """Hand the workers' reports on, every half second and once more at the end."""
    ended = threading.Event()

    def poll() -> None:
        while not ended.wait(0.5):
            follow(ray.get(board.take.remote()))

    thread = threading.Thread(target=poll, name="training-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        follow(ray.get(board.take.remote()))


@contextmanager
def _interrupt_restored() -> Iterator[None]:
    """Ray Train puts its own handler of Ctrl-C in place and leaves it there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _check_folders(model_folder: Path, output: Path) -> None:
    if not (model_folder / "config.json").is_file():
        raise BadRequest(
            f"model_folder {model_folder} is not a model's folder: it has no config.json", param="model_folder"
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BadRequest(f"output {output} exists and is not an empty folder", param="output")


def _result(
    settings: TrainSettings, told: dict[str, Any], train: Tokenized, output: Path, run_id: str | None, seconds: float
) -> TrainResult:
    if (copied := checksums(output)) != told["checksums"]:
        raise MosaicError(
            f"the adapter in {output} is not what the workers wrote: {copied} against {told['checksums']}"
        )
    cursor = told["cursor"]
    rows = []
    for number, (nll_base, tokens) in (cursor["base_rows"] or {}).items():
        nll_tuned, _ = told["tuned_rows"][number]
        rows.append(EvalRow(row=int(number), tokens=tokens, nll_base=nll_base, nll_tuned=nll_tuned))
    rows.sort(key=lambda row: row.row)
    eval_tokens = sum(row.tokens for row in rows)
    return TrainResult(
        adapter_folder=str(output),
        checksums=copied,
        train_table=settings.train_table,
        eval_table=settings.eval_table,
        steps=cursor["step"],
        rows=len(train.kept),
        rows_dropped=train.dropped,
        rows_truncated=train.truncated,
        tokens=cursor["tokens"],
        supervised_tokens=train.supervised_tokens,
        train_loss_first=cursor["losses"][0],
        train_loss_last=cursor["losses"][-1],
        eval_loss_base=sum(row.nll_base for row in rows) / eval_tokens if rows else None,
        eval_loss_tuned=sum(row.nll_tuned for row in rows) / eval_tokens if rows else None,
        eval_rows=rows,
        seconds=seconds,
        seconds_per_step=told["median_step_seconds"],
        tokens_per_second=told["tokens_per_second"],
        mlflow_run_id=run_id,
        peak_memory_bytes=told["peak_memory_bytes"],
    )


def _step_metrics(report: StepReport) -> dict[str, float]:
    return {
        "train/loss": report.loss,
        "train/learning_rate": report.learning_rate,
        "train/grad_norm": report.grad_norm,
        "train/tokens_per_second": report.tokens / report.seconds,
    }


def _final_metrics(result: TrainResult) -> dict[str, float]:
    losses = {"eval/loss_base": result.eval_loss_base, "eval/loss_tuned": result.eval_loss_tuned}
    return {name: value for name, value in losses.items() if value is not None} | {
        "seconds": result.seconds,
        "tokens_per_second": result.tokens_per_second,
        "peak_memory_bytes": float(result.peak_memory_bytes),
    }


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
