"""Whether an engine still generates: told by its answers, and when there were none for a while by asking for a token.

A process that hangs (a stuck kernel, a stopped process, a deadlock) looks alive from outside; only an answer tells.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import psutil

from mosaic.errors import EngineFailed

_QUIET_SECONDS = 15.0


class Pulse:
    """An engine's pulse, felt by `check`.

    `ask` makes the engine generate one token. `progress` is a number that is larger once it generated more for anybody,
    so that one too busy to take up another request is not taken to hang.
    """

    def __init__(
        self,
        ask: Callable[[], Awaitable[None]],
        progress: Callable[[], float],
        *,
        limit_seconds: float,
        quiet_seconds: float = _QUIET_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask, self._progress, self._clock = ask, progress, clock
        self._limit_seconds, self._quiet_seconds = limit_seconds, quiet_seconds
        self._furthest, self._alive_at = progress(), clock()
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = 0.0

    def check(self) -> None:
        """Returns at once; raises EngineFailed when nothing came out of the engine within the time limit.

        Called now and then, from the loop on which the engine answers.
        """
        now, furthest = self._clock(), self._progress()
        if furthest > self._furthest or (self._asking is not None and self._asking.done()):
            self._furthest, self._alive_at = max(furthest, self._furthest), now
            if self._asking is not None:
                self._asking.cancel()
                self._asking = None
        elif self._asking is None:
            if now - self._alive_at >= self._quiet_seconds:
                self._asking, self._asked_at = asyncio.ensure_future(self._asked()), now
        elif now - self._asked_at >= self._limit_seconds:
            raise EngineFailed(f"the engine hangs: no token in {now - self._asked_at:.0f} s after it was asked for one")

    async def _asked(self) -> None:
        with suppress(Exception):  # a refusal is an answer too
            await self._ask()


def end_with_children() -> None:
    """End this process at once and those that it started: what hangs would listen to nothing milder."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    os._exit(1)
