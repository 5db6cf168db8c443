"""A rollout, step by step, without engines: what starts, what is probed, what goes live, what ends, what fails."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ray.exceptions import ActorUnavailableError, RayTaskError

from mosaic.catalog import Catalog
from mosaic.errors import BadRequest, Conflict, NotFound, Unavailable
from mosaic.serving.deploy import its_fault
from mosaic.serving.doubles import InstantApps
from mosaic.serving.endpoint import EndpointSettings, ServedEntity, Unit, unit
from mosaic.serving.rollout import AppState, Rollouts, RolloutSettings, short_reason
from mosaic.serving.settings import EngineSettings


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    made = Catalog.open(f"sqlite:///{tmp_path}/c.db")
    yield made
    made.close()


class Moves:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def propose(catalog: Catalog, *models: str, name: str = "bot", engine: EngineSettings | None = None) -> None:
    shares = [100 - 10 * (len(models) - 1), *[10] * (len(models) - 1)]
    entities = [
        ServedEntity(name=f"e{n}", model=model, traffic_percentage=share, engine=engine)
        for n, (model, share) in enumerate(zip(models, shares, strict=True))
    ]
    settings = EndpointSettings(name=name, served_entities=entities)
    catalog.endpoints.propose(name, config=settings.model_dump(mode="json"), owner="ann")


def until(rollouts: Rollouts, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        rollouts.step()
        time.sleep(0.01)


def settled(catalog: Catalog, name: str = "bot") -> bool:
    return catalog.endpoints.get(name).pending is None


def test_engines_start_are_probed_and_only_then_is_it_live(catalog: Catalog) -> None:
    apps = InstantApps()
    rollouts = Rollouts(catalog, apps)
    propose(catalog, "one", "two")
    until(rollouts, lambda: settled(catalog))
    assert catalog.endpoints.get("bot").config_version == 1
    assert apps.told == [
        *(("start", "engine-one"), ("start", "engine-two")),
        *(("probe", "engine-one"), ("probe", "engine-two")),
    ]


def test_an_update_starts_what_is_missing_and_ends_what_nothing_names_after_a_while(catalog: Catalog) -> None:
    apps, clock = InstantApps(), Moves()
    rollouts = Rollouts(catalog, apps, RolloutSettings(grace_seconds=5), clock=clock)
    propose(catalog, "one", "two")
    propose(catalog, "two", name="other")
    until(rollouts, lambda: settled(catalog) and settled(catalog, "other"))
    propose(catalog, "three")
    until(rollouts, lambda: settled(catalog))
    assert sorted(apps.running) == ["engine-one", "engine-three", "engine-two"]  # gateways may not have seen it yet
    clock.now = 1
    rollouts.step()
    clock.now = 5
    rollouts.step()
    assert "engine-one" in apps.running
    clock.now = 7
    rollouts.step()
    assert sorted(apps.running) == ["engine-three", "engine-two"]  # `two` is still the other's
    catalog.endpoints.delete("other")
    for clock.now in (10, 20):
        rollouts.step()
    assert sorted(apps.running) == ["engine-three"]
    assert [one for one in apps.told if one[0] == "end"] == [("end", "engine-one"), ("end", "engine-two")]


def test_other_engine_settings_are_another_engine(catalog: Catalog) -> None:
    apps = InstantApps()
    rollouts = Rollouts(catalog, apps)
    propose(catalog, "one")
    until(rollouts, lambda: settled(catalog))
    propose(catalog, "one", engine=EngineSettings(max_model_len=2048))
    until(rollouts, lambda: settled(catalog))
    started = [app for told, app in apps.told if told == "start"]
    assert started[0] == "engine-one" and started[1].startswith("engine-one-") and len(started) == 2


@pytest.mark.parametrize(
    ("apps", "reason"),
    [
        (
            InstantApps({"new": "x\nValueError: no such flag"}),
            "the engine of 'new' does not start: ValueError: no such",
        ),
        (InstantApps({"new": "starting"}), "not running after 0 s: engine-new is starting (waits for a GPU)"),
        (InstantApps(probe_fails="out of memory"), "served entity 'e0' fails its probe: out of memory"),
    ],
)
def test_what_fails_leaves_the_old_one_serving(catalog: Catalog, apps: InstantApps, reason: str) -> None:
    propose(catalog, "old")
    made = catalog.endpoints.get("bot")
    catalog.endpoints.activate(made.id, 1)
    propose(catalog, "new")
    rollouts = Rollouts(catalog, apps, RolloutSettings(start_timeout_seconds=0, grace_seconds=0))
    until(rollouts, lambda: settled(catalog))
    after = catalog.endpoints.get("bot")
    assert after.config_version == 1 and after.failed is not None and reason in str(after.failed.reason)
    until(rollouts, lambda: "engine-new" not in apps.running)  # what only it needed


def test_a_model_that_is_gone_by_then(catalog: Catalog) -> None:
    propose(catalog, "main.ml.bot/1")
    until(Rollouts(catalog, InstantApps()), lambda: settled(catalog))
    failed = catalog.endpoints.get("bot").failed
    assert failed is not None and "no model 'main.ml.bot'" in str(failed.reason)


ONE, TWO = (unit(f"main.ml.bot/{version}").app_name for version in (1, 2))


def models(catalog: Catalog) -> None:
    catalog.ensure_schema("main.ml")
    catalog.create_model("main.ml.bot", owner="ann")
    for _ in range(3):
        catalog.create_model_version("main.ml.bot", source="/m", kind="full")
    catalog.set_alias("main.ml.bot", "champion", 1)


def test_an_alias_that_moves_is_followed_once_the_new_version_answers(catalog: Catalog) -> None:
    models(catalog)
    apps = InstantApps({"main.ml.bot/2": "starting", "main.ml.bot/3": "ValueError: wrong architecture"})
    rollouts = Rollouts(catalog, apps, RolloutSettings(grace_seconds=0))
    propose(catalog, "main.ml.bot@champion")
    until(rollouts, lambda: settled(catalog))
    assert catalog.endpoints.get("bot").pinned == {"main.ml.bot@champion": "main.ml.bot/1"}

    catalog.set_alias("main.ml.bot", "champion", 2)
    until(rollouts, lambda: ("start", TWO) in apps.told)
    during = catalog.endpoints.get("bot")
    assert during.pinned == {"main.ml.bot@champion": "main.ml.bot/1"} and during.pending is not None
    assert set(apps.running) == {ONE, TWO}
    with pytest.raises(Conflict, match=r"serves 'main\.ml\.bot/1'"):
        catalog.registry.delete_version("main.ml.bot", 1, by="admin")
    apps.running[TWO] = AppState("running")
    until(rollouts, lambda: list(apps.running) == [TWO])
    after = catalog.endpoints.get("bot")
    assert (after.pinned, after.config_version) == ({"main.ml.bot@champion": "main.ml.bot/2"}, 2)
    catalog.registry.delete_version("main.ml.bot", 1, by="admin")

    catalog.set_alias("main.ml.bot", "champion", 3)
    until(rollouts, lambda: catalog.endpoints.get("bot").failed is not None)
    for _ in range(5):  # what has failed is not tried for ever
        catalog.ensure_schema(f"main.s{_}")
        rollouts.step()
    assert [one.state for one in catalog.endpoints.configs("bot")] == ["replaced", "live", "failed"]
    assert catalog.endpoints.get("bot").pinned == {"main.ml.bot@champion": "main.ml.bot/2"}
    catalog.set_alias("main.ml.bot", "champion", 2)
    rollouts.step()
    assert len(catalog.endpoints.configs("bot")) == 3  # it serves that already


def test_one_that_is_replaced_while_it_starts_is_given_up(catalog: Catalog) -> None:
    apps = InstantApps({"slow": "starting"})
    rollouts = Rollouts(catalog, apps, RolloutSettings(grace_seconds=0))
    propose(catalog, "slow")
    until(rollouts, lambda: ("start", "engine-slow") in apps.told)
    propose(catalog, "fast")
    until(rollouts, lambda: settled(catalog) and "engine-slow" not in apps.running)
    assert [(one.version, one.state) for one in catalog.endpoints.configs("bot")] == [(1, "replaced"), (2, "live")]


def test_another_process_goes_on_after_a_crash(catalog: Catalog) -> None:
    propose(catalog, "slow")
    dead = InstantApps({"slow": "starting"})
    first = Rollouts(catalog, dead)
    until(first, lambda: ("start", "engine-slow") in dead.told)
    apps = InstantApps()
    until(Rollouts(catalog, apps), lambda: settled(catalog))
    assert catalog.endpoints.get("bot").config_version == 1


@pytest.mark.parametrize(
    ("told", "short"),
    [
        (
            "ray::VllmReplica.__init__()\n  File x\nray.exceptions.RayTaskError(ValueError): y\n"
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
            "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
        ),
        ("The deployment failed to start 3 times in a row", "The deployment failed to start 3 times in a row"),
        ("", "no reason was given"),
    ],
)
def test_the_engines_own_words(told: str, short: str) -> None:
    assert short_reason(told) == short


def test_names_of_engines_are_as_different_as_the_models() -> None:
    models = ["main.hr.pay/1", "main.hr_.pay/1", "main-hr-pay-1", "Main.hr.pay/1", "a.b-c.d/1", "a.b.c-d/1"]
    units = [unit(model, settings) for model in models for settings in (None, EngineSettings(threads=1))]
    assert len({one.app_name for one in units}) == len(units)
    assert all(re.fullmatch(r"engine-[a-z0-9-]+", one.app_name) for one in units)


class Slow(InstantApps):
    """An application is there only once the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def start(self, unit: Unit) -> None:
        self.told.append(("begin", unit.app_name))
        assert self.go.wait(20)
        super().start(unit)


def test_an_engine_that_comes_up_after_its_endpoint_is_gone_ends(catalog: Catalog) -> None:
    apps = Slow()
    rollouts = Rollouts(catalog, apps, RolloutSettings(grace_seconds=0))
    propose(catalog, "one")
    until(rollouts, lambda: ("begin", "engine-one") in apps.told)
    catalog.endpoints.delete("bot")
    apps.go.set()
    until(rollouts, lambda: ("end", "engine-one") in apps.told)


def test_two_endpoints_start_the_engine_that_they_share_once(catalog: Catalog) -> None:
    apps = Slow()
    rollouts = Rollouts(catalog, apps)
    for name in ("bot", "other"):
        propose(catalog, "one", name=name)
    until(rollouts, lambda: ("begin", "engine-one") in apps.told)
    rollouts.step()
    apps.go.set()
    until(rollouts, lambda: settled(catalog) and settled(catalog, "other"))
    assert apps.told.count(("start", "engine-one")) == 1


def test_what_a_crash_left_behind_ends(catalog: Catalog) -> None:
    apps = InstantApps()
    first = Rollouts(catalog, apps)
    propose(catalog, "one")
    until(first, lambda: settled(catalog))
    propose(catalog, "two")
    until(first, lambda: settled(catalog))  # and dies before `one` has ended
    apps.running["gateway"] = AppState("running")
    until(Rollouts(catalog, apps, RolloutSettings(grace_seconds=0)), lambda: "engine-one" not in apps.running)
    assert sorted(apps.running) == ["engine-two", "gateway"]


def test_a_live_configuration_gets_back_what_it_lacks_but_not_without_pause(catalog: Catalog) -> None:
    apps, clock = InstantApps(), Moves()
    rollouts = Rollouts(catalog, apps, clock=clock)
    propose(catalog, "one")
    until(rollouts, lambda: settled(catalog))
    for lost in range(1, 3):
        apps.running.clear()
        clock.now += 1000
        until(rollouts, lambda: "engine-one" in apps.running)
        assert apps.told.count(("start", "engine-one")) == 1 + lost
        clock.now += 2
        rollouts.step()  # sees that it runs
    apps.fates["one"] = "OSError: its folder is gone"
    apps.running.clear()
    for _ in range(5):
        clock.now += 2
        rollouts.step()
        time.sleep(0.02)
    assert apps.told.count(("start", "engine-one")) == 4
    clock.now += 61
    until(rollouts, lambda: apps.told.count(("start", "engine-one")) == 5)
    apps.fates.clear()
    rollouts.stop()
    apps.running.clear()
    clock.now += 1000
    rollouts.step()
    time.sleep(0.1)
    assert apps.running == {}  # the platform goes down


def test_a_database_that_is_away_is_not_the_configurations_fault(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    apps, fails, pin = InstantApps(), [Unavailable("the catalog's database failed")] * 3, catalog.endpoints.pin

    def flaky(*given: Any) -> bool:
        if fails:
            raise fails.pop()
        return pin(*given)

    monkeypatch.setattr(catalog.endpoints, "pin", flaky)
    rollouts = Rollouts(catalog, apps)
    propose(catalog, "one")
    until(rollouts, lambda: settled(catalog))
    assert catalog.endpoints.get("bot").config_version == 1 and not fails


def test_one_that_cannot_be_read_does_not_hold_up_the_others(catalog: Catalog) -> None:
    catalog.endpoints.put("odd", config={"name": "odd", "served_entities": []}, owner="ann")
    apps = InstantApps()
    propose(catalog, "one")
    until(Rollouts(catalog, apps), lambda: settled(catalog))
    assert catalog.endpoints.get("bot").config_version == 1


def test_what_was_put_live_by_an_alias_is_pinned_and_follows(catalog: Catalog) -> None:
    models(catalog)
    settings = EndpointSettings(name="bot", served_entities=[ServedEntity(name="e", model="main.ml.bot@champion")])
    catalog.endpoints.put("bot", config=settings.model_dump(mode="json"), owner="ann")  # as migrations leave it
    rollouts = Rollouts(catalog, InstantApps())
    until(rollouts, lambda: catalog.endpoints.get("bot").pinned == {"main.ml.bot@champion": "main.ml.bot/1"})
    catalog.set_alias("main.ml.bot", "champion", 2)
    until(rollouts, lambda: catalog.endpoints.get("bot").pinned == {"main.ml.bot@champion": "main.ml.bot/2"})


def test_a_database_that_is_away_ends_no_engine(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    apps, clock = InstantApps(), Moves()
    propose(catalog, "one")
    until(Rollouts(catalog, apps), lambda: settled(catalog))
    again, listed, away = Rollouts(catalog, apps, clock=clock), catalog.endpoints.list, [True]

    def flaky() -> Any:
        if away:
            raise Unavailable("the catalog's database failed")
        return listed()

    monkeypatch.setattr(catalog.endpoints, "list", flaky)
    for clock.now in (0, 10, 20):
        with pytest.raises(Unavailable):
            again.step()
    away.clear()
    for clock.now in (30, 40, 50):
        again.step()
    assert list(apps.running) == ["engine-one"] and apps.told.count(("start", "engine-one")) == 1


def test_an_engine_that_vanishes_while_it_is_waited_for_is_started_again(catalog: Catalog) -> None:
    apps = InstantApps({"one": "starting"})
    rollouts = Rollouts(catalog, apps)
    propose(catalog, "one")
    until(rollouts, lambda: "engine-one" in apps.running)
    apps.fates.clear()
    apps.running.clear()
    until(rollouts, lambda: settled(catalog))
    assert catalog.endpoints.get("bot").config_version == 1 and apps.told.count(("start", "engine-one")) == 2


def of_ray(cause: Exception) -> RayTaskError:
    """As `ray.get` raises what a task raised."""
    return RayTaskError("start", f"Traceback: {cause}", cause, proctitle="x", ip="127.0.0.1").as_instanceof_cause()


def invalid() -> Exception:
    try:
        EngineSettings(num_replicas=0)
    except ValidationError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("error", "raised", "told"),
    [
        (
            of_ray(invalid()),
            BadRequest,
            "'bot' cannot be started: ValidationError: 1 validation error for Engine",
        ),
        (of_ray(ValueError("no\nsuch flag")), BadRequest, "ValueError: no such flag"),
        (of_ray(OSError("its config.json is none")), BadRequest, "its config.json is none"),
        (of_ray(NotFound("no such model")), NotFound, "no such model"),
        (of_ray(ConnectionError("away")), ConnectionError, "away"),
        (of_ray(ActorUnavailableError("away", None)), ActorUnavailableError, "away"),
        (ValueError("not a fraction"), BadRequest, "not a fraction"),
        (Unavailable("away"), Unavailable, "away"),
        (RuntimeError("away"), RuntimeError, "away"),
    ],
)
def test_what_is_refused_at_the_start_is_the_configurations_fault(
    error: Exception, raised: type[Exception], told: str
) -> None:
    with pytest.raises(raised) as found, its_fault("bot"):
        raise error
    assert told in str(found.value)
