"""An engine's pulse: who is quiet is asked, who hangs is told from who is busy; a real one that hangs is replaced."""

import asyncio
import inspect
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import openai
import psutil
import pytest
from openai import OpenAI

from mosaic.errors import EngineFailed
from mosaic.platform import Platform
from mosaic.serving.endpoint import EndpointSettings, ServedEntity
from mosaic.serving.pulse import Pulse, Steps, cpu_seconds_of_children
from mosaic.serving.replicas import Replica
from mosaic.serving.settings import EngineSettings


class Engine:
    """One whose answers the test gives."""

    def __init__(self) -> None:
        self.now, self.tokens, self.cpu_seconds, self.asked = 0.0, 0.0, 0.0, 0
        self.answers, self.breaks = True, False

    async def ask(self) -> None:
        self.asked += 1
        if self.breaks:
            raise ValueError("this one has no chat template")
        while not self.answers:
            await asyncio.sleep(0)

    def pulse(self) -> Pulse:
        return Pulse(
            self.ask,
            lambda: self.tokens,
            lambda: self.cpu_seconds,
            limit_seconds=60,
            quiet_seconds=15,
            clock=lambda: self.now,
        )


async def after(engine: Engine, pulse: Pulse, seconds: float) -> None:
    """Checked every 5 seconds, as Serve does it."""
    until = engine.now + seconds
    while engine.now < until:
        engine.now += 5
        pulse.check()
        await asyncio.sleep(0.001)


def felt(test: Callable[[Engine, Pulse], object]) -> None:
    async def run() -> None:
        engine = Engine()
        await test(engine, engine.pulse())  # type: ignore[misc]

    asyncio.run(run())


def test_an_idle_engine_is_asked_for_a_token_now_and_then() -> None:
    async def idle(engine: Engine, pulse: Pulse) -> None:
        await after(engine, pulse, 10)
        assert engine.asked == 0
        await after(engine, pulse, 600)
        assert 20 <= engine.asked <= 40

    felt(idle)


def test_one_that_generates_is_never_asked() -> None:
    async def busy(engine: Engine, pulse: Pulse) -> None:
        engine.answers = False
        for _ in range(100):
            engine.tokens += 1
            await after(engine, pulse, 5)
        assert engine.asked == 0

    felt(busy)


def test_one_that_is_too_busy_for_the_question_does_not_hang() -> None:
    async def full(engine: Engine, pulse: Pulse) -> None:
        engine.answers = False
        for _ in range(10):
            await after(engine, pulse, 50)
            engine.tokens += 1
        assert engine.asked > 1

    felt(full)


def test_one_that_answers_nothing_hangs() -> None:
    async def hung(engine: Engine, pulse: Pulse) -> None:
        engine.answers = False
        await after(engine, pulse, 70)
        with pytest.raises(EngineFailed, match="no token in 60 s after it was asked for one"):
            await after(engine, pulse, 10)

    felt(hung)


def test_one_that_reads_a_long_prompt_does_not_hang() -> None:
    async def reads(engine: Engine, pulse: Pulse) -> None:
        engine.answers = False
        for _ in range(60):  # one step of 5 minutes, in which only its processes' CPU time tells
            engine.cpu_seconds += 4
            await after(engine, pulse, 5)
        assert engine.asked == 1
        with pytest.raises(EngineFailed, match="no token in"):  # and then is silent
            await after(engine, pulse, 65)

    felt(reads)


def test_one_that_computes_for_ever_hangs() -> None:
    async def spins(engine: Engine, pulse: Pulse) -> None:
        engine.answers = False
        for _ in range(120):
            engine.cpu_seconds += 5
            await after(engine, pulse, 5)
        with pytest.raises(EngineFailed, match=r"no token in 6.. s after it was asked for one, though it computes"):
            for _ in range(10):
                engine.cpu_seconds += 5
                await after(engine, pulse, 5)

    felt(spins)


def test_a_little_of_a_core_is_no_work() -> None:
    async def idles(engine: Engine, pulse: Pulse) -> None:
        engine.answers = False
        with pytest.raises(EngineFailed, match=r"no token in 60 s after it was asked for one$"):
            for _ in range(20):
                engine.cpu_seconds += 0.5
                await after(engine, pulse, 5)

    felt(idles)


def test_a_step_counts_with_a_token_or_another_part_of_a_prompt() -> None:
    def usage(share: float) -> SimpleNamespace:
        return SimpleNamespace(kv_cache_usage=share)

    steps = Steps()
    for stats, tokens, count in (
        (usage(0.1), None, 1),  # a part of a prompt
        (usage(0.2), None, 2),
        (usage(0.2), None, 2),  # nothing could be done
        (usage(0.2), object(), 3),  # a token
        (None, None, 3),
        (None, object(), 4),
    ):
        steps.record(stats, tokens)
        assert steps.count == count
    steps.record(usage(0.2), None, engine_idx=1)  # another engine's, of several that share the requests
    assert steps.count == 5


@pytest.mark.slow
def test_vllm_tells_of_its_steps() -> None:
    """What is ours stands among vLLM's own recorders, which it tells by these names."""
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.loggers import StatLoggerManager
    from vllm.v1.metrics.stats import IterationStats, SchedulerStats

    manager, steps = StatLoggerManager.__new__(StatLoggerManager), Steps()
    manager.stat_loggers = [steps]  # type: ignore[list-item]
    manager.record(scheduler_stats=SchedulerStats(kv_cache_usage=0.1), iteration_stats=None, engine_idx=0)
    manager.record(scheduler_stats=SchedulerStats(kv_cache_usage=0.1), iteration_stats=IterationStats(), engine_idx=0)
    manager.log_engine_initialized()
    manager.log()
    manager.record_sleep_state(1, 1)
    assert steps.count == 2
    assert "self.logger_manager = StatLoggerManager(" in inspect.getsource(AsyncLLM.__init__)


def test_what_the_processes_of_an_engine_compute_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as child:
        try:
            seen, deadline = cpu_seconds_of_children(), time.monotonic() + 60
            while cpu_seconds_of_children() < seen + 0.2:
                assert time.monotonic() < deadline, "a process computes, and it is not seen"
                time.sleep(0.05)
        finally:
            child.kill()


def test_a_refusal_is_an_answer() -> None:
    async def refused(engine: Engine, pulse: Pulse) -> None:
        engine.breaks = True
        await after(engine, pulse, 600)
        assert engine.asked > 10

    felt(refused)


@pytest.mark.faults
def test_an_engine_that_hangs_is_replaced_by_itself(platform: Platform, client: OpenAI, tiny_chat: Path) -> None:
    """Kill point: SIGSTOP of the engine's process, which stays alive and says nothing."""
    entity = ServedEntity(name="only", model=str(tiny_chat), engine=EngineSettings(health_timeout_seconds=10))
    platform.serving.put(EndpointSettings(name="hanging", served_entities=[entity]))
    platform.serving.wait("hanging")

    def ask() -> None:
        client.chat.completions.create(model="hanging", messages=[{"role": "user", "content": "hi"}], max_tokens=3)

    def running() -> list[Replica]:
        return [one for one in platform.serving.describe("hanging").entities[0].replicas if one.state == "RUNNING"]

    ask()
    (before,) = running()
    assert before.pid is not None
    (engine,) = [one for one in psutil.Process(before.pid).children(recursive=True) if "EngineCore" in one.name()]
    engine.suspend()
    while engine.status() != psutil.STATUS_STOPPED:  # it ends what it does in the kernel first
        time.sleep(0.05)
    with suppress(openai.OpenAIError):  # what waits for the engine fails, or is asked of the next one
        ask()
    deadline = time.monotonic() + 150
    while not [one for one in running() if one.replica_id != before.replica_id]:
        assert time.monotonic() < deadline, "no other replica runs"
        time.sleep(0.5)
    assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE
    ask()
    (log,) = platform.serving.logs("hanging", lines=1000)
    assert log.replica_id != before.replica_id and log.lines
    platform.serving.delete("hanging")
