"""Endpoints as the request path resolves them: kept in memory, and never a moment longer than the grants hold."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from mosaic.catalog import Catalog
from mosaic.errors import NotFound, PermissionDenied, Unavailable
from mosaic.gateway.endpoints import Endpoints, choose
from mosaic.protocol import Principal

ADMIN = Principal(name="admin", is_admin=True)
BOB = Principal(name="bob")
FRESH_SECONDS = 0.25


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    """As another replica changes it; bob may use the endpoint `assistant`."""
    made = Catalog.open(f"sqlite:///{tmp_path}/catalog.db")
    config = {"name": "assistant", "task": "chat", "served_entities": [{"name": "echo", "model": "echo"}]}
    made.endpoints.put("assistant", config=config, owner="ann")
    for name in ("ann", "bob"):
        made.principals.create(name, by="admin")
    made.principals.create_group("team", by="admin")
    made.principals.add_member("team", "bob", by="admin")
    made.grants.grant("catalog", "main", "users", ["USE CATALOG", "USE SCHEMA"], by="admin")
    made.grants.grant("endpoint", "assistant", "team", ["EXECUTE"], by="admin")
    yield made
    made.close()


@pytest.fixture
def ours(catalog: Catalog) -> Iterator[Catalog]:
    """The catalog as the gateway's replica holds it."""
    made = Catalog.open(catalog.url)
    yield made
    made.close()


@contextmanager
def statements() -> Iterator[list[str]]:
    """What any catalog of this process asks its database meanwhile."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        seen.append(statement)

    event.listen(sa.Engine, "before_cursor_execute", note)
    yield seen
    event.remove(sa.Engine, "before_cursor_execute", note)


def test_a_hit_asks_the_database_nothing(ours: Catalog) -> None:
    clock = Clock()
    endpoints = Endpoints(ours, fresh_seconds=FRESH_SECONDS, clock=clock)

    async def use() -> None:
        first = await endpoints.use("assistant", BOB, "req_1")
        with statements() as seen:
            for _ in range(100):
                assert await endpoints.use("assistant", BOB, "req_1") is first
            assert seen == []
            clock.now += FRESH_SECONDS
            assert await endpoints.use("assistant", BOB, "req_1") is first
            assert [" ".join(statement.split()) for statement in seen] == [
                "BEGIN",
                "SELECT revision.only, revision.number FROM revision",
            ]

    asyncio.run(use())


TAKEN_BACK: dict[str, Callable[[Catalog], object]] = {
    "the grant": lambda catalog: catalog.grants.revoke("endpoint", "assistant", "team", ["EXECUTE"], by="admin"),
    "the catalog": lambda catalog: catalog.grants.revoke("catalog", "main", "users", ["USE CATALOG"], by="admin"),
    "the membership": lambda catalog: catalog.principals.remove_member("team", "bob", by="admin"),
    "the group": lambda catalog: catalog.principals.delete_group("team", by="admin"),
    "the user": lambda catalog: catalog.principals.set_active("bob", False, by="admin"),
    "the endpoint": lambda catalog: catalog.endpoints.delete("assistant"),
}


@pytest.mark.parametrize("what", TAKEN_BACK)
def test_what_is_taken_back_elsewhere_is_refused_here_as_soon_as_it_is_not_fresh(
    what: str, catalog: Catalog, ours: Catalog
) -> None:
    clock = Clock()
    endpoints = Endpoints(ours, fresh_seconds=FRESH_SECONDS, clock=clock)

    async def use() -> None:
        await endpoints.use("assistant", BOB, "req_1")
        TAKEN_BACK[what](catalog)
        clock.now += FRESH_SECONDS - 0.01
        await endpoints.use("assistant", BOB, "req_2")
        clock.now += 0.01
        with pytest.raises(NotFound if what == "the endpoint" else PermissionDenied):
            await endpoints.use("assistant", BOB, "req_3")

    asyncio.run(use())


def test_denials_are_not_kept_and_each_is_audited(catalog: Catalog, ours: Catalog) -> None:
    endpoints = Endpoints(ours, clock=Clock())
    eve = Principal(name="eve")
    catalog.principals.create("eve", by="admin")

    async def use() -> None:
        for _ in range(3):
            with pytest.raises(PermissionDenied, match=r"'eve' may not EXECUTE on endpoint 'main\.serving\.assistant'"):
                await endpoints.use("assistant", eve, "req_1")
        with pytest.raises(NotFound, match="no endpoint 'assistent'"):
            await endpoints.use("assistent", eve, "req_1")
        catalog.grants.grant("endpoint", "assistant", "eve", ["EXECUTE"], by="admin")
        await endpoints.use("assistant", eve, "req_1")

    asyncio.run(use())
    assert [one.user_identity.email for one in catalog.audit.list() if one.action_name == "queryEndpoint"] == [
        "eve"
    ] * 3


def test_a_change_of_the_endpoint_is_seen(catalog: Catalog, ours: Catalog) -> None:
    clock = Clock()
    endpoints = Endpoints(ours, fresh_seconds=FRESH_SECONDS, clock=clock)
    config = {"name": "assistant", "task": "chat", "served_entities": [{"name": "other", "model": "echo"}]}

    async def use() -> None:
        assert (await endpoints.use("assistant", ADMIN, "req_0")).config_version == 1
        catalog.endpoints.put("assistant", config=config, owner="ann")
        clock.now += FRESH_SECONDS
        changed = await endpoints.use("Assistant", ADMIN, "req_0")
        assert (changed.config_version, changed.entities[0].name) == (2, "other")

    asyncio.run(use())


def test_a_check_that_a_revocation_overtakes_is_not_kept(catalog: Catalog, ours: Catalog) -> None:
    clock, reached, go_on = Clock(), threading.Event(), threading.Event()
    endpoints = Endpoints(ours, fresh_seconds=FRESH_SECONDS, clock=clock)

    def hold(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith("WITH") and not reached.is_set():
            reached.set()
            assert go_on.wait(30)

    async def use() -> None:
        await endpoints.use("assistant", ADMIN, "req_0")
        event.listen(sa.Engine, "after_cursor_execute", hold)
        overtaken = asyncio.create_task(endpoints.use("assistant", BOB, "req_1"))
        assert await asyncio.to_thread(reached.wait, 30)
        catalog.grants.revoke("endpoint", "assistant", "team", ["EXECUTE"], by="admin")
        clock.now += FRESH_SECONDS
        await endpoints.use("assistant", ADMIN, "req_0")  # sees the new revision
        go_on.set()
        await overtaken  # was asked before
        event.remove(sa.Engine, "after_cursor_execute", hold)
        with pytest.raises(PermissionDenied):
            await endpoints.use("assistant", BOB, "req_2")

    asyncio.run(use())


def test_a_model_that_is_gone_takes_its_share_down_and_nothing_else(catalog: Catalog, ours: Catalog) -> None:
    gone = {"name": "tuned", "model": "main.ml.bot@none", "traffic_percentage": 50}
    arms = [gone, {"name": "echo", "model": "echo", "traffic_percentage": 50}]
    config = {"name": "assistant", "task": "chat", "served_entities": arms}
    catalog.endpoints.put("assistant", config=config, owner="ann")

    async def ask() -> list[str]:
        endpoint = await Endpoints(ours).use("assistant", BOB, "req_1")
        told = []
        for number in range(200):
            try:
                told.append(choose(endpoint, f"req_{number}").name)
            except Unavailable as error:
                told.append(error.message)
        return told

    told = asyncio.run(ask())
    assert set(told) == {"echo", "served entity 'tuned' of endpoint 'assistant' has no model any more"}
    assert 60 < told.count("echo") < 140
