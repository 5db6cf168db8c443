"""Accounts of budgets: never passed, nothing kept by a crash, nothing counted twice, whatever is killed when."""

import asyncio
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.errors import Unavailable
from mosaic.gateway.quota import FORGET_SECONDS, Ask
from mosaic.gateway.quota_shard import KILL_POINTS, Command, QuotaClient, Shard
from mosaic.gateway.spend import Charge, Spend

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()
DAY = 86_400.0
LIMIT = 100


def charge(amount: int, bucket: str = "b", limit: int = LIMIT, period: str = "day") -> Charge:
    return Charge(bucket, limit, amount, period)


def test_what_fits_is_held_and_paying_puts_the_cost_in_its_place() -> None:
    spend = Spend()
    assert spend.hold("r1", [charge(60)], NOON).granted
    refused = spend.hold("r2", [charge(41)], NOON)
    assert refused.refused_by == "b" and not refused.is_spent and refused.standings["b"].held == 60
    spend.pay("r1", 70)
    refused = spend.hold("r3", [charge(31)], NOON)
    assert refused.is_spent and refused.standings["b"][:3] == (LIMIT, 70, 0)
    assert spend.hold("r4", [charge(30)], NOON).granted


def test_of_a_spent_budget_not_even_nothing_is_given() -> None:
    spend = Spend()
    assert spend.hold("r1", [charge(0)], NOON).granted
    spend.pay("r1", 150)
    assert spend.hold("r2", [charge(0)], NOON).is_spent
    assert spend.hold("r3", [charge(0, limit=0)], NOON).is_spent


def test_all_budgets_or_none() -> None:
    spend = Spend()
    assert spend.hold("r1", [charge(10, "wide"), charge(10, "tight", 5)], NOON).refused_by == "tight"
    assert spend.hold("r2", [charge(LIMIT, "wide")], NOON).granted


def test_calendar_periods_renew_and_a_request_stays_in_its_own() -> None:
    spend, midnight = Spend(), NOON + DAY / 2
    both = [charge(40), charge(40, "m", period="month")]
    assert spend.hold("r1", both, midnight - 1).granted
    told = spend.hold("r2", both, midnight)  # the 1st of February
    assert told.granted and told.standings["b"].renews_at == midnight + DAY
    assert told.standings["m"].renews_at == midnight + 28 * DAY and told.standings["m"].held == 40
    assert spend.hold_more("r1", 1, both, midnight + 1).granted
    spend.pay("r1", 90)
    assert spend.standing("b", LIMIT, "day", midnight + 2)[:3] == (LIMIT, 0, 40)
    assert spend.standing("b", LIMIT, "day", midnight - 1)[:3] == (LIMIT, 90, 0)


def test_who_never_pays_gives_back_what_it_held() -> None:
    spend = Spend()
    spend.hold("lost", [charge(LIMIT)], NOON)
    assert not spend.hold("r1", [charge(1)], NOON + FORGET_SECONDS - 1).granted
    assert spend.hold("r2", [charge(1)], NOON + FORGET_SECONDS).granted
    spend.pay("lost", 50)
    assert spend.standing("b", LIMIT, "day", NOON).spent == 0


def test_accounts_of_periods_that_are_over_go() -> None:
    spend = Spend()
    for number in range(400):
        spend.hold(f"r{number}", [charge(1)], NOON + number * DAY)
        spend.pay(f"r{number}", 1)
    assert len(spend._accounts) < 5


Told = tuple[str, float, int, int]
told = st.lists(
    st.tuples(
        st.sampled_from(["hold", "hold", "hold_more", "pay", "again"]),
        st.sampled_from([0.0, 1.0, 400.0, 30_000.0]),
        st.integers(0, 60),
        st.integers(0, 3),
    ),
    max_size=60,
)


class Oracle:
    """The same by a list of all that ever happened, summed anew each time."""

    def __init__(self) -> None:
        self.parts: list[dict[str, Any]] = []

    def room(self, bucket: str, period: str, at: float, *, held: bool) -> int:
        day = datetime.fromtimestamp(at, UTC)
        same = [
            one
            for one in self.parts
            if one["bucket"] == bucket
            and (began := datetime.fromtimestamp(one["began"], UTC)).month == day.month
            and (period == "month" or began.date() == day.date())
        ]
        return LIMIT - sum(one["amount"] for one in same if held or one["paid"])

    def forget(self, now: float) -> None:
        self.parts = [one for one in self.parts if one["paid"] or one["began"] > now - FORGET_SECONDS]


@given(told, st.integers(0, 2**32))
def test_against_the_sum_of_all_that_happened_with_a_kill_at_any_command(events: list[Told], seed: int) -> None:
    """Every decision is the oracle's, also by accounts that were put down as JSON and taken up again, and whatever is
    asked twice."""
    draw, spend, oracle, now = random.Random(seed), Spend(), Oracle(), NOON
    running: dict[str, int] = {}
    buckets = [("a", "day"), ("b", "month"), ("c", "day")]
    last: tuple[str, tuple[Any, ...]] | None = None
    for number, (verb, pause, amount, which) in enumerate(events):
        now += pause
        if draw.random() < 0.2:
            state, spend = spend.state(), Spend()
            spend.restore(state)
        if verb == "again" and last is not None:
            name, arguments = last
            again = getattr(spend, name)(*arguments)
            assert again is None or again.granted
        elif verb == "hold":
            oracle.forget(now)
            running = {one: n for one, n in running.items() if any(part["id"] == one for part in oracle.parts)}
            mine = [buckets[0], buckets[1 + which % 2]] if which < 2 else [buckets[which % 3]]
            charges = [Charge(bucket, LIMIT, amount, period) for bucket, period in mine]
            verdict = spend.hold(f"r{number}", charges, now)
            rooms = {bucket: oracle.room(bucket, period, now, held=False) for bucket, period in mine}
            spent = any(room <= 0 or amount > room for room in rooms.values())
            fits = all(amount <= oracle.room(bucket, period, now, held=True) for bucket, period in mine)
            assert (verdict.granted, verdict.is_spent) == (fits and not spent, spent)
            if verdict.granted:
                running[f"r{number}"] = 0
                oracle.parts += [
                    {"id": f"r{number}", "bucket": bucket, "began": now, "amount": amount, "paid": False, "p": period}
                    for bucket, period in mine
                ]
                last = ("hold", (f"r{number}", charges, now))
        elif verb == "hold_more" and running:
            request = draw.choice(list(running))
            parts = [one for one in oracle.parts if one["id"] == request]
            began = parts[0]["began"]
            charges = [Charge(one["bucket"], LIMIT, amount, one["p"]) for one in parts]
            fits = all(
                amount <= oracle.room(one["bucket"], one["p"], began, held=True)
                and oracle.room(one["bucket"], one["p"], began, held=False) > 0
                for one in parts
            )
            verdict = spend.hold_more(request, running[request] + 1, charges, now)
            assert verdict.granted == fits
            if fits:
                running[request] += 1
                for one in parts:
                    one["amount"] += amount
                last = ("hold_more", (request, running[request], charges, now))
        elif verb == "pay" and running:
            request = draw.choice(list(running))
            del running[request]
            spend.pay(request, amount)
            for one in oracle.parts:
                if one["id"] == request:
                    one["amount"], one["paid"] = amount, True
            last = ("pay", (request, amount))
        for bucket, period in buckets:
            standing = spend.standing(bucket, LIMIT, period, now)
            assert standing.spent == LIMIT - oracle.room(bucket, period, now, held=False)
            assert standing.spent + standing.held == LIMIT - oracle.room(bucket, period, now, held=True)


class Killed(Exception):
    """Where a real shard would be gone."""


class Dying:
    """A shard that is killed at named points by chance, taken up again, and asked the same again, as Ray does."""

    def __init__(self, folder: Path, draw: random.Random, *, dies: float) -> None:
        self._folder, self._draw, self._dies = folder, draw, dies
        self.now, self.hit, self.rebuilt = NOON, set[str](), 0
        self.shard = self._start()

    def _start(self) -> Shard:
        while True:
            try:
                return Shard(self._folder, clock=lambda: self.now, rebuild=self._rebuild, at=self._at)
            except Killed:
                continue

    def _rebuild(self) -> dict[tuple[str, str], int]:
        self.rebuilt += 1
        return {("before", "month"): 7}

    def _at(self, point: str) -> None:
        if self._dies and (point not in self.hit or self._draw.random() < self._dies):
            self.hit.add(point)
            raise Killed(point)

    async def apply(self, commands: Sequence[Command]) -> Any:
        while True:
            try:
                return self.shard.apply(commands)
            except Killed:
                self.shard = self._start()


@pytest.mark.parametrize("dies", [0.0, 0.1])
def test_a_killed_shard_counts_everything_once_however_old_its_log_is(tmp_path: Path, dies: float) -> None:
    draw = random.Random(5)
    dying = Dying(tmp_path, draw, dies=dies)
    expected = 0

    async def run() -> None:
        nonlocal expected
        gateways = [QuotaClient([dying.apply]) for _ in range(4)]
        for batch in range(12):
            dying.now += 200  # past what the log is read back for, so that sums come from snapshots
            asked = [
                (n, f"{batch} {n}", gateways[n % 4].hold(f"{batch} {n}", [charge(1, "all", 10_000, "month")]))
                for n in range(20)
            ]
            for (n, request, _), verdict in zip(asked, await asyncio.gather(*(one[2] for one in asked)), strict=True):
                assert verdict.granted
                gateways[n % 4].pay(request, n)
                gateways[n % 4].pay(request, n)
                expected += n
            for n, gateway in enumerate(gateways):  # what pays goes before what each asks next
                await gateway.hold_more(f"{batch} end {n}", 1, [charge(0, "other", 1, "month")])

    asyncio.run(asyncio.wait_for(run(), 60))
    standing, before = dying.shard.standings([("all", 10_000, "month"), ("before", 100, "month")])
    assert (standing.spent, standing.held, before.spent) == (expected, 0, 7)
    if dies:
        assert dying.hit == set(KILL_POINTS), f"not killed at {set(KILL_POINTS) - dying.hit}"
    else:
        assert dying.rebuilt == 1


def test_old_segments_go_and_the_sums_stay(tmp_path: Path) -> None:
    now = [NOON]
    shard = Shard(tmp_path, clock=lambda: now[0])
    shard.apply([Command("hold", "r1", [charge(10)]), Command("pay", "r1", number=10)])
    now[0] += 200
    shard.apply([Command("hold", "r2", [charge(5)])])
    for path in tmp_path.glob("*.log"):
        path.unlink()
    again = Shard(tmp_path, clock=lambda: now[0])
    assert again.standings([("b", LIMIT, "day")])[0][1:3] == (10, 5)


def test_a_lost_machine_begins_with_what_was_spent_and_one_that_cannot_know_lets_nothing_through(
    tmp_path: Path,
) -> None:
    shard = Shard(tmp_path / "new", clock=lambda: NOON, rebuild=lambda: {("b", "day"): 95})
    (told,) = shard.apply([Command("hold", "r1", [charge(6)])])
    assert told is not None and not told.granted
    assert shard.apply([Command("pay", "of before", number=50)]) == [None]  # it is in what was rebuilt, or will be
    assert shard.standings([("b", LIMIT, "day")])[0].spent == 95

    def away() -> dict[tuple[str, str], int]:
        raise Unavailable("storage is away")

    blind = Shard(tmp_path / "blind", clock=lambda: NOON, rebuild=away)

    async def run() -> None:
        async def apply(commands: Sequence[Command]) -> Any:
            return blind.apply(commands)

        client = QuotaClient([apply])
        for number in range(2):  # rate limits need no money, also in the same batch
            limit = client.reserve("e", f"r{number}", [Ask("e calls", 2, 1)])
            told = await asyncio.gather(limit, client.hold(f"r{number}", [charge(6)]), return_exceptions=True)
            assert told[0].granted and isinstance(told[1], Unavailable), told  # type: ignore[union-attr]
            assert "storage is away" in told[1].message

    asyncio.run(run())
    again = Shard(tmp_path / "blind", clock=lambda: NOON)
    assert again.standings([("b", LIMIT, "day")])[0][1:3] == (0, 0)
    assert again.left("e")["e calls"].remaining == 0


def test_a_log_of_a_version_without_budgets_is_read(tmp_path: Path) -> None:
    shard = Shard(tmp_path, clock=lambda: NOON)
    shard._log.append({"now": NOON, "commands": [["reserve", "r1", [["e", 1, 1, 60.0]], 0, {}]]})
    again = Shard(tmp_path, clock=lambda: NOON + timedelta(seconds=1).total_seconds())
    (told,) = again.apply([Command("reserve", "r2", [Ask("e", 1, 1)])])
    assert told is not None and not told.granted
