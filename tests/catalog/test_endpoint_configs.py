"""Configurations of endpoints: proposed, live, failed, replaced; and what names a model keeps it."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mosaic.catalog import Catalog
from mosaic.catalog.doubles import FixedClock
from mosaic.errors import AlreadyExists, BadRequest, Conflict, NotFound


def config(*models: str) -> dict[str, object]:
    return {"name": "bot", "served_entities": [{"name": f"e{n}", "model": one} for n, one in enumerate(models)]}


def states(catalog: Catalog) -> list[tuple[int, str]]:
    return [(one.version, one.state) for one in catalog.endpoints.configs("bot")]


def test_a_proposal_waits_goes_live_and_is_replaced(catalog: Catalog, clock: FixedClock) -> None:
    made = catalog.endpoints.propose("bot", config=config("echo"), owner="ann", new=True)
    assert (made.config_version, made.config, made.in_use) == (0, {}, [(config("echo"), {})])
    assert made.pending is not None and made.pending.version == 1 and made.pending.created_by == "ann"
    assert catalog.endpoints.propose("bot", config=config("echo"), owner="ann") == made  # the same again is nothing
    assert catalog.endpoints.activate(made.id, 1)
    live = catalog.endpoints.get("bot")
    assert (live.config_version, live.config, live.pending, live.failed) == (1, config("echo"), None, None)
    assert live.etag != made.etag and live.owner == "ann"

    catalog.endpoints.propose("bot", config=config("a"), owner="bob", by="bob", new=False)
    catalog.endpoints.propose("bot", config=config("b"), owner="bob", by="bob", new=False)
    assert states(catalog) == [(1, "live"), (2, "replaced"), (3, "pending")]
    assert not catalog.endpoints.activate(made.id, 2)  # it is pending no more
    assert catalog.endpoints.activate(made.id, 3) and not catalog.endpoints.activate(made.id, 3)
    assert states(catalog) == [(1, "replaced"), (2, "replaced"), (3, "live")]
    assert catalog.endpoints.get("bot").owner == "ann"
    actions = [one.action_name for one in catalog.audit.newest(5)]
    assert actions == [
        *("createServingEndpoint", "activateServingEndpointConfig"),
        *("updateServingEndpointConfig", "updateServingEndpointConfig", "activateServingEndpointConfig"),
    ]


def test_what_fails_leaves_what_was_live(catalog: Catalog) -> None:
    made = catalog.endpoints.put("bot", config=config("echo"), owner="ann")
    catalog.endpoints.propose("bot", config=config("big"), owner="ann")
    assert catalog.endpoints.fail(made.id, 2, "CUDA out of memory") and not catalog.endpoints.fail(made.id, 2, "again")
    after = catalog.endpoints.get("bot")
    assert (after.config_version, after.config) == (1, config("echo"))
    assert after.failed is not None and (after.failed.version, after.failed.reason) == (2, "CUDA out of memory")
    again = catalog.endpoints.propose("bot", config=config("big"), owner="ann")
    assert again.pending is not None and again.pending.version == 3 and again.failed is None  # tried once more
    catalog.endpoints.fail(made.id, 3, "once more")
    back = catalog.endpoints.propose("bot", config=config("echo"), owner="ann")
    assert back.pending is not None and back.pending.version == 4
    assert states(catalog) == [
        (1, "live"),
        (2, "failed"),
        (3, "failed"),
        (4, "pending"),
    ]  # who asks for it waits for it


def test_new_means_new(catalog: Catalog) -> None:
    with pytest.raises(NotFound, match=r"no endpoint 'main\.serving\.bot'"):
        catalog.endpoints.propose("bot", config=config("echo"), owner="ann", new=False)
    made = catalog.endpoints.propose("bot", config=config("echo"), owner="ann", new=True)
    with pytest.raises(AlreadyExists, match=r"endpoint 'main\.serving\.bot' already exists"):
        catalog.endpoints.propose("bot", config=config("a"), owner="ann", new=True)
    catalog.endpoints.delete("bot")
    assert not catalog.endpoints.activate(made.id, 1) and not catalog.endpoints.fail(made.id, 1, "x")
    other = catalog.endpoints.propose("bot", config=config("echo"), owner="ann", new=True)
    assert other.id != made.id and other.pending is not None and other.pending.version == 1
    with pytest.raises(NotFound):
        catalog.endpoints.configs("none")
    with pytest.raises(BadRequest, match="config cannot be kept as JSON"):
        catalog.endpoints.propose("bot", config={"a": {1}}, owner="ann")


def test_an_undropped_endpoint_has_its_configurations(catalog: Catalog) -> None:
    catalog.endpoints.put("bot", config=config("echo"), owner="ann")
    catalog.endpoints.propose("bot", config=config("a"), owner="ann")
    before = catalog.endpoints.configs("bot")
    catalog.endpoints.delete("bot")
    catalog.undrop("endpoint", "main.serving.bot", by="admin")
    assert catalog.endpoints.configs("bot") == before


def test_what_a_pending_configuration_names_is_kept(catalog: Catalog) -> None:
    catalog.ensure_schema("main.ml")
    catalog.create_model("main.ml.bot", owner="ann")
    catalog.create_model_version("main.ml.bot", source="/m", kind="full")
    made = catalog.endpoints.propose("bot", config=config("main.ml.bot/1"), owner="ann")
    with pytest.raises(Conflict, match=r"endpoint 'main\.serving\.bot' serves 'main\.ml\.bot/1'"):
        catalog.registry.delete_version("main.ml.bot", 1, by="admin")
    catalog.endpoints.fail(made.id, 1, "it does not run")
    catalog.registry.delete_version("main.ml.bot", 1, by="admin")


def test_proposals_and_activations_at_once_leave_one_live(catalog: Catalog) -> None:
    made = catalog.endpoints.put("bot", config=config("echo"), owner="ann")
    barrier = threading.Barrier(4)

    def change(number: int) -> None:
        barrier.wait()
        for turn in range(5):
            now = catalog.endpoints.propose("bot", config=config(f"m{number}-{turn}"), owner="ann")
            assert now.pending is not None
            catalog.endpoints.activate(made.id, now.pending.version)

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(change, number) for number in range(4)]:
            done.result()
    found = catalog.endpoints.configs("bot")
    assert [one.version for one in found] == list(range(1, 22))
    (live,) = (one for one in found if one.state == "live")
    assert (live.version, live.config) == (
        catalog.endpoints.get("bot").config_version,
        catalog.endpoints.get("bot").config,
    )
    assert sum(one.state == "pending" for one in found) <= 1
