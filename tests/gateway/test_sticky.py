"""A split in which users keep their arms: shares hold, few move when shares change, and rows say for whom it was
drawn."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.errors import BadRequest
from mosaic.gateway.sticky import arm_of, unit_of
from mosaic.serving.endpoint import EndpointSettings
from tests.gateway.inside import door

UNITS = [unit_of("main.serving.e", f"user-{number}", None) for number in range(4000)]


@dataclass(frozen=True)
class Arm:
    name: str
    traffic_percentage: int


def arms(**shares: int) -> list[Arm]:
    return [Arm(name, share) for name, share in shares.items()]


def of(served: list[Arm]) -> list[str]:
    return [arm_of(served, unit).name for unit in UNITS]


SHARES = st.lists(st.integers(0, 100), min_size=1, max_size=5).filter(any)


@settings(max_examples=25, deadline=None)
@given(SHARES, st.randoms())
def test_shares_hold_in_whatever_order_the_arms_stand(shares: list[int], random: object) -> None:
    served = [Arm(f"arm-{number}", share) for number, share in enumerate(shares)]
    drawn = of(served)
    for arm in served:
        share = arm.traffic_percentage / sum(shares)
        # six standard deviations of a binomial
        assert abs(drawn.count(arm.name) - len(UNITS) * share) <= 6 * (len(UNITS) * share * (1 - share)) ** 0.5
    random.shuffle(served)  # type: ignore[attr-defined]
    assert of(served) == drawn


@settings(max_examples=25, deadline=None)
@given(SHARES, st.integers(0, 4), st.integers(1, 100))
def test_an_arm_that_grows_only_gains_and_nobody_else_changes_places(shares: list[int], which: int, more: int) -> None:
    grown = which % len(shares)
    served = [Arm(f"arm-{number}", share) for number, share in enumerate(shares)]
    then = [Arm(one.name, one.traffic_percentage + more * (n == grown)) for n, one in enumerate(served)]
    for before, after in zip(of(served), of(then), strict=True):
        assert after in (before, f"arm-{grown}")


def test_from_90_10_to_80_20_a_tenth_of_the_users_moves() -> None:
    before, after = of(arms(a=90, b=10)), of(arms(a=80, b=20))
    moved = [one for one in zip(before, after, strict=True) if one[0] != one[1]]
    assert set(moved) == {("a", "b")}
    assert 0.07 < len(moved) / len(UNITS) < 0.13
    assert of(arms(a=100, b=0)) == ["a"] * len(UNITS)


def test_experiments_and_users_of_different_principals_are_apart() -> None:
    both = [(unit_of("one", f"u{n}", None), unit_of("two", f"u{n}", None)) for n in range(2000)]
    half = arms(a=50, b=50)
    same = sum(arm_of(half, left).name == arm_of(half, right).name for left, right in both)
    assert 850 < same < 1150
    assert len({unit_of("e", "ann", None), unit_of("e", "bob", None), unit_of("e", "bob", "ann")}) == 3
    assert unit_of("e", "a", 'b","c') != unit_of("e", 'a","b', "c")


def test_each_user_is_answered_by_the_same_arm_and_the_row_says_so(tmp_path: Path) -> None:
    async def ask() -> None:
        async with door(tmp_path) as gateway:
            halves = [{"name": name, "model": "echo", "traffic_percentage": 50} for name in "ab"]
            gateway.put("split", *halves, sticky="user")
            for _ in range(5):
                for user in ("u1", "u2", "u3", "u4", "u5", "u6", "u7", "u8", None):
                    assert (await gateway.ask("split", user=user)).status_code == 200
            kept = [(row["randomization_unit"], row["served_entity"]) for row in gateway.rows]
            assert len(set(kept)) == 9 and {arm for _, arm in kept} == {"a", "b"}
            gateway.put("split", *halves)
            for _ in range(20):
                await gateway.ask("split", user="u1")
            rows = gateway.rows[-20:]
            assert {row["served_entity"] for row in rows} == {"a", "b"}
            assert not any("randomization_unit" in row for row in rows)

    asyncio.run(ask())


def test_another_word_is_refused_with_what_there_is() -> None:
    echo = [{"name": "echo", "model": "echo"}]
    with pytest.raises(BadRequest, match=r"sticky.*'random' or 'user'"):
        EndpointSettings.parse({"name": "e", "served_entities": echo, "sticky": "ip"})
