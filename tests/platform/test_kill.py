"""kill -9 of a gateway's replica, of an index's actor, of what keeps MLflow: nothing that was answered is lost or
doubled, and what was killed comes back."""

import os
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import psutil
import pyarrow as pa
import pytest
from openai import OpenAI

from mosaic.platform import Platform
from mosaic.serving.endpoint import EndpointSettings, Retrieval, ServedEntity
from mosaic.vector import IndexSettings

TABLE, INDEX = "main.faults.notes", "main.faults.notes_index"
SCHEMA = pa.schema([pa.field("note_id", pa.string(), nullable=False), ("text", pa.string())])
TEXTS = ["cats sleep all day", "ships cross the sea", "bread needs yeast", "snow falls in winter"]


@dataclass
class Load:
    """Clients that ask until told to stop, and what came back."""

    client: OpenAI
    answered: list[tuple[float, str, str]] = field(default_factory=list)
    """(when, request id, text) of each complete answer."""
    failed: list[tuple[float, str]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                stream = self.client.chat.completions.create(
                    model="notes", messages=[{"role": "user", "content": "what do cats do?"}], stream=True
                )
                chunks = list(stream)
                text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
                if chunks[-1].choices[0].finish_reason == "stop":
                    self.answered.append((time.monotonic(), chunks[0].id, text))
                else:
                    self.failed.append((time.monotonic(), "cut off"))
            except (openai.APIError, OSError) as error:
                self.failed.append((time.monotonic(), type(error).__name__))
                time.sleep(0.1)
            time.sleep(0.02)


@pytest.fixture(scope="module")
def notes(platform: Platform) -> Platform:
    """An endpoint that answers with what it looked up, so that a test sees what the index found."""
    platform.catalog.ensure_schema("main.faults")
    platform.tables.create(TABLE, SCHEMA, primary_key="note_id", owner="admin")
    rows = {"note_id": [f"n{n}" for n in range(len(TEXTS))], "text": TEXTS}
    platform.tables.append(TABLE, pa.Table.from_pydict(rows, schema=SCHEMA))
    minilm = [ServedEntity(name="minilm", model="all-minilm-l6-v2")]
    platform.serving.put(EndpointSettings(name="minilm", task="embed", served_entities=minilm))
    platform.serving.wait("minilm")
    platform.indexes.create(
        IndexSettings(
            name=INDEX,
            table=TABLE,
            primary_key="note_id",
            text_columns=("text",),
            payload_columns=("text",),
            embedding_endpoint="minilm",
        ),
        owner="admin",
    )
    platform.indexes.sync(INDEX)
    platform.serving.put(
        EndpointSettings(
            name="notes",
            served_entities=[ServedEntity(name="echo", model="echo")],
            retrieval=Retrieval(index=INDEX, num_results=1, entry_template="{text}"),
        )
    )
    platform.serving.wait("notes")
    return platform


def gateway_processes(platform: Platform) -> list[psutil.Process]:
    """The replicas of the public gateway, of this platform alone."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any("ServeReplica:gateway:Gateway" in part for part in process.info["cmdline"] or []):
            owner = psutil.Process(platform.cluster.pid)
            if process.pid in [child.pid for child in owner.children(recursive=True)]:
                found.append(process)
    return found


@pytest.mark.faults
def test_kill_9_of_the_gateway_and_of_the_index_while_questions_run(notes: Platform, token: str) -> None:
    platform = notes
    client = OpenAI(base_url=f"{platform.base_url}/v1", api_key=token, max_retries=0, timeout=30)
    load = Load(client)
    threads = [threading.Thread(target=load.run) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        _wait(lambda: len(load.answered) > 40, 60, "the first answers")

        (victim,) = gateway_processes(platform)
        os.kill(victim.pid, signal.SIGKILL)
        killed_gateway = time.monotonic()
        _wait(lambda: _answers_after(load, killed_gateway + 0.5) > 20, 60, "answers after the gateway's death")

        shard = platform.indexes.status(INDEX).process_id
        os.kill(shard, signal.SIGKILL)
        killed_index = time.monotonic()
        new_row = pa.Table.from_pydict({"note_id": ["n9"], "text": ["cats purr when they are content"]}, schema=SCHEMA)
        version = platform.tables.append(TABLE, new_row)
        _wait(lambda: _answers_after(load, killed_index + 0.5) > 20, 60, "answers after the index's death")
        _wait(lambda: platform.indexes.status(INDEX).version == version, 60, "the index at the table's version")
        assert platform.indexes.status(INDEX).process_id != shard
    finally:
        load.stop.set()
        for thread in threads:
            thread.join()

    assert all("cats" in text for _, _, text in load.answered)
    kept = Counter(row["request_id"] for row in _rows_after_adoption(platform))
    assert set(kept.values()) == {1}, "a request has more than one row"
    missing = [request_id for _, request_id, _ in load.answered if request_id not in kept]
    assert not missing, f"{len(missing)} of {len(load.answered)} answered requests have no row"
    one = next(row for row in _rows_after_adoption(platform) if row["request_id"] == load.answered[-1][1])
    assert one["retrieved_index"] == INDEX and len(one["retrieved_ids"]) == 1 and one["retrieved_version"] <= version


def _rows_after_adoption(platform: Platform) -> list[dict[str, Any]]:
    """The rows, once the dead replica's log is shipped too."""
    platform.flush_ledger()
    rows: list[dict[str, Any]] = platform.tables.to_arrow("system.serving.inference").to_pylist()
    return rows


def _answers_after(load: Load, moment: float) -> int:
    return sum(when > moment for when, _, _ in load.answered)


def _wait(condition: Any, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come within {seconds:g} s"
        time.sleep(0.1)


@pytest.mark.faults
def test_kill_9_of_what_keeps_mlflow_brings_it_back(platform: Platform, token: str) -> None:
    (victim,) = (
        process
        for process in psutil.Process(platform.cluster.pid).children(recursive=True)
        if _is_platform_actor(process)
    )
    servers = [child.pid for child in victim.children(recursive=True)]
    os.kill(victim.pid, signal.SIGKILL)
    with httpx.Client(base_url=platform.base_url, headers={"Authorization": f"Bearer {token}"}, timeout=30) as asking:

        def run_is_made() -> bool:
            made = asking.post("/api/2.0/mlflow/runs/create", json={"experiment_id": "0"})
            assert made.status_code in (200, 503), made.text
            return made.status_code == 200

        _wait(lambda: not any(psutil.pid_exists(pid) for pid in servers), 60, "the end of the servers it had")
        _wait(run_is_made, 120, "MLflow")
    assert {part.part: part.state for part in platform.status()}["mlflow"] == "healthy"


def _is_platform_actor(process: psutil.Process) -> bool:
    try:
        return "PlatformActor" in " ".join(process.cmdline())
    except psutil.Error:
        return False
