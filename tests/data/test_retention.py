"""What was dropped: it comes back within the retention, its data goes after it, and never anybody else's."""

import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pyarrow as pa
import pytest
from click.testing import CliRunner
from moto.server import ThreadedMotoServer

from mosaic.catalog import Catalog
from mosaic.cli import main
from mosaic.data import Tables
from mosaic.data.retention import KILL_POINTS, Purge, purge
from mosaic.errors import Conflict, NotFound
from mosaic.storage import Storage

NAME = "main.test.words"
SCHEMA = pa.schema([("word", pa.string())])


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "root"))


@pytest.fixture
def words(tables: Tables) -> Tables:
    made(tables, NAME)
    return tables


def made(tables: Tables, name: str) -> Path:
    """A table with a row; its folder."""
    location = tables.create(name, SCHEMA, primary_key="word", owner="ann").location
    tables.append(name, pa.table({"word": ["a"]}))
    return Path(location)


def register(catalog: Catalog, name: str, place: Path | str) -> None:
    catalog.create_table(name, str(place), columns=[], primary_key=None, owner="ann")


def purged(storage: Storage, catalog: Catalog, *, days: float = 8) -> Purge:
    """The purge of so many days from now."""
    return purge(storage, catalog, now=datetime.now(UTC) + timedelta(days=days))


def test_a_dropped_table_comes_back_with_its_rows(words: Tables, storage: Storage, catalog: Catalog) -> None:
    catalog.delete_table(NAME)
    with pytest.raises(NotFound):
        words.to_arrow(NAME)
    assert purged(storage, catalog, days=6.9) == Purge(removed=(), kept=())
    catalog.undrop("table", NAME)
    assert words.to_arrow(NAME)["word"].to_pylist() == ["a"]
    assert purged(storage, catalog) == Purge(removed=(), kept=())
    assert words.to_arrow(NAME).num_rows == 1


def test_its_data_goes_after_the_retention(words: Tables, storage: Storage, catalog: Catalog) -> None:
    other = made(words, "main.test.other")
    record = catalog.get_table(NAME)
    catalog.delete_table(NAME)
    planned = purge(storage, catalog, now=datetime.now(UTC) + timedelta(days=8), dry_run=True)
    assert [one.id for one in planned.removed] == [record.id] and Path(record.location).is_dir()
    (gone,) = purged(storage, catalog).removed
    assert (gone.kind, gone.name, gone.id, gone.location) == ("table", NAME, record.id, record.location)
    assert not Path(record.location).exists() and other.is_dir()
    assert catalog.dropped() == [] and storage.list(storage.address("purging")) == []
    assert purged(storage, catalog) == Purge(removed=(), kept=())
    with pytest.raises(Conflict, match="purged"):
        catalog.undrop("table", NAME)
    assert made(words, NAME).is_dir()


def test_what_was_dropped_again_while_a_purge_looked_is_kept_from_then_on(
    words: Tables, storage: Storage, catalog: Catalog
) -> None:
    record = catalog.get_table(NAME)
    catalog.delete_table(NAME)
    since = datetime.now(UTC)

    def again(point: str) -> None:
        if point == "noted":
            catalog.undrop("table", NAME)
            catalog.delete_table(NAME)

    done = purge(storage, catalog, now=since, older_than=timedelta(0), at=again)
    assert done == Purge(removed=(), kept=()) and Path(record.location).is_dir()
    assert storage.list(storage.address("purging")) == []
    catalog.undrop("table", NAME)
    assert words.to_arrow(NAME).num_rows == 1


def test_a_table_made_anew_keeps_its_data(words: Tables, storage: Storage, catalog: Catalog) -> None:
    catalog.delete_table(NAME)
    anew = made(words, NAME)
    assert len(purged(storage, catalog).removed) == 1
    assert anew.is_dir() and words.to_arrow(NAME).num_rows == 1


def test_a_dropped_volume_goes_too(storage: Storage, catalog: Catalog) -> None:
    place, elsewhere = storage.address("volumes", "vol_01m88dsr3gf5z9jy5pj185zsr9"), storage.address("files")
    for name, kind, location in (
        ("own", "MANAGED", place),
        ("out", "EXTERNAL", "/elsewhere"),
        ("odd", "MANAGED", elsewhere),
    ):
        catalog.volumes.create(f"main.test.{name}", spec={"volume_type": kind, "location": location}, owner="ann")
        storage.write_bytes(f"{location}/a.txt", b"a") if location != "/elsewhere" else None
        catalog.volumes.delete(f"main.test.{name}")
    done = purged(storage, catalog)
    assert [one.name for one in done.removed] == ["main.test.own"] and not Path(place).exists()
    assert [one.name for one in done.kept] == ["main.test.odd"] and Path(elsewhere).exists()


def test_only_a_place_of_its_own_is_removed(words: Tables, storage: Storage, catalog: Catalog, tmp_path: Path) -> None:
    live = Path(catalog.get_table(NAME).location)
    outside = tmp_path / "outside"
    inside = [
        storage.root,
        f"{storage.root}/",
        storage.address("managed"),
        storage.address("models"),
        str(live / "part"),
    ]
    inside += [str(live), f"{live}/", f"{storage.root}/managed/../managed/{live.name}", storage.address("tables")]
    for number, place in enumerate([*inside, str(outside), f"{tmp_path}/root-of-another/managed/{live.name}"]):
        register(catalog, f"main.test.t{number}", place)
        catalog.delete_table(f"main.test.t{number}")
    for folder in (outside, tmp_path / "root-of-another/managed" / live.name):
        folder.mkdir(parents=True)
    done = purged(storage, catalog)
    assert done.removed == ()
    assert sorted(one.location for one in done.kept) == sorted(inside)
    assert all(one.reason for one in done.kept)
    assert words.to_arrow(NAME).num_rows == 1 and outside.is_dir()
    assert (tmp_path / "root-of-another/managed" / live.name).is_dir()


def test_what_another_record_points_at_stays(tables: Tables, storage: Storage, catalog: Catalog) -> None:
    shared, around, below = (made(tables, f"main.test.{name}") for name in ("shared", "around", "below"))
    for name in ("shared", "around", "below"):
        catalog.delete_table(f"main.test.{name}")
    register(catalog, "main.test.same", shared)
    catalog.create_model("main.test.bot", owner="ann")
    catalog.create_model_version("main.test.bot", source=str(around / "model"), kind="full")
    spec = {"volume_type": "EXTERNAL", "location": str(below.parent)}
    catalog.volumes.create("main.test.files", spec=spec, owner="ann")
    done = purged(storage, catalog)
    assert done.removed == () and all(folder.is_dir() for folder in (shared, around, below))
    reasons = {one.name: one.reason for one in done.kept}
    assert "main.test.same" in reasons["main.test.shared"] or "main.test.files" in reasons["main.test.shared"]
    catalog.volumes.delete("main.test.files")
    done = purge(storage, catalog, now=datetime.now(UTC) + timedelta(days=8))
    reasons = {one.name: one.reason for one in done.kept}
    assert reasons.keys() >= {"main.test.shared", "main.test.around"} and not below.exists()
    assert "'main.test.same'" in reasons["main.test.shared"] and "'main.test.bot/1'" in reasons["main.test.around"]


def test_what_was_dropped_lately_at_the_same_place_stays(words: Tables, storage: Storage, catalog: Catalog) -> None:
    place = catalog.get_table(NAME).location
    catalog.delete_table(NAME)
    between = datetime.now(UTC)
    register(catalog, "main.test.later", place)
    catalog.delete_table("main.test.later")
    done = purge(storage, catalog, now=between + timedelta(days=7))
    assert done.removed == () and "dropped table 'main.test.later'" in done.kept[0].reason
    catalog.undrop("table", NAME)
    assert words.to_arrow(NAME).num_rows == 1


def test_a_link_is_removed_and_not_followed(words: Tables, storage: Storage, catalog: Catalog, tmp_path: Path) -> None:
    place, precious = Path(catalog.get_table(NAME).location), tmp_path / "precious"
    place.rename(precious)
    place.symlink_to(precious)
    catalog.delete_table(NAME)
    assert len(purged(storage, catalog).removed) == 1
    assert not place.is_symlink() and (precious / "_delta_log").is_dir()


def test_purges_at_the_same_time_do_not_meet(tables: Tables, storage: Storage, catalog: Catalog) -> None:
    places = []
    for number in range(6):
        places.append(made(tables, f"main.test.t{number}"))
        for part in range(50):
            (places[-1] / f"part-{part}.parquet").write_bytes(b"x")
        catalog.delete_table(f"main.test.t{number}")
    failed: list[BaseException] = []

    def work() -> None:
        try:
            purged(storage, catalog)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and not any(place.exists() for place in places)
    assert storage.list(storage.address("purging")) == [] and catalog.dropped() == []


KILLED = """
import os, signal, sys
from datetime import UTC, datetime, timedelta
from mosaic.catalog import Catalog
from mosaic.data.retention import purge
from mosaic.storage import Storage

def at(point):
    if point == {point!r}:
        os.kill(os.getpid(), signal.SIGKILL)

purge(Storage({root!r}), Catalog.open({url!r}), now=datetime.now(UTC) + timedelta(days=8), at=at)
"""


@pytest.mark.parametrize("point", KILL_POINTS)
def test_kill_9_at_every_point(words: Tables, storage: Storage, catalog: Catalog, point: str) -> None:
    place = Path(catalog.get_table(NAME).location)
    catalog.delete_table(NAME)
    script = KILLED.format(point=point, root=storage.root, url=catalog.url)
    killed = subprocess.run([sys.executable, "-c", script], timeout=60, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert place.exists() == (point != "removed")
    if point == "noted":  # it was not yet said to be gone: it may come back, and then it stays
        catalog.undrop("table", NAME)
        assert purged(storage, catalog).removed == ()
        assert words.to_arrow(NAME).num_rows == 1
        catalog.delete_table(NAME)
        assert purged(storage, catalog, days=1).removed == () and place.exists()
    else:
        with pytest.raises(Conflict):
            catalog.undrop("table", NAME)
    assert [one.name for one in purged(storage, catalog).removed] == [NAME]
    assert not place.exists() and storage.list(storage.address("purging")) == []
    assert purged(storage, catalog).removed == ()


def test_in_an_object_store(catalog: Catalog) -> None:
    """A vacuum, and a purge, where folders are only prefixes of names."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    try:
        host, port = moto.get_host_and_port()
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
        storage = Storage(
            "s3://lake/root", {**keys, "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ALLOW_HTTP": "true"}
        )
        httpx.put(f"http://{host}:{port}/lake").raise_for_status()
        tables = Tables(storage, catalog)
        for name in (NAME, "main.test.other"):
            tables.create(name, SCHEMA, primary_key="word", owner="ann")
            for word in "ab":
                tables.overwrite(name, pa.table({"word": [word]}))
        done = tables.vacuum(NAME, retention_hours=0)
        assert len(done.files) == 1 and "/" not in done.files[0]
        assert tables.to_arrow(NAME)["word"].to_pylist() == ["b"]
        assert tables.vacuum(NAME, retention_hours=0).files == ()
        place = catalog.get_table(NAME).location
        catalog.delete_table(NAME)
        assert [one.location for one in purged(storage, catalog).removed] == [place]
        assert storage.list(place) == [] and not storage.exists(place)
        assert tables.to_arrow("main.test.other").num_rows == 1
    finally:
        moto.stop()


def test_the_command(words: Tables, catalog: Catalog, tmp_path: Path) -> None:
    def vacuum(*words: str) -> str:
        where = ["--storage", str(tmp_path / "root"), "--home", str(tmp_path)]
        ran = CliRunner().invoke(main, ["vacuum", *where, "--dropped", *words])
        assert ran.exit_code == 0, ran.output
        return ran.output

    place = Path(catalog.get_table(NAME).location)
    catalog.delete_table(NAME)
    register(catalog, "main.test.odd", tmp_path / "root")
    catalog.delete_table("main.test.odd")
    assert vacuum() == "0 dropped table(s) and volume(s) purged\n"
    assert f"table {NAME}: {place}\n1 dropped table(s) and volume(s) would be purged\n" in vacuum(
        "--retention-hours", "0", "--dry-run"
    )
    assert place.is_dir()
    told = vacuum("--retention-hours", "0")
    assert "1 dropped table(s) and volume(s) purged\n" in told and "table main.test.odd stays: " in told
    assert not place.exists()
