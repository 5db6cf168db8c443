"""The short way to a shard: as the long one in what it answers, and never in the way of it."""

import asyncio
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mosaic.errors import Unavailable
from mosaic.gateway.quota import Ask
from mosaic.gateway.quota_shard import Command, QuotaClient, Shard
from mosaic.gateway.quota_socket import Nearby

SHARD = """
import sys, threading
from pathlib import Path
from mosaic.gateway.quota_shard import Shard
shard = Shard(Path(sys.argv[1]), listens=True)
print("listens", flush=True)
threading.Event().wait()
"""


class Process:
    """A shard in a process of its own. As the long way to it, `ask`, it is started anew first if it has died."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.starts = folder, 0
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.starts += 1
        self._process = subprocess.Popen(
            [sys.executable, "-c", SHARD, str(self._folder)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None and self._process.stdout.readline() == "listens\n"

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    async def ask(self, commands: Sequence[Command]) -> Sequence[Any]:
        if self._process is None or self._process.poll() is not None:
            self.start()
        return await Nearby(self._folder, self.ask)(commands)


async def nothing(commands: Sequence[Command]) -> Sequence[Any]:
    raise ConnectionError("the long way")


def one(request_id: str, limit: int = 100) -> Command:
    return Command("reserve", request_id, [Ask("b", limit, 1)])


def test_it_answers_as_the_shard_itself_however_long_its_folder_is_called(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)
    shard = Shard(folder, listens=True)

    async def run() -> None:
        nearby = Nearby(folder, nothing)
        told = await nearby([one("r1"), Command("settle", "r1"), one("r2", 1)])
        assert told[0].granted and told[1] is None and not told[2].granted
        assert await nearby([one("r3")]) == shard.apply([one("r3")])

    asyncio.run(run())
    assert stat.S_IMODE((folder / "socket").stat().st_mode) == 0o600


def test_who_has_no_socket_on_its_machine_goes_the_long_way(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "there")

    async def far(commands: Sequence[Command]) -> Sequence[Any]:
        return shard.apply(commands)

    for folder in (tmp_path / "not here", tmp_path / "there"):
        assert asyncio.run(Nearby(folder, far)([one(folder.name)]))[0].granted  # type: ignore[arg-type]


def test_what_goes_wrong_there_is_told_by_the_long_way(tmp_path: Path) -> None:
    Shard(tmp_path, listens=True)

    async def run() -> None:
        client = QuotaClient([Nearby(tmp_path, nothing)])
        with pytest.raises(Unavailable, match="the long way"):
            await client.reserve("a", "r1", [Ask("b", "many", 1)])  # type: ignore[arg-type]  # what cannot be compared
        assert (await client.reserve("a", "r2", [Ask("c", 1, 1)])).granted

    asyncio.run(run())


def test_a_shard_that_is_killed_again_and_again_grants_neither_more_nor_less(tmp_path: Path) -> None:
    process = Process(tmp_path)

    async def run() -> int:
        gateways, granted = [QuotaClient([Nearby(tmp_path, process.ask)]) for _ in range(4)], 0
        for turn in range(4):
            asks = [gateways[n % 4].reserve("a", f"{turn} {n}", [Ask("calls", 100, 1, 600.0)]) for n in range(40)]
            asked = [asyncio.create_task(one) for one in asks]
            await asyncio.sleep(0.0002 * turn)
            process.kill()
            granted += sum([answer.granted for answer in await asyncio.gather(*asked)])
        return granted

    process.start()
    try:
        assert asyncio.run(asyncio.wait_for(run(), 120)) == 100
    finally:
        process.kill()
    assert process.starts == 5


def test_who_leaves_while_it_is_asked_leaves_no_answer_for_the_next(tmp_path: Path) -> None:
    Shard(tmp_path, listens=True)

    async def run() -> None:
        nearby = Nearby(tmp_path, nothing)
        await nearby([one("r0")])
        left = asyncio.create_task(nearby([one("r1"), one("r2")]))
        await asyncio.sleep(0)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        assert len(await nearby([one("r3")])) == 1

    asyncio.run(run())
