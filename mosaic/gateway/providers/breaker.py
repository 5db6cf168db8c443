"""When a provider is left alone for a while, and how many requests may be asked a second time.

Plain Python: what happened and the time are handed in.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from mosaic.gateway.providers.failures import Outcome
from mosaic.settings import Settings

_SLICES = 10


class BreakerSettings(Settings):
    """When a served entity is no longer asked, and for how long."""

    window_seconds: float = Field(default=30.0, gt=0)
    """How far back its failures count."""
    min_requests: int = Field(default=10, ge=1)
    """Fewer requests than these in the window open nothing."""
    failure_rate: float = Field(default=0.5, gt=0, le=1)
    """From this share of failures on it is open."""
    open_seconds: float = Field(default=10.0, gt=0)
    """How long it is open before one request is let through as a probe."""
    credentials_seconds: float = Field(default=300.0, gt=0)
    """The same after the provider refused our key, which does not heal by itself."""
    probe_seconds: float = Field(default=60.0, gt=0)
    """A probe that has not ended by then is given up, and another may be sent."""


@dataclass(frozen=True)
class Pass:
    """That a request may be asked; given back with how it ended."""

    round: int
    """Which opening it was given after: what it learns about an earlier one no longer counts."""
    is_probe: bool = False


class Breaker:
    """The circuit breaker of one served entity (Nygard, "Release It!", 2007): closed, open, half-open.

    Not thread-safe; times are those of one clock that does not go back.
    """

    def __init__(self, settings: BreakerSettings | None = None) -> None:
        self._settings = settings or BreakerSettings()
        self._window = Window(self._settings.window_seconds)
        self._round = 0
        self._opened_until: float | None = None
        self._rests_until = -math.inf
        self._probe_until = -math.inf

    def state(self, *, now: float) -> Literal["closed", "open", "half-open"]:
        """`open` also while the provider asked to wait."""
        if now < self._rests_until:
            return "open"
        if self._opened_until is None:
            return "closed"
        return "open" if now < self._opened_until else "half-open"

    def open_seconds(self, *, now: float) -> float:
        """How long it stays open; 0 when it is not."""
        opened_until = -math.inf if self._opened_until is None else self._opened_until
        return max(0.0, max(self._rests_until, opened_until) - now)

    def admit(self, *, now: float) -> Pass | None:
        """A pass for one request, to be given to `record`; None while the provider is left alone."""
        match self.state(now=now):
            case "closed":
                return Pass(self._round)
            case "half-open" if now >= self._probe_until:
                # The probe before was given up, so what it finds no longer counts.
                self._round += 1
                self._probe_until = now + self._settings.probe_seconds
                return Pass(self._round, is_probe=True)
            case _:
                return None

    def record(self, given: Pass, outcome: Outcome, *, now: float, retry_after_seconds: float | None = None) -> None:
        """How a request ended. A wait that the provider asks for counts whichever request heard of it."""
        if outcome == "rate_limited" and retry_after_seconds is not None:
            self._rests_until = max(self._rests_until, now + retry_after_seconds)
        if given.round != self._round:
            return
        if outcome == "credentials":
            self._open(now + self._settings.credentials_seconds)
        elif given.is_probe:
            self._record_probe(outcome, now)
        elif outcome in ("ok", "failed"):
            self._window.add(now, outcome == "failed")
            count, failures = self._window.totals(now)
            if count >= self._settings.min_requests and failures >= self._settings.failure_rate * count:
                self._open(now + self._settings.open_seconds)

    def _record_probe(self, outcome: Outcome, now: float) -> None:
        self._probe_until = -math.inf
        if outcome == "failed":
            self._open(now + self._settings.open_seconds)
        elif outcome != "unrelated":  # a provider that asks to wait is well
            self._round += 1
            self._opened_until = None
            self._window = Window(self._settings.window_seconds)

    def _open(self, until: float) -> None:
        self._round += 1
        self._opened_until, self._probe_until = until, -math.inf


class RetryBudget:
    """How many requests may be asked again: a share of all in the window, so that retries never are most of the load.

    A few are allowed however few requests there are.
    """

    def __init__(self, *, share: float = 0.2, window_seconds: float = 10.0, floor: int = 3) -> None:
        self._share, self._floor = share, floor
        self._window = Window(window_seconds)

    def note_request(self, *, now: float) -> None:
        """A client's request, however often it is asked."""
        self._window.add(now, False)

    def take(self, *, now: float) -> bool:
        """Whether one more may be asked again; counts it if so."""
        count, retries = self._window.totals(now)
        if retries >= max(self._floor, math.floor(self._share * (count - retries))):
            return False
        self._window.add(now, True)
        return True


class Window:
    """Counts of the last `seconds`, kept in ten slices: what happened, and how much of it is marked."""

    def __init__(self, seconds: float) -> None:
        self._slice_seconds = seconds / _SLICES
        self._slices: deque[list[int]] = deque()
        """[number of the slice, count, marked]"""

    def add(self, now: float, is_marked: bool) -> None:
        number = math.floor(now / self._slice_seconds)
        if not self._slices or self._slices[-1][0] < number:
            self._slices.append([number, 0, 0])
        self._slices[-1][1] += 1
        self._slices[-1][2] += is_marked

    def totals(self, now: float) -> tuple[int, int]:
        """(all, marked) of the last ten slices, the one that is under way among them."""
        oldest = math.floor(now / self._slice_seconds) - _SLICES
        while self._slices and self._slices[0][0] <= oldest:
            self._slices.popleft()
        return sum(one[1] for one in self._slices), sum(one[2] for one in self._slices)
