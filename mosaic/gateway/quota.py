"""How much is left of each limit: reserve before a request, extend while it runs, settle when it has ended.

Plain Python with the clock passed in; the actor around it is in `quota_shard`. A bucket is a sliding window, kept as
what was taken when, so that no window of its length, wherever it begins, ever holds more than the limit, and a request
is refused only if it does not fit. (A token bucket of the same rate lets through nearly twice the limit around a pause;
counters per calendar minute twice at each turn.) It costs a pair of numbers for each request of the last minute.

All calls are idempotent by the request's id: asked twice, a request gets the answer that it got. One that is settled is
forgotten, since nobody asks for it again.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

FORGET_SECONDS = 900
"""How long a request that was never settled is known: longer than any may run. What it took has left its windows."""


class Ask(NamedTuple):
    """What a request would take from one bucket."""

    bucket: str
    limit: int
    amount: int
    window_seconds: float = 60.0


class Left(NamedTuple):
    """How a bucket is after an answer."""

    limit: int
    remaining: int
    reset_seconds: float
    """Until all of it is free again."""


class Answer(NamedTuple):
    """Granted as a whole or not at all."""

    left: dict[str, Left]
    """By bucket."""
    refused_by: str | None = None
    """The bucket that it did not fit into; of several the one with the longest wait."""
    retry_after_seconds: float | None = None
    """When it would fit if nobody else asked; None for an amount over the limit, which never does."""

    @property
    def granted(self) -> bool:
        return self.refused_by is None


class _Taken:
    """One request's part of a window; its amount may change while it counts."""

    __slots__ = ("amount", "at")

    def __init__(self, at: float, amount: int) -> None:
        self.at, self.amount = at, amount


class _Window:
    def __init__(self, seconds: float) -> None:
        self.seconds, self.limit = seconds, 0
        self._parts: deque[_Taken] = deque()
        self._total = 0

    def pass_to(self, now: float) -> None:
        """What was taken a whole window ago counts no more."""
        while self._parts and self._parts[0].at <= now - self.seconds:
            part = self._parts.popleft()
            self._total -= part.amount
            part.at = -math.inf  # it changes nothing from here on

    def take(self, now: float, amount: int) -> _Taken:
        part = _Taken(now, amount)
        self._parts.append(part)
        self._total += amount
        return part

    def change(self, part: _Taken, by: int) -> None:
        if part.at != -math.inf:
            part.amount += by
            self._total += by

    def fits(self, amount: int) -> bool:
        return self._total + amount <= self.limit

    def wait_for(self, amount: int, now: float) -> float | None:
        """Seconds until so much is free."""
        if amount > self.limit:
            return None
        over, wait = self._total + amount - self.limit, 0.0
        for part in self._parts:
            if over <= 0:
                break
            over -= part.amount
            wait = part.at + self.seconds - now
        return wait

    def left(self, now: float) -> Left:
        reset = self._parts[-1].at + self.seconds - now if self._parts else 0.0
        return Left(self.limit, max(0, self.limit - self._total), reset)

    @property
    def is_empty(self) -> bool:
        return not self._parts


class _Request:
    def __init__(self, at: float, asks: Sequence[Ask], parts: dict[str, list[_Taken]], answer: Answer) -> None:
        self.at, self.parts, self.answer = at, parts, answer
        self.window_seconds = {ask.bucket: ask.window_seconds for ask in asks}
        self.extensions = 0


class Quota:
    """The buckets of one shard. Times are seconds of one clock that never goes back."""

    def __init__(self) -> None:
        self.windows: dict[str, _Window] = {}
        self._requests: dict[str, _Request] = {}
        """In the order in which they came."""

    def reserve(self, request_id: str, asks: Sequence[Ask], now: float) -> Answer:
        """Take all amounts, or none of them."""
        if (known := self._requests.get(request_id)) is not None:
            return known.answer
        self._forget(now)
        answer, parts = self._take(asks, now)
        if answer.granted:
            self._requests[request_id] = _Request(now, asks, {bucket: [part] for bucket, part in parts.items()}, answer)
        return answer

    def extend(self, request_id: str, number: int, asks: Sequence[Ask], now: float) -> Answer:
        """Take more for a request that runs, all or nothing; `number` counts its extensions from 1.

        One that is not known any more is taken up anew.
        """
        known = self._requests.get(request_id)
        if known is None:
            known = self._requests[request_id] = _Request(now, asks, {}, Answer({}))
        if number <= known.extensions:
            return known.answer
        answer, parts = self._take(asks, now)
        if answer.granted:
            known.extensions, known.answer = number, answer
            for bucket, part in parts.items():
                known.parts.setdefault(bucket, []).append(part)
        return answer

    def settle(self, request_id: str, used: Mapping[str, int], now: float) -> None:
        """Put what a request did take in place of what it reserved, in the buckets named; the others stay.

        What it took beyond that counts too, so that a limit which was passed that way makes the next ones wait.
        """
        known = self._requests.pop(request_id, None)
        if known is None:
            return
        for bucket, amount in used.items():
            parts = known.parts.get(bucket)
            if parts is None:
                continue
            # Its window may have passed and be gone, and what was used beyond what was reserved counts from now on.
            window = self.windows.setdefault(bucket, _Window(known.window_seconds[bucket]))
            window.pass_to(now)
            unused = sum(part.amount for part in parts) - amount
            if unused < 0:
                window.take(now, -unused)
            for part in reversed(parts) if unused > 0 else ():
                given_back = min(part.amount, unused)
                window.change(part, -given_back)
                unused -= given_back

    def left(self, prefix: str, now: float) -> dict[str, Left]:
        """How the buckets are whose names begin so; one that nobody took from lately is not among them."""
        found = {bucket: window for bucket, window in self.windows.items() if bucket.startswith(prefix)}
        for window in found.values():
            window.pass_to(now)
        return {bucket: window.left(now) for bucket, window in found.items()}

    def _take(self, asks: Sequence[Ask], now: float) -> tuple[Answer, dict[str, _Taken]]:
        windows = {ask.bucket: self._window(ask, now) for ask in asks}
        refusing = [ask for ask in asks if not windows[ask.bucket].fits(ask.amount)]
        parts = {} if refusing else {ask.bucket: windows[ask.bucket].take(now, ask.amount) for ask in asks}
        left = {bucket: window.left(now) for bucket, window in windows.items()}
        if not refusing:
            return Answer(left), parts
        waits = {ask.bucket: windows[ask.bucket].wait_for(ask.amount, now) for ask in refusing}
        longest = max(waits, key=lambda bucket: math.inf if (wait := waits[bucket]) is None else wait)
        return Answer(left, longest, waits[longest]), parts

    def _window(self, ask: Ask, now: float) -> _Window:
        window = self.windows.get(ask.bucket)
        if window is None:
            window = self.windows[ask.bucket] = _Window(ask.window_seconds)
        window.limit = ask.limit  # as the configuration has it now
        window.pass_to(now)
        return window

    def _forget(self, now: float) -> None:
        """Requests of long ago, and buckets that nobody used lately: memory follows what goes on."""
        while self._requests:
            oldest = next(iter(self._requests))
            if self._requests[oldest].at > now - FORGET_SECONDS:
                break
            del self._requests[oldest]
        if self.windows:  # one each time, in turns
            bucket, window = next(iter(self.windows.items()))
            del self.windows[bucket]
            window.pass_to(now)
            if not window.is_empty:
                self.windows[bucket] = window
