"""Policies within grants: made, read, attached and deleted; what can be no judge; over HTTP and in the audit."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Router

from mosaic.catalog import Catalog
from mosaic.errors import BadRequest, Conflict, NotFound, PermissionDenied
from mosaic.protocol import Principal
from mosaic.runtime import Authenticate, ShapeErrors
from mosaic.serving.ai_gateway import Guardrails
from mosaic.serving.endpoint import EndpointSettings
from mosaic.serving.policies import Policies, told_policies
from mosaic.serving.policy_routes import PolicyRoutes
from mosaic.serving.service import Serving
from tests.serving.test_update_over_http import Room

ROOT = Principal(name="admin", is_admin=True)
STRICT = "main.default.strict"
RULES = Guardrails.parse({"input": {"invalid_keywords": ["moonshine"]}})
JUDGED = {"input": {"judge": {"endpoint": "judge", "safety": True}}}


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    """Ann may make things in `main.default` and endpoints; bob may use what is granted to him."""
    made = Catalog.open(f"sqlite:///{tmp_path}/c.db")
    made.ensure_schema("main.default")
    made.ensure_schema("main.serving")
    for name in ("ann", "bob"):
        made.principals.create(name, by="admin")
    made.grants.grant("catalog", "main", "users", ["USE CATALOG", "USE SCHEMA"], by="admin")
    made.grants.grant("schema", "main.default", "ann", ["CREATE FUNCTION"], by="admin")
    for name in ("ann", "bob"):
        made.grants.grant("schema", "main.serving", name, ["CREATE MODEL"], by="admin")
    yield made
    made.close()


@pytest.fixture
def ann(catalog: Catalog) -> Policies:
    return Policies(catalog, Principal(name="ann"))


@pytest.fixture
def bob(catalog: Catalog) -> Policies:
    return Policies(catalog, Principal(name="bob"))


def serving(catalog: Catalog, name: str = "admin") -> Serving:
    return Serving(catalog, Room(), Principal(name=name, is_admin=name == "admin"))


def endpoint(name: str, guardrails: dict[str, Any] | None = None, **more: Any) -> EndpointSettings:
    served = {"name": name, "served_entities": [{"name": "e", "model": "echo"}], **more}
    return EndpointSettings.parse({**served, "ai_gateway": {"guardrails": guardrails or {}}})


def held(catalog: Catalog, name: str) -> list[str]:
    """The policies of an endpoint's newest configuration."""
    return list(catalog.endpoints.configs(name)[-1].config["ai_gateway"]["guardrails"].get("policies", []))


def test_versions_count_up_and_aliases_move(ann: Policies) -> None:
    assert [ann.create(STRICT, RULES).version, ann.create(STRICT, Guardrails()).version] == [1, 2]
    ann.set_alias(STRICT, "prod", 1)
    assert [ann.get(f"{STRICT}{of}").version for of in ("", "/1", "@prod")] == [2, 1, 1]
    ann.set_alias(STRICT, "prod", 2)
    assert [event.version for event in ann.alias_history(STRICT)] == [1, 2]
    assert ann.get(f"{STRICT}/1").rules == {"input": {"invalid_keywords": ["moonshine"]}}
    assert [one.name for one in ann.list("main.default")] == [STRICT]
    for gone in (f"{STRICT}/3", f"{STRICT}@next", "main.default.none"):
        with pytest.raises(NotFound):
            ann.get(gone)
    with pytest.raises(BadRequest, match="not other policies"):
        ann.create(STRICT, Guardrails.parse({"policies": ["main.default.other"]}))


def test_many_who_make_one_at_once_make_different_versions(catalog: Catalog) -> None:
    made: list[int] = []

    def make() -> None:
        made.append(Policies(catalog, Principal(name="ann")).create(STRICT, RULES).version)

    Policies(catalog, Principal(name="ann")).create(STRICT, RULES)
    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == list(range(2, 10))


def test_who_may_do_what(catalog: Catalog, ann: Policies, bob: Policies) -> None:
    ann.create(STRICT, RULES)
    attach = endpoint("bobs", {"policies": [STRICT]})
    for refused in (
        lambda: bob.create("main.default.mine", RULES),
        lambda: bob.create(STRICT, Guardrails()),
        lambda: bob.get(STRICT),
        lambda: bob.versions(STRICT),
        lambda: bob.set_alias(STRICT, "prod", 1),
        lambda: bob.delete(STRICT),
        lambda: serving(catalog, "bob").create(attach),
    ):
        with pytest.raises(PermissionDenied):
            refused()
    assert bob.list() == [] and len(ann.versions(STRICT)) == 1
    catalog.grants.grant("policy", STRICT, "bob", ["EXECUTE"], by="admin")
    assert bob.get(STRICT).version == 1 and [one.name for one in bob.list()] == [STRICT]
    serving(catalog, "bob").create(attach)
    assert bob.attached_to(STRICT) == ["main.serving.bobs"] and ann.attached_to(STRICT) == []
    with pytest.raises(PermissionDenied):
        bob.set_alias(STRICT, "prod", 1)


def test_attached_and_detached(catalog: Catalog) -> None:
    catalog.policies.register(STRICT, RULES.model_dump(mode="json"))
    catalog.policies.set_alias(STRICT, "prod", 1)
    serves = serving(catalog)
    serves.create(endpoint("bot", {"input": {"max_characters": 9}}))
    serves.attach_policy("bot", f"{STRICT}/1")
    assert held(catalog, "bot") == [f"{STRICT}/1"]
    serves.attach_policy("bot", f"{STRICT}@prod")
    assert held(catalog, "bot") == [f"{STRICT}@prod"]
    own = catalog.endpoints.configs("bot")[-1].config["ai_gateway"]["guardrails"]["input"]["max_characters"]
    assert own == 9
    with pytest.raises(NotFound):
        serves.attach_policy("bot", "main.default.none")
    newest = catalog.endpoints.configs("bot")[-1].config
    assert told_policies(catalog, newest) == [f"{STRICT}@prod ({STRICT}/1)"]
    serves.detach_policy("bot", STRICT)
    assert held(catalog, "bot") == []
    with pytest.raises(NotFound, match="no attached policy"):
        serves.detach_policy("bot", STRICT)


def test_one_that_is_attached_is_not_deleted(catalog: Catalog, ann: Policies) -> None:
    ann.create(STRICT, RULES)
    ann.set_alias(STRICT, "prod", 1)
    ann.set_alias(STRICT, "next", 1)
    serving(catalog).create(endpoint("bot", {"policies": [f"{STRICT}@prod"]}))
    with pytest.raises(Conflict, match=r"\['main\.serving\.bot'\]") as refused:
        Policies(catalog, ROOT).delete(STRICT)
    assert refused.value.code == "policy_attached"
    with pytest.raises(Conflict, match="none that you may see"):
        ann.delete(STRICT)
    with pytest.raises(Conflict, match="alias 'prod'"):
        ann.set_alias(STRICT, "prod", None)
    ann.set_alias(STRICT, "next", None)
    serving(catalog).detach_policy("bot", STRICT)
    pending = catalog.endpoints.get("bot").pending
    assert pending is not None and catalog.endpoints.activate(catalog.endpoints.get("bot").id, pending.version)
    ann.delete(STRICT)
    with pytest.raises(NotFound):
        ann.get(STRICT)
    catalog.undrop("policy", STRICT)
    assert ann.get(f"{STRICT}@prod").version == 1


def test_every_change_is_written_down(catalog: Catalog, ann: Policies, bob: Policies) -> None:
    before = catalog.audit.newest(1)[0].sequence
    ann.create(STRICT, RULES)
    ann.set_alias(STRICT, "prod", 1)
    with pytest.raises(PermissionDenied):
        bob.delete(STRICT)
    ann.set_alias(STRICT, "prod", None)
    ann.delete(STRICT)
    told = [(one.action_name, one.user_identity.email) for one in catalog.audit.list(after=before)]
    assert told == [
        ("createPolicyVersion", "ann"),
        ("setPolicyAlias", "ann"),
        ("deletePolicy", "bob"),
        ("deletePolicyAlias", "ann"),
        ("deletePolicy", "ann"),
    ]


def test_what_can_be_no_judge(catalog: Catalog, ann: Policies) -> None:
    serves = serving(catalog)
    for name, more in (("judge", {}), ("judged", {"guardrails": JUDGED}), ("vectors", {"task": "embed"})):
        serves.create(endpoint(name, **more))

    def judge(name: str) -> dict[str, Any]:
        return {"input": {"judge": {"endpoint": name, "safety": True}}}

    for refused, says in (
        (lambda: serves.create(endpoint("bot", judge("judged"))), "has a judge itself"),
        (lambda: serves.create(endpoint("bot", judge("vectors"))), "is for embed"),
        (lambda: serves.create(endpoint("vectors-2", JUDGED, task="embed")), "only for endpoints whose task"),
        (lambda: serves.update(endpoint("judge", judge("judge"))), "cannot be its own judge"),
        (lambda: serves.update(endpoint("judge", judge("vectors"))), "judge 'vectors'"),
        (lambda: Policies(catalog, ROOT).create(STRICT, Guardrails.parse(judge("judged"))), "has a judge itself"),
    ):
        with pytest.raises(BadRequest, match=says):
            refused()
    with pytest.raises(NotFound):
        serves.create(endpoint("bot", judge("none")))
    with pytest.raises(Conflict, match=r"is the judge of \['main\.serving\.judged'\]"):
        serves.delete("judge")
    # a judge cannot come to be judged, by a policy neither
    serves.create(endpoint("other"))
    with pytest.raises(BadRequest, match=r"is the judge of the endpoints \['main\.serving\.judged'\]"):
        serves.update(endpoint("judge", judge("other")))
    Policies(catalog, ROOT).create("main.default.by_other", Guardrails.parse(judge("other")))
    with pytest.raises(BadRequest, match="a judge has no judge"):
        serves.attach_policy("judge", "main.default.by_other")
    with pytest.raises(PermissionDenied, match="EXECUTE"):
        ann.create("main.default.mine", Guardrails.parse(JUDGED))
    with pytest.raises(PermissionDenied, match="EXECUTE"):
        serving(catalog, "bob").create(endpoint("bobs", JUDGED))


def test_over_http(catalog: Catalog) -> None:
    routes = PolicyRoutes(lambda principal: Policies(catalog, principal)).routes()
    app = ShapeErrors(Authenticate(Router(routes=routes, redirect_slashes=False), catalog.check_token))
    tokens = {name: catalog.create_token(name, kind="user", is_admin=False)[1] for name in ("ann", "bob")}

    def ask(who: str, method: str, path: str = "", body: Any = None) -> Any:
        async def asked() -> httpx.Response:
            headers = {"authorization": f"Bearer {tokens[who]}"}
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://mosaic", headers=headers) as client:
                return await client.request(method, f"/2.0/mosaic/policies{path}", json=body)

        return asyncio.run(asked())

    told = {"name": STRICT, "rules": {"input": {"invalid_keywords": ["moonshine"]}}, "comment": "first"}
    assert ask("ann", "POST", "", told).json()["full_name"] == f"{STRICT}/1"
    assert ask("ann", "PUT", f"/{STRICT}/aliases/prod", {"version_num": 1}).json()["version"] == 1
    shown = ask("ann", "GET", f"/{STRICT}").json()
    assert (shown["aliases"], shown["attached_to"], shown["versions"][0]["comment"]) == ({"prod": 1}, [], "first")
    for path in (f"/{STRICT}/versions/1", f"/{STRICT}/aliases/prod"):
        assert ask("ann", "GET", path).json()["rules"] == told["rules"]
        assert ask("bob", "GET", path).status_code == 403
    assert [one["name"] for one in ask("ann", "GET").json()["policies"]] == [STRICT]
    assert ask("bob", "GET").json()["policies"] == []
    wrong = ask("ann", "POST", "", {"name": STRICT, "rules": {"input": {"moonshine": True}}})
    assert wrong.status_code == 400 and "input.moonshine" in wrong.text
    assert ask("ann", "GET", f"/{STRICT}/versions/2").status_code == 404
    assert ask("bob", "DELETE", f"/{STRICT}").status_code == 403
    assert ask("ann", "DELETE", f"/{STRICT}/aliases/prod").status_code == 200
    assert ask("ann", "DELETE", f"/{STRICT}").status_code == 200 and ask("ann", "GET", f"/{STRICT}").status_code == 404
