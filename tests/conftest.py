"""One platform for the whole test run: real Ray, Serve behind HAProxy, MLflow, an echo engine, one vLLM engine,
MiniLM."""

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import ray
from openai import OpenAI

from mosaic.models.doubles import tiny_llama
from mosaic.platform import Platform, load_settings
from mosaic.platform.lifecycle import join
from mosaic.runtime.cluster import marked_processes
from mosaic.runtime.home import read_record
from mosaic.serving.endpoint import EndpointSettings, ServedEntity
from mosaic.serving.settings import EngineSettings
from tests.local import local_settings, mosaic, write_settings

TINY_ENGINE = EngineSettings(tool_call_parser="hermes")
"""What the tests' one vLLM engine runs with; entities that say the same share it."""


# How long an example takes says how busy the machine is; a test that hangs has its timeout.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what needs the run's platform: `make test` runs it in one process, and all else in another beside it."""
    for item in items:
        if {"platform", "ray_cluster"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.on_platform)


@pytest.fixture(scope="session")
def settings_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings of the test run's platform."""
    root = tmp_path_factory.mktemp("mosaic")
    return write_settings(local_settings(root / "root"), root / "settings.yaml")


@pytest.fixture(scope="session")
def tiny_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random Llama, which the endpoint `tiny-base` serves by TINY_ENGINE."""
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session")
def platform(settings_file: Path, request: pytest.FixtureRequest) -> Iterator[Platform]:
    """Started once by `mosaic up`, with the endpoint `echo` ready; ended by `mosaic down`, which leaves no process."""
    settings = load_settings(settings_file)
    started = mosaic("up", "-f", str(settings_file))
    assert started.returncode == 0, started.stderr
    assert f"gateway    {settings.base_url}/v1" in started.stdout and "token      mosaic_" in started.stdout
    record = read_record(settings.home_folder)
    assert record is not None
    running = join(settings.home_folder)
    try:
        running.serving.put(EndpointSettings(name="echo", served_entities=[ServedEntity(name="echo", model="echo")]))
        if any("tiny_chat" in getattr(item, "fixturenames", ()) for item in request.session.items):
            # The vLLM engine comes up while other tests run.
            model = str(request.getfixturevalue("tiny_chat"))
            base = ServedEntity(name="base", model=model, engine=TINY_ENGINE)
            running.serving.put(EndpointSettings(name="tiny-base", served_entities=[base]))
        running.serving.wait("echo")
        yield running
    finally:
        ray.shutdown()
        stopped = mosaic("down", "-f", str(settings_file))
    assert stopped.returncode == 0 and "mosaic is down" in stopped.stdout, stopped.stderr
    assert not list(marked_processes(record["platform_id"]))
    assert not Path(f"/tmp/mosaic-ray-{record['platform_id'][-10:]}").exists()
    assert not Path(f"/tmp/mosaic-run-{record['platform_id'][-10:]}").exists()


@pytest.fixture(scope="session")
def tiny_base(platform: Platform, tiny_chat: Path) -> str:
    """An endpoint with a real vLLM engine, ready."""
    platform.serving.wait("tiny-base")
    return "tiny-base"


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
