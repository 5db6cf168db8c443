"""What the quota's actor spends on a request that is held to one rate limit, and on one that is held to one budget.

    python -m benchmarks.budgets

CPU of the process, in batches of 32 as gateways under load send them, with the log written; and how long it takes to
write the sums as a whole, and to take them up again, for many users who each have a budget of their own.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mosaic.gateway.quota import Ask
from mosaic.gateway.quota_shard import Command, Shard
from mosaic.gateway.spend import Charge

ROUNDS, REQUESTS, BATCH, USERS = 5, 6_400, 32, 10_000


def main() -> None:
    limit, budget = Ask("helper user ann calls", 10**9, 1), Charge("bud_1", 10**15, 1_000, "month")
    kinds: dict[str, tuple[Callable[[str], Command], Callable[[str], Command]]] = {
        "a rate limit": (lambda one: Command("reserve", one, [limit]), lambda one: Command("settle", one)),
        "a budget": (lambda one: Command("hold", one, [budget]), lambda one: Command("pay", one, number=900)),
    }
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(ROUNDS):
        for kind, (before, after) in kinds.items():
            taken[kind].append(request_microseconds(before, after))
    for kind, found in taken.items():
        print(f"{kind}: {told(found)} us of CPU a request")
    written, read = zip(*(snapshot_milliseconds() for _ in range(ROUNDS)), strict=True)
    print(f"{USERS:,} users' sums: written in {told(written)} ms, read in {told(read)} ms")


def request_microseconds(before: Callable[[str], Command], after: Callable[[str], Command]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        shard, started = Shard(Path(folder)), time.process_time()
        for batch in range(REQUESTS // BATCH):
            requests = [f"req_{batch}_{number}" for number in range(BATCH)]
            shard.apply([before(one) for one in requests])
            shard.apply([after(one) for one in requests])
        return (time.process_time() - started) / REQUESTS * 1e6


def snapshot_milliseconds() -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        now = [1_800_000_000.0]
        shard = Shard(Path(folder), clock=lambda: now[0])
        for number in range(USERS):
            one = f"req_{number}"
            shard.apply([Command("hold", one, [Charge(f"bud_1 user{number}", 10**9, 10, "month")])])
            shard.apply([Command("pay", one, number=9)])
        now[0] += 1_000
        started = time.perf_counter()
        shard.apply([Command("hold", "last", [Charge("bud_1 user0", 10**9, 10, "month")])])
        written = time.perf_counter() - started
        for path in Path(folder).glob("*.log"):
            path.unlink()
        started = time.perf_counter()
        Shard(Path(folder), clock=lambda: now[0])
        return written * 1e3, (time.perf_counter() - started) * 1e3


def told(found: Sequence[float]) -> str:
    return f"{statistics.median(found):.1f} ({min(found):.1f} to {max(found):.1f})"


if __name__ == "__main__":
    main()
