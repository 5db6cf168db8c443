"""What a job gets from `mosaic.init(token=...)` acts within the token's grants: every way in, by name."""

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mosaic.errors import PermissionDenied
from mosaic.platform import Platform
from mosaic.platform.parts import Parts, build_parts
from mosaic.protocol import Principal
from mosaic.runtime import Cluster
from mosaic.serving.ai_gateway import AiGateway, Guardrails
from mosaic.serving.batch import BatchSettings
from mosaic.serving.endpoint import EndpointSettings, Retrieval, ServedEntity
from mosaic.training import TrainSettings
from mosaic.vector.settings import IndexSettings
from tests.local import local_settings

TABLE, INDEX, MODEL = "main.docs.entries", "main.docs.entries_index", "main.docs.bot"
POLICY = "main.docs.strict"
SCHEMA = pa.schema([pa.field("id", pa.string(), nullable=False), ("text", pa.string())])
ROWS = pa.table({"id": ["a"], "text": ["b"]}, schema=SCHEMA)
CLUSTER = Cluster(address="none", dashboard=None, embedded=True)

Way = Callable[[Platform], Any]

PLATFORM: dict[str, Way] = {
    "embedder": lambda own: own.embedder("closed"),
    "compare": lambda own: own.compare("closed"),
    "fine_tuning": lambda own: own.fine_tuning().run(training(), register_to=MODEL, alias="a", principal=own.principal),
}
TABLES: dict[str, Way] = {
    "create": lambda own: own.tables.create("main.docs.more", SCHEMA, primary_key=None, owner="eve"),
    "grow": lambda own: own.tables.grow(TABLE, SCHEMA.append(pa.field("more", pa.string()))),
    "append": lambda own: own.tables.append(TABLE, ROWS),
    "append_once": lambda own: own.tables.append_once(TABLE, ROWS, "work", 1, after=0),
    "position": lambda own: own.tables.position(TABLE, "work"),
    "overwrite": lambda own: own.tables.overwrite(TABLE, ROWS),
    "delete_where": lambda own: own.tables.delete_where(TABLE, "id = 'a'"),
    "merge": lambda own: own.tables.merge(TABLE, ROWS),
    "version": lambda own: own.tables.version(TABLE),
    "read": lambda own: own.tables.read(TABLE),
    "to_arrow": lambda own: own.tables.to_arrow(TABLE),
    "delta": lambda own: own.tables.delta(TABLE),
    "open": lambda own: own.tables.open(TABLE),
    "place": lambda own: own.tables.place(TABLE),
    "commit_lineage": lambda own: own.tables.commit_lineage(TABLE, 0),
    "vacuum": lambda own: own.tables.vacuum(TABLE),
    "optimize": lambda own: own.tables.optimize(TABLE),
}
INDEXES: dict[str, Way] = {
    "create": lambda own: own.indexes.create(index("main.docs.other_index"), owner="eve"),
    "start": lambda own: own.indexes.start(INDEX),
    "query": lambda own: own.indexes.query(INDEX, "b"),
    "sync": lambda own: own.indexes.sync(INDEX),
    "status": lambda own: own.indexes.status(INDEX),
    "delete": lambda own: own.indexes.delete(INDEX),
}
SERVING: dict[str, Way] = {
    "create": lambda own: own.serving.create(endpoint("new")),
    "update": lambda own: own.serving.update(endpoint("closed")),
    "put": lambda own: own.serving.put(endpoint("new")),
    "put_ai_gateway": lambda own: own.serving.put_ai_gateway("closed", AiGateway()),
    "attach_policy": lambda own: own.serving.attach_policy("closed", POLICY),
    "detach_policy": lambda own: own.serving.detach_policy("closed", POLICY),
    "get": lambda own: own.serving.get("closed"),
    "configs": lambda own: own.serving.configs("closed"),
    "wait": lambda own: own.serving.wait("closed"),
    "describe": lambda own: own.serving.describe("closed"),
    "logs": lambda own: own.serving.logs("closed"),
    "metrics": lambda own: own.serving.metrics("closed"),
    "export_metrics": lambda own: own.serving.export_metrics("closed"),
    "delete": lambda own: own.serving.delete("closed"),
}
POLICIES: dict[str, Way] = {
    "create": lambda own: own.policies.create(POLICY, Guardrails()),
    "get": lambda own: own.policies.get(f"{POLICY}/1"),
    "versions": lambda own: own.policies.versions(POLICY),
    "set_alias": lambda own: own.policies.set_alias(POLICY, "prod", 1),
    "alias_history": lambda own: own.policies.alias_history(POLICY),
    "attached_to": lambda own: own.policies.attached_to(POLICY),
    "delete": lambda own: own.policies.delete(POLICY),
}
MODELS: dict[str, Way] = {
    "register": lambda own: own.models.register(MODEL, "/nowhere"),
    "resolve": lambda own: own.models.resolve(f"{MODEL}/1"),
}
MONEY: dict[str, Way] = {
    "set_price": lambda own: own.money.set_price("m"),
    "create_budget": lambda own: own.money.create_budget("b", amount_nano_dollars=1, period="day"),
    "set_budget": lambda own: own.money.set_budget("b", 1),
    "delete_budget": lambda own: own.money.delete_budget("b"),
    "limits": lambda own: own.money.limits("closed"),
}
BATCH: dict[str, Way] = {
    "infer": lambda own: own.batch.infer(
        BatchSettings(table=TABLE, endpoint="closed", prompt="{text}", output_table="main.docs.answers")
    ),
}
UNCHECKED = {
    Platform: {"acting", "base_url", "batch", "mlflow_uri", "status", "flush_ledger", "flush_audit", "resume_audit"},
    "Tables": {"acting", "run_id"},
    "Indexes": {"acting", "list", "query_async"},  # the last two have tests of their own below
    # prices are everybody's to read; the others show what is one's own (tests/gateway/test_usage.py)
    "Money": {"list_prices", "list_budgets", "show_budget", "usage"},
    "Serving": {"list", "state", "states", "engine_settings"},  # `state` is of an endpoint that one has got
}
"""What names nothing that anybody could own."""


def endpoint(name: str, **more: Any) -> EndpointSettings:
    return EndpointSettings(name=name, served_entities=[ServedEntity(name="e", model="echo")], **more)


def index(name: str) -> IndexSettings:
    return IndexSettings(name=name, table=TABLE, primary_key="id", text_columns=("text",), embedding_endpoint="minilm")


def training() -> TrainSettings:
    return TrainSettings(model="m", train_table=f"{TABLE}@0")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """A catalog with one of each, which belongs to the administrator; eve is a user without any grant."""
    made = build_parts(local_settings(tmp_path_factory.mktemp("root")))
    catalog = made.catalog
    catalog.ensure_schema("main.docs")
    made.tables.create(TABLE, SCHEMA, primary_key="id", owner="admin")
    catalog.put_index(INDEX, table=TABLE, spec=index(INDEX).model_dump(mode="json"), owner="admin")
    catalog.create_model(MODEL, owner="admin")
    catalog.policies.register(POLICY, {})
    catalog.endpoints.put("closed", config=endpoint("closed").model_dump(), owner="admin")
    catalog.create_token("eve")
    return made


@pytest.fixture
def eves(parts: Parts) -> Platform:
    return Platform(parts, CLUSTER).acting(Principal(name="eve"))


@pytest.mark.parametrize(
    ("way", "call"),
    [
        (f"{noun}.{name}", call)
        for noun, ways in (
            ("platform", PLATFORM),
            ("tables", TABLES),
            ("indexes", INDEXES),
            ("serving", SERVING),
            ("policies", POLICIES),
            ("models", MODELS),
            ("money", MONEY),
            ("batch", BATCH),
        )
        for name, call in ways.items()
    ],
)
def test_without_a_grant_it_is_denied_and_written_down(eves: Platform, way: str, call: Way) -> None:
    before = eves.catalog.audit.newest(1)[0].sequence
    with pytest.raises(PermissionDenied, match="'eve' may not"):
        call(eves)
    denied = eves.catalog.audit.list(after=before)
    assert [(one.user_identity.email, one.response.status_code) for one in denied] == [("eve", 403)], way


def test_every_way_in_is_in_the_lists_above(eves: Platform) -> None:
    for of, checked, unchecked in (
        (eves, PLATFORM, {*UNCHECKED[Platform], "why", "impact", "sql"}),
        (eves.tables, TABLES, UNCHECKED["Tables"]),
        (eves.indexes, INDEXES, UNCHECKED["Indexes"]),
        (eves.serving, SERVING, UNCHECKED["Serving"]),
        (eves.policies, POLICIES, {"list"}),
        (eves.models, MODELS, set()),
        (eves.money, MONEY, UNCHECKED["Money"]),
        (eves.batch, BATCH, set()),
    ):
        public = {name for name, _ in inspect.getmembers(type(of)) if not name.startswith("_")}
        assert public - unchecked == set(checked), f"{type(of).__name__} has a way in that no test knows of"


async def _ask(own: Platform) -> None:
    await own.indexes.query_async(INDEX, [0.0])


def test_lists_hold_what_may_be_known(eves: Platform, parts: Parts) -> None:
    with pytest.raises(PermissionDenied):
        asyncio.run(_ask(eves))
    assert eves.indexes.list() == [] and Platform(parts, CLUSTER).indexes.list() == [INDEX]
    seen = Platform(parts, CLUSTER).policies.list("main.docs")
    assert eves.policies.list() == [] and [one.name for one in seen] == [POLICY]


def test_an_endpoint_serves_only_what_its_maker_may_use(parts: Parts, eves: Platform) -> None:
    grants = parts.catalog.grants
    grants.grant("catalog", "main", "eve", ["USE CATALOG"], by="admin")
    grants.grant("schema", "main.serving", "eve", ["USE SCHEMA", "CREATE MODEL"], by="admin")
    try:
        tuned = EndpointSettings(name="mine", served_entities=[ServedEntity(name="e", model=f"{MODEL}@champion")])
        with pytest.raises(PermissionDenied, match=f"missing USE SCHEMA on schema main.docs, EXECUTE on model {MODEL}"):
            eves.serving.put(tuned)
        looking_up = endpoint("mine", retrieval=Retrieval(index=INDEX))
        with pytest.raises(PermissionDenied, match=f"SELECT on index {INDEX}"):
            eves.serving.put(looking_up)
        with pytest.raises(PermissionDenied, match=r"may not MANAGE on endpoint 'main\.serving\.closed'"):
            eves.serving.put(endpoint("closed"))
    finally:
        grants.revoke("catalog", "main", "eve", ["USE CATALOG"], by="admin")


def test_init_takes_a_token(parts: Parts) -> None:
    _, secret = parts.catalog.create_token("eve")
    own = Platform(parts, CLUSTER).acting(parts.catalog.check_token(secret))
    assert own.principal.name == "eve" and Path(own.settings.home_folder).exists()
