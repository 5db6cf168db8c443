"""Which row is trained on when: a pure function of the settings, the same for any number of workers.

An epoch is a permutation of the rows by Philox (Salmon et al., SC 2011), a counter-based generator keyed with (seed,
epoch), so any step's rows can be named without replaying those before it; that is what a resumed run and a lineage
query need. Rows are shuffled inside windows of neighbours and the windows among themselves: a step touches few parts of
the table.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]

DUMMY = -1
"""Stands in the place of a row where a batch is not full; weighs nothing in the loss."""


@dataclass(frozen=True)
class Plan:
    """The order of a run over `rows` rows, numbered from 0 in the table's own order."""

    rows: int
    batch: int
    """Rows of one step, over all workers; the last step of an epoch may have fewer."""
    workers: int
    micro_batch: int
    epochs: int = 1
    max_steps: int | None = None
    seed: int = 0
    window_rows: int = 65_536
    shuffled: bool = True

    def __post_init__(self) -> None:
        for field in ("rows", "batch", "workers", "micro_batch", "epochs", "window_rows"):
            if getattr(self, field) < 1:
                raise ValueError(f"a plan's {field} must be at least 1, not {getattr(self, field)}")

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.rows // self.batch)

    @property
    def steps(self) -> int:
        every = self.steps_per_epoch * self.epochs
        return every if self.max_steps is None else min(every, self.max_steps)

    @property
    def slots_per_worker(self) -> int:
        """Places for rows that every worker has in every step, dummies included."""
        return -(-self.batch // self.workers)

    @property
    def micro_steps(self) -> int:
        """Passes through the model per step, equal on all workers: unequal numbers would deadlock them."""
        return -(-self.slots_per_worker // self.micro_batch)

    def order(self, epoch: int) -> Rows:
        """The rows of an epoch in the order of training."""
        return _order(self.rows, self.window_rows, self.seed, epoch) if self.shuffled else np.arange(self.rows)

    def step_rows(self, step: int) -> Rows:
        """The rows of a step, without dummies."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return self.order(epoch)[within * self.batch : (within + 1) * self.batch]

    def slots(self, step: int) -> Rows:
        """The step's places in the order of the workers, `slots_per_worker` each, filled up with DUMMY.

        The rows go round the workers in turn, so that a short last batch is shared out too.
        """
        slots = np.full(self.workers * self.slots_per_worker, DUMMY, dtype=np.int64)
        rows = self.step_rows(step)
        slots[: len(rows)] = rows
        return np.ascontiguousarray(slots.reshape(self.slots_per_worker, self.workers).T).reshape(-1)

    def worker_slots(self, step: int, rank: int) -> Rows:
        """One worker's places of a step."""
        return self.slots(step)[rank * self.slots_per_worker : (rank + 1) * self.slots_per_worker]

    def chunks(self, first_step: int, steps_per_chunk: int) -> Iterator[range]:
        """The steps from `first_step` to the end, in runs of `steps_per_chunk`."""
        for start in range(first_step, self.steps, steps_per_chunk):
            yield range(start, min(start + steps_per_chunk, self.steps))


@lru_cache(maxsize=2)
def _order(rows: int, window_rows: int, seed: int, epoch: int) -> Rows:
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    windows = generator.permutation(-(-rows // window_rows))
    parts = []
    for window in windows:
        start = int(window) * window_rows
        parts.append(start + generator.permutation(min(window_rows, rows - start)))
    order = np.concatenate(parts)
    order.setflags(write=False)
    return order
