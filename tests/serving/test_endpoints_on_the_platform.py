"""Endpoints as their users change them: by the command, by HTTP and by databricks-sdk, and while requests run."""

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from openai import OpenAI

from mosaic.errors import BadRequest, Unavailable
from mosaic.platform import Platform
from mosaic.serving.endpoint import EndpointSettings, ServedEntity, units_of
from mosaic.serving.rollout import AppState
from mosaic.serving.settings import EngineSettings
from tests.local import mosaic

ROOT = Path(__file__).parents[2]
HELLO: list[Any] = [{"role": "user", "content": "hello there"}]


def arms(left: int, *, engine: EngineSettings | None = None) -> list[ServedEntity]:
    return [
        ServedEntity(name="left", model="echo", traffic_percentage=left, engine=engine),
        ServedEntity(name="right", model="echo", traffic_percentage=100 - left, engine=engine),
    ]


@pytest.fixture
def rolling(platform: Platform) -> Iterator[str]:
    platform.serving.put(EndpointSettings(name="rolling", served_entities=arms(50)))
    platform.serving.wait("rolling")
    yield "rolling"
    platform.serving.delete("rolling")


def test_the_page_shows_a_configuration_that_is_one() -> None:
    _, _, rest = (ROOT / "docs/serving.md").read_text().partition("```yaml\n")
    settings = EndpointSettings.parse(yaml.safe_load(rest.partition("```")[0]))
    assert [entity.traffic_percentage for entity in settings.served_entities] == [90, 10]


@pytest.mark.parametrize(
    ("field", "template"),
    [
        ("entry_template", "{text.__class__}"),
        ("entry_template", "{text:>1000000000}"),
        ("entry_template", "{0}"),
        ("entry_template", "{text!r}"),
        ("prompt_template", "{entries} {answer}"),
    ],
)
def test_templates_only_put_columns_in(field: str, template: str) -> None:
    with pytest.raises(BadRequest, match=f"retrieval.{field}"):
        EndpointSettings.parse(
            {
                "name": "x",
                "served_entities": [{"name": "e", "model": "echo"}],
                "retrieval": {"index": "main.docs.ix", field: template},
            }
        )


def test_updates_while_20_clients_ask_lose_no_request(platform: Platform, client: OpenAI, rolling: str) -> None:
    """Shares alone, and other engines: the old ones end while requests run."""
    stop, failed, asked = threading.Event(), [], [0]

    def ask() -> None:
        while not stop.is_set():
            try:
                stream = client.chat.completions.create(model=rolling, messages=HELLO, stream=True)
                assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices) == "hello there"
                asked[0] += 1
            except Exception as error:  # whatever it is, it is one request lost
                failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    try:
        for settings in (arms(10), arms(90, engine=EngineSettings(threads=1)), arms(100)):
            before = asked[0]
            platform.serving.update(EndpointSettings(name=rolling, served_entities=settings))
            platform.serving.wait(rolling)
            time.sleep(6.5)  # the engines of before end in this time
            assert asked[0] > before
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed and asked[0] > 200
    states = [one.state for one in platform.serving.configs(rolling)]
    assert states[-4:] == ["replaced", "replaced", "replaced", "live"]
    answers = [client.chat.completions.create(model=rolling, messages=HELLO) for _ in range(20)]
    assert {(one.model_extra or {})["mosaic"]["served_entity"] for one in answers} == {"left"}


def test_a_change_is_live_on_every_replica_within_a_second(platform: Platform, client: OpenAI, rolling: str) -> None:
    platform.serving.update(EndpointSettings(name=rolling, served_entities=arms(100)))
    platform.serving.wait(rolling)
    time.sleep(1)
    for left, name in ((0, "right"), (100, "left")):
        platform.serving.update(EndpointSettings(name=rolling, served_entities=arms(left)))
        platform.serving.wait(rolling)
        time.sleep(1)
        answers = [client.chat.completions.create(model=rolling, messages=HELLO) for _ in range(20)]
        assert {(one.model_extra or {})["mosaic"]["served_entity"] for one in answers} == {name}


def test_an_engine_that_is_needed_again_while_it_ends(platform: Platform, client: OpenAI) -> None:
    def serve(threads: int) -> None:
        only = ServedEntity(name="e", model="echo", engine=EngineSettings(threads=threads))
        platform.serving.put(EndpointSettings(name="again", served_entities=[only]))
        platform.serving.wait("again")

    serve(2)
    (first,) = units_of(platform.catalog, platform.serving.get("again").config, {})
    serve(3)
    deadline = time.monotonic() + 30
    while platform._parts.engines.states().get(first.app_name, AppState("ending")).state != "ending":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    serve(2)
    time.sleep(0.6)
    for _ in range(10):
        assert client.chat.completions.create(model="again", messages=HELLO).choices[0].message.content == "hello there"
    platform.serving.delete("again")


def test_one_that_fails_leaves_the_old_one_serving(
    platform: Platform, client: OpenAI, rolling: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["OddModel"]}))
    odd = [ServedEntity(name="odd", model=str(tmp_path))]
    platform.serving.update(EndpointSettings(name=rolling, served_entities=odd))
    with pytest.raises(Unavailable, match=r"failed: model .* is a \['OddModel'\]; served are causal language models"):
        platform.serving.wait(rolling)
    state = platform.serving.state(platform.serving.get(rolling))
    assert (state.ready, state.config_update) == ("READY", "UPDATE_FAILED") and "OddModel" in str(state.reason)
    assert client.chat.completions.create(model=rolling, messages=HELLO).choices[0].message.content == "hello there"


def test_the_command(platform: Platform, client: OpenAI, settings_file: Path, tmp_path: Path) -> None:
    def endpoint(*words: str) -> subprocess.CompletedProcess[str]:
        return mosaic("endpoint", *words, "--settings", str(settings_file))

    def spec(**changes: object) -> str:
        given = {"name": "typed", "served_entities": [{"name": "e", "model": "echo"}], **changes}
        (tmp_path / "endpoint.yaml").write_text(yaml.safe_dump(given))
        return str(tmp_path / "endpoint.yaml")

    made = endpoint("create", "-f", spec())
    assert (made.returncode, made.stdout) == (0, "endpoint typed: config 1 is live\n"), made.stderr
    assert client.chat.completions.create(model="typed", messages=HELLO).choices[0].message.content == "hello there"
    twice = endpoint("create", "-f", spec())
    assert twice.returncode == 1 and "endpoint 'main.serving.typed' already exists" in twice.stderr
    halves = [{"name": name, "model": "echo", "traffic_percentage": 50} for name in "ab"]
    changed = json.loads(endpoint("update", "-f", spec(served_entities=halves), "--json").stdout)
    assert (changed["config_version"], len(changed["config"]["served_entities"])) == (2, 2)
    shown = json.loads(endpoint("get", "typed", "--json").stdout)
    assert shown["state"] == {"ready": "READY", "config_update": "NOT_UPDATING", "reason": None, "scaled_to_zero": None}
    listed = {one["name"]: one["state"]["ready"] for one in json.loads(endpoint("list", "--json").stdout)}
    assert listed["main.serving.typed"] == "READY"
    assert [one["state"] for one in json.loads(endpoint("configs", "typed", "--json").stdout)] == ["replaced", "live"]
    for wrong, told in {
        spec(served_entities=halves[:1]): "the traffic percentages add up to 50, not to 100",
    }.items():
        refused = endpoint("update", "-f", wrong)
        assert refused.returncode == 1 and told in refused.stderr
    refused = endpoint("update", "-f", spec(served_entities=[{"name": "e", "model": "gpt-9"}]))
    assert refused.returncode == 1 and "no model 'gpt-9'; there are [" in refused.stderr
    refused = endpoint("update", "-f", spec(served_entitys=[]))
    assert refused.returncode == 1 and "unknown field 'served_entitys'" in refused.stderr
    assert endpoint("delete", "typed").stdout == "deleted endpoint typed\n"
    gone = endpoint("get", "typed")
    assert gone.returncode == 1 and "no endpoint" in gone.stderr
    with pytest.raises(openai.NotFoundError):
        time.sleep(0.6)
        client.chat.completions.create(model="typed", messages=HELLO)


@pytest.fixture(scope="module")
def maker(platform: Platform) -> str:
    """The token of one who may make endpoints."""
    token = platform.catalog.create_token("maker")[1]
    platform.catalog.grants.grant("schema", "main.serving", "maker", ["CREATE MODEL"], by="admin")
    platform.catalog.grants.grant("schema", "main.default", "maker", ["USE SCHEMA", "CREATE TABLE"], by="admin")
    return token


def test_http_and_its_refusals(platform: Platform, maker: str, token: str) -> None:
    base = f"{platform.base_url}/api/2.0/serving-endpoints"
    mine, other = ({"authorization": f"Bearer {one}"} for one in (maker, token))
    entity = {"name": "e", "entity_name": "echo"}

    def made(config: dict[str, Any], name: str = "by-http") -> httpx.Response:
        return httpx.post(base, json={"name": name, "config": config}, headers=mine)

    for config, told in (
        ({"served_entities": []}, "served_entities"),
        ({"served_entities": [{**entity, "entity_name": "gpt-9"}]}, "no model 'gpt-9'; there are"),
        ({"served_entities": [{**entity, "entity_name": "/etc"}]}, "only administrators may serve from"),
        ({"served_entities": [{**entity, "entity_name": "."}]}, "only administrators may serve from"),
        (
            {"served_entities": [{**entity, "engine": {"engine_kwargs": {"worker_cls": "odd.Worker"}}}]},
            "only administrators may give them",
        ),
        (
            {"served_entities": [{**entity, "engine": {"engine_kwargs": {"max_num_seq": 8}}}]},
            "served entity 'e': engine.engine_kwargs: vLLM has no engine flag 'max_num_seq'; did you mean "
            "'max_num_seqs'",
        ),
        (
            {"served_entities": [{**entity, "engine": {"engine_kwargs": {"max_num_seqs": "8"}}}]},
            'max_num_seqs = "8": must be integer or null, not string',
        ),
        ({"served_entities": [{**entity, "engine": {"reasoning_parser": "qwen"}}]}, "did you mean 'qwen3'"),
        ({"served_entities": [{**entity, "engine": {"num_replicas": 10**30}}]}, "num_replicas"),
        ({"served_entities": [{**entity, "engine": {"num_cpus": -5}}]}, "num_cpus"),
        ({"served_entities": [{**entity, "engine": {"engine_kwargs": {"a": [[[[[[[[[[[]]]]]]]]]]]}}}]}, "levels deep"),
        ({"served_entities": [{**entity, "entity_version": "x"}]}, "must be the number of a version"),
        ({"served_entities": [entity, {**entity, "name": "f"}]}, "traffic_config must say the share"),
        ({"served_entities": [{**entity, "engine": {"num_cpu": 1}}]}, "num_cpu"),
        ({"served_entities": [{**entity, "entity_name": "main.none.bot", "entity_version": "1"}]}, "main.none.bot"),
        (
            {
                "served_entities": [entity],
                "traffic_config": {"routes": [{"served_model_name": "e", "traffic_percentage": 90}]},
            },
            "add up to 90, not to 100",
        ),
        (
            {
                "served_entities": [entity],
                "traffic_config": {"routes": [{"served_model_name": "x", "traffic_percentage": 100}]},
            },
            "routes to ['x']",
        ),
        ({"served_entities": [{**entity, "external_model": {}}]}, "external_model"),
    ):
        refused = made(config)
        assert 400 <= refused.status_code < 500 and told in refused.json()["message"], (config, refused.text)
    answered = made({"served_entities": [entity]})
    assert answered.status_code == 200, answered.text
    try:
        assert answered.json()["state"] == {"ready": "NOT_READY", "config_update": "IN_PROGRESS"}
        assert made({"served_entities": [entity]}).status_code == 409
        platform.serving.wait("by-http")
        for call in (
            httpx.put(f"{base}/by-http/config", json={"served_entities": [entity]}, headers=other),
            httpx.delete(f"{base}/by-http", headers=other),
        ):
            assert call.status_code == 403
        asked = httpx.post(
            f"{platform.base_url}/serving-endpoints/by-http/invocations", json={"messages": HELLO}, headers=mine
        )
        assert asked.json()["choices"][0]["message"]["content"] == "hello there"
        for body, told in (({}, "messages"), ({"messages": HELLO, "model": "echo"}, "is not the endpoint")):
            refused = httpx.post(f"{platform.base_url}/serving-endpoints/by-http/invocations", json=body, headers=mine)
            assert refused.status_code == 400 and told in refused.text
    finally:
        assert httpx.delete(f"{base}/by-http", headers=mine).status_code == 200


def test_databricks_sdk(platform: Platform, maker: str, token: str) -> None:
    """`token` is that of alice, whom it lets in and out."""
    command = [".venv-clients/bin/python", "tests/serving/with_databricks_sdk.py", platform.base_url, maker]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0 and ran.stdout == "done\n", ran.stderr
