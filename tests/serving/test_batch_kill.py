"""kill -9 of a batch job's driver at every named point, and of its engine: resumed, each row is there exactly once."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from mosaic.errors import EngineFailed
from mosaic.platform import Platform
from mosaic.runtime.cluster import marked_processes
from mosaic.runtime.home import read_record
from mosaic.serving.batch import KILL_POINTS, BatchProgress, BatchResult, BatchSettings

pytestmark = pytest.mark.faults

ROWS, COUNT = "main.batch_kill.rows", 40
SCHEMA = pa.schema([("id", pa.int64()), ("text", pa.string())])


@pytest.fixture(scope="module")
def rows(platform: Platform) -> Platform:
    platform.catalog.ensure_schema("main.batch_kill")
    platform.tables.create(ROWS, SCHEMA, primary_key=None, owner="admin")
    data = pa.table({"id": range(COUNT), "text": [f"hello {n}" for n in range(COUNT)]})
    platform.tables.append(ROWS, data.cast(SCHEMA))
    return platform


def asked(output: str, **more: Any) -> dict[str, Any]:
    echo = {"endpoint": "echo", "prompt": "{text}", "piece_rows": 4}
    return {"table": ROWS, **(echo if "model" not in more else {}), "output_table": f"main.batch_kill.{output}", **more}


def with_model(folder: Path, output: str, **more: Any) -> dict[str, Any]:
    # One piece after another, so that there is something left to do when the engine dies.
    engine = {"max_model_len": 512, "engine_kwargs": {"max_num_seqs": 2}}
    chat = {"model": str(folder), "prompt": "{text}", "piece_rows": 4, "max_tokens": 150, "engine": engine}
    return asked(output, **chat, sampling={"temperature": 0}, **more)


def drive(platform: Platform, folder: Path, spec: dict[str, Any], point: str, number: int) -> subprocess.Popen[str]:
    file = folder / "batch.json"
    file.write_text(json.dumps(spec))
    driver = [sys.executable, str(Path(__file__).parent / "batch_driver.py")]
    told = [str(platform.settings.home_folder), str(file), point, str(number)]
    return subprocess.Popen([*driver, *told], stdout=subprocess.PIPE, text=True)


def check_each_once(platform: Platform, result: BatchResult) -> list[dict[str, Any]]:
    found = platform.tables.to_arrow(result.output_table).sort_by("input_row").to_pylist()
    assert [row["id"] for row in found] == list(range(COUNT))
    assert all(row["error"] is None and row["response"] for row in found) and result.rows == COUNT
    return found


def engine_processes(platform: Platform) -> list[psutil.Process]:
    """vLLM's, of this platform's jobs, not of its endpoints: they write over their own environment, but not over their
    parent's."""
    record = read_record(platform.settings.home_folder)
    assert record is not None
    found = []
    for parent in marked_processes(record["platform_id"]):
        try:
            if any(word in " ".join(parent.cmdline()) for word in ("ServeReplica", "forkserver")):
                continue  # an endpoint's
            children = parent.children()
            found += [one for one in children if "EngineCor" in " ".join([one.name(), *one.cmdline()])]
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize(("point", "number"), [(point, 5 if "commit" in point else 1) for point in KILL_POINTS])
def test_killed_at_a_point_it_goes_on_after_what_is_committed(
    rows: Platform, tmp_path: Path, point: str, number: int
) -> None:
    spec = asked(f"at_{point.replace('-', '_')}")
    killed = drive(rows, tmp_path, spec, point, number)
    told, _ = killed.communicate(timeout=100)
    assert killed.returncode == -signal.SIGKILL and told.count(f"at {point}") == number
    result = rows.batch.infer(BatchSettings.parse(spec))
    assert result.pieces_before == {"planned": 0, "before-commit": 4, "after-commit": 5, "before-end": 10}[point]
    check_each_once(rows, result)
    runs = [one.status for one in rows.catalog.list_runs(kind="batch_inference") if one.name == spec["output_table"]]
    assert "running" not in runs


@pytest.fixture
def alone(rows: Platform) -> Iterator[Platform]:
    """No engine but the job's own."""
    assert engine_processes(rows) == []
    yield rows


def test_a_model_killed_with_its_driver_at_half_leaves_no_process_and_goes_on(
    alone: Platform, tiny_chat: Path, tmp_path: Path
) -> None:
    spec = with_model(tiny_chat, "model_at_half")
    killed = drive(alone, tmp_path, spec, "after-commit", 5)
    seen: set[psutil.Process] = set()
    while killed.poll() is None:
        seen |= set(engine_processes(alone))
        time.sleep(1)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL and seen
    _, left = psutil.wait_procs(seen, timeout=60)
    assert left == []
    result = alone.batch.infer(BatchSettings.parse(spec))
    assert result.pieces_before == 5
    check_each_once(alone, result)


@pytest.mark.long
def test_an_engine_that_is_killed_is_started_again_and_one_that_always_dies_ends_the_job(
    alone: Platform, tiny_chat: Path
) -> None:
    seen: set[int] = set()
    kills: list[int] = []
    stop = threading.Event()

    def kill_engine() -> None:
        for process in engine_processes(alone):
            kills.append(process.pid)
            os.kill(process.pid, signal.SIGKILL)

    def once(progress: BatchProgress) -> None:
        if progress.pieces_done == 1 and not kills:
            kill_engine()

    def watch() -> None:
        while not stop.wait(1):
            seen.update(process.pid for process in engine_processes(alone))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = alone.batch.infer(BatchSettings.parse(with_model(tiny_chat, "engine_killed")), once)
    finally:
        stop.set()
        watcher.join()
    assert len(kills) == 1 and len(seen) == 2
    check_each_once(alone, result)
    stop.clear()

    def kill_all() -> None:
        while not stop.wait(1):
            kill_engine()

    killer = threading.Thread(target=kill_all)
    killer.start()
    spec = with_model(tiny_chat, "engine_always_killed")
    try:
        with pytest.raises(EngineFailed, match="the same job goes on from there"):
            alone.batch.infer(BatchSettings.parse(spec))
    finally:
        stop.set()
        killer.join()
    check_each_once(alone, alone.batch.infer(BatchSettings.parse(spec)))
