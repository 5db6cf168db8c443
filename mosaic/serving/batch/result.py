"""How far a batch job is, and what it made."""

import pyarrow as pa
import pyarrow.compute as pc

from mosaic.protocol import Wire


class BatchProgress(Wire):
    """How far a job is; rows and tokens are of this process."""

    pieces_done: int
    pieces: int
    rows: int = 0
    errors: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


class BatchResult(Wire):
    """What a finished job made."""

    job_id: str
    run_id: str | None
    """None if the job was finished before."""
    input_table: str
    input_version: int
    output_table: str
    output_version: int
    rows: int
    errors: int
    """Rows with an error in place of a response."""
    prompt_tokens: int
    completion_tokens: int
    pieces: int
    pieces_before: int
    """Of those, done by earlier runs of the job."""
    seconds: float
    """Of this run."""


def further(progress: BatchProgress, number: int, rows: pa.Table, seconds: float) -> BatchProgress:
    """With one more piece, whose rows are committed."""
    return BatchProgress(
        pieces_done=number,
        pieces=progress.pieces,
        rows=progress.rows + rows.num_rows,
        errors=progress.errors + rows.num_rows - rows["error"].null_count,
        completion_tokens=progress.completion_tokens + (pc.sum(rows["completion_tokens"]).as_py() or 0),
        seconds=seconds,
    )
