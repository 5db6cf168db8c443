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
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Literal, NamedTuple, Protocol

from mosaic.catalog import Catalog
from mosaic.catalog.records import Endpoint, EndpointConfig
from mosaic.errors import BadRequest, MosaicError, NotFound, Unavailable
from mosaic.protocol import Wire
from mosaic.serving.endpoint import APP_PREFIX, EndpointSettings, Unit, pins_of, unit_of, units_of

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.25
_TIDY_SECONDS = 1.0
_STOP_SECONDS = 30
_TRIES = 12
"""About three minutes, for what is nobody's fault, such as a database that is away."""
_LONGEST_PAUSE_SECONDS = 30
_RESTART_SECONDS, _LONGEST_RESTART_SECONDS = 30, 600
"""How long the engine of a live configuration is left alone after it was started again; twice as long each time."""
_LONGEST_REASON = 600
_EXCEPTION = re.compile(r"^(?:ray\.exceptions\.|[a-z_]\w*\.)*([A-Z]\w*(?:Error|Exception|Failed|Exit)\b.*)$")
_WRAPPERS = ("RayTaskError", "RayActorError", "ActorDiedError", "RuntimeError: Traceback")


SCALED_TO_ZERO = "scaled to zero: the next request waits until an engine has started"
"""What is told of an engine that runs in so far as a request would start it."""


class AppState(NamedTuple):
    """How an engine's application is."""

    state: Literal["starting", "running", "failed", "ending"]
    reason: str = ""


class Apps(Protocol):
    """Engines as applications: Ray Serve's (`serving.apps`), or the double of tests."""

    def states(self) -> dict[str, AppState]: ...

    def start(self, unit: Unit) -> None:
        """Returns at once; raises what `start_engine` raises."""

    def probe(self, app_name: str, settings: EndpointSettings, model: str, start_seconds: float) -> None:
        """One real request, of one token; raises what the engine raised. One that sleeps may take `start_seconds`."""

    def end(self, app_name: str) -> None:
        """Returns at once; requests on their way are answered first."""


class RolloutSettings(Wire):
    start_timeout_seconds: float = 1800
    """How long the engines of a configuration may take to run."""
    grace_seconds: float = 5
    """How long an engine that nothing names stays, for gateways that have not seen it yet."""


class Rollouts:
    """Carries every endpoint's pending configuration on, each in a thread of its own; one of these runs per platform.

    What is to run is in the catalog, and what runs is Serve's to tell, so that after a crash another one goes on. All
    applications whose names begin with `engine-` are taken to be endpoints'.
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
        self._starts = _Starts(apps)
        self._revision, self._endpoints = -1, dict[str, Endpoint]()
        self._units: dict[str, tuple[set[Unit], set[Unit]]] = {}
        """By endpoint: the engines of its live configuration, and of that and the pending one together."""
        self._unnamed_since: dict[str, float] = {}
        self._started_again: dict[str, tuple[int, float]] = {}
        """By application that a live configuration lacked: how often it was started, and when it may be again."""
        self._tidied_at = -_TIDY_SECONDS

    def run(self) -> None:
        """Until `stop`."""
        while not self._starts.stopped.is_set():
            try:
                self.step()
            except Exception:  # a boundary: catalog or Serve may be away for a while, and the next round tries again
                logger.exception("rolling out failed")
            self._starts.stopped.wait(_POLL_SECONDS)

    def stop(self) -> None:
        """No engine is started or ended from here on; waits for what is being started."""
        self._starts.stop()

    def step(self) -> None:
        """Start the rollouts that are to be; follow aliases; start what a live configuration lacks; end what nothing
        names."""
        revision = self._catalog.revision()
        if revision != self._revision:
            self._read()
            self._revision = revision
        for endpoint in self._endpoints.values():
            if endpoint.pending is not None:
                self._begin(endpoint, endpoint.pending)
        if self._clock() - self._tidied_at >= _TIDY_SECONDS:
            self._tidied_at = self._clock()
            self._tidy()

    def _read(self) -> None:
        """Raises what the catalog raises if it is away, with nothing changed."""
        endpoints = {one.id: one for one in self._catalog.endpoints.list()}
        units: dict[str, tuple[set[Unit], set[Unit]]] = {}
        for one in endpoints.values():
            try:
                live = units_of(self._catalog, one.config, one.pinned) if one.config_version else set()
                used = {unit for config, pins in one.in_use for unit in units_of(self._catalog, config, pins)}
                units[one.id] = live, used
            except (NotFound, BadRequest):  # one configuration that cannot be read must not hold up the others
                logger.exception("endpoint %s cannot be read", one.name)
                units[one.id] = self._units.get(one.id, (set(), set()))
        self._endpoints, self._units = endpoints, units
        for one in endpoints.values():
            if one.pending is None and one.config_version:
                with suppress(NotFound, BadRequest):
                    self._follow(one)

    def _follow(self, endpoint: Endpoint) -> None:
        """An alias that moved means another version: rolled out as any change, unless just that has failed."""
        pins, failed = pins_of(self._catalog, endpoint.config), endpoint.failed
        tried = failed is not None and (failed.config, failed.pinned) == (endpoint.config, pins)
        if endpoint.pinned.keys() <= pins.keys() and pins != endpoint.pinned and not tried:
            self._catalog.endpoints.renew(endpoint.id, endpoint.config_version)

    def _begin(self, endpoint: Endpoint, config: EndpointConfig) -> None:
        key = (endpoint.id, config.version)
        if key not in self._going:
            thread = threading.Thread(target=self._carry, args=(key, endpoint, config), name="rollout", daemon=True)
            self._going[key] = thread
            thread.start()

    def _carry(self, key: tuple[str, int], endpoint: Endpoint, config: EndpointConfig) -> None:
        try:
            for turn in range(_TRIES):
                try:
                    roll_out(
                        self._catalog, self._apps, endpoint, config, self._settings, self._starts, clock=self._clock
                    )
                    return
                except Exception as error:  # a boundary: the catalog or Serve may be away for a while
                    logger.exception("rolling out config %d of endpoint %s failed", config.version, endpoint.name)
                    if turn == _TRIES - 1:
                        told = error.message if isinstance(error, MosaicError) else f"{type(error).__name__}: {error}"
                        self._catalog.endpoints.fail(endpoint.id, config.version, told)
                    time.sleep(min(_POLL_SECONDS * 2**turn, _LONGEST_PAUSE_SECONDS))
        finally:
            self._revision = -1  # read again, also if nothing was settled
            self._going.pop(key, None)

    def _tidy(self) -> None:
        states, now = self._apps.states(), self._clock()
        lacking = {unit for live, _ in self._units.values() for unit in live if _is_missing(states, unit)}
        for unit in sorted(lacking):
            self._start_again(unit, now)
        for app in self._started_again.keys() - {unit.app_name for unit in lacking}:
            if states.get(app, AppState("failed")).state == "running":
                del self._started_again[app]
        named = {unit.app_name for _, used in self._units.values() for unit in used}
        for app, there in states.items():
            if not app.startswith(APP_PREFIX) or app in named or there.state == "ending":
                self._unnamed_since.pop(app, None)
            elif now - self._unnamed_since.setdefault(app, now) >= self._settings.grace_seconds:
                self._apps.end(app)

    def _start_again(self, unit: Unit, now: float) -> None:
        times, not_before = self._started_again.get(unit.app_name, (0, now))
        if now >= not_before:
            pause = min(_RESTART_SECONDS * 2**times, _LONGEST_RESTART_SECONDS)
            self._started_again[unit.app_name] = times + 1, now + pause
            threading.Thread(target=self._started_or_logged, args=(unit,), name="start", daemon=True).start()

    def _started_or_logged(self, unit: Unit) -> None:
        try:
            self._starts.start(unit)
        except Exception:  # a boundary: a model that is gone, or Serve away; tried again after a pause
            logger.exception("the engine of %s cannot be started", unit.model)


class _Starts:
    """Starts of engines, one at a time for each: starting one twice would replace it under whoever it answers."""

    def __init__(self, apps: Apps) -> None:
        self._apps = apps
        self.stopped = threading.Event()
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)

    def stop(self) -> None:
        self.stopped.set()
        for lock in list(self._locks.values()):
            if lock.acquire(timeout=_STOP_SECONDS):
                lock.release()

    def start(self, unit: Unit) -> None:
        """Unless it runs or starts already."""
        with self._locks[unit.app_name]:
            if not self.stopped.is_set() and _is_missing(self._apps.states(), unit):
                self._apps.start(unit)


def roll_out(
    catalog: Catalog,
    apps: Apps,
    endpoint: Endpoint,
    config: EndpointConfig,
    settings: RolloutSettings,
    starts: "_Starts | None" = None,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Until the configuration is live, has failed, or is pending no more since another one took its place.

    What the catalog itself raises is raised: it is no fault of the configuration.
    """
    starts = starts or _Starts(apps)
    try:
        with _its_fault():
            wanted = EndpointSettings.parse(config.config, source=f"endpoint {endpoint.name}")
            pinned = pins_of(catalog, config.config)
            units = sorted({unit_of(catalog, entity, pinned) for entity in wanted.own_entities})
        if not catalog.endpoints.pin(endpoint.id, config.version, pinned):
            return
        for unit in units:
            if not _is_pending(catalog, endpoint, config):
                return
            with _its_fault():
                starts.start(unit)
        deadline = clock() + settings.start_timeout_seconds
        while not _all_run(apps, units):
            if clock() > deadline:
                waiting = sorted(_told(apps, unit) for unit in units)
                raise _Fault(f"not running after {settings.start_timeout_seconds:g} s: {'; '.join(waiting)}")
            if not _is_pending(catalog, endpoint, config):
                return
            sleep(_POLL_SECONDS)
            with _its_fault():
                for unit in _gone(apps, units):
                    starts.start(unit)
        for entity in wanted.own_entities:
            app_name = unit_of(catalog, entity, pinned).app_name
            with _its_fault(said=f"served entity {entity.name!r} fails its probe: "):
                model = pinned.get(entity.model, entity.model)
                apps.probe(app_name, wanted, model, settings.start_timeout_seconds)
    except _Fault as error:
        catalog.endpoints.fail(endpoint.id, config.version, str(error))
        return
    catalog.endpoints.activate(endpoint.id, config.version)


class _Fault(Exception):
    """A configuration's own: why it cannot go live."""


@contextmanager
def _its_fault(*, said: str = "") -> Iterator[None]:
    """All but what was away: the catalog, a store, an engine that has just gone. That is tried again."""
    try:
        yield
    except Unavailable:
        raise
    except MosaicError as error:
        raise _Fault(f"{said}{error.message}") from error


def _gone(apps: Apps, units: Iterable[Unit]) -> list[Unit]:
    """What somebody else has ended."""
    states = apps.states()
    return [one for one in units if states.get(one.app_name, AppState("ending")).state == "ending"]


def _is_missing(states: Mapping[str, AppState], unit: Unit) -> bool:
    there = states.get(unit.app_name)
    return there is None or there.state in ("failed", "ending")


def _all_run(apps: Apps, units: Iterable[Unit]) -> bool:
    states = apps.states()
    for unit in units:
        there = states.get(unit.app_name, AppState("starting"))
        if there.state == "failed":
            raise _Fault(f"the engine of {unit.model!r} does not start: {short_reason(there.reason)}")
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
