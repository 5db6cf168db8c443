"""As many replicas as is asked for: the settings, and the platform while replicas come and go under requests."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI
from ray import serve
from ray.serve._private.common import DeploymentStatus, DeploymentStatusTrigger, ReplicaState
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, DeploymentStatusOverview

from mosaic.errors import BadRequest
from mosaic.platform import Platform
from mosaic.serving.apps import probe_seconds
from mosaic.serving.endpoint import EndpointSettings, ServedEntity, units_of
from mosaic.serving.scaling import replica_options
from mosaic.serving.settings import EngineSettings

NAME = "breathing"
SLOW: Any = [{"role": "user", "content": "slow: a b c d"}]


def test_a_fixed_number_stays_the_plain_way() -> None:
    assert replica_options(EngineSettings(num_replicas=3)) == {"num_replicas": 3}
    assert replica_options(EngineSettings(max_replicas_per_node=2)) == {"num_replicas": 1, "max_replicas_per_node": 2}


def test_an_engine_that_may_scale_to_zero_starts_with_one_replica_so_that_its_faults_show() -> None:
    settings = EngineSettings.parse({"scaling": {"min_replicas": 0, "max_replicas": 4}})
    options = replica_options(settings)["autoscaling_config"]
    assert (options["min_replicas"], options["initial_replicas"], options["max_replicas"]) == (0, 1, 4)
    assert options["downscale_to_zero_delay_s"] == 600 and settings.first_replicas == 1
    assert serve.deployment(lambda: None, name="x", **replica_options(settings))  # Ray takes them


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"scaling": {"min_replicas": 3, "max_replicas": 2}}, r"max_replicas = 2 must be at least min_replicas = 3"),
        ({"scaling": {"scale_to_zero_after_seconds": 5}}, r"needs min_replicas = 0; it is 1, which are kept warm"),
        ({"scaling": {"max_replicas": 2}, "num_replicas": 2}, r"num_replicas = 2 is a fixed number and scaling a rang"),
        ({"scaling": {"max": 2}}, r"unknown field 'scaling.max'"),
    ],
)
def test_what_does_not_fit_together_is_refused(given: dict[str, object], told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        EngineSettings.parse(given)


def test_a_probe_that_wakes_an_engine_may_take_as_long_as_its_start() -> None:
    def application(**states: int) -> ApplicationStatusOverview:
        deployment = DeploymentStatusOverview(
            status=DeploymentStatus.HEALTHY,
            status_trigger=DeploymentStatusTrigger.UNSPECIFIED,
            replica_states={ReplicaState(state): count for state, count in states.items()},
            message="",
        )
        running = ApplicationStatus.RUNNING
        return ApplicationStatusOverview(
            status=running, message="", last_deployed_time_s=0.0, deployments={"engine": deployment}
        )

    assert probe_seconds(application(), 1800) == probe_seconds(application(STARTING=1), 1800) == 1800
    assert probe_seconds(application(STOPPING=1, RUNNING=0), 1800) == 1800
    assert probe_seconds(application(RUNNING=1, STARTING=1), 1800) == probe_seconds(None, 1800) == 300


def breathing(**more: object) -> EndpointSettings:
    scaling = {
        "min_replicas": 0,
        "max_replicas": 3,
        "target_ongoing_requests": 4,
        "scale_up_after_seconds": 0,
        "scale_down_after_seconds": 1,
        "scale_to_zero_after_seconds": 2,
    }
    engine = EngineSettings.parse({"scaling": scaling, **more})
    return EndpointSettings(name=NAME, served_entities=[ServedEntity(name="only", model="echo", engine=engine)])


@pytest.fixture
def endpoint(platform: Platform) -> Iterator[str]:
    platform.serving.put(breathing())
    platform.serving.wait(NAME)
    yield NAME
    platform.serving.delete(NAME)


def replicas(platform: Platform) -> int:
    """Those that run of the live configuration's engine."""
    now = platform.serving.get(NAME)
    (unit,) = units_of(platform.catalog, now.config, now.pinned)
    (deployment,) = serve.status().applications[unit.app_name].deployments.values()
    return deployment.replica_states.get("RUNNING", 0)


def eventually(is_so: Callable[[], bool], what: str, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not {what} after {seconds} s"
        time.sleep(0.2)


@pytest.mark.long
def test_20_clients_lose_no_request_while_replicas_come_and_go_and_the_engine_is_exchanged(
    platform: Platform, client: OpenAI, endpoint: str
) -> None:
    stop, enough, failed, asked = threading.Event(), threading.Event(), [], [0]

    def ask(number: int) -> None:
        """Always, or only one of the clients while that is enough."""
        while not stop.is_set():
            if number and enough.is_set():
                time.sleep(0.05)
                continue
            try:
                stream = client.chat.completions.create(model=endpoint, messages=SLOW, stream=True)
                assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices) == "slow: a b c d"
                asked[0] += 1
            except Exception as error:  # whatever it is, it is one request lost
                failed.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: replicas(platform) == 3, "at three replicas")
        enough.set()
        eventually(lambda: replicas(platform) <= 1, "at one replica")
        enough.clear()
        platform.serving.update(breathing(threads=1))
        platform.serving.wait(endpoint)
        eventually(lambda: replicas(platform) > 1, "at more than one replica of the new engine")
        enough.set()
        eventually(lambda: replicas(platform) == 1, "at one replica of the new engine")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed and asked[0] > 100


def test_the_first_requests_from_zero_are_held_and_answered(
    platform: Platform, client: OpenAI, endpoint: str, token: str
) -> None:
    eventually(lambda: replicas(platform) == 0, "scaled to zero")
    state = platform.serving.state(platform.serving.get(endpoint))
    assert state.ready == "READY" and state.reason is None
    assert (
        state.scaled_to_zero
        == "the engine of 'only' is scaled to zero: the next request waits until an engine has started"
    )
    platform.serving.wait(endpoint, timeout_seconds=5)
    answers: list[str | None] = []

    def ask() -> None:
        said = client.chat.completions.create(model=endpoint, messages=[{"role": "user", "content": "wake up"}])
        answers.append(said.choices[0].message.content)

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["wake up"] * 5
    eventually(lambda: replicas(platform) == 0, "scaled to zero again")
    platform.serving.update(
        EndpointSettings(name=endpoint, task="chat", served_entities=breathing().served_entities)
    )  # the same engine: its probe wakes it
    platform.serving.wait(endpoint)


def test_databricks_word_for_it_means_the_same(platform: Platform) -> None:
    headers = {"authorization": f"Bearer {platform.catalog.create_token('admin')[1]}"}

    def create(engine: dict[str, Any]) -> httpx.Response:
        entity = {"name": "e", "entity_name": "echo", "scale_to_zero_enabled": True, "engine": engine}
        body = {"name": "by-rest", "config": {"served_entities": [entity]}}
        return httpx.post(f"{platform.base_url}/api/2.0/serving-endpoints", json=body, headers=headers, timeout=60)

    refused = create({"scaling": {"min_replicas": 1}})
    assert refused.status_code == 400 and "leave one of the two out" in refused.text
    made = create({"num_replicas": 2})
    assert made.status_code == 200, made.text
    (entity,) = made.json()["pending_config"]["served_entities"]
    assert entity["scale_to_zero_enabled"] is True
    scaling, fixed = entity["engine"]["scaling"], entity["engine"]["num_replicas"]
    assert (scaling["min_replicas"], scaling["max_replicas"], fixed) == (0, 2, 1)
    platform.serving.delete("by-rest")
