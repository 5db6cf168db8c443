"""Whether the memory of what stands in a request's way stays flat: its slope over many requests after a warm-up.

    python -m benchmarks.gateway_memory [requests]

The load is that of `benchmarks.gateway`: 32 clients of wrk before a provider that answers at once, through a token, a
grant, one limit and the ledger. Resident memory of each process is read every ten seconds, and a line fitted.
"""

import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import psutil

from benchmarks.gateway import CLIENTS, EVERY, KEY, provider, serve, wrk
from benchmarks.serving import running_platform
from mosaic.runtime.cluster import marked_processes
from mosaic.runtime.home import read_record

PROCESSES = {"gateway": "ray::ServeReplica:gateway:", "quota": "ray::Shard", "shipper": "ray::Shipping"}
SECONDS, WARM_UP = 10, 20_000
MIB = 2**20


def main(requests: int) -> None:
    with tempfile.TemporaryDirectory() as scratch, provider() as url, running_platform(Path(scratch)) as platform:
        platform.catalog.connections.create(
            "double", connection_type="OPENAI", options={"base_url": f"{url}/v1", "api_key": KEY}, owner="admin"
        )
        token = platform.catalog.create_token("bench", kind="user", is_admin=True)[1]
        serve(platform, "plain", rate_limits=[EVERY])
        side = (f"{platform.base_url}/v1", "plain", token)
        record = read_record(platform.settings.home_folder)
        assert record is not None
        watched = {
            name: process
            for process in marked_processes(record["platform_id"])
            for name, begins in PROCESSES.items()
            if process.cmdline()[0].startswith(begins)
        }
        if watched.keys() != PROCESSES.keys():
            raise RuntimeError(f"only {sorted(watched)} of {sorted(PROCESSES)} run")
        load(side, WARM_UP)
        minutes: list[float] = []
        mib: dict[str, list[float]] = defaultdict(list)
        asked, began = 0, time.monotonic()
        while asked < requests:
            asked += load(side, 1)
            minutes.append((time.monotonic() - began) / 60)
            for name, process in watched.items():
                mib[name].append(resident(process))
        print(f"{asked:,} requests in {minutes[-1]:.1f} minutes after {WARM_UP:,} to warm up")
        for name, values in mib.items():
            slope, _ = statistics.linear_regression(minutes, values)
            told = "; wanted less than 1" if name == "gateway" else ""
            print(f"{name:8} {values[0]:6.1f} -> {values[-1]:6.1f} MiB, slope {slope:+.2f} MiB/min{told}", flush=True)


def load(side: tuple[str, str, str], requests: int) -> int:
    """At least so many, in whole spells of SECONDS; how many they were."""
    asked = 0.0
    while asked < requests:
        asked += wrk(side, CLIENTS, SECONDS)["rate"] * SECONDS
    return round(asked)


def resident(process: psutil.Process) -> float:
    """What is the process's own: pages that it shares with others are theirs too."""
    return float(process.memory_full_info().uss) / MIB


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 200_000)
