"""The local log: records survive, torn tails do not count, entries stay in their segment."""

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.data.wal import Log, read_segment
from mosaic.errors import BadRequest, Unavailable


def all_records(folder: Path) -> list[dict[str, Any]]:
    return [record for path in sorted(folder.glob("*.log")) for _, record in read_segment(path).records]


def is_locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_what_is_written_is_read_in_order(tmp_path: Path) -> None:
    with Log(tmp_path, owner="gateway-1") as log:
        entry = log.open("req_1", {"text": "line\nbreak \u00e9"})
        log.append({"n": 1})
        entry.close({"status": 200})
        assert entry.key == "req_1"
    assert all_records(tmp_path) == [
        {"kind": "open", "key": "req_1", "row": {"text": "line\nbreak \u00e9"}},
        {"kind": "row", "row": {"n": 1}},
        {"kind": "close", "key": "req_1", "row": {"status": 200}},
    ]


def test_offsets_continue_where_a_scan_ended(tmp_path: Path) -> None:
    with Log(tmp_path, owner="a") as log:
        log.append({"n": 0})
        (path,) = tmp_path.glob("*.log")
        first = read_segment(path)
        log.append({"n": 1})
        assert [record["row"]["n"] for _, record in read_segment(path, first.end).records] == [1]
        assert first.records[-1][0] == first.end


def test_an_owner_holds_its_segment_until_it_closes(tmp_path: Path) -> None:
    log = Log(tmp_path, owner="a")
    log.append({"n": 0})
    (path,) = tmp_path.glob("*.log")
    assert is_locked(path)
    log.close()
    assert not is_locked(path)
    with pytest.raises(Unavailable, match="is closed"):
        log.append({"n": 1})


def test_rotation_leaves_closings_with_their_openings(tmp_path: Path) -> None:
    with Log(tmp_path, owner="a", max_segment_bytes=200) as log:
        early = log.open("early", {"n": 0})
        (first,) = tmp_path.glob("*.log")
        for n in range(20):
            log.open(f"k{n}", {"n": n}).close({"n": n})
        assert len(list(tmp_path.glob("*.log"))) > 3
        assert is_locked(first)
        early.close({"n": 99})
        assert not is_locked(first), "sealed as soon as its last entry is closed"
        assert sum(is_locked(path) for path in tmp_path.glob("*.log")) == 1
    for path in tmp_path.glob("*.log"):
        kinds = {"open": set(), "close": set()}
        for _, record in read_segment(path).records:
            kinds[record["kind"]].add(record["key"])
        assert kinds["open"] == kinds["close"]


def test_an_entry_closes_once(tmp_path: Path) -> None:
    with Log(tmp_path, owner="a") as log:
        entry = log.open("k", {})
        entry.close({})
        with pytest.raises(BadRequest, match="already closed"):
            entry.close({})


@pytest.mark.parametrize("bad", [{"x": float("nan")}, {"x": object()}, {"x": b"bytes"}])
def test_what_is_not_json_is_refused_before_anything_is_written(tmp_path: Path, bad: dict[str, Any]) -> None:
    with Log(tmp_path, owner="a") as log:
        with pytest.raises(BadRequest, match="plain JSON"):
            log.append(bad)
        with pytest.raises(BadRequest, match="plain JSON"):
            log.open("k", bad)
    assert all_records(tmp_path) == []


@pytest.mark.parametrize("owner", ["", "A", "../x", "a b", "-a"])
def test_owner_names_are_checked(tmp_path: Path, owner: str) -> None:
    with pytest.raises(BadRequest, match="owner"):
        Log(tmp_path, owner=owner)


def test_durable_writes_of_many_tasks_in_several_loops(tmp_path: Path) -> None:
    async def work(log: Log, name: int) -> None:
        async def one(n: int) -> None:
            entry = await log.open_durable(f"{name}-{n}", {"n": n})
            await log.append_durable({"n": n})
            await entry.close_durable({"n": n})

        await asyncio.gather(*(one(n) for n in range(50)))

    with Log(tmp_path, owner="a", max_segment_bytes=2000) as log:
        threads = [threading.Thread(target=asyncio.run, args=(work(log, name),)) for name in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(is_locked(path) for path in tmp_path.glob("*.log")) == 1, "all but the current one are sealed"
    records = all_records(tmp_path)
    assert len(records) == 450
    assert {r["key"] for r in records if r["kind"] == "open"} == {r["key"] for r in records if r["kind"] == "close"}


def test_a_cancelled_wait_harms_nobody(tmp_path: Path) -> None:
    async def work(log: Log) -> None:
        waiting = [asyncio.create_task(log.append_durable({"n": n})) for n in range(20)]
        await asyncio.sleep(0)
        for task in waiting[::2]:
            task.cancel()
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert sum(isinstance(result, asyncio.CancelledError) for result in done) == 10
        await log.append_durable({"n": 99})

    with Log(tmp_path, owner="a") as log:
        asyncio.run(work(log))
    assert len(all_records(tmp_path)) == 21


@given(cut=st.integers(0, 400), garbage=st.binary(max_size=30))
def test_a_torn_tail_never_yields_a_record_that_was_not_written(
    tmp_path_factory: pytest.TempPathFactory, cut: int, garbage: bytes
) -> None:
    folder = tmp_path_factory.mktemp("torn")
    with Log(folder, owner="a") as log:
        for n in range(8):
            log.append({"n": n})
    (path,) = folder.glob("*.log")
    whole, data = read_segment(path), path.read_bytes()
    path.write_bytes(data[:cut] + garbage)
    scan = read_segment(path)
    assert [offset for offset, _ in scan.records] == [offset for offset, _ in whole.records][: len(scan.records)]
    assert len(scan.records) >= sum(offset <= min(cut, len(data)) for offset, _ in whole.records)
    assert scan.end + scan.unreadable_bytes == path.stat().st_size


WRITER = """
import asyncio, sys
from mosaic.data.wal import Log

async def main():
    log = Log(sys.argv[1], owner="a")
    log.open("req_open", {"n": -1})
    for n in range(100000):
        await log.append_durable({"n": n})
        print(n, flush=True)

asyncio.run(main())
"""


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last = [process.stdout.readline() for _ in range(30)][-1]
    os.kill(process.pid, signal.SIGKILL)
    acknowledged = int((process.stdout.read().split("\n")[-2:-1] or [last])[0])
    process.stdout.close()
    process.wait()
    (path,) = tmp_path.glob("*.log")
    assert not is_locked(path)
    numbers = [record["row"]["n"] for _, record in read_segment(path).records]
    assert numbers == list(range(-1, len(numbers) - 1))
    assert len(numbers) - 2 >= acknowledged >= 29
