"""Models on Ray Serve: each served model is an application of its own, without a route, that speaks the engine
protocol."""

from mosaic.serving.deploy import (
    EngineSettings,
    deploy_echo,
    deploy_embedder,
    deploy_vllm,
    engine_app_name,
    start_engine,
)
from mosaic.serving.engine import ServeEngine

__all__ = [
    "EngineSettings",
    "ServeEngine",
    "deploy_echo",
    "deploy_embedder",
    "deploy_vllm",
    "engine_app_name",
    "start_engine",
]
