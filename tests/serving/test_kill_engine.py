"""kill -9 of the engine's process, and of its replica, under twenty streams: it comes back by itself, who had read
nothing is answered whole, and who had is told that the rest is missing. Who reads no stream has read nothing."""

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from mosaic.platform import Platform
from mosaic.serving.endpoint import EndpointSettings, ServedEntity, units_of
from mosaic.serving.settings import EngineSettings

ENDPOINT, CLIENTS, AT_ONCE, TOKENS = "mortal", 20, 8, 300


@dataclass
class Stream:
    """What one client read."""

    has_begun: threading.Event = field(default_factory=threading.Event)
    text: str = ""
    finish_reason: str | None = None
    error: dict[str, object] | None = None
    is_done: bool = False
    """Whether [DONE] came."""

    def read(self, platform: Platform, token: str) -> "Stream":
        asked = {
            "model": ENDPOINT,
            "messages": [{"role": "user", "content": "go on"}],
            "max_tokens": TOKENS,
            "temperature": 0,
            "stream": True,
        }
        head = {"authorization": f"Bearer {token}"}
        address = f"{platform.base_url}/v1/chat/completions"
        with httpx.stream("POST", address, json=asked, headers=head, timeout=300) as response:
            assert response.status_code == 200, response.read()
            for line in response.iter_lines():
                self._take(line.removeprefix("data: "))
        return self

    def _take(self, data: str) -> None:
        if data == "[DONE]":
            self.is_done = True
        elif data and "error" in (chunk := json.loads(data)):
            self.error = chunk["error"]
        elif data and chunk["choices"]:
            self.has_begun.set()
            self.text += chunk["choices"][0]["delta"].get("content") or ""
            self.finish_reason = chunk["choices"][0].get("finish_reason") or self.finish_reason


@pytest.fixture(scope="module")
def mortal(platform: Platform, tiny_chat: Path) -> Iterator[Platform]:
    """An endpoint whose engine answers eight at once, so that twelve of twenty wait for their first word."""
    engine = EngineSettings(engine_kwargs={"max_num_seqs": AT_ONCE}, max_lora_rank=0)
    entities = [ServedEntity(name="base", model=str(tiny_chat), engine=engine)]
    platform.serving.put(EndpointSettings(name=ENDPOINT, served_entities=entities))
    platform.serving.wait(ENDPOINT)
    yield platform
    platform.serving.delete(ENDPOINT)


def replica_of(platform: Platform) -> psutil.Process:
    """Of this platform's cluster alone: the replica whose engine answers for the endpoint."""
    endpoint = platform.serving.get(ENDPOINT)
    (unit,) = units_of(platform.catalog, endpoint.config, endpoint.pinned)
    ours = psutil.Process(platform.cluster.pid).children(recursive=True)
    (found,) = [one for one in ours if f"ServeReplica:{unit.app_name}:" in " ".join(one.cmdline())]
    return found


def engine_of(platform: Platform) -> psutil.Process:
    """The process of vLLM's engine itself."""
    within = replica_of(platform).children(recursive=True)
    (found,) = [one for one in within if "EngineCore" in " ".join(one.cmdline())]
    return found


def ask_whole(platform: Platform, token: str) -> tuple[int, str]:
    """The finished tokens and the text of an answer that is not streamed."""
    asked = {"model": ENDPOINT, "messages": [{"role": "user", "content": "go on"}], "max_tokens": TOKENS}
    head, address = {"authorization": f"Bearer {token}"}, f"{platform.base_url}/v1/chat/completions"
    answer = httpx.post(address, json={**asked, "temperature": 0}, headers=head, timeout=300)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    return told["usage"]["completion_tokens"], told["choices"][0]["message"]["content"]


@pytest.mark.faults
def test_kill_9_under_answers_that_are_not_streamed(mortal: Platform, token: str) -> None:
    """Nobody has read a part of one, so all are asked again."""
    process, clients = engine_of(mortal), AT_ONCE + 4
    with ThreadPoolExecutor(clients) as pool:
        asking = [pool.submit(ask_whole, mortal, token) for _ in range(clients)]
        deadline = time.monotonic() + 60
        while not any(one.done() for one in asking):
            assert time.monotonic() < deadline, "no answer came before the kill"
            time.sleep(0.002)
        answered = sum(one.done() for one in asking)
        os.kill(process.pid, signal.SIGKILL)
        answers = [one.result(timeout=240) for one in asking]
    assert answered < clients, "the kill came after the last answer"
    assert {tokens for tokens, _ in answers} == {TOKENS} and len({text for _, text in answers}) == 1


@pytest.mark.faults
@pytest.mark.parametrize("victim", [engine_of, replica_of], ids=["engine", "replica"])
def test_kill_9_under_twenty_streams(
    mortal: Platform, token: str, victim: Callable[[Platform], psutil.Process]
) -> None:
    streams = [Stream() for _ in range(CLIENTS)]
    process = victim(mortal)
    with ThreadPoolExecutor(CLIENTS) as pool:
        reading: list[Future[Stream]] = [pool.submit(stream.read, mortal, token) for stream in streams]
        deadline = time.monotonic() + 60
        while sum(stream.has_begun.is_set() for stream in streams) < AT_ONCE:
            assert time.monotonic() < deadline, "no eight streams have begun"
            time.sleep(0.002)
        waiting = [stream for stream in streams if not stream.has_begun.is_set()]
        killed_at = time.monotonic()
        os.kill(process.pid, signal.SIGKILL)
        for one in reading:
            one.result(timeout=240)
    print(f"killed {process.pid}: the last answer ended {time.monotonic() - killed_at:.1f} s later")

    cut = [stream for stream in streams if stream.error is not None]
    whole = [stream for stream in streams if stream.error is None]
    assert cut and len(cut) <= AT_ONCE and all(stream.has_begun.is_set() for stream in cut)
    assert any(stream in whole for stream in waiting)
    assert all(not stream.is_done and stream.finish_reason is None for stream in cut)
    assert {stream.error["code"] for stream in cut if stream.error} == {"engine_died"}
    assert len(whole) >= CLIENTS - AT_ONCE
    assert all(stream.is_done and stream.finish_reason == "length" for stream in whole)
    (text,) = {stream.text for stream in whole}
    assert all(text.startswith(stream.text) and stream.text != text for stream in cut)

    mortal.serving.wait(ENDPOINT, timeout_seconds=120)
    assert Stream().read(mortal, token).text == text
    mortal.flush_ledger()
    rows = mortal.tables.to_arrow("system.serving.inference").to_pylist()
    counted = Counter(row["status_code"] for row in rows if row["endpoint"] == f"main.serving.{ENDPOINT}")
    assert counted[502] >= len(cut) and counted[200] >= len(whole) + 1
