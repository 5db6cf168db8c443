"""Four gateways and a quota that are killed again and again under 64 clients: what passed, what was refused, and what
came back."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import aiohttp
import httpx
import psutil
import pytest

from mosaic.platform import PlatformSettings
from mosaic.platform.settings import open_catalog
from mosaic.runtime import RaySettings
from mosaic.runtime.cluster import marked_processes
from mosaic.runtime.home import read_record
from tests.local import free_ports, local_settings, mosaic, write_settings

USERS, CLIENTS, LOAD_SECONDS, WINDOW = 16, 64, 80, 60.0
CALLS, TOKENS, USER_CALLS = 400, 16_000, 40
LIMITS = [{"calls": CALLS}, {"tokens": TOKENS}, {"calls": USER_CALLS, "key": "user"}]
GATEWAY, QUOTA = "ray::ServeReplica:gateway:", "ray::Shard"
SETTLED_SECONDS = 2.0
"""After an answer its settling has reached the quota, unless a kill came between."""


@dataclass
class Asked:
    """One request as its client saw it. Its reservation was made, if at all, between `sent` and `ended`."""

    user: int
    reserved: int
    """The tokens that it may have reserved."""
    sent: float
    ended: float
    status: int
    """0 for a connection that broke."""
    tokens: int = 0
    """As answered."""

    @property
    def may_have_taken(self) -> bool:
        return self.status not in (200, 429)


class Four(NamedTuple):
    """A platform of its own with four gateways, asked from outside: this process may have joined the Ray of another."""

    settings: PlatformSettings
    tokens: list[str]
    """Of each user."""


@pytest.fixture
def four(tmp_path: Path) -> Iterator[Four]:
    ray_settings = RaySettings(num_cpus=4, dashboard_port=free_ports(1)[0], object_store_memory_bytes=300_000_000)
    settings = local_settings(tmp_path / "root", gateway_replicas=4, ray=ray_settings)
    file = write_settings(settings, tmp_path / "settings.yaml")
    started = mosaic("up", "-f", str(file), timeout=300)
    try:
        assert started.returncode == 0, started.stderr
        catalog = open_catalog(settings)
        admin = catalog.create_token("admin", kind="user", is_admin=True)[1]
        tokens = [catalog.create_token(f"user-{n}", kind="user", is_admin=False)[1] for n in range(USERS)]
        catalog.close()
        make_endpoint(f"{settings.base_url}/api/2.0/serving-endpoints", admin)
        yield Four(settings, tokens)
    finally:
        mosaic("down", "-f", str(file))


def make_endpoint(url: str, admin: str) -> None:
    headers = {"authorization": f"Bearer {admin}"}
    entities = [{"name": "echo", "entity_name": "echo"}]
    told = {"name": "held", "config": {"served_entities": entities}, "ai_gateway": {"rate_limits": LIMITS}}
    made = httpx.post(url, json=told, headers=headers, timeout=60)
    assert made.status_code == 200, made.text
    deadline = time.monotonic() + 60
    while httpx.get(f"{url}/held", headers=headers, timeout=60).json()["state"]["ready"] != "READY":
        assert time.monotonic() < deadline, "the endpoint did not become ready"
        time.sleep(0.2)
    time.sleep(0.5)  # every gateway looks four times a second


@pytest.mark.faults
def test_limits_hold_while_gateways_and_quota_are_killed(four: Four) -> None:
    url = f"{four.settings.base_url}/v1/chat/completions"
    asked, kills = asyncio.run(load(four, url))
    answered = [one for one in asked if one.status == 200]
    refused = [one for one in asked if one.status == 429]
    broken = [one for one in asked if one.may_have_taken]
    assert len(kills[GATEWAY]) >= 4 and len(kills[QUOTA]) >= 3, kills
    assert len(answered) > CALLS / 2 and len(refused) > 50, (len(answered), len(refused), len(broken))
    assert len(broken) < len(asked) / 2, sorted({one.status for one in broken})

    assert most_in_a_window(answered, calls) <= CALLS
    assert most_in_a_window(answered, lambda one: one.tokens) <= TOKENS
    for user in range(USERS):
        assert most_in_a_window([one for one in answered if one.user == user], calls) <= USER_CALLS
    for one in random.Random(1).sample(refused, min(len(refused), 400)):
        assert_nothing_else_fitted(one, asked, kills[GATEWAY])

    # What the killed ones held has come back: a window later everything is free again.
    time.sleep(WINDOW + 1)
    left = asyncio.run(remaining(url, four.tokens[0]))
    assert left == (USER_CALLS - 1, TOKENS - size("word " * 3, 5)), left


def calls(_: Asked) -> int:
    return 1


def size(text: str, max_tokens: int) -> int:
    """What a request reserves."""
    return -(-len(text.encode()) // 3) + max_tokens


def most_in_a_window(requests: list[Asked], amount: Callable[[Asked], int]) -> int:
    """The most that was taken in any window, counting only requests which lie in it from beginning to end."""
    most = 0
    for first in requests:
        within = [one for one in requests if one.sent >= first.sent and one.ended < first.sent + WINDOW]
        most = max(most, sum(amount(one) for one in within))
    return most


def assert_nothing_else_fitted(refused: Asked, asked: list[Asked], gateway_kills: list[float]) -> None:
    """Some limit had no room for it, if all is counted that may have been taken at that time."""
    others = [
        one
        for one in asked
        if one is not refused and one.status != 429 and one.ended > refused.sent - WINDOW and one.sent < refused.ended
    ]
    own = sum(one.user == refused.user for one in others)
    tokens = sum(held(one, refused.sent, gateway_kills) for one in others)
    assert len(others) + 1 > CALLS or own + 1 > USER_CALLS or tokens + refused.reserved > TOKENS, (
        refused,
        len(others),
        own,
        tokens,
    )


def held(one: Asked, now: float, gateway_kills: list[float]) -> int:
    """The most tokens that a request may have counted for at that time."""
    was_cut = any(one.ended - 0.1 < kill < one.ended + SETTLED_SECONDS for kill in gateway_kills)
    is_settled = one.status == 200 and one.ended < now - SETTLED_SECONDS and not was_cut
    return one.tokens if is_settled else one.reserved


async def load(four: Four, url: str) -> tuple[list[Asked], dict[str, list[float]]]:
    asked: list[Asked] = []
    until = time.time() + LOAD_SECONDS
    connector = aiohttp.TCPConnector(limit=CLIENTS)
    async with aiohttp.ClientSession(connector=connector) as session:
        killing = asyncio.create_task(asyncio.to_thread(kill_now_and_then, four, until))
        clients = [client(session, url, four.tokens, number, until, asked) for number in range(CLIENTS)]
        await asyncio.gather(*clients)
        return asked, await killing


async def client(
    session: aiohttp.ClientSession, url: str, tokens: list[str], number: int, until: float, asked: list[Asked]
) -> None:
    draw, user = random.Random(number), number % USERS
    while time.time() < until:
        text, most = "word " * draw.randint(1, 40), draw.choice((5, 20, 60, 200))
        body = {"model": "held", "max_tokens": most, "messages": [{"role": "user", "content": text}]}
        one = Asked(user, size(text, most), time.time(), 0.0, 0)
        try:
            async with session.post(
                url, json=body, headers={"authorization": f"Bearer {tokens[user]}"}, timeout=aiohttp.ClientTimeout(30)
            ) as answer:
                told = await answer.json(content_type=None)
                one.status = answer.status
                if one.status == 200:
                    one.tokens = told["usage"]["total_tokens"]
        except (aiohttp.ClientError, TimeoutError, ValueError):
            one.status = 0
        one.ended = time.time()
        asked.append(one)
        await asyncio.sleep(draw.uniform(0.1, 0.5))


def kill_now_and_then(four: Four, until: float) -> dict[str, list[float]]:
    """A gateway about every five seconds, the quota about every eight; returns when."""
    record = read_record(four.settings.home_folder)
    assert record is not None
    draw, kills = random.Random(7), {GATEWAY: list[float](), QUOTA: list[float]()}
    due = {GATEWAY: time.time() + 2, QUOTA: time.time() + 5}
    every = {GATEWAY: 5.0, QUOTA: 8.0}
    while time.time() < until - 3:
        for kind in kills:
            if time.time() >= due[kind]:
                running = [one for one in marked_processes(record["platform_id"]) if is_kind(one, kind)]
                if running:
                    os.kill(draw.choice(running).pid, signal.SIGKILL)
                    kills[kind].append(time.time())
                due[kind] = time.time() + draw.uniform(0.5, 1.5) * every[kind]
        time.sleep(0.1)
    return kills


def is_kind(process: psutil.Process, kind: str) -> bool:
    try:
        return process.cmdline()[0].startswith(kind)
    except (psutil.Error, IndexError):
        return False


async def remaining(url: str, token: str) -> tuple[int, int]:
    body = {"model": "held", "max_tokens": 5, "messages": [{"role": "user", "content": "word " * 3}]}
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json=body, headers={"authorization": f"Bearer {token}"}) as answer,
    ):
        assert answer.status == 200, await answer.text()
        told = answer.headers
        return int(told["x-ratelimit-remaining-requests"]), int(told["x-ratelimit-remaining-tokens"])
