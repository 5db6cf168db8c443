"""A CPU engine's process, forked from one that has imported vLLM while its replica did.

vLLM starts its engine as a new Python that imports everything again, once the replica has: seven seconds, one after the
other. Here a fork server (Python's own) begins to import together with the replica, on another core. It does nothing
but import, so no thread and no device is in it when it forks. On GPUs vLLM's own way stays.

It reaches into vLLM 0.29, which takes the way its processes start from `get_mp_context`; tests that start and kill
engines hold it.
"""

import importlib.util
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import psutil
import setproctitle

_IMPORTED = ["vllm.v1.engine.core", "mosaic.serving.vllm_cpu"]


def cpu_environment(threads: int | None = None) -> dict[str, str]:
    """What an engine's processes need in their environment: as many threads as there are cores, unless told, and
    nothing compiled while they answer (vLLM would stop for 15 s at the first request for logprobs)."""
    cores = threads or psutil.cpu_count(logical=False) or 1
    return {"OMP_NUM_THREADS": str(cores), "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1"}


def begin_imports(environment: dict[str, str]) -> None:
    """Start the fork server, and change this process's environment to what engines need; returns at once."""
    os.environ.update(environment)
    torch = importlib.util.find_spec("torch")
    for library in sorted(Path(str(torch and torch.origin)).parent.glob("lib/libgomp*.so*"))[:1]:
        os.environ.setdefault("LD_PRELOAD", str(library))  # as vLLM does it, before it is there to do it
    multiprocessing.set_forkserver_preload(_IMPORTED)
    forkserver.ensure_running()


class EngineProcesses(ForkServerContext):
    """Starts processes with the environment that this one has then; the fork server's own is older."""

    @staticmethod
    def Process(*, target: Callable[..., Any], kwargs: dict[str, Any], name: str) -> ForkServerProcess:  # type: ignore[override]
        return ForkServerProcess(target=_run, args=(dict(os.environ), target), kwargs=kwargs, name=name)


def _run(environment: dict[str, str], target: Callable[..., Any], **kwargs: Any) -> None:
    setproctitle.getproctitle()  # finds where the title stands, while the environment is still where it began
    os.environ.update(environment)
    target(**kwargs)
