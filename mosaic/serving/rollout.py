"""From a proposed configuration to one that takes the traffic. Start reading here: the order of a rollout.

    engines that are missing are started -> all of them run -> each served entity answers a probe
        -> the configuration goes live in one transaction, which every gateway sees within half a second
        -> engines that no configuration names any more end, once their last requests have

What fails on the way leaves the old configuration serving, and the new one with the reason.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple, Protocol

from mosaic.catalog import Catalog
from mosaic.catalog.records import Endpoint, EndpointConfig
from mosaic.errors import EngineFailed, MosaicError, NotFound, Unavailable
from mosaic.protocol import Wire
from mosaic.serving.endpoint import EndpointSettings, Unit, pins_of, unit_of, units_of

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.25
_TRIES = 20
"""For what is nobody's fault, such as a controller of Serve's that starts again."""
_LONGEST_REASON = 600
_EXCEPTION = re.compile(r"^(?:ray\.exceptions\.|[a-z_]\w*\.)*([A-Z]\w*(?:Error|Exception|Failed|Exit)\b.*)$")
_WRAPPERS = ("RayTaskError", "RayActorError", "ActorDiedError", "RuntimeError: Traceback")


class AppState(NamedTuple):
    """How an engine's application is."""

    state: Literal["starting", "running", "failed", "ending"]
    reason: str = ""


class Apps(Protocol):
    """Engines as applications: Ray Serve's (`serving.apps`), or the double of tests."""

    def states(self) -> dict[str, AppState]: ...

    def start(self, unit: Unit) -> None:
        """Returns at once; raises what `start_engine` raises."""

    def probe(self, app_name: str, settings: EndpointSettings, model: str) -> None:
        """One real request, of one token; raises what the engine raised."""

    def end(self, app_name: str) -> None:
        """Returns at once; requests on their way are answered first."""


class RolloutSettings(Wire):
    start_timeout_seconds: float = 1800
    """How long the engines of a configuration may take to run."""
    grace_seconds: float = 5
    """How long an engine that nothing names stays, for gateways that have not seen it yet."""


class Rollouts:
    """Carries every endpoint's pending configuration on, each in a thread of its own; one of these runs per platform.

    All that it knows is in the catalog, so that after a crash another one goes on.
    """

    def __init__(
        self,
        catalog: Catalog,
        apps: Apps,
        settings: RolloutSettings | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._catalog, self._apps, self._settings, self._clock = catalog, apps, settings or RolloutSettings(), clock
        self._going: dict[tuple[str, int], threading.Thread] = {}
        self._unnamed_since: dict[str, float] = {}
        self._ours: set[str] = set()
        """Applications that an endpoint has named; no others are ended."""
        self._named: set[str] = set()
        """Those that one names now."""
        self._seen_revision = -1

    def run(self) -> None:
        """For ever."""
        while True:
            try:
                self.step()
            except Exception:  # a boundary: catalog or Serve may be away for a while, and the next round tries again
                logger.exception("rolling out failed")
            time.sleep(_POLL_SECONDS)

    def step(self) -> None:
        """Start the rollouts that are to be; restart what a live configuration lacks; end what nothing names."""
        revision = self._catalog.revision()
        if revision == self._seen_revision and not self._going and self._ours == self._named:
            return
        endpoints = self._catalog.endpoints.list()
        for endpoint in endpoints:
            if endpoint.pending is not None and (endpoint.id, endpoint.pending.version) not in self._going:
                key = (endpoint.id, endpoint.pending.version)
                self._going[key] = threading.Thread(
                    target=self._carry, args=(key, endpoint, endpoint.pending), name="rollout", daemon=True
                )
                self._going[key].start()
            elif endpoint.pending is None and endpoint.pinned:
                self._follow(endpoint)
        self._named = {
            unit.app_name for one in endpoints for used in one.in_use for unit in units_of(self._catalog, *used)
        }
        self._ours |= self._named
        self._end_unnamed()
        self._seen_revision = revision

    def _follow(self, endpoint: Endpoint) -> None:
        """An alias that moved means another version: rolled out as any change, unless just that has failed."""
        pins, failed = pins_of(self._catalog, endpoint.config), endpoint.failed
        tried = failed is not None and (failed.config, failed.pinned) == (endpoint.config, pins)
        if pins.keys() == endpoint.pinned.keys() and pins != endpoint.pinned and not tried:
            self._catalog.endpoints.renew(endpoint.id, endpoint.config_version)

    def _carry(self, key: tuple[str, int], endpoint: Endpoint, config: EndpointConfig) -> None:
        try:
            for tries_left in reversed(range(_TRIES)):
                try:
                    roll_out(self._catalog, self._apps, endpoint, config, self._settings, clock=self._clock)
                    return
                except Exception as error:  # a boundary, as above
                    logger.exception("rolling out config %d of endpoint %s failed", config.version, endpoint.name)
                    if not tries_left:
                        self._catalog.endpoints.fail(endpoint.id, config.version, f"{type(error).__name__}: {error}")
                    time.sleep(_POLL_SECONDS)
        finally:
            self._going.pop(key, None)

    def _end_unnamed(self) -> None:
        unnamed = sorted(self._ours - self._named)
        states = self._apps.states() if unnamed else {}
        for app in unnamed:
            if app not in states or states[app].state == "ending":
                self._unnamed_since.pop(app, None)
                self._ours.discard(app)
            elif self._clock() - self._unnamed_since.setdefault(app, self._clock()) >= self._settings.grace_seconds:
                self._apps.end(app)
        for app in self._named:
            self._unnamed_since.pop(app, None)


def roll_out(
    catalog: Catalog,
    apps: Apps,
    endpoint: Endpoint,
    config: EndpointConfig,
    settings: RolloutSettings,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Until the configuration is live, has failed, or is pending no more since another one took its place."""
    try:
        wanted = EndpointSettings.parse(config.config, source=f"endpoint {endpoint.name}")
        pinned = pins_of(catalog, config.config)
        units = {unit_of(catalog, entity, pinned) for entity in wanted.served_entities}
        if not catalog.endpoints.pin(endpoint.id, config.version, pinned):
            return
        _start(apps, units)
        deadline = clock() + settings.start_timeout_seconds
        while not _all_run(apps, units):
            if clock() > deadline:
                waiting = sorted(_told(apps, unit) for unit in units)
                raise Unavailable(f"not running after {settings.start_timeout_seconds:g} s: {'; '.join(waiting)}")
            if not _is_pending(catalog, endpoint, config):
                return
            sleep(_POLL_SECONDS)
        for entity in wanted.served_entities:
            try:
                apps.probe(unit_of(catalog, entity, pinned).app_name, wanted, pinned.get(entity.model, entity.model))
            except MosaicError as error:
                raise EngineFailed(f"served entity {entity.name!r} fails its probe: {error.message}") from error
    except MosaicError as error:
        catalog.endpoints.fail(endpoint.id, config.version, error.message)
        return
    catalog.endpoints.activate(endpoint.id, config.version)


def _start(apps: Apps, units: Iterable[Unit]) -> None:
    states = apps.states()
    for unit in sorted(units):
        there = states.get(unit.app_name)
        if there is None or there.state in ("failed", "ending"):
            apps.start(unit)


def _all_run(apps: Apps, units: Iterable[Unit]) -> bool:
    states = apps.states()
    for unit in units:
        there = states.get(unit.app_name, AppState("starting"))
        if there.state == "failed":
            raise EngineFailed(f"the engine of {unit.model!r} does not start: {short_reason(there.reason)}")
    return all(states.get(unit.app_name, AppState("starting")).state == "running" for unit in units)


def _told(apps: Apps, unit: Unit) -> str:
    there = apps.states().get(unit.app_name, AppState("starting"))
    return f"{unit.app_name} is {there.state}" + (f" ({short_reason(there.reason)})" if there.reason else "")


def _is_pending(catalog: Catalog, endpoint: Endpoint, config: EndpointConfig) -> bool:
    try:
        now = catalog.endpoints.get(endpoint.name)
    except NotFound:
        return False
    return now.id == endpoint.id and now.pending is not None and now.pending.version == config.version


def short_reason(told: str) -> str:
    """The engine's own words: the last exception of a long report, without the wrappers around it."""
    lines = [line.strip() for line in told.strip().splitlines() if line.strip()]
    raised = [found.group(1) for line in lines if (found := _EXCEPTION.match(line))]
    own = [line for line in raised if not line.startswith(_WRAPPERS)]
    return (own or raised or lines or ["no reason was given"])[-1][:_LONGEST_REASON]


__all__ = ["AppState", "Apps", "RolloutSettings", "Rollouts", "roll_out", "short_reason"]
