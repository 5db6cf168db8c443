"""An endpoint whose engine has ended for lack of requests: how long its first request waits until it is answered.

    python benchmarks/scale_to_zero.py [MODEL] [ROUNDS]

A platform of its own (two logical CPUs, a folder that goes with it). MODEL is a packaged model, a folder, or `tiny`
(the default) for an untrained one of two layers, whose weights load in no time. A round waits until no engine runs and
asks for a stream; beside the time to its first token stands that of a warm engine. Printed are the median and the
range.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from openai import OpenAI

from mosaic.models.doubles import tiny_llama
from mosaic.platform import Platform, PlatformSettings, down, up
from mosaic.runtime import RaySettings
from mosaic.serving.endpoint import EndpointSettings, ServedEntity
from mosaic.serving.settings import EngineSettings

NAME, IDLE_SECONDS = "sleeper", 3


def main(model: str = "tiny", rounds: str = "5") -> None:
    with tempfile.TemporaryDirectory() as scratch:
        if model == "tiny":
            model = str(tiny_llama(Path(scratch) / "tiny"))
        home = Path(scratch) / "root"
        started = up(PlatformSettings(storage=str(home), ray=RaySettings(num_cpus=2)))
        try:
            assert started.first_token is not None
            client = OpenAI(base_url=f"{started.platform.base_url}/v1", api_key=started.first_token, timeout=600)
            report(*measure(started.platform, client, model, int(rounds)))
        finally:
            down(home)


def measure(platform: Platform, client: OpenAI, model: str, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds to the first token, from zero and warm."""
    engine = EngineSettings.parse({"scaling": {"min_replicas": 0, "scale_to_zero_after_seconds": IDLE_SECONDS}})
    platform.serving.create(
        EndpointSettings(name=NAME, served_entities=[ServedEntity(name="only", model=model, engine=engine)])
    )
    platform.serving.wait(NAME)
    cold, warm = [], []
    for _ in range(rounds):
        while platform.serving.state(platform.serving.get(NAME)).scaled_to_zero is None:
            time.sleep(0.2)
        cold.append(first_token(client))
        warm.append(first_token(client))
    return cold, warm


def first_token(client: OpenAI) -> float:
    started = time.perf_counter()
    messages = [{"role": "user", "content": "What is the capital of Japan?"}]
    stream = client.chat.completions.create(model=NAME, messages=messages, max_tokens=8, stream=True)  # type: ignore[call-overload]
    next(iter(stream))
    seconds = time.perf_counter() - started
    for _ in stream:
        pass
    return seconds


def report(cold: list[float], warm: list[float]) -> None:
    print(f"{'time to first token, seconds':32}{'median':>8}{'range':>20}")
    for name, found in (("from zero", cold), ("warm", warm)):
        print(f"{name:32}{statistics.median(found):>8.2f}{f'{min(found):.2f} to {max(found):.2f}':>20}")


if __name__ == "__main__":
    main(*sys.argv[1:])
