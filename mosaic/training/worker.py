"""One Ray Train worker: joins the loop to Ray's data, checkpoints and reports."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist

from mosaic.training.export import export_adapter
from mosaic.training.feed import receive
from mosaic.training.job import ADAPTER_FOLDER, OUTCOME_FILE, Job, StepReport
from mosaic.training.loop import Outcome, train_loop


def work(config: dict[str, Any]) -> None:
    """Train this worker's part; rank 0's last checkpoint holds the adapter and `outcome.json`."""
    job: Job = config["job"]
    board = config["board"]
    torch.set_num_threads(job.settings.threads_per_worker)
    if not job.settings.use_gpu:
        torch.use_deterministic_algorithms(True)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        _train(job, board, None)
        return
    with checkpoint.as_directory() as folder:
        # A worker that dies after the last report leaves nothing more to do.
        if not (Path(folder) / OUTCOME_FILE).exists():
            _train(job, board, Path(folder))


def _train(job: Job, board: Any, resume_from: Path | None) -> None:
    rank = dist.get_rank()
    if rank == 0:
        first = 0 if resume_from is None else int((resume_from / "step").read_text())
        ray.get(board.start_at.remote(first))
    train = ray.train.get_dataset_shard("train")
    held_out = None
    if job.eval_plan is not None:
        held_out = partial(receive, ray.train.get_dataset_shard("eval"), job.eval_plan, rank)
    outcome = train_loop(
        job,
        partial(receive, train, job.plan, rank),
        held_out,
        on_step=partial(_post, board, rank),
        on_checkpoint=_checkpoint,
        resume_from=resume_from,
    )
    with tempfile.TemporaryDirectory() as folder:
        final = None
        if rank == 0:
            _write_outcome(job, outcome, Path(folder))
            final = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"step": outcome.cursor.step}, checkpoint=final)


def _post(board: Any, rank: int, report: StepReport) -> None:
    if rank == 0:
        board.post.remote(report)


def _checkpoint(step: int, save: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        (Path(folder) / "step").write_text(str(step))
        ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _write_outcome(job: Job, outcome: Outcome, folder: Path) -> None:
    device = next(outcome.model.parameters()).device
    sample = torch.arange(1, 33, device=device).reshape(1, -1) % int(outcome.model.config.vocab_size)
    sums = export_adapter(
        outcome.model,
        folder / ADAPTER_FOLDER,
        base_name=job.settings.model,
        base_folder=job.model_folder,
        sample_ids=sample,
    )
    told = {
        "cursor": asdict(outcome.cursor),
        "tuned_rows": outcome.tuned_rows,
        "median_step_seconds": median(outcome.step_seconds) if outcome.step_seconds else None,
        "tokens_per_second": outcome.tokens_per_second,
        "peak_memory_bytes": outcome.peak_memory_bytes,
        "checksums": sums,
    }
    (folder / OUTCOME_FILE).write_text(json.dumps(told))
