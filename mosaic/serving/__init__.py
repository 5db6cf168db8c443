"""Models on Ray Serve: each served model is an application of its own, without a route, that speaks the engine
protocol.

    endpoint, settings, scaling       what is asked for: an endpoint's file, how its engines run
    service, routes, before, permissions, register      how users ask for it: Python, HTTP, grants
    rollout, apps                     from what is asked for to what takes the traffic; start reading at `rollout`
    runners, plan, flags, memory, nodes, presets, deploy, serve_calls      from a model's files to a Serve application
    vllm_replica, embedder, classifier, pyfunc, python_model, doubles     the replicas, and under them
        whole; vllm, vllm_requests, vllm_cpu, engine_process, pulse; batches, packed, scoring, classify, packages
    engine, prefix_router             the gateway's end of a replica
    metrics, replicas, description    what there is to see of all that
    batch                             models over the rows of tables
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mosaic.serving.deploy import deploy_echo, deploy_embedder, deploy_vllm, start_engine
    from mosaic.serving.engine import ServeEngine
    from mosaic.serving.settings import EngineSettings

__all__ = [
    "EngineSettings",
    "ServeEngine",
    "deploy_echo",
    "deploy_embedder",
    "deploy_vllm",
    "start_engine",
]

_HOMES = {
    "deploy_echo": "deploy",
    "deploy_embedder": "deploy",
    "deploy_vllm": "deploy",
    "start_engine": "deploy",
    "ServeEngine": "engine",
    "EngineSettings": "settings",
}


def __getattr__(name: str) -> Any:
    # Looked up when it is asked for: whoever only wants the settings does not pay for Ray Serve.
    if name in _HOMES:
        return getattr(importlib.import_module(f"mosaic.serving.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'mosaic.serving' has no attribute {name!r}")
