"""Every route of control and of the gateway, asked by a user who was granted nothing.

A new route fails here until it refuses, or stands in the lists below with the reason why it need not.
"""

import asyncio
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mosaic.catalog.unity.routes import NOT_SPOKEN
from mosaic.data import Log
from mosaic.gateway import (
    Asking,
    Endpoints,
    Feedback,
    GatewayRoutes,
    Limits,
    LiveEntity,
    QuotaClient,
    gateway_app,
)
from mosaic.gateway.openapi import document
from mosaic.gateway.quota import Answer
from mosaic.gateway.quota_shard import Command
from mosaic.monitoring import Ledger
from mosaic.monitoring.feedback import AskedBefore
from mosaic.platform.control import control_app, control_routes
from mosaic.platform.parts import Parts, build_parts
from mosaic.protocol import Engine, Retrieved
from mosaic.runtime.asgi import RequestId
from mosaic.serving.endpoint import EndpointSettings, ServedEntity
from tests.catalog.conftest import under_api
from tests.local import local_settings

UNITY = "/2.1/unity-catalog"
SCHEMA = pa.schema([pa.field("id", pa.string(), nullable=False)])
FUNCTION = {
    "routine_body": "EXTERNAL",
    "external_language": "PYTHON",
    "routine_definition": "return 1",
    "input_params": [],
    "full_data_type": "INT",
}
NAMES = {
    "catalogs": "closed",
    "schemas": "closed.docs",
    "tables": "closed.docs.entries",
    "models": "closed.docs.bot",
    "volumes": "closed.docs.files",
    "functions": "closed.docs.one",
    "connections": "closed_provider",
    "budgets": "closed",
    "prompts": "closed.docs.prompt",
    "policies": "closed.docs.policy",
    "indexes": "closed.docs.entries_index",
    "serving-endpoints": "closed",
    "endpoints": "closed",
    "permissions": "closed.docs.entries",
    "effective-permissions": "closed.docs.entries",
}
"""A thing of the administrator's, by the part of the path before its name."""
PLACES = {
    "version": "1",
    "alias": "champion",
    "securable_type": "table",
    "subentity_name": "1",
    "entity_type": "tables",
    "entity_name": "closed.docs.entries",
    "tag_key": "pii",
}
IN_DOCS = {"catalog_name": "closed", "schema_name": "docs"}
ANYONE = {
    ("GET", f"{UNITY}/metastore_summary"): "says which platform this is",
    ("GET", f"{UNITY}/openapi.json"): "the protocol itself",
}
HIDDEN = {
    ("GET", "/2.0/mosaic/tables"),
    ("GET", "/2.0/mosaic/models"),
    ("GET", "/2.0/mosaic/indexes"),
    ("GET", "/2.0/mosaic/endpoints"),
    ("GET", "/2.0/mosaic/policies"),
    ("GET", "/2.0/serving-endpoints"),
    ("GET", f"{UNITY}/catalogs"),
    ("GET", f"{UNITY}/models"),
    ("GET", f"{UNITY}/connections"),
    ("GET", "/2.0/mosaic/search"),
    ("GET", "/2.0/token/list"),
    ("GET", "/2.0/mosaic/prices"),
    ("GET", "/2.0/mosaic/budgets"),
    ("GET", "/2.0/mosaic/usage"),
}
"""Lists of what there is: they answer, with nothing of what the caller may not know of."""
OF_ONES_OWN = {
    ("GET", "/2.0/sql/statements/{statement_id}"): 404,
    ("GET", "/2.0/sql/statements/{statement_id}/result/chunks/{chunk}"): 404,
    ("POST", "/2.0/sql/statements/{statement_id}/cancel"): 404,
    ("GET", "/2.0/mosaic/requests/{request_id}/why"): 404,
    ("GET", "/2.0/mosaic/budgets/{name}"): 404,
    ("POST", "/2.0/token/delete"): 404,
    ("POST", "/2.0/token/create"): 200,
    ("GET", "/2.0/preview/scim/v2/Me"): 200,
}
"""Looked up among what the caller asked itself: anybody else's is not there."""
NEEDS_RAY = {("GET", "/2.0/mosaic/status")}  # tests/platform/test_control.py
QUERIES = {
    ("GET", "/2.0/mosaic/prompts"): {"schema": "closed.docs"},
    ("GET", "/2.0/mosaic/search"): {"words": "entries"},
    ("GET", f"{UNITY}/schemas"): {"catalog_name": "closed"},
    ("GET", f"{UNITY}/tables"): IN_DOCS,
    ("GET", f"{UNITY}/volumes"): IN_DOCS,
    ("GET", f"{UNITY}/functions"): IN_DOCS,
    ("GET", f"{UNITY}/table-summaries"): {"catalog_name": "closed"},
}


def bodies(parts: Parts) -> dict[tuple[str, str], Any]:
    """What a well-meant request says, so that nothing but the grant is left to refuse it for."""
    table, catalog = parts.catalog.get_table("closed.docs.entries"), parts.catalog
    version = {"catalog_name": "closed", "schema_name": "docs", "model_name": "bot"}
    reading = {"table_id": table.id, "operation": "READ"}
    files = {"volume_id": catalog.volumes.get("closed.docs.files").id, "operation": "READ_VOLUME"}
    path = {"url": f"file://{table.location}", "operation": "PATH_READ"}
    function = {**IN_DOCS, "name": "mine", **FUNCTION, "data_type": "INT", "parameter_style": "S"}
    function |= {"is_deterministic": True, "sql_data_access": "NO_SQL", "is_null_call": False}
    function |= {"security_type": "DEFINER", "specific_name": "mine", "input_params": {"parameters": []}}
    tags = {"entity_type": "tables", "entity_name": "closed.docs.entries", "tag_key": "pii", "tag_value": "no"}
    owned = catalog.create_token("admin")[0]
    served = {"served_entities": [{"entity_name": "echo"}]}
    return {
        ("POST", f"{UNITY}/functions"): {"function_info": function},
        ("POST", f"{UNITY}/connections"): {"name": "mine", "connection_type": "HTTP", "options": {"host": "x"}},
        ("PATCH", f"{UNITY}/connections/{{name}}"): {"options": {"host": "x"}},
        ("POST", f"{UNITY}/entity-tag-assignments"): tags,
        ("PATCH", f"{UNITY}/entity-tag-assignments/{{entity_type}}/{{entity_name}}/tags/{{tag_key}}"): tags,
        ("POST", "/2.0/mosaic/undrop"): {"securable_type": "table", "full_name": "closed.docs.dropped"},
        ("POST", "/2.0/mosaic/prompts"): {"name": "closed.docs.mine", "template": "x"},
        ("PUT", "/2.0/mosaic/prompts/{full_name}/aliases/{alias}"): {"version_num": 1},
        ("POST", "/2.0/mosaic/policies"): {"name": "closed.docs.mine", "rules": {}},
        ("PUT", "/2.0/mosaic/policies/{full_name}/aliases/{alias}"): {"version_num": 1},
        ("POST", "/2.0/token/delete"): {"token_id": owned.id},
        ("POST", "/2.0/mosaic/prices"): {"model": "mine"},
        ("POST", "/2.0/mosaic/budgets"): {"name": "mine", "amount_nano_dollars": 1, "period": "day"},
        ("PATCH", "/2.0/mosaic/budgets/{name}"): {"amount_nano_dollars": 1},
        ("POST", f"{UNITY}/catalogs"): {"name": "mine"},
        ("POST", f"{UNITY}/schemas"): {"name": "mine", "catalog_name": "closed"},
        ("POST", f"{UNITY}/tables"): {**IN_DOCS, "name": "mine", "table_type": "MANAGED", "columns": []},
        ("POST", f"{UNITY}/volumes"): {**IN_DOCS, "name": "mine", "volume_type": "MANAGED"},
        ("POST", f"{UNITY}/models"): {**IN_DOCS, "name": "mine"},
        ("POST", f"{UNITY}/models/versions"): {**version, "source": "/somewhere"},
        ("PATCH", f"{UNITY}/models/{{full_name}}/versions/{{version}}"): {"comment": "mine"},
        ("PUT", f"{UNITY}/models/{{full_name}}/aliases/{{alias}}"): {"version_num": 1},
        ("PATCH", f"{UNITY}/permissions/{{securable_type}}/{{full_name}}"): {
            "changes": [{"principal": "eve", "add": ["SELECT"]}]
        },
        ("POST", f"{UNITY}/temporary-table-credentials"): reading,
        ("POST", "/2.0/unity-catalog/temporary-table-credentials"): reading,
        ("POST", f"{UNITY}/temporary-volume-credentials"): files,
        ("POST", "/2.0/unity-catalog/temporary-volume-credentials"): files,
        ("POST", f"{UNITY}/temporary-path-credentials"): path,
        ("POST", "/2.0/unity-catalog/temporary-path-credentials"): path,
        ("POST", f"{UNITY}/temporary-model-version-credentials"): {
            **version,
            "version": 1,
            "operation": "READ_MODEL_VERSION",
        },
        ("POST", "/2.0/sql/statements"): {
            "statement": "SELECT * FROM closed.docs.entries",
            "warehouse_id": "any",
            "wait_timeout": "10s",
        },
        ("POST", "/2.0/serving-endpoints"): {"name": "mine", "config": served},
        ("PUT", "/2.0/serving-endpoints/{name}/config"): served,
        ("PUT", "/2.0/serving-endpoints/{name}/ai-gateway"): {},
        ("PUT", "/2.0/serving-endpoints/{name}/rate-limits"): {"rate_limits": [{"calls": 1}]},
        ("POST", "/2.0/vector-search/indexes/{name}/query"): {"query_text": "x"},
        ("POST", "/2.0/mosaic/runs/{run_id}/inputs"): {"table": "closed.docs.entries", "version": 0},
    }


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """One of each kind in the catalog `closed`, all of it the administrator's."""
    made = build_parts(local_settings(tmp_path_factory.mktemp("root")))
    catalog = made.catalog
    catalog.ensure_schema("closed.docs")
    made.tables.create("closed.docs.entries", SCHEMA, primary_key="id", owner="admin")
    made.tables.create("closed.docs.dropped", SCHEMA, primary_key="id", owner="admin")
    catalog.delete_table("closed.docs.dropped")
    catalog.tags.set("table", "closed.docs.entries", {"pii": "yes"})
    catalog.create_model("closed.docs.bot", owner="admin")
    catalog.create_model_version("closed.docs.bot", source="/somewhere", kind="full")
    catalog.set_alias("closed.docs.bot", "champion", 1)
    catalog.volumes.create(
        "closed.docs.files", spec={"volume_type": "MANAGED", "location": "/somewhere"}, owner="admin"
    )
    catalog.functions.create("closed.docs.one", spec=FUNCTION, owner="admin")
    catalog.connections.create("closed_provider", connection_type="http", options={}, owner="admin")
    catalog.prompts.register("closed.docs.prompt", "Hello")
    catalog.prompts.set_alias("closed.docs.prompt", "champion", 1)
    catalog.policies.register("closed.docs.policy", {})
    catalog.policies.set_alias("closed.docs.policy", "champion", 1)
    catalog.put_index("closed.docs.entries_index", table="closed.docs.entries", spec={}, owner="admin")
    catalog.budgets.create("closed", amount_nano_dollars=1, period="day")
    settings = EndpointSettings(name="closed", served_entities=[ServedEntity(name="e", model="echo")])
    catalog.endpoints.put("closed", config=settings.model_dump(), owner="admin")
    return made


@pytest.fixture(scope="module")
def token(parts: Parts) -> str:
    return parts.catalog.create_token("eve")[1]


async def tracking(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("MLflow's routes have a test of their own: tests/platform/test_mlflow_proxy.py")


def ask(app: ASGIApp, token: str | None, method: str, path: str, **how: Any) -> httpx.Response:
    async def asked() -> httpx.Response:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        transport = httpx.ASGITransport(app=RequestId(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://mosaic", headers=headers) as client:
            return await client.request(method, path, **how)

    return asyncio.run(asked())


def methods(route: Route) -> Iterator[str]:
    return iter(sorted((route.methods or set()) - {"HEAD"}))


def filled(template: str) -> str:
    """The path with names of things that exist."""

    def value(found: re.Match[str]) -> str:
        name = found[1].partition(":")[0]
        noun = template[: found.start()].rstrip("/").rsplit("/", 1)[-1]
        if noun == "{securable_type}":
            return NAMES["models" if "subentity" in template else "tables"]
        if name == "securable_type" and "subentity" in template:
            return "model"
        return PLACES.get(name) or NAMES.get(noun) or "unknown"

    return re.sub(r"\{([^}]*)\}", value, template)


def is_spoken(template: str) -> bool:
    return not any(template in (f"{UNITY}/{noun}", f"{UNITY}/{noun}/{{rest:path}}") for noun in NOT_SPOKEN)


def test_control(parts: Parts, token: str) -> None:
    app, said, seen, wrong = under_api(control_app(parts, tracking)), bodies(parts), set(), []
    for route in control_routes(parts, tracking):
        assert isinstance(route, Route) or _is_the_door_to_mlflow(route), f"{route} is of a kind that is not walked"
        if not isinstance(route, Route):
            continue
        for method in methods(route):
            way = (method, route.path)
            seen.add(way)
            nameless = ask(app, None, method, f"/api{filled(route.path)}")
            assert nameless.status_code == 401, f"{way} answers without a token: {nameless.text[:200]}"
            if way in NEEDS_RAY:
                continue
            how = {"json": said.get(way, {})} if method in ("POST", "PUT", "PATCH") else {}
            answer = ask(app, token, method, f"/api{filled(route.path)}", params=QUERIES.get(way), **how)
            if not _is_right(way, answer):
                wrong.append(f"{way}: {answer.status_code} {answer.text[:200]}")
    assert not wrong, "\n".join(wrong)
    known = {*ANYONE, *HIDDEN, *OF_ONES_OWN, *NEEDS_RAY, *QUERIES, *said}
    assert not known - seen, f"no routes any more: {known - seen}"


def _is_right(way: tuple[str, str], answer: httpx.Response) -> bool:
    if not is_spoken(way[1]):
        return answer.status_code == 501
    if way in ANYONE:
        return answer.status_code == 200
    if way in HIDDEN:
        return answer.status_code == 200 and "closed" not in answer.text
    if way in OF_ONES_OWN:
        return answer.status_code == OF_ONES_OWN[way]
    if way == ("POST", "/2.0/sql/statements"):
        return answer.json()["status"]["state"] == "FAILED" and "may not SELECT" in answer.text
    return answer.status_code == 403


def _is_the_door_to_mlflow(route: BaseRoute) -> bool:
    return isinstance(route, Mount) and "mlflow" in route.path


def test_a_denial_names_no_more_than_what_was_asked(parts: Parts, token: str) -> None:
    """Things beside what was asked are listed only as far as the caller may know of them."""
    app = under_api(control_app(parts, tracking))
    for noun, name in (("tables", "closed.docs.entires"), ("schemas", "closed.doc"), ("catalogs", "close")):
        answer = ask(app, token, "GET", f"/api{UNITY}/{noun}/{name}")
        shown = answer.text.replace(name, "")
        assert answer.status_code in (403, 404) and "closed.docs.entries" not in shown and "closed.docs" not in shown


def test_the_gateway(parts: Parts, token: str, tmp_path: Path) -> None:
    endpoints = Endpoints(parts.catalog)

    def engine(entity: LiveEntity) -> Engine:
        raise AssertionError(f"{entity} was asked for somebody who may not")

    async def quota(commands: Sequence[Command]) -> Sequence[Answer | None]:
        raise AssertionError(f"{commands} for somebody who may not")

    def somebody_elses(request_id: str) -> AskedBefore:
        return AskedBefore(request_id, datetime.now(UTC), "ann", "main.serving.closed", 1, "e")

    async def retrieve(index: str, text: str, k: int, request_id: str) -> tuple[Retrieved, list[dict[str, Any]]]:
        raise AssertionError(f"index {index} was asked for somebody who may not")

    limits, asking = Limits(QuotaClient([quota]), endpoints.groups_of), Asking(engine)
    ledger = Ledger(Log(tmp_path, owner="gateway"), "gateway")
    feedback = Feedback(somebody_elses, parts.catalog, ledger)
    routes = GatewayRoutes(endpoints, limits, asking, retrieve, max_body_bytes=10_000, feedback=feedback)
    app = gateway_app(routes, ledger, parts.catalog)
    said = {
        ("POST", "/v1/chat/completions"): {"model": "closed", "messages": [{"role": "user", "content": "x"}]},
        ("POST", "/v1/completions"): {"model": "closed", "prompt": "x"},
        ("POST", "/v1/embeddings"): {"model": "closed", "input": "x"},
        ("POST", "/v1/score"): {"model": "closed", "text_1": "x", "text_2": "y"},
        ("POST", "/v1/rerank"): {"model": "closed", "query": "x", "documents": ["y"]},
        ("POST", "/v1/responses"): {"model": "closed", "input": "x"},
        ("POST", "/v1/moderations"): {"model": "closed", "input": "x"},
        ("POST", "/v1/messages"): {"model": "closed", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]},
        ("POST", "/v1/messages/count_tokens"): {"model": "closed", "messages": [{"role": "user", "content": "x"}]},
        ("POST", "/serving-endpoints/closed/invocations"): {"messages": [{"role": "user", "content": "x"}]},
    }
    ways = {(method, route.path.replace("{name}", "closed")) for route in routes.routes() for method in methods(route)}
    hidden = {("GET", f"/v1/{path}") for path in ("models", "models/{name:path}", "openapi.json")}
    assert ways == {*said, *hidden, ("POST", "/v1/feedback")}
    assert {route.path.replace(":path", "") for route in routes.routes()} == document()["paths"].keys()
    for (method, path), body in said.items():
        refused = ask(app, token, method, path, json=body)
        assert refused.status_code == 403 and "may not EXECUTE" in refused.text, refused.text
    assert ask(app, token, "GET", "/v1/models").json()["data"] == []
    assert ask(app, token, "GET", "/v1/models/closed").status_code == 403
    unknown = ask(app, token, "GET", "/v1/models/opened")
    assert unknown.status_code == 404 and "closed" not in unknown.text
    told = ask(app, token, "POST", "/v1/feedback", json={"request_id": "req_x", "rating": 1})
    assert told.status_code == 404 and "closed" not in told.text
    assert ask(app, None, "GET", "/v1/models").status_code == 401
    ledger.close()
