"""What the machines of the Ray cluster have: memory and GPUs, in all and free at this moment."""

import shutil
import subprocess
from pathlib import Path

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mosaic.protocol import Wire

_ASK_SECONDS = 20
_CGROUP = Path("/sys/fs/cgroup")


class Gpu(Wire):
    """One GPU."""

    memory: int
    """Bytes."""
    free: int
    """Bytes that no process holds."""


class Node(Wire):
    """A machine of the cluster, as far as engines care."""

    name: str
    memory: int
    """Bytes, by the container's limit where there is one."""
    free: int
    """Bytes that a new process can have without anything being swapped out."""
    gpu_count: float = 0
    """GPUs that Ray knows of."""
    gpus: tuple[Gpu, ...] = ()
    """Those that could be measured: NVIDIA's."""


def cluster_nodes() -> tuple[Node, ...]:
    """All machines that are up; raises nothing for one that does not answer in time, and leaves it out."""
    here = ray.get_runtime_context().get_node_id()
    found, asked = [], []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        name, gpus = node["NodeManagerAddress"], node["Resources"].get("GPU", 0.0)
        if node["NodeID"] == here:
            found.append(this_node(name, gpus))
        else:
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked.append(_ask.options(scheduling_strategy=place).remote(name, gpus))
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=_ASK_SECONDS) if asked else ([], [])
    for one in answered:
        try:
            found.append(ray.get(one))
        except ray.exceptions.RayError:  # it went away between the question and the answer
            continue
    return tuple(found)


def this_node(name: str, gpu_count: float) -> Node:
    """The machine that this process runs on."""
    memory = psutil.virtual_memory()
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    total, free = memory.total, memory.available
    if limit is not None and used is not None and limit < total:
        total, free = limit, min(free, limit - used + _inactive_file())
    return Node(name=name, memory=total, free=max(free, 0), gpu_count=gpu_count, gpus=_gpus() if gpu_count else ())


@ray.remote(num_cpus=0)
def _ask(name: str, gpu_count: float) -> Node:
    return this_node(name, gpu_count)


def _gpus() -> tuple[Gpu, ...]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    asked = [program, "--query-gpu=memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=_ASK_SECONDS, check=True).stdout
        pairs = [line.split(",") for line in told.splitlines() if line.strip()]
        return tuple(Gpu(memory=int(total) * 1024**2, free=int(free) * 1024**2) for total, free in pairs)
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()


def _cgroup(name: str) -> int | None:
    try:
        told = (_CGROUP / name).read_text().strip()
    except OSError:
        return None
    return int(told) if told.isdigit() else None


def _inactive_file() -> int:
    """File pages that the kernel gives up when memory is asked for; they count as used to the container."""
    try:
        told = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except OSError:
        return 0
    return int(told.get("inactive_file", 0))
