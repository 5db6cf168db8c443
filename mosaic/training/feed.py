"""The plan carried out by Ray Data: rows are tokenized once, then stream to the workers step by step, in order.

The tokenized rows stay in Ray's object store (which spills to disk), once, however many epochs there are. What flows
through a stream is the plan: chunks of step numbers go in, the rows of those steps come out. Each worker has a stream
of its own part, so none waits for another's, and nothing depends on how Ray would split one stream among them; it
compares what arrives with the plan and stops on any difference.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import DataIterator, Dataset
from ray.train import DataConfig

from mosaic.errors import BadRequest, MosaicError
from mosaic.training.examples import TooLong, chat_of, encode
from mosaic.training.plan import DUMMY, Plan
from mosaic.training.settings import TrainSettings

CPUS = 0.25
"""Ray CPUs of each data task, so that training and its data fit a machine of two cores."""

STEPS_PER_CHUNK = 16

_TOKENS = pa.schema(
    [
        ("ids", pa.list_(pa.int32())),
        ("supervised", pa.list_(pa.bool_())),
        ("was_truncated", pa.bool_()),
        ("too_long", pa.bool_()),
        ("problem", pa.string()),
    ]
)


@dataclass(frozen=True)
class Row:
    """A tokenized row in a worker; DUMMY rows have one token and nothing to learn."""

    number: int
    ids: list[int]
    supervised: list[bool]


@dataclass(frozen=True)
class Tokenized:
    """A table's rows as tokens, in the object store."""

    table: str
    blocks: list[Any]
    """References to Arrow tables in the table's order."""
    starts: np.ndarray[Any, np.dtype[np.int64]]
    """Number of each block's first row."""
    kept: np.ndarray[Any, np.dtype[np.int64]]
    """The table's row numbers that are trained on; the plan's row i is the table's row kept[i]."""
    truncated: int
    dropped: int
    tokens: int
    supervised_tokens: int


def tokenize(rows: Dataset, settings: TrainSettings, tokenizer_folder: str, *, table: str) -> Tokenized:
    """All rows to tokens; raises BadRequest that names the first bad rows, before any worker starts."""
    missing = [name for name in settings.columns if name not in rows.columns()]
    if missing:
        raise BadRequest(f"{table} has no column {missing}; there are {rows.columns()}", param="columns")
    encoded = rows.select_columns(list(settings.columns), num_cpus=CPUS).map_batches(
        _tokenize_batch,
        fn_kwargs={"settings": settings, "tokenizer_folder": tokenizer_folder},
        batch_size=256,
        batch_format="pyarrow",
        num_cpus=CPUS,
    )
    encoded.context.execution_options.preserve_order = True
    encoded.context.enable_progress_bars = False
    blocks = encoded.materialize().to_arrow_refs()
    summaries = ray.get([_summarize.remote(block) for block in blocks])
    return _index(table, blocks, summaries)


def steps_dataset(plan: Plan) -> Dataset:
    """The plan's steps as a dataset, a block per chunk of them."""
    # Not from_arrow: that looks at its blocks in tasks that ask for a whole CPU each, and waits forever for it.
    return ray.data.from_blocks([pa.table({"step": list(chunk)}) for chunk in plan.chunks(0, STEPS_PER_CHUNK)])


class PlannedOrder(DataConfig):
    """Builds the streams when the workers ask for them; those of "train" from the step that stands on the board.

    Ray Train calls `configure` once for every group of workers, so a group that resumes starts at its own cursor.
    """

    def __init__(self, streams: Mapping[str, tuple[Tokenized, Plan]], board: Any) -> None:
        super().__init__()
        self._streams = streams
        self._board = board

    def configure(self, datasets: dict[str, Dataset], world_size: int, *_: Any, **__: Any) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = [{} for _ in range(world_size)]
        for name, steps in datasets.items():
            source, plan = self._streams[name]
            first_step = ray.get(self._board.first_step.remote()) if name == "train" else 0
            for rank, part in enumerate(parts):
                part[name] = _stream(source, steps, plan, rank, first_step).iterator()
        return parts


def _stream(source: Tokenized, steps: Dataset, plan: Plan, rank: int, first_step: int) -> Dataset:
    gathered = steps.map_batches(
        _gather,
        fn_kwargs={"source": source, "plan": plan, "rank": rank, "first_step": first_step},
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=CPUS,
        concurrency=2,
    )
    gathered.context.execution_options.preserve_order = True
    gathered.context.enable_progress_bars = False
    return gathered


def receive(iterator: DataIterator, plan: Plan, rank: int, first_step: int) -> Iterator[list[Row]]:
    """A worker's rows of each step from `first_step` to the end; raises MosaicError if they are not as planned."""
    batches = iterator.iter_batches(batch_size=plan.slots_per_worker, batch_format="pyarrow", prefetch_batches=2)
    expected_step = first_step
    for batch in batches:
        planned = plan.worker_slots(expected_step, rank) if expected_step < plan.steps else np.empty(0, np.int64)
        numbers, steps = batch["row"].to_numpy(), batch["step"].to_numpy()
        if not (np.array_equal(numbers, planned) and (steps == expected_step).all()):
            raise MosaicError(
                f"rows out of order on rank {rank}: step {expected_step} needs {planned.tolist()}, "
                f"there came {numbers.tolist()} of steps {steps.tolist()}"
            )
        ids, supervised = batch["ids"].to_pylist(), batch["supervised"].to_pylist()
        yield [Row(int(number), *pair) for number, *pair in zip(numbers, ids, supervised, strict=True)]
        expected_step += 1
    if expected_step != plan.steps:
        raise MosaicError(f"the rows of rank {rank} ended before step {expected_step} of {plan.steps}")


def local_rows(rows: Sequence[Row], plan: Plan, rank: int, first_step: int) -> Iterator[list[Row]]:
    """The same as `receive` for rows in memory, without Ray."""
    dummy = Row(DUMMY, [0], [False])
    for step in range(first_step, plan.steps):
        yield [dummy if number == DUMMY else rows[number] for number in plan.worker_slots(step, rank)]


def _tokenize_batch(batch: pa.Table, *, settings: TrainSettings, tokenizer_folder: str) -> pa.Table:
    tokenizer = _tokenizer(tokenizer_folder)
    out: list[dict[str, Any]] = []
    for row in batch.to_pylist():
        try:
            example = encode(
                tokenizer, chat_of(row, settings.columns), max_length=settings.max_length, too_long=settings.too_long
            )
        except BadRequest as error:
            too_long = isinstance(error, TooLong) and settings.too_long == "drop"
            out.append({"ids": [], "supervised": [], "too_long": too_long, "problem": error.message})
        else:
            out.append({"ids": example.ids, "supervised": example.supervised, "was_truncated": example.was_truncated})
    return pa.Table.from_pylist(out, schema=_TOKENS)


_LOADED: dict[str, Any] = {}
"""The tokenizers that this process has loaded, by folder: loading one takes longer than tokenizing a batch."""


def _tokenizer(folder: str) -> Any:
    from transformers import AutoTokenizer  # heavy: only the processes that tokenize load it

    if folder not in _LOADED:
        _LOADED[folder] = AutoTokenizer.from_pretrained(folder)
    return _LOADED[folder]


@dataclass(frozen=True)
class _Summary:
    rows: int
    lengths: np.ndarray[Any, np.dtype[np.int64]]
    supervised_tokens: int
    truncated: int
    too_long: list[int]
    problems: list[tuple[int, str]]


def _summarize_block(block: pa.Table) -> _Summary:
    too_long, problems, lengths = [], [], []
    supervised_tokens = truncated = 0
    for place, row in enumerate(block.to_pylist()):
        lengths.append(len(row["ids"]))
        supervised_tokens += sum(row["supervised"])
        truncated += bool(row["was_truncated"])
        if row["too_long"]:
            too_long.append(place)
        elif row["problem"] is not None:
            problems.append((place, row["problem"]))
    return _Summary(block.num_rows, np.array(lengths, np.int64), supervised_tokens, truncated, too_long, problems)


_summarize = ray.remote(num_cpus=CPUS)(_summarize_block)


def _index(table: str, blocks: list[Any], summaries: list[_Summary]) -> Tokenized:
    starts = np.cumsum([0, *(summary.rows for summary in summaries)], dtype=np.int64)
    problems = [
        (int(start) + place, why)
        for start, summary in zip(starts, summaries, strict=False)
        for place, why in summary.problems
    ]
    if problems:
        shown = "; ".join(f"row {number}: {why}" for number, why in problems[:5])
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise BadRequest(f"{table}: {len(problems)} of {int(starts[-1])} rows cannot be trained on: {shown}{more}")
    dropped = [
        int(start) + place for start, summary in zip(starts, summaries, strict=False) for place in summary.too_long
    ]
    kept = np.setdiff1d(np.arange(int(starts[-1])), np.array(dropped, np.int64), assume_unique=True)
    if not len(kept):
        raise BadRequest(
            f"{table} has no row to train on ({int(starts[-1])} rows, {len(dropped)} of them dropped as too long)"
        )
    return Tokenized(
        table=table,
        blocks=blocks,
        starts=starts[:-1],
        kept=kept,
        truncated=sum(summary.truncated for summary in summaries),
        dropped=len(dropped),
        tokens=sum(int(summary.lengths.sum()) for summary in summaries),
        supervised_tokens=sum(summary.supervised_tokens for summary in summaries),
    )


def _gather(batch: pa.Table, *, source: Tokenized, plan: Plan, rank: int, first_step: int) -> pa.Table:
    steps = [step for step in batch["step"].to_pylist() if step >= first_step]
    slots = np.concatenate([plan.worker_slots(step, rank) for step in steps]) if steps else np.empty(0, np.int64)
    real = slots != DUMMY
    numbers = source.kept[slots[real]]
    home = np.searchsorted(source.starts, numbers, side="right") - 1
    needed = np.unique(home)
    blocks = dict(zip(needed.tolist(), ray.get([source.blocks[block] for block in needed]), strict=True))
    ids: list[Any] = [[0]] * len(slots)
    supervised: list[Any] = [[False]] * len(slots)
    for place, number, block in zip(np.flatnonzero(real), numbers, home, strict=True):
        at = int(number - source.starts[block])
        ids[place] = blocks[int(block)]["ids"][at].as_py()
        supervised[place] = blocks[int(block)]["supervised"][at].as_py()
    stamps = np.repeat(np.array(steps, np.int64), plan.slots_per_worker)
    columns = {"step": stamps, "row": slots, "ids": pa.array(ids, _TOKENS.field("ids").type)}
    return pa.table({**columns, "supervised": pa.array(supervised, _TOKENS.field("supervised").type)})
