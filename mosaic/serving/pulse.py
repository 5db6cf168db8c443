"""Whether an engine still works: told by how it gets on, and when it did not for a while by asking for a token.

A process that hangs (a stuck kernel, a stopped process, a deadlock) looks alive from outside; only an answer tells.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import psutil

from mosaic.errors import EngineFailed

_QUIET_SECONDS = 15.0
_WORKING_SHARE = 0.2
"""Of one core: an engine whose processes computed more than this since the last look is at work."""
_LONGEST_WORK = 10
"""So many time limits may pass while it computes and nothing comes of it: what spins in a deadlock computes too."""


class Pulse:
    """An engine's pulse, felt by `check`.

    `ask` makes the engine generate one token. `progress` is a number that is larger once it did more for anybody, so
    that one too busy to take up another request is not taken to hang. `cpu_seconds` is what its processes have computed
    altogether: a long prompt that is read in one step shows in nothing else.
    """

    def __init__(
        self,
        ask: Callable[[], Awaitable[None]],
        progress: Callable[[], float],
        cpu_seconds: Callable[[], float],
        *,
        limit_seconds: float,
        quiet_seconds: float = _QUIET_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask, self._progress, self._cpu_seconds, self._clock = ask, progress, cpu_seconds, clock
        self._limit_seconds, self._quiet_seconds = limit_seconds, quiet_seconds
        self._furthest, self._alive_at = progress(), clock()
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = 0.0
        self._worked_at, self._looked = 0.0, (0.0, 0.0)
        """When it was last seen to compute, and of the last look time and CPU seconds; while it is asked."""

    def check(self) -> None:
        """Returns at once; raises EngineFailed when the engine neither got further nor computed within the time limit.

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
                self._worked_at, self._looked = now, (now, self._cpu_seconds())
        else:
            self._check_silence(now)

    def _check_silence(self, now: float) -> None:
        (before, cpu_before), cpu = self._looked, self._cpu_seconds()
        self._looked = now, cpu
        if cpu - cpu_before > _WORKING_SHARE * (now - before):
            self._worked_at = now
        silent, limit = now - self._asked_at, self._limit_seconds
        if now - self._worked_at >= limit or silent >= limit * _LONGEST_WORK:
            how = "" if now - self._worked_at >= limit else ", though it computes"
            raise EngineFailed(f"the engine hangs: no token in {silent:.0f} s after it was asked for one{how}")

    async def _asked(self) -> None:
        with suppress(Exception):  # a refusal is an answer too
            await self._ask()


class Steps:
    """How often an engine got on, as vLLM tells those that record its statistics (`StatLoggerBase`) after each step.

    A step without tokens counts when the KV cache is filled otherwise than after the one before: a part of a long
    prompt was read. One that only finds nothing to do does not count.
    """

    def __init__(self) -> None:
        self.count = 0
        self._usage: dict[int, float] = {}

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        before = self._usage.get(engine_idx)
        if scheduler_stats is not None:
            self._usage[engine_idx] = scheduler_stats.kv_cache_usage
        if iteration_stats is not None or self._usage.get(engine_idx) != before:
            self.count += 1

    def log(self) -> None: ...

    def log_engine_initialized(self) -> None: ...

    def record_sleep_state(self, is_awake: int, level: int) -> None: ...


def cpu_seconds_of_children() -> float:
    """What the processes that this one started, and theirs, have computed; 0 of one that has just ended."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            used = process.cpu_times()
            total += used.user + used.system
    return total


def end_with_children() -> None:
    """End this process at once and those that it started: what hangs would listen to nothing milder."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    os._exit(1)
