"""Limits as windows: never over in any minute, refused only where it does not fit, nothing kept by a crash."""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.errors import Unavailable
from mosaic.gateway.quota import Answer, Ask, Quota
from mosaic.gateway.quota_shard import Command, QuotaClient, Shard

LIMIT, WINDOW = 100, 60.0


def ask(amount: int, bucket: str = "b", limit: int = LIMIT) -> Ask:
    return Ask(bucket, limit, amount, WINDOW)


def test_what_fits_is_granted_and_what_is_left_is_told() -> None:
    quota = Quota()
    answer = quota.reserve("r1", [ask(30)], 10.0)
    assert answer.granted and answer.left["b"] == (LIMIT, 70, WINDOW)
    refused = quota.reserve("r2", [ask(71)], 20.0)
    assert not refused.granted and refused.refused_by == "b" and refused.retry_after_seconds == 50.0
    assert quota.reserve("r3", [ask(71)], 70.0).granted
    assert quota.reserve("r4", [ask(101)], 70.0).retry_after_seconds is None


def test_several_buckets_are_all_or_nothing() -> None:
    quota = Quota()
    refused = quota.reserve("r1", [ask(10, "free"), ask(11, "tight", 10)], 0.0)
    assert refused.refused_by == "tight" and refused.retry_after_seconds is None
    assert quota.reserve("r2", [ask(LIMIT, "free")], 0.0).granted


def test_the_same_request_is_counted_once() -> None:
    quota = Quota()
    assert quota.reserve("r1", [ask(60)], 0.0) == quota.reserve("r1", [ask(60)], 1.0)
    assert quota.extend("r1", 1, [ask(20)], 2.0) == quota.extend("r1", 1, [ask(20)], 3.0)
    quota.settle("r1", {"b": 50}, 4.0)
    quota.settle("r1", {"b": 99}, 5.0)
    assert quota.reserve("r2", [ask(50)], 6.0).granted and not quota.reserve("r3", [ask(1)], 6.0).granted


def test_what_was_not_used_comes_back_and_what_was_used_beyond_it_counts() -> None:
    quota = Quota()
    quota.reserve("r1", [ask(100)], 0.0)
    quota.settle("r1", {"b": 40}, 5.0)
    assert quota.reserve("r2", [ask(60)], 5.0).granted
    quota.settle("r2", {"b": 90}, 6.0)
    assert quota.reserve("r3", [ask(1)], 6.0).retry_after_seconds == 54.0  # when what r1 used has left
    assert quota.reserve("r4", [ask(70)], 65.0).granted  # of r2 the 30 beyond its reservation still count


def test_what_was_used_beyond_the_reservation_counts_also_after_its_window() -> None:
    quota = Quota()
    quota.reserve("slow", [ask(10)], 0.0)
    for second in range(61, 70):  # the window has passed, and is forgotten
        quota.reserve(f"r{second}", [ask(1, "another")], float(second))
    assert "b" not in quota.windows
    quota.settle("slow", {"b": 500}, 70.0)
    assert quota.reserve("next", [ask(1)], 71.0).retry_after_seconds == 59.0


def test_memory_follows_what_goes_on() -> None:
    quota = Quota()
    for number in range(5_000):
        quota.reserve(f"r{number}", [ask(1, f"b{number}")], float(number))
    assert len(quota._requests) < 1_000 and len(quota.windows) < 200


Event = tuple[str, float, int]
events = st.lists(
    st.tuples(st.sampled_from(["reserve", "extend", "settle"]), st.floats(0, 30), st.integers(0, 120)), max_size=80
)


@given(events, st.randoms(use_true_random=False))
def test_no_window_ever_holds_more_than_the_limit_and_nothing_is_refused_that_fits(
    told: list[Event], draw: random.Random
) -> None:
    """Against the list of all that was granted, summed anew each time."""
    quota, now = Quota(), 0.0
    granted: list[list[Any]] = []  # [time, amount, request]
    running: dict[str, int] = {}
    for number, (verb, pause, amount) in enumerate(told):
        now += pause
        there = sum(part[1] for part in granted if part[0] > now - WINDOW)
        if verb == "reserve":
            answer = quota.reserve(f"r{number}", [ask(amount)], now)
            request = f"r{number}"
        elif running and verb == "extend":
            request = draw.choice(list(running))
            running[request] += 1
            answer = quota.extend(request, running[request], [ask(amount)], now)
            running[request] -= not answer.granted
        elif running:
            request = draw.choice(list(running))
            del running[request]
            mine = [part for part in granted if part[2] == request]
            used = min(amount, sum(part[1] for part in mine))
            quota.settle(request, {"b": used}, now)
            unused = sum(part[1] for part in mine) - used
            for part in reversed(mine):
                back = min(part[1], unused)
                part[1], unused = part[1] - back, unused - back
            continue
        else:
            continue
        assert answer.granted == (there + amount <= LIMIT)
        if answer.granted:
            granted.append([now, amount, request])
            running.setdefault(request, 0)
    for start, _, _ in granted:
        assert sum(part[1] for part in granted if start <= part[0] < start + WINDOW) <= LIMIT


def restarting(folder: Path, draw: random.Random, *, dies: float) -> Any:
    """A shard as Ray keeps it: it may die before or after a batch, and is then asked the same batch again."""
    shards = [Shard(folder)]

    async def apply(commands: Sequence[Command]) -> Sequence[Answer | None]:
        while True:
            await asyncio.sleep(0)
            if draw.random() < dies:
                if draw.random() < 0.5:
                    shards[0].apply(commands)
                shards[0] = Shard(folder)  # the one before is not asked any more, as one that was killed
                continue
            return shards[0].apply(commands)

    return apply


@pytest.mark.parametrize("dies", [0.0, 0.3])
def test_many_clients_of_several_gateways_share_one_limit(tmp_path: Path, dies: float) -> None:
    draw = random.Random(7)

    async def run() -> None:
        apply = [restarting(tmp_path / str(number), draw, dies=dies) for number in range(2)]
        gateways = [QuotaClient(apply) for _ in range(4)]
        for scope in ("a", "b", "c"):
            asks = [ask(1, f"{scope} calls", 40), ask(10, f"{scope} tokens", 1_000), ask(1, f"{scope} user", 500)]
            asked = (gateways[n % 4].reserve(scope, f"{scope}{n}", asks) for n in range(200))
            answers = await asyncio.gather(*asked)
            granted = [n for n, answer in enumerate(answers) if answer.granted]
            assert len(granted) == 40
            for n in granted[:10]:
                gateways[n % 4].settle(scope, f"{scope}{n}", {f"{scope} tokens": 1})
            for n, gateway in enumerate(gateways):  # what settles goes before what each asks next
                left = await gateway.reserve(scope, f"{scope} last {n}", [ask(0, f"{scope} tokens", 1_000)])
            assert left.left[f"{scope} tokens"].remaining == 1_000 - 30 * 10 - 10

    asyncio.run(asyncio.wait_for(run(), 30))


def test_who_left_before_it_was_asked_takes_nothing(tmp_path: Path) -> None:
    shard, told = Shard(tmp_path), list[Command]()
    go = asyncio.Event()

    async def apply(commands: Sequence[Command]) -> Sequence[Answer | None]:
        await go.wait()
        told.extend(commands)
        return shard.apply(commands)

    async def run() -> None:
        client = QuotaClient([apply])
        first = asyncio.create_task(client.reserve("a", "r1", [ask(1)]))
        await asyncio.sleep(0)
        left = asyncio.create_task(client.reserve("a", "r2", [ask(50)]))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.sleep(0)
        go.set()
        assert (await first).granted
        assert (await client.reserve("a", "r3", [ask(0)])).left["b"].remaining == LIMIT - 1
        assert [command.request_id for command in told] == ["r1", "r3"]

    asyncio.run(run())


def test_a_shard_that_is_away_lets_nothing_through() -> None:
    async def away(commands: Sequence[Command]) -> Sequence[Answer | None]:
        raise ConnectionError("no such actor")

    async def run() -> None:
        client = QuotaClient([away])
        with pytest.raises(Unavailable, match="no such actor"):
            await client.reserve("a", "r1", [ask(1)])

    asyncio.run(run())
