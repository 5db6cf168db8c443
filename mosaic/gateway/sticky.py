"""A split in which a user keeps its arm: weighted rendezvous hashing.

Each arm draws a number for each user, from a hash of both, exponentially distributed with the arm's share as its rate;
the smallest wins (Thaler and Ravishankar 1998; with weights, as in Schindelhauer and Schomaker 2005). So an arm has its
share of users, whatever the others are called and in whatever order they stand, and a share that grows takes users from
others without those changing places among themselves: from 90/10 to 80/20 a tenth of the users moves, all to
the second.
"""

import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol, TypeVar

import orjson


class Arm(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def traffic_percentage(self) -> int: ...


AnyArm = TypeVar("AnyArm", bound=Arm)


def unit_of(endpoint: str, principal: str, user: str | None) -> str:
    """Whom a draw is for, as rows have it: a principal, or its `user` where the request says one, who keeps its arm
    also from others of that principal.

    Different for each endpoint, so that the groups of two experiments have nothing to do with each other.
    """
    return blake2b(orjson.dumps([endpoint, principal, user]), digest_size=8).hexdigest()


def arm_of(arms: Sequence[AnyArm], unit: str) -> AnyArm:
    """The arm that a unit keeps. One without a share is nobody's."""
    return min((arm for arm in arms if arm.traffic_percentage), key=lambda arm: _waiting_time(arm, unit))


def _waiting_time(arm: Arm, unit: str) -> float:
    drawn = int.from_bytes(blake2b(f"{unit} {arm.name}".encode(), digest_size=8).digest())
    return -math.log((drawn + 1) / 2**64) / arm.traffic_percentage
