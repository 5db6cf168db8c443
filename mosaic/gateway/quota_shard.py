"""The quota as an actor: every command is in a local log before it is answered, so that `kill -9` forgets nothing.

Gateways send what has piled up while their last call was on its way, so one call carries many requests. A shard that
died is started again by Ray, reads what its windows still hold from the log, and is asked the same batch again, which
changes nothing the second time. A machine that is lost takes its log along: windows begin empty elsewhere, so for one
window's length as much again may pass.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mosaic.data.wal import SUFFIX, Log, read_segment
from mosaic.errors import Unavailable
from mosaic.gateway.quota import Answer, Ask, Quota

CPUS = 0.02
_KEPT_SECONDS = 180
"""How far back the log is read and kept: what was taken before is in no window any more."""
_SEGMENT_BYTES = 4 * 1024 * 1024
_PATIENCE_SECONDS = 15
"""A shard that died is there again before that."""


class Command(NamedTuple):
    """What a shard is told of one request."""

    verb: str
    """`reserve`, `extend` or `settle`, as the methods of `Quota`."""
    request_id: str
    asks: Sequence[Ask] = ()
    number: int = 0
    used: Mapping[str, int] = {}


class Shard:
    """A quota and its log; times are the machine's, held so that they never go back."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._clock, self._now = folder, clock, 0.0
        self._quota = Quota()
        self._replay()
        self._log = Log(folder, owner="quota", max_segment_bytes=_SEGMENT_BYTES)
        self._tidied_at = self._now

    def apply(self, commands: Sequence[Command]) -> list[Answer | None]:
        """In order; None for what has no answer."""
        self._now = max(self._now, self._clock())
        answers = [_apply(self._quota, command, self._now) for command in commands]
        self._log.append({"now": self._now, "commands": [list(command) for command in commands]})
        if self._now - self._tidied_at > _KEPT_SECONDS:
            self._tidied_at = self._now
            self._tidy()
        return answers

    def buckets(self) -> int:
        """That somebody took from lately."""
        return len(self._quota.windows)

    def _replay(self) -> None:
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            for _, record in read_segment(path).records:
                row = record["row"]
                if row["now"] > self._clock() - _KEPT_SECONDS:
                    self._now = max(self._now, row["now"])
                    for verb, request_id, asks, number, used in row["commands"]:
                        told = Command(verb, request_id, [Ask(*ask) for ask in asks], number, used)
                        _apply(self._quota, told, self._now)
        self._tidy()

    def _tidy(self) -> None:
        """The segment that is being written was written to lately."""
        for path in self._folder.glob(f"*{SUFFIX}"):
            if path.stat().st_mtime < time.time() - 2 * _KEPT_SECONDS:
                path.unlink(missing_ok=True)


def _apply(quota: Quota, command: Command, now: float) -> Answer | None:
    if command.verb == "reserve":
        return quota.reserve(command.request_id, command.asks, now)
    if command.verb == "extend":
        return quota.extend(command.request_id, command.number, command.asks, now)
    quota.settle(command.request_id, command.used, now)
    return None


Apply = Callable[[Sequence[Command]], Awaitable[Sequence[Answer | None]]]
"""How a shard is reached."""


class QuotaClient:
    """A gateway's way to the shards. What a request takes from several buckets is one command to one shard: `scope`,
    which its buckets have in common (the endpoint), says to which.

    Raises Unavailable for a shard that does not answer: without an answer nothing is let through.
    """

    def __init__(self, shards: Sequence[Apply]) -> None:
        self._shards = [_Batches(apply) for apply in shards]

    async def reserve(self, scope: str, request_id: str, asks: Sequence[Ask]) -> Answer:
        return await self._of(scope).ask(Command("reserve", request_id, asks))

    async def extend(self, scope: str, request_id: str, number: int, asks: Sequence[Ask]) -> Answer:
        return await self._of(scope).ask(Command("extend", request_id, asks, number))

    def settle(self, scope: str, request_id: str, used: Mapping[str, int]) -> None:
        """Goes along with the next batch; nobody waits for it."""
        self._of(scope).tell(Command("settle", request_id, used=used))

    def _of(self, scope: str) -> "_Batches":
        return self._shards[crc32(scope.encode()) % len(self._shards)]


class _Batches:
    """Commands to one shard: while a call is on its way the next ones wait, and go together."""

    def __init__(self, apply: Apply) -> None:
        self._apply = apply
        self._waiting: list[tuple[Command, asyncio.Future[Answer] | None]] = []
        self._sender: asyncio.Task[None] | None = None

    async def ask(self, command: Command) -> Answer:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._send(command, future)
        try:
            return await asyncio.wait_for(future, _PATIENCE_SECONDS)
        except TimeoutError:
            raise Unavailable(f"the quota did not answer within {_PATIENCE_SECONDS} s", code="quota_away") from None

    def tell(self, command: Command) -> None:
        self._send(command, None)

    def _send(self, command: Command, future: "asyncio.Future[Answer] | None") -> None:
        self._waiting.append((command, future))
        if self._sender is None:
            self._sender = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while self._waiting:
            # Without those that nobody waits for any more: they would take from windows what never runs.
            batch = [one for one in self._waiting if one[1] is None or not one[1].done()]
            self._waiting = []
            if not batch:
                break
            try:
                answers = await self._apply([command for command, _ in batch])
            except Exception as error:  # handed on to everybody who waits for it
                for _, future in batch:
                    if future is not None and not future.done():
                        future.set_exception(Unavailable(f"the quota is away: {error}", code="quota_away"))
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                if future is not None and not future.done() and answer is not None:
                    future.set_result(answer)
        self._sender = None


def shard_name(number: int) -> str:
    """Of its actor."""
    return f"quota:{number}"


def ensure_shards(folder: Path, count: int = 1) -> list[Apply]:
    """The cluster's shards, started where they do not run yet; a shard comes back on its machine while that is there,
    since its log is there."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    found: list[Apply] = []
    for number in range(count):
        options = ray.remote(Shard).options(
            name=shard_name(number),
            namespace="mosaic",
            lifetime="detached",
            get_if_exists=True,
            num_cpus=CPUS,
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy=here,
        )
        found.append(options.remote(folder / str(number)).apply.remote)
    return found
