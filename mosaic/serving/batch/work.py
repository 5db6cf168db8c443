"""What runs on Ray Data: pieces in, finished pieces out in their order, by actors that each ask one engine or
endpoint."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError

from mosaic.errors import EngineFailed, MosaicError, Unavailable
from mosaic.serving.batch.pieces import INPUT_ROW, PieceReader
from mosaic.serving.batch.plan import Piece
from mosaic.serving.batch.prompts import Answer
from mosaic.serving.batch.settings import BatchSettings

_MOST_RESTARTS = 2
"""Of an actor."""


class Asker(Protocol):
    async def answer(self, rows: list[dict[str, Any]]) -> list[Answer]: ...


class Setup(Protocol):
    """What an asker is made from, in the actor's process."""

    def asker(self, settings: BatchSettings) -> Asker: ...


class Done(NamedTuple):
    """A piece with its answers."""

    number: int
    rows: pa.Table


class Place(NamedTuple):
    """Where the work is done."""

    actors: int
    num_cpus: float
    num_gpus: float
    pieces_at_once: int
    """Of one actor."""


class PieceWorker:
    """The actor: reads a piece's rows, has them answered, gives all back as one row, so that no block cuts a piece."""

    def __init__(
        self,
        setup: Setup,
        settings: BatchSettings,
        reader: PieceReader,
        keep: list[str],
        schema: pa.Schema,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._reader, self._keep, self._schema = settings, reader, keep, schema
        self._asker, self._now = setup.asker(settings), now
        self._finished = float("-inf")
        """When this actor last finished a piece."""

    async def __call__(self, batch: pa.Table) -> pa.Table:
        (asked,) = batch.to_pylist()
        piece = Piece(**asked)
        rows = await asyncio.to_thread(self._reader.read, piece)
        questions = rows.select(self._settings.reads).to_pylist()
        answers = await self._answers(piece, questions)
        made = _with_answers(rows.select([*self._keep, INPUT_ROW]), answers, self._schema)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, made.schema) as writer:
            writer.write_table(made)
        return pa.table({"number": [piece.number], "rows": pa.array([sink.getvalue().to_pybytes()], pa.large_binary())})

    async def _answers(self, piece: Piece, questions: list[dict[str, Any]]) -> list[Answer]:
        """Raises Unavailable when neither this piece nor another of the actor, with which it shares the engine, is
        finished for `stall_seconds`."""
        began, asked = self._now(), asyncio.ensure_future(self._asker.answer(questions))
        try:
            while not asked.done():
                left = max(began, self._finished) + self._settings.stall_seconds - self._now()
                if left <= 0:
                    raise stalled(self._settings, f"piece {piece.number} (rows {piece.start} to {piece.stop})")
                await asyncio.wait([asked], timeout=left)
            self._finished = self._now()
            return asked.result()
        finally:
            asked.cancel()


def run_pieces(
    pieces: Iterable[Piece],
    setup: Setup,
    settings: BatchSettings,
    reader: PieceReader,
    keep: list[str],
    schema: pa.Schema,
    place: Place,
) -> Iterator[Done]:
    """The pieces with their answers, in the order of their numbers, as they are finished.

    Raises our own error of an actor, EngineFailed when an engine died too often, Unavailable when nothing is finished
    for `stall_seconds`; the actors end with the iterator.
    """
    todo = [piece._asdict() for piece in pieces]
    data = ray.data.from_items(todo, override_num_blocks=len(todo)).map_batches(
        PieceWorker,
        batch_size=1,
        batch_format="pyarrow",
        fn_constructor_args=(setup, settings, reader, keep, schema),
        compute=ActorPoolStrategy(
            size=min(place.actors, len(todo)),
            max_concurrent_calls_per_actor=place.pieces_at_once,
            max_tasks_in_flight_per_actor=place.pieces_at_once + 1,
        ),
        num_cpus=place.num_cpus,
        num_gpus=place.num_gpus or None,
        ray_remote_args_fn=_restarts,
    )
    data.set_name(f"batch {settings.output_table}")
    data.context.execution_options.preserve_order = True
    data.context.enable_progress_bars = False  # ours is of pieces, and of those that are committed
    data.context.raise_original_map_exception = True  # or it is one of Ray Data's, without ours
    data.context.max_consecutive_actor_init_deaths = 0
    for batch in _watched(data, settings):
        for row in batch.to_pylist():
            with pa.ipc.open_stream(row["rows"]) as stream:
                yield Done(row["number"], stream.read_all())


def _restarts() -> dict[str, Any]:
    """A row that ends its engine must not end engines for ever, as it would by Ray Data's default."""
    return {"max_restarts": _MOST_RESTARTS}


def stalled(settings: BatchSettings, what: str) -> Unavailable:
    return Unavailable(
        f"{settings.served_by} did not finish {what} within stall_seconds = {settings.stall_seconds:g}; what was done "
        "before is kept, and the same job goes on from there",
        code="batch_stalled",
    )


def _watched(data: "ray.data.Dataset", settings: BatchSettings) -> Iterator[pa.Table]:
    """The batches, taken in a thread, since Ray Data itself waits for ever."""
    found: queue.Queue[pa.Table | BaseException | None] = queue.Queue()

    def take() -> None:
        try:
            for batch in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                found.put(batch)
            found.put(None)
        except BaseException as error:
            # Raised below, to whoever runs the job.
            found.put(error)

    threading.Thread(target=take, name="batch-pieces", daemon=True).start()
    try:
        while True:
            try:
                # An actor's own limit comes first; a piece has twice that where another was finished beside it.
                batch = found.get(timeout=2 * settings.stall_seconds + 60)
            except queue.Empty:
                raise stalled(settings, "any piece") from None
            if batch is None:
                return
            if isinstance(batch, BaseException):
                raise _explained(batch, settings) from batch
            yield batch
    finally:
        executor = getattr(data, "_current_executor", None)
        if executor is not None:
            executor.shutdown(force=True)


def _explained(error: BaseException, settings: BatchSettings) -> BaseException:
    """Our own error as it was raised in the actor; EngineFailed for an actor that is no more."""
    seen: BaseException | None = error
    while seen is not None:
        inner: Any = getattr(seen, "cause", None)
        if isinstance(inner, MosaicError):
            return inner
        seen = inner if isinstance(inner, BaseException) else seen.__cause__
    if isinstance(error, RayError):
        told = (str(error).strip().splitlines() or [type(error).__name__])[-1][:500]
        return EngineFailed(
            f"{settings.served_by} failed: {told}. What was done before is kept, and the same job goes on from there"
        )
    return error


def _with_answers(rows: pa.Table, answers: list[Answer], schema: pa.Schema) -> pa.Table:
    """The output's columns, except the input's version, which the driver knows."""
    for field in Answer._fields:
        values = [getattr(answer, field) for answer in answers]
        rows = rows.append_column(field, pa.array(values, schema.field(field).type))
    return rows
