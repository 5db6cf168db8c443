"""Requests that come while others are computed are answered together; one that comes alone does not wait."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Generic, TypeVar

from mosaic.errors import MosaicError

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Batches(Generic[Item, Answer]):
    """Calls `work` with all that has come while the call before was running, up to `max_size` of it, oldest first.

    So nobody waits for a clock: alone, a request is computed at once, and among many the batches are as large as the
    computation is slow. Ray's `serve.batch` closes a batch before its turn to run has come: without a wait it holds
    what came within one turn of the event loop. `size` says how much an item counts; one that is larger than `max_size`
    is computed alone. `work` answers each item, or says with an error of ours why not. All calls must come from one
    event loop.
    """

    def __init__(
        self,
        work: Callable[[list[Item]], Awaitable[Sequence[Answer | MosaicError]]],
        max_size: int,
        size: Callable[[Item], int] = lambda item: 1,
    ) -> None:
        self._work, self._max_size, self._size = work, max_size, size
        self._waiting: deque[tuple[Item, asyncio.Future[Answer | MosaicError]]] = deque()
        self._running: asyncio.Task[None] | None = None

    async def ask(self, item: Item) -> Answer:
        """The answer to one item; raises the item's own error, or what broke the whole call."""
        future: asyncio.Future[Answer | MosaicError] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        answer = await future
        if isinstance(answer, MosaicError):
            raise answer
        return answer

    async def _run(self) -> None:
        try:
            while batch := self._next():
                try:
                    answers = await self._work([item for item, _ in batch])
                    for (_, future), answer in zip(batch, answers, strict=True):
                        if not future.done():
                            future.set_result(answer)
                except Exception as error:  # theirs who asked; the next batch has its own
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
        finally:
            self._running = None

    def _next(self) -> list[tuple[Item, "asyncio.Future[Answer | MosaicError]"]]:
        """Without those that nobody waits for any more."""
        batch: list[tuple[Item, asyncio.Future[Answer | MosaicError]]] = []
        total = 0
        while self._waiting:
            item, future = self._waiting[0]
            if not future.done():
                total += self._size(item)
                if batch and total > self._max_size:
                    break
                batch.append((item, future))
            self._waiting.popleft()
        return batch


def alike(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """The places of texts in groups of like length, so that little padding is computed: at most `most` tokens in each
    with the padding, or one text."""
    group: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and (len(group) + 1) * lengths[place] > most:
            yield group
            group = []
        group.append(place)
    if group:
        yield group
