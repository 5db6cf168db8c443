"""Shipping logs into Delta: every row exactly once, whatever is killed, whoever else ships."""

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from mosaic.data import Log, Shipper
from mosaic.data.ship import KILL_POINTS, OneTable
from mosaic.errors import NotFound, Unavailable

SCHEMA = pa.schema([("n", pa.int64()), ("state", pa.string())])


def to_arrow(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def lost(opened: dict[str, Any]) -> dict[str, Any]:
    return {**opened, "state": "lost"}


class Place:
    """A spool and a table."""

    def __init__(self, folder: Path) -> None:
        self.spool, self.address = folder / "spool", str(folder / "table")
        self.spool.mkdir()
        DeltaTable.create(self.address, schema=SCHEMA)

    def shipper(self, at: Callable[[str], None] = lambda point: None) -> Shipper:
        return Shipper(self.spool, OneTable(lambda: DeltaTable(self.address), to_arrow), lost=lost, at=at)

    def rows(self) -> Counter[tuple[int, str]]:
        found = pa.table(DeltaTable(self.address).scan()).to_pylist()
        return Counter((row["n"], row["state"]) for row in found)

    def segments(self) -> list[str]:
        return sorted(path.suffix for path in self.spool.iterdir())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_living_log_is_shipped_as_it_grows(place: Place) -> None:
    shipper = place.shipper()
    assert shipper.ship_once() == 0
    with Log(place.spool, owner="a") as log:
        first, second = log.open("k1", {"n": 1}), log.open("k2", {"n": 2})
        assert shipper.ship_once() == 0
        assert DeltaTable(place.address).version() == 0, "nothing to say, no commit"
        first.close({"n": 1, "state": "done"})
        log.append({"n": 9, "state": "row"})
        assert shipper.ship_once() == 2
        assert shipper.ship_once() == 0
        assert place.rows() == {(1, "done"): 1, (9, "row"): 1}
        second.close({"n": 2, "state": "done"})
        log.open("k3", {"n": 3})
    assert shipper.ship_once() == 2
    assert place.rows() == {(1, "done"): 1, (9, "row"): 1, (2, "done"): 1, (3, "lost"): 1}
    assert place.segments() == []


def test_entries_lost_after_everything_else_was_shipped(place: Place) -> None:
    log = Log(place.spool, owner="a")
    log.open("k1", {"n": 1})
    log.append({"n": 2, "state": "row"})
    assert place.shipper().ship_once() == 1
    log.close()
    assert place.shipper().ship_once() == 1
    assert place.rows() == {(1, "lost"): 1, (2, "row"): 1}


def test_sealed_segments_of_a_living_owner_go(place: Place) -> None:
    with Log(place.spool, owner="a", max_segment_bytes=100) as log:
        for n in range(10):
            log.open(f"k{n}", {"n": n}).close({"n": n, "state": "done"})
        assert place.shipper().ship_once() == 10
        assert place.segments() == [".log"]
    assert place.rows() == Counter({(n, "done"): 1 for n in range(10)})


def test_a_torn_tail_is_kept_beside(place: Place) -> None:
    with Log(place.spool, owner="a") as log:
        log.append({"n": 1, "state": "row"})
        log.append({"n": 2, "state": "row"})
    (path,) = place.spool.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    assert place.shipper().ship_once() == 1
    assert place.segments() == [".torn"]
    assert place.shipper().ship_once() == 0


def test_two_shippers_at_once(place: Place) -> None:
    logs = [Log(place.spool, owner=f"gw-{n}", max_segment_bytes=400) for n in range(3)]
    stop, failures = threading.Event(), []

    def ship() -> None:
        try:
            while not stop.is_set():
                place.shipper().ship_once()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ship) for _ in range(2)]
    for thread in threads:
        thread.start()
    for n in range(60):
        for which, log in enumerate(logs):
            entry = log.open(f"k{n}", {"n": 1000 * which + n})
            if n % 7:
                entry.close({"n": 1000 * which + n, "state": "done"})
    for log in logs:
        log.close()
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    place.shipper().ship_once()
    expected = {(1000 * which + n, "done" if n % 7 else "lost"): 1 for which in range(3) for n in range(60)}
    assert place.rows() == expected
    assert place.segments() == []


def test_a_race_between_two_commits_from_the_same_state(place: Place) -> None:
    with Log(place.spool, owner="a") as log:
        log.append({"n": 1, "state": "row"})
        other = place.shipper()
        raced = []

        def ship_in_between(point: str) -> None:
            if point == "before-commit" and not raced:
                raced.append(other.ship_once())

        assert place.shipper(ship_in_between).ship_once() == 0
        assert raced == [1]
    place.shipper().ship_once()
    assert place.rows() == {(1, "row"): 1}


class TwoTables:
    """All rows go to `all`, those with an even n to `even` as well, which may be away, or refuse rows for good."""

    def __init__(self, folder: Path) -> None:
        self.tables = {name: str(folder / name) for name in ("all", "even")}
        for address in self.tables.values():
            DeltaTable.create(address, schema=SCHEMA)
        self.fault: Exception | None = None

    def of(self, row: dict[str, Any]) -> list[str]:
        return ["all", "even"] if row["n"] % 2 == 0 else ["all"]

    def open(self, name: str) -> DeltaTable:
        if name == "even" and self.fault is not None:
            raise self.fault
        return DeltaTable(self.tables[name])

    def to_arrow(self, name: str, rows: list[dict[str, Any]]) -> pa.Table:
        return to_arrow(rows)

    def gives_up(self, name: str, error: Exception) -> bool:
        return isinstance(error, NotFound)

    def numbers(self, name: str) -> list[int]:
        return sorted(pa.table(DeltaTable(self.tables[name]).scan())["n"].to_pylist())


def test_a_table_that_is_away_gets_its_rows_later_and_the_others_theirs_now(tmp_path: Path) -> None:
    to, spool = TwoTables(tmp_path), tmp_path / "spool"
    shipper = Shipper(spool, to, lost=lost)
    with Log(spool, owner="a") as log:
        for n in range(4):
            log.append({"n": n, "state": "row"})
        to.fault = Unavailable("the store is away")
        for _ in range(2):
            with pytest.raises(Unavailable, match="away"):
                shipper.ship_once()
        assert (to.numbers("all"), to.numbers("even")) == ([0, 1, 2, 3], [])
        log.append({"n": 4, "state": "row"})
        to.fault = None
        assert shipper.ship_once() == 1, "those of before were counted with their first table"
        assert (to.numbers("all"), to.numbers("even")) == ([0, 1, 2, 3, 4], [0, 2, 4])
        log.append({"n": 6, "state": "row"})
        log.open("k", {"n": 8})
        to.fault = Unavailable("again")
        with pytest.raises(Unavailable, match="again"):
            shipper.ship_once()
    with pytest.raises(Unavailable, match="again"):
        Shipper(spool, to, lost=lost).ship_once()
    assert len(list(spool.iterdir())) == 1, "it stays until all tables have their rows"
    to.fault = None
    Shipper(spool, to, lost=lost).ship_once()
    assert (to.numbers("all"), to.numbers("even")) == ([0, 1, 2, 3, 4, 6, 8], [0, 2, 4, 6, 8])
    assert not list(spool.iterdir())


def test_a_table_that_is_gone_for_good_holds_nothing_up(tmp_path: Path) -> None:
    to, spool = TwoTables(tmp_path), tmp_path / "spool"
    to.fault = NotFound("no table")
    with Log(spool, owner="a") as log:
        for n in range(3):
            log.append({"n": n, "state": "row"})
    shipper = Shipper(spool, to, lost=lost)
    assert shipper.ship_once() == 3 and shipper.left_out == {"even": 2}
    assert to.numbers("all") == [0, 1, 2] and not list(spool.iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_ship import OneTable, Place, Shipper, to_arrow, lost
from deltalake import DeltaTable

def at(point):
    if point == {point!r}:
        Path({marker!r}).write_text(point)
        os.kill(os.getpid(), signal.SIGKILL)

Shipper({spool!r}, OneTable(lambda: DeltaTable({address!r}), to_arrow), lost=lost, at=at).ship_once()
"""


@pytest.mark.parametrize("point", KILL_POINTS)
def test_kill_9_at_every_point(place: Place, tmp_path: Path, point: str) -> None:
    dead = Log(place.spool, owner="dead")
    for n in range(6):
        entry = dead.open(f"k{n}", {"n": n})
        if n % 2:
            entry.close({"n": n, "state": "done"})
    assert place.shipper().ship_once() == 3, "some of it while the owner lived"
    dead.append({"n": 100, "state": "row"})
    dead.close()
    living = Log(place.spool, owner="living")
    living.append({"n": 200, "state": "row"})
    marker = tmp_path / "hit"
    script = KILLED.format(
        tests=str(Path(__file__).parent),
        point=point,
        marker=str(marker),
        spool=str(place.spool),
        address=place.address,
    )
    killed = subprocess.run([sys.executable, "-c", script], timeout=60, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert marker.read_text() == point
    place.shipper().ship_once()
    living.close()
    place.shipper().ship_once()
    expected = {(n, "done" if n % 2 else "lost"): 1 for n in range(6)} | {(100, "row"): 1, (200, "row"): 1}
    assert place.rows() == expected
    assert place.segments() == []
