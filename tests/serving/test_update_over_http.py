"""What an update over HTTP leaves out stays as it was; without engines."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from mosaic.catalog import Catalog
from mosaic.errors import BadRequest
from mosaic.protocol import Principal
from mosaic.serving.doubles import InstantApps
from mosaic.serving.endpoint import EndpointSettings, Retrieval, ServedEntity, Unit
from mosaic.serving.replicas import Replica
from mosaic.serving.routes import BASE, ServingRoutes
from mosaic.serving.service import Serving
from mosaic.serving.settings import EngineSettings

ADMIN = Principal(name="admin", is_admin=True)
RETRIEVAL = {"index": "main.docs.ix", "num_results": 2}
EMBED = {"name": "e", "model": "encoder", "engine": {"max_model_len": 256}}


class Room(InstantApps):
    """Engines for which there is always room; the platform's settings know the base of an adapter."""

    def settings_of(self, unit: Unit) -> EngineSettings:
        return unit.settings or EngineSettings(max_model_len={"base": 4096}.get(unit.model, 1024))

    def replicas(self, app_names: Sequence[str]) -> dict[str, list[Replica]]:
        return {}

    def log_lines(self, replica: Replica, lines: int) -> list[str]:
        return []

    def metrics_text(self) -> str:
        return ""

    def require_model(self, unit: Unit) -> None: ...

    def require_room(self, units: set[Unit]) -> None: ...


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    made = Catalog.open(f"sqlite:///{tmp_path}/c.db")
    made.ensure_schema("main.ml")
    for name, kind, base in (("bot", "full", None), ("tuned", "adapter", "base"), ("moods", "classifier", None)):
        made.create_model(f"main.ml.{name}", owner="admin")
        for _ in range(2):
            made.create_model_version(f"main.ml.{name}", source="/m", kind=kind, base_model=base)
    made.ensure_schema("main.serving")
    made.ensure_schema("main.docs")
    columns = [{"name": "id", "type": "string"}]
    made.create_table("main.docs.entries", "/t", columns=columns, primary_key="id", owner="admin")
    made.put_index("main.docs.ix", table="main.docs.entries", spec={}, owner="admin")
    yield made
    made.close()


@pytest.fixture
def serving(catalog: Catalog) -> Serving:
    return Serving(catalog, Room(), ADMIN)


def live(catalog: Catalog, **config: Any) -> None:
    """An endpoint `helper` whose configuration is live."""
    settings = EndpointSettings.parse({"name": "helper", **config})
    catalog.endpoints.put("helper", config=settings.model_dump(mode="json"), owner="admin")


def put(serving: Serving, *entities: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The configuration that is pending after an update of `helper`."""
    app = Starlette(routes=ServingRoutes(lambda _: serving).routes())

    async def as_admin(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": {"principal": ADMIN}}, receive, send)

    async def asked() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=as_admin), base_url="http://m") as client:
            return await client.put(f"{BASE}/helper/config", json={"served_entities": entities, **more})

    answer = asyncio.run(asked())
    assert answer.status_code == 200, answer.text
    pending: dict[str, Any] = answer.json()["pending_config"]
    return pending


def test_task_and_engine_stay_and_shares_change(catalog: Catalog, serving: Serving) -> None:
    live(catalog, task="embed", served_entities=[EMBED])
    encoder = {"name": "e", "entity_name": "encoder", "scale_to_zero_enabled": False}
    routes = [{"served_model_name": name, "traffic_percentage": 50} for name in ("e", "f")]
    told = put(serving, encoder, {"name": "f", "entity_name": "encoder"}, traffic_config={"routes": routes})
    assert told["task"] == "embed"
    first, second = told["served_entities"]
    assert first["engine"]["max_model_len"] == 256 and second["engine"] is None  # another one
    shares = {"routes": routes, "sticky": "user"}
    told = put(serving, encoder, {"name": "f", "entity_name": "encoder"}, traffic_config=shares)
    assert told["traffic_config"]["sticky"] == "user"
    # What is pending counts, and what is said wins.
    told = put(serving, {**encoder, "engine": {}}, task="llm/v1/chat")
    assert told["task"] == "chat" and told["served_entities"][0]["engine"]["max_model_len"] == 1024
    told = put(serving, encoder)
    assert told["task"] == "chat" and told["traffic_config"]["sticky"] == "user"


def test_retrieval_stays_until_it_is_taken_away(catalog: Catalog, serving: Serving) -> None:
    live(catalog, served_entities=[{"name": "e", "model": "main.ml.bot/1"}], retrieval=RETRIEVAL)
    newer = {"name": "e", "entity_name": "main.ml.bot", "entity_version": "2"}
    assert put(serving, newer)["retrieval"]["num_results"] == 2
    assert put(serving, newer, task="complete")["retrieval"] is None
    live(catalog, served_entities=[{"name": "e", "model": "main.ml.bot/1"}], retrieval=RETRIEVAL)
    assert put(serving, newer, retrieval={})["retrieval"] is None


def test_an_engine_stays_with_another_version(catalog: Catalog, serving: Serving) -> None:
    live(catalog, served_entities=[{"name": "bot-1", "model": "main.ml.bot/1", "engine": {"max_loras": 1}}])
    by_itself = {"entity_name": "main.ml.bot", "entity_version": "2"}
    (entity,) = put(serving, by_itself)["served_entities"]
    assert (entity["name"], entity["engine"]["max_loras"]) == ("bot-2", 1)
    (entity,) = put(serving, {**by_itself, "name": "other"})["served_entities"]
    assert entity["engine"] is None


def test_scale_to_zero_goes_on_and_off_and_leaves_the_rest(catalog: Catalog, serving: Serving) -> None:
    live(catalog, served_entities=[{**EMBED, "engine": {"max_loras": 1, "num_replicas": 3}}])
    encoder = {"name": "e", "entity_name": "encoder"}
    (entity,) = put(serving, {**encoder, "scale_to_zero_enabled": True})["served_entities"]
    assert entity["engine"]["max_loras"] == 1
    assert (entity["engine"]["scaling"]["min_replicas"], entity["engine"]["scaling"]["max_replicas"]) == (0, 3)
    (entity,) = put(serving, encoder)["served_entities"]
    assert entity["scale_to_zero_enabled"]
    (entity,) = put(serving, {**encoder, "scale_to_zero_enabled": False})["served_entities"]
    assert entity["engine"]["scaling"]["min_replicas"] == 1 and entity["engine"]["max_loras"] == 1
    assert not entity["scale_to_zero_enabled"]
    (entity,) = put(serving, {**encoder, "scale_to_zero_enabled": True})["served_entities"]  # of one that was awake
    assert entity["scale_to_zero_enabled"] and entity["engine"]["scaling"]["max_replicas"] == 3


def test_an_adapter_scales_with_the_settings_of_its_base(catalog: Catalog, serving: Serving) -> None:
    live(catalog, served_entities=[{"name": "e", "model": "base"}])
    asked = {"name": "e", "entity_name": "main.ml.tuned", "entity_version": "2", "scale_to_zero_enabled": True}
    (entity,) = put(serving, asked)["served_entities"]
    assert entity["engine"]["max_model_len"] == 4096 and entity["engine"]["scaling"]["min_replicas"] == 0


def test_what_models_predict_is_made_out_anew(catalog: Catalog, serving: Serving) -> None:
    live(catalog, served_entities=[{"name": "e", "model": "main.ml.bot/1"}])
    told = put(serving, {"name": "e", "entity_name": "main.ml.moods", "entity_version": "1"})
    assert told["task"] == "predict"
    assert put(serving, {"entity_name": "main.ml.moods", "entity_version": "2"})["task"] == "predict"
    assert put(serving, {"name": "e", "entity_name": "main.ml.bot", "entity_version": "1"})["task"] == "chat"


def test_a_custom_model_has_no_retrieval(catalog: Catalog, serving: Serving) -> None:
    entity = ServedEntity(name="e", model="main.ml.moods/1")
    retrieval = Retrieval(index="main.docs.ix")
    with pytest.raises(
        BadRequest, match=r"'moods', whose models predict: .*retrieval is only for endpoints whose task"
    ):
        serving.create(EndpointSettings(name="moods", served_entities=[entity], retrieval=retrieval))
    assert catalog.endpoints.find("moods") is None
