"""A clock for tests, which stands still until it is set."""

from datetime import UTC, datetime


class FixedClock:
    """`Catalog.open(url, now=clock)`; set `clock.now` to a moment with a zone."""

    def __init__(self, now: datetime = datetime(2026, 11, 1, 10, 0, tzinfo=UTC)) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now
