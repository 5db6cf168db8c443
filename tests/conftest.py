"""One platform for the whole test run: real Ray, Serve behind HAProxy, MLflow, an echo engine, one vLLM engine,
MiniLM."""

from collections.abc import Iterator

import pytest
import ray
from openai import OpenAI

from mosaic.platform import Platform, down, up
from mosaic.serving.endpoint import EndpointSettings, ServedEntity
from tests.local import local_settings


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Started once, with the endpoint `echo` ready."""
    settings = local_settings(tmp_path_factory.mktemp("mosaic"))
    running = up(settings).platform
    try:
        running.create_endpoint(
            EndpointSettings(name="echo", served_entities=[ServedEntity(name="echo", model="echo")])
        )
        running.wait_until_ready("echo")
        yield running
    finally:
        down(settings.home_folder)


@pytest.fixture(scope="session")
def token(platform: Platform) -> str:
    """An ordinary user's token."""
    return platform.catalog.create_token("alice", kind="user", is_admin=False)[1]


@pytest.fixture(scope="session")
def client(platform: Platform, token: str) -> OpenAI:
    """The official client, as a user would make it; it never tries again by itself."""
    return OpenAI(base_url=f"{platform.base_url}/v1", api_key=token, max_retries=0, timeout=60)


@pytest.fixture(scope="session")
def ray_cluster(request: pytest.FixtureRequest) -> None:
    """A Ray with some CPUs: the platform's where this run has one, a bare one otherwise."""
    if any("platform" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("platform")
    elif not ray.is_initialized():
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=300_000_000,
        )
