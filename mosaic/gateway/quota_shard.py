"""The quota as an actor: every command is in a local log before it is answered, so that `kill -9` forgets nothing.

Gateways send what has piled up while their last call was on its way, so one call carries many requests. A shard that
died is started again by Ray, reads what its windows still hold from the log, and is asked the same batch again, which
changes nothing the second time. A machine that is lost takes its log along: windows begin empty elsewhere, so for one
window's length as much again may pass.

Budgets are in the same actor and the same log. What they sum is older than the log, so every three minutes the sums and
what is held are written as a whole (`snapshot`), with the number of the last batch in it; the log goes on from there. A
machine that is lost takes that along too, and `rebuild` says anew what was spent: from the inference table.
"""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import ray
from deltalake.exceptions import DeltaError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mosaic.data.wal import SUFFIX, Log, read_segment
from mosaic.errors import MosaicError, Unavailable
from mosaic.gateway.quota import Answer, Ask, Left, Quota
from mosaic.gateway.quota_socket import Nearby, listen
from mosaic.gateway.spend import Charge, Spend, Standing, Verdict
from mosaic.storage.durable import write_file

CPUS = 0.02
_KEPT_SECONDS = 180
"""How far back the log is read and kept: what was taken before is in no window any more."""
_SEGMENT_BYTES = 4 * 1024 * 1024
_PATIENCE_SECONDS = 15
"""A shard that died is there again before that."""
_MONEY = ("hold", "hold_more", "pay")
_SNAPSHOT = "spend.json"
BUDGETS = "budgets"
"""The scope of all budgets, which span endpoints: one shard has them."""
KILL_POINTS = ("before-rebuild", "applied", "logged", "before-snapshot", "after-snapshot")
"""What a shard's `at` is told, for tests that kill it there."""


class Command(NamedTuple):
    """What a shard is told of one request."""

    verb: str
    """`reserve`, `extend` or `settle`, as the methods of `Quota`; `hold`, `hold_more` or `pay`, as those of `Spend`."""
    request_id: str
    asks: Sequence[Ask | Charge] = ()
    number: int = 0
    """Which extension it is; of `pay` the cost."""
    used: Mapping[str, int] = {}


Rebuild = Callable[[], Mapping[tuple[str, str], int]]
"""What was spent in the periods that run, by bucket and period."""
Reply = Answer | Verdict | Unavailable | None


class Shard:
    """A quota, accounts of budgets, and their log; times are the machine's, held so that they never go back."""

    def __init__(
        self,
        folder: Path,
        *,
        clock: Callable[[], float] = time.time,
        rebuild: Rebuild = dict,
        at: Callable[[str], None] = lambda point: None,
        listens: bool = False,
    ) -> None:
        """`listens`: be there by a socket too, for gateways on this machine."""
        self._folder, self._clock, self._rebuild, self._at = folder, clock, rebuild, at
        self._now, self._number = 0.0, 0
        self._quota, self._spend = Quota(), Spend()
        self._knows_spend = False
        """Whether the accounts are what was spent: from a snapshot, or rebuilt."""
        self._replay()
        self._log = Log(folder, owner="quota", max_segment_bytes=_SEGMENT_BYTES)
        self._tidied_at = self._now
        self._turn = threading.Lock()
        if listens:
            listen(folder, self.apply)

    def apply(self, commands: Sequence[Command]) -> list[Reply]:
        """In order; None for what has no answer. What is about money is answered with the reason while what was spent
        is not known."""
        with self._turn:
            return self._apply_all(commands)

    def _apply_all(self, commands: Sequence[Command]) -> list[Reply]:
        self._now = max(self._now, self._clock())
        away: Unavailable | None = None
        if not self._knows_spend and any(command.verb in _MONEY for command in commands):
            away = self._try_to_begin_anew()
        done = [away is None or command.verb not in _MONEY for command in commands]
        self._number += 1
        both = list(zip(commands, done, strict=True))
        answers = [self._apply(command, self._now) if is_done else away for command, is_done in both]
        self._at("applied")
        told = [list(command) for command, is_done in both if is_done]
        self._log.append({"now": self._now, "number": self._number, "commands": told})
        self._at("logged")
        if self._now - self._tidied_at > _KEPT_SECONDS:
            self._tidied_at = self._now
            self._tidy()
        return answers

    def buckets(self) -> int:
        """That somebody took from lately."""
        return len(self._quota.windows)

    def left(self, scope: str) -> dict[str, Left]:
        """How the buckets of an endpoint are that somebody took from lately."""
        with self._turn:
            self._now = max(self._now, self._clock())
            return self._quota.left(f"{scope} ", self._now)

    def standings(self, budgets: Sequence[tuple[str, int, str]]) -> list[Standing]:
        """How budgets are at this moment, each told as (bucket, limit, period)."""
        with self._turn:
            self._now = max(self._now, self._clock())
            if not self._knows_spend:
                self._begin_anew()
            return [self._spend.standing(*budget, self._now) for budget in budgets]

    def _apply(self, command: Command, now: float) -> Reply:
        request_id, asks = command.request_id, command.asks
        match command.verb:
            case "reserve":
                return self._quota.reserve(request_id, asks, now)  # type: ignore[arg-type]  # the verb says which
            case "extend":
                return self._quota.extend(request_id, command.number, asks, now)  # type: ignore[arg-type]
            case "hold":
                return self._spend.hold(request_id, asks, now)  # type: ignore[arg-type]
            case "hold_more":
                return self._spend.hold_more(request_id, command.number, asks, now)  # type: ignore[arg-type]
            case "pay":
                self._spend.pay(request_id, command.number)
            case _:
                self._quota.settle(request_id, command.used, now)
        return None

    def _replay(self) -> None:
        """Of the quota what is not too old to matter, of budgets what came after the snapshot."""
        snapshot = self._folder / _SNAPSHOT
        if snapshot.exists():
            kept = json.loads(snapshot.read_bytes())
            self._number, self._knows_spend = kept["number"], True
            self._spend.restore(kept["spend"])
        covered = self._number
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            for _, record in read_segment(path).records:
                row = record["row"]
                number = row.get("number", 0)  # those of a mosaic without budgets have none
                self._number = max(self._number, number)
                is_young = row["now"] > self._clock() - _KEPT_SECONDS
                if is_young or number > covered:
                    self._now = max(self._now, row["now"])
                for verb, request_id, asks, count, used in row["commands"]:
                    of_money = verb in _MONEY
                    if number > covered if of_money else is_young:
                        told: list[Ask | Charge] = [(Charge if of_money else Ask)(*ask) for ask in asks]
                        self._apply(Command(verb, request_id, told, count, used), self._now)
        self._tidy()

    def _try_to_begin_anew(self) -> Unavailable | None:
        try:
            self._begin_anew()
        except (MosaicError, OSError, DeltaError) as error:  # storage or the catalog is away, and comes back
            return Unavailable(f"what was spent of budgets is not known: {error}", code="quota_away")
        return None

    def _begin_anew(self) -> None:
        """Budgets begin here, or their machine is lost. Written down before the first request is held to it: else what
        is paid from now on would be counted by another beginning too."""
        self._at("before-rebuild")
        self._spend.put(self._rebuild(), self._now)
        self._knows_spend = True
        self._write_snapshot()

    def _write_snapshot(self) -> None:
        self._at("before-snapshot")
        state = {"number": self._number, "spend": self._spend.state()}
        write_file(self._folder / _SNAPSHOT, json.dumps(state, separators=(",", ":")).encode())
        self._at("after-snapshot")

    def _tidy(self) -> None:
        """The segment that is being written was written to lately; what else is removed is in the snapshot."""
        if self._knows_spend:
            self._write_snapshot()
        for path in self._folder.glob(f"*{SUFFIX}"):
            if path.stat().st_mtime < time.time() - 2 * _KEPT_SECONDS:
                path.unlink(missing_ok=True)


Apply = Callable[[Sequence[Command]], Awaitable[Sequence[Reply]]]
"""How a shard is reached."""


class QuotaClient:
    """A gateway's way to the shards. What a request takes from several buckets is one command to one shard: `scope`,
    which its buckets have in common (the endpoint), says to which.

    Raises Unavailable for a shard that does not answer: without an answer nothing is let through.
    """

    def __init__(self, shards: Sequence[Apply]) -> None:
        self._shards = [_Batches(apply) for apply in shards]

    async def reserve(self, scope: str, request_id: str, asks: Sequence[Ask]) -> Answer:
        answer: Answer = await self._of(scope).ask(Command("reserve", request_id, asks))
        return answer

    async def extend(self, scope: str, request_id: str, number: int, asks: Sequence[Ask]) -> Answer:
        answer: Answer = await self._of(scope).ask(Command("extend", request_id, asks, number))
        return answer

    def settle(self, scope: str, request_id: str, used: Mapping[str, int]) -> None:
        """Goes along with the next batch; nobody waits for it."""
        self._of(scope).tell(Command("settle", request_id, used=used))

    async def hold(self, request_id: str, charges: Sequence[Charge]) -> Verdict:
        verdict: Verdict = await self._of(BUDGETS).ask(Command("hold", request_id, charges))
        return verdict

    async def hold_more(self, request_id: str, number: int, charges: Sequence[Charge]) -> Verdict:
        verdict: Verdict = await self._of(BUDGETS).ask(Command("hold_more", request_id, charges, number))
        return verdict

    def pay(self, request_id: str, cost: int) -> None:
        """As `settle`."""
        self._of(BUDGETS).tell(Command("pay", request_id, number=cost))

    def _of(self, scope: str) -> "_Batches":
        return self._shards[shard_of(scope, len(self._shards))]


class _Batches:
    """Commands to one shard: while a call is on its way the next ones wait, and go together."""

    def __init__(self, apply: Apply) -> None:
        self._apply = apply
        self._waiting: list[tuple[Command, asyncio.Future[Any] | None]] = []
        self._sender: asyncio.Task[None] | None = None

    async def ask(self, command: Command) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._send(command, future)
        try:
            return await asyncio.wait_for(future, _PATIENCE_SECONDS)
        except TimeoutError:
            raise Unavailable(f"the quota did not answer within {_PATIENCE_SECONDS} s", code="quota_away") from None

    def tell(self, command: Command) -> None:
        self._send(command, None)

    def _send(self, command: Command, future: "asyncio.Future[Any] | None") -> None:
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
                if future is None or future.done() or answer is None:
                    continue
                if isinstance(answer, Unavailable):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
        self._sender = None


def shard_of(scope: str, count: int) -> int:
    """Which of so many has the buckets of a scope."""
    return crc32(scope.encode()) % count


def shard_name(number: int) -> str:
    """Of its actor."""
    return f"quota:{number}"


def ensure_shards(folder: Path, count: int = 1, *, rebuild: Rebuild = dict) -> list[Apply]:
    """The cluster's shards, started where they do not run yet; a shard comes back on its machine while that is there,
    since its log is there. `rebuild` travels to them."""
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
        own = folder / str(number)
        found.append(Nearby(own, options.remote(own, rebuild=rebuild, listens=True).apply.remote))
    return found
